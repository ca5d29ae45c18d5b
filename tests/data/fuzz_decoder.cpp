// Feeds mutated JPEGs and row indexes to the decoder; tools/fuzz-decoder builds it with AddressSanitizer and UBSan and runs it.
//
// A mutation flips bits, cuts the file, zeroes or repeats a run, or changes bytes of the headers. Whatever it is, no call
// may touch memory outside its buffers (the sanitizers abort), or take long. Where the whole file decodes without a
// complaint, every box of it has to decode too, and to the pixels of the whole. The decoder that leaves every image to libjpeg
// has to say the same of every box, and to give the same pixels, with the index of the file, of the file before its mutation,
// a mutated one, or none. Last come mutated indexes whose checksum is right: of them only memory and time are looked at.
//
// FUZZ_SEED, 1 where it is not set, says which mutations.
//
//     fuzz_decoder COUNT REFERENCE.so JPEG...
#include <dlfcn.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <vector>

#include "../../fastkd/data/views/jpeg/row_index.cpp" // whose checksum no one else can make

extern "C" {
using View = int32_t (*)(
    const uint8_t*, uint64_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, uint8_t*, int64_t,
    int32_t, int32_t, const uint8_t*, uint64_t);
int32_t fastkd_indexed_view(
    const uint8_t*, uint64_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, uint8_t*, int64_t,
    int32_t, int32_t, const uint8_t*, uint64_t);
int32_t fastkd_check_jpeg(const uint8_t*, uint64_t, int32_t, int32_t);
int64_t fastkd_index_rows(const uint8_t*, uint64_t, int32_t, int32_t, uint8_t*, int64_t);
}

namespace {

using Bytes = std::vector<uint8_t>;
std::mt19937_64 generator(1);

size_t below(size_t end) { return end ? generator() % end : 0; }

// Height and width in the frame header, found the simple way.
std::pair<int, int> sides(const Bytes& file) {
    for (size_t i = 2; i + 9 < file.size(); i++)
        if (file[i] == 0xFF && (file[i + 1] == 0xC0 || file[i + 1] == 0xC1 || file[i + 1] == 0xC2))
            return {file[i + 5] * 256 + file[i + 6], file[i + 7] * 256 + file[i + 8]};
    return {1, 1};
}

Bytes mutated(Bytes file) {
    const size_t n = file.size(), at = below(n), run = std::min(n - at, 1 + below(64));
    switch (below(6)) {
    case 0: file[at] ^= 1 << below(8); break;
    case 1:
        for (int i = 0; i < 8; i++) file[below(n)] ^= 1 << below(8);
        break;
    case 2: file.resize(at); break;
    case 3: std::memset(file.data() + at, 0, run); break;
    case 4: file.insert(file.begin() + below(n), file.begin() + at, file.begin() + at + run); break;
    case 5: file[below(std::min<size_t>(n, 700))] = static_cast<uint8_t>(below(256)); break;
    }
    return file;
}

// In memory of exactly its size, so that a byte too far is noticed.
std::unique_ptr<uint8_t[]> exact(const Bytes& file) {
    std::unique_ptr<uint8_t[]> copy(new uint8_t[file.size()]);
    std::copy(file.begin(), file.end(), copy.get());
    return copy;
}

struct Found {
    int32_t status;
    Bytes pixels; // none where the status is not 0
    bool operator==(const Found& other) const { return status == other.status && pixels == other.pixels; }
};

struct Wanted {
    int height, width, box[4], flip, out_height, out_width;
};

Found view(View function, const Bytes& file, bool raw, const Wanted& wanted, const Bytes& entry = {}) {
    const auto &[height, width, box, flip, out_height, out_width] = wanted;
    const auto data = exact(file), rows = exact(entry);
    Found found = {0, Bytes(3 * static_cast<size_t>(out_height) * out_width)};
    found.status = function(
        data.get(), file.size(), raw, height, width, box[0], box[1], box[2], box[3], flip, found.pixels.data(), 3 * out_width,
        out_height, out_width, rows.get(), entry.size());
    if (found.status) found.pixels.clear();
    return found;
}

Bytes index_of(const Bytes& file, int height, int width) {
    Bytes entry(8 + 10 * ((height + 7) / 8));
    entry.resize(fastkd_index_rows(exact(file).get(), file.size(), height, width, entry.data(), entry.size()));
    return entry;
}

// The entry with a checksum that is right.
Bytes signed_again(Bytes entry, const Bytes& file) {
    if (entry.size() < 8) return entry;
    fastkd::put_little_endian<uint64_t>(
        fastkd::checksum(file.data(), file.size(), entry.data() + 8, entry.size() - 8), entry.data());
    return entry;
}

Wanted some_view(int height, int width) {
    const int h = 1 + below(height), w = 1 + below(width);
    const int top = below(height - h + 1), left = below(width - w + 1);
    return {height, width, {top, left, h, w}, static_cast<int>(below(2)), static_cast<int>(1 + below(60)),
            static_cast<int>(1 + below(60))};
}

} // namespace

int main(int count, char** arguments) {
    std::vector<Bytes> files;
    for (int i = 3; i < count; i++) {
        std::ifstream stream(arguments[i], std::ios::binary);
        files.emplace_back(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
    }
    void* library = dlopen(arguments[2], RTLD_NOW | RTLD_LOCAL);
    const View reference = library ? reinterpret_cast<View>(dlsym(library, "fastkd_indexed_view")) : nullptr;
    if (!reference) {
        std::fprintf(stderr, "%s: %s\n", arguments[2], dlerror());
        return 1;
    }
    const View own = fastkd_indexed_view;
    const int num_mutations = std::atoi(arguments[1]);
    if (const char* seed = std::getenv("FUZZ_SEED")) generator.seed(std::strtoull(seed, nullptr, 10));
    int whole = 0, views = 0, indexed = 0;
    int64_t inputs = 0; // an image, an index and a box each
    for (int n = 0; n < num_mutations; n++) {
        const Bytes& before = files[n % files.size()];
        const Bytes file = below(8) ? mutated(before) : before;
        auto [height, width] = sides(below(4) ? file : before);
        height = std::max(height, 1), width = std::max(width, 1);
        const auto begin = std::chrono::steady_clock::now();
        const bool is_whole = fastkd_check_jpeg(file.data(), file.size(), height, width) == 0;
        const Wanted all = {height, width, {0, 0, height, width}, 0, height, width};
        const Bytes pixels = is_whole ? view(own, file, false, all).pixels : Bytes();
        whole += is_whole;
        const Bytes entry = index_of(file, height, width);
        const auto [height_before, width_before] = sides(before);
        const Bytes stale = index_of(before, height_before, width_before);
        const Bytes entries[] = {Bytes(), entry, stale, mutated(stale.empty() ? Bytes(90) : stale)};
        indexed += !entry.empty();
        for (int i = 0; i < 3; i++) {
            const Wanted wanted = some_view(height, width);
            const Found found = view(own, file, false, wanted);
            views += found.status == 0;
            if (is_whole && found.pixels != view(own, pixels, true, wanted).pixels) {
                std::fprintf(stderr, "mutation %d: a box has other pixels than the whole image has there\n", n);
                return 1;
            }
            const Found expected = view(reference, file, false, wanted);
            for (const Bytes& one : entries)
                if (!(view(own, file, false, wanted, one) == expected)) {
                    std::fprintf(
                        stderr, "mutation %d: status %d or pixels of a box are not those of libjpeg alone, %d (index %d)\n", n,
                        found.status, expected.status, static_cast<int>(&one - entries));
                    return 1;
                }
            inputs += 4 + !stale.empty();
            if (!stale.empty()) view(own, file, false, wanted, signed_again(entries[3], file));
        }
        if (std::chrono::steady_clock::now() - begin > std::chrono::seconds(20)) {
            std::fprintf(stderr, "mutation %d: took more than 20 s\n", n);
            return 1;
        }
    }
    std::printf(
        "%d mutated JPEGs: %d still whole, %d with an index, %d of %lld views decode; %lld inputs with the indexes\n",
        num_mutations, whole, indexed, views, 3LL * num_mutations, static_cast<long long>(inputs));
    return 0;
}
