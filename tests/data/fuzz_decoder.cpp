// Feeds mutated JPEGs to the decoder; tools/fuzz-decoder builds it with AddressSanitizer and UBSan and runs it.
//
// A mutation flips bits, cuts the file, zeroes or repeats a run, or changes bytes of the headers. Whatever it is, no call
// may touch memory outside its buffers (the sanitizers abort), or take long. Where the whole file decodes without a
// complaint, every box of it has to decode too, and to the pixels of the whole.
//
//     fuzz_decoder COUNT JPEG...
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

extern "C" {
int32_t fastkd_view(
    const uint8_t*, uint64_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, uint8_t*, int64_t,
    int32_t, int32_t);
int32_t fastkd_check_jpeg(const uint8_t*, uint64_t, int32_t, int32_t);
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

// A view in memory of exactly its size, so that a byte too far is noticed; empty where it fails.
Bytes view(const Bytes& file, bool raw, int height, int width, const int (&box)[4], int flip, int out_height, int out_width) {
    std::unique_ptr<uint8_t[]> exact(new uint8_t[file.size()]);
    std::copy(file.begin(), file.end(), exact.get());
    Bytes out(3 * static_cast<size_t>(out_height) * out_width);
    const int32_t status = fastkd_view(
        exact.get(), file.size(), raw, height, width, box[0], box[1], box[2], box[3], flip, out.data(), 3 * out_width,
        out_height, out_width);
    return status == 0 ? out : Bytes();
}

} // namespace

int main(int count, char** arguments) {
    std::vector<Bytes> files;
    for (int i = 2; i < count; i++) {
        std::ifstream stream(arguments[i], std::ios::binary);
        files.emplace_back(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
    }
    const int num_mutations = std::atoi(arguments[1]);
    int whole = 0, views = 0;
    for (int n = 0; n < num_mutations; n++) {
        const Bytes file = mutated(files[n % files.size()]);
        auto [height, width] = sides(below(4) ? file : files[n % files.size()]);
        height = std::max(height, 1), width = std::max(width, 1);
        const auto begin = std::chrono::steady_clock::now();
        const bool is_whole = fastkd_check_jpeg(file.data(), file.size(), height, width) == 0;
        const Bytes pixels =
            is_whole ? view(file, false, height, width, {0, 0, height, width}, 0, height, width) : Bytes();
        whole += is_whole;
        for (int i = 0; i < 3; i++) {
            const int h = 1 + below(height), w = 1 + below(width);
            const int box[4] = {static_cast<int>(below(height - h + 1)), static_cast<int>(below(width - w + 1)), h, w};
            const int out_height = 1 + below(60), out_width = 1 + below(60), flip = below(2);
            const Bytes found = view(file, false, height, width, box, flip, out_height, out_width);
            views += !found.empty();
            if (is_whole && found != view(pixels, true, height, width, box, flip, out_height, out_width)) {
                std::fprintf(stderr, "mutation %d: a box has other pixels than the whole image has there\n", n);
                return 1;
            }
        }
        if (std::chrono::steady_clock::now() - begin > std::chrono::seconds(20)) {
            std::fprintf(stderr, "mutation %d: took more than 20 s\n", n);
            return 1;
        }
    }
    std::printf("%d mutated JPEGs: %d still whole, %d of %d views decode\n", num_mutations, whole, views, 3 * num_mutations);
    return 0;
}
