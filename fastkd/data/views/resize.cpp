// Each pass is there twice: in plain C++, and for AVX2. All sums are exact, so that both give the same bytes.
#include "resize.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(FASTKD_PLAIN)
#include <immintrin.h>
#define FASTKD_AVX2 __attribute__((target("avx2")))
#endif

namespace fastkd {
namespace {

void blend_rows_plain(const uint8_t* const* rows, const int16_t* weights, int taps, int start, int count, int16_t* out) {
    constexpr int kBlock = 64;
    for (; start < count; start += kBlock) {
        const int n = std::min(kBlock, count - start);
        int32_t sums[kBlock];
        std::fill(sums, sums + kBlock, 1 << 6);
        for (int k = 0; k < taps; k++)
            for (int c = 0; c < n; c++) sums[c] += weights[k] * rows[k][start + c];
        for (int c = 0; c < n; c++) out[start + c] = static_cast<int16_t>(sums[c] >> 7);
    }
}

void blend_columns_plain(const int16_t* source, const Axis& axis, uint8_t* out) {
    for (int i = 0; i < axis.out; i++) {
        const int16_t* from = source + 3 * axis.first[i];
        const int16_t* weights = axis.weights + static_cast<int64_t>(i) * axis.taps;
        int32_t red = 1 << 20, green = 1 << 20, blue = 1 << 20;
        for (int k = 0; k < axis.taps; k++) {
            red += weights[k] * from[3 * k];
            green += weights[k] * from[3 * k + 1];
            blue += weights[k] * from[3 * k + 2];
        }
        out[3 * i] = static_cast<uint8_t>(red >> 21);
        out[3 * i + 1] = static_cast<uint8_t>(green >> 21);
        out[3 * i + 2] = static_cast<uint8_t>(blue >> 21);
    }
}

#ifdef FASTKD_AVX2

const bool has_avx2 = (__builtin_cpu_init(), __builtin_cpu_supports("avx2"));

inline int32_t pair_of(const int16_t* weights) {
    int32_t pair;
    std::memcpy(&pair, weights, sizeof pair);
    return pair;
}

constexpr int kColumns = 32; // that the vertical pass takes at a time

template <int PAIRS> // 0 for any number
FASTKD_AVX2 void blend_rows_avx2(
    const uint8_t* const* rows, const int16_t* weights, int taps, int count, int16_t* out) {
    const int pairs = PAIRS ? PAIRS : taps / 2;
    const uint8_t* from[2 * PAIRS + 1]; // copies, which a store to `out` cannot change
    __m256i weight[PAIRS + 1];
    for (int k = 0; k < PAIRS; k++) {
        from[2 * k] = rows[2 * k], from[2 * k + 1] = rows[2 * k + 1];
        weight[k] = _mm256_set1_epi32(pair_of(weights + 2 * k));
    }
    const __m256i zero = _mm256_setzero_si256();
    for (int next = 0; next < count; next += kColumns) {
        const int at = std::min(next, count - kColumns); // the last columns: some of them a second time
        __m256i sums[4];
        for (__m256i& sum : sums) sum = _mm256_set1_epi32(1 << 6);
        for (int k = 0; k < pairs; k++) {
            const __m256i pair = PAIRS ? weight[k] : _mm256_set1_epi32(pair_of(weights + 2 * k));
            const uint8_t* const* source = PAIRS ? from : rows;
            const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source[2 * k] + at));
            const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source[2 * k + 1] + at));
            const __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
            sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(_mm256_unpacklo_epi8(low, zero), pair));
            sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(_mm256_unpackhi_epi8(low, zero), pair));
            sums[2] = _mm256_add_epi32(sums[2], _mm256_madd_epi16(_mm256_unpacklo_epi8(high, zero), pair));
            sums[3] = _mm256_add_epi32(sums[3], _mm256_madd_epi16(_mm256_unpackhi_epi8(high, zero), pair));
        }
        for (__m256i& sum : sums) sum = _mm256_srai_epi32(sum, 7);
        const __m256i low = _mm256_packs_epi32(sums[0], sums[1]), high = _mm256_packs_epi32(sums[2], sums[3]);
        __m256i* to = reinterpret_cast<__m256i*>(out + at);
        _mm256_storeu_si256(to, _mm256_permute2x128_si256(low, high, 0x20));
        _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(low, high, 0x31));
    }
}

// The sums of one output place in both rows: four int32 each, the fourth without meaning.
template <int PAIRS>
FASTKD_AVX2 inline __m256i place(const int16_t* const source[2], const Axis& axis, int i) {
    const __m256i channels = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11, 12, 13, 14, 15)); // r r g g b b of two places
    const int pairs = PAIRS ? PAIRS : axis.taps / 2;
    const int16_t* weights = axis.weights + static_cast<int64_t>(i) * 2 * pairs;
    const int16_t *upper = source[0] + 3 * axis.first[i], *lower = source[1] + 3 * axis.first[i];
    __m256i sum = _mm256_set1_epi32(1 << 20);
    for (int k = 0; k < pairs; k++, upper += 6, lower += 6) {
        const __m256i two = _mm256_inserti128_si256(
            _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(upper))),
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(lower)), 1);
        sum = _mm256_add_epi32(
            sum, _mm256_madd_epi16(_mm256_shuffle_epi8(two, channels), _mm256_set1_epi32(pair_of(weights + 2 * k))));
    }
    return _mm256_srai_epi32(sum, 21);
}

template <int PAIRS>
FASTKD_AVX2 void blend_columns_avx2(const int16_t* const source[2], const Axis& axis, uint8_t* const out[2]) {
    const __m256i colours = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1)); // four places without the fourth value
    for (int i = 0; i < axis.out; i += 4) {
        const __m256i ab = _mm256_packs_epi32(place<PAIRS>(source, axis, i), place<PAIRS>(source, axis, i + 1));
        const __m256i cd = _mm256_packs_epi32(place<PAIRS>(source, axis, i + 2), place<PAIRS>(source, axis, i + 3));
        const __m256i four = _mm256_shuffle_epi8(_mm256_packus_epi16(ab, cd), colours);
        const __m128i upper = _mm256_castsi256_si128(four), lower = _mm256_extracti128_si256(four, 1);
        if (3 * i + 16 <= 3 * axis.out) { // the next places overwrite the last four bytes
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out[0] + 3 * i), upper);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out[1] + 3 * i), lower);
        } else {
            const size_t bytes = 3 * std::min(4, axis.out - i);
            std::memcpy(out[0] + 3 * i, &upper, bytes);
            std::memcpy(out[1] + 3 * i, &lower, bytes);
        }
    }
}

#endif

} // namespace

int count_taps(int64_t length, int64_t out) {
    const int64_t reach = 2 * std::max(length, out);
    return static_cast<int>((((reach + out - 1) / out) + 1) / 2 * 2);
}

void find_sources(int64_t length, int64_t out, int64_t from, int64_t count, int& first, int& end) {
    const int64_t reach = 2 * std::max(length, out);
    const int64_t before = (2 * from + 1) * length - reach - out, after = (2 * (from + count) - 1) * length + reach - out;
    first = before < 0 ? 0 : static_cast<int>(before / (2 * out) + 1);
    end = static_cast<int>(std::min(length, (after + 2 * out - 1) / (2 * out)));
}

void fill_axis(const Axis& axis, bool flip) {
    const int64_t length = axis.whole_length, out = axis.whole_out, reach = 2 * std::max(length, out);
    int64_t begin = 0;
    for (int64_t i = 0; i < axis.out; i++) {
        const int64_t centre = (2 * (axis.from + i) + 1) * length;
        while ((2 * begin + 1) * out <= centre - reach) begin++;
        const auto triangle = [&](int64_t x) {
            const int64_t distance = (2 * x + 1) * out - centre;
            return reach - (distance < 0 ? -distance : distance);
        };
        uint64_t total = 0;
        int64_t end = begin;
        for (int64_t w; end < length && (w = triangle(end)) > 0; end++) total += w;
        const uint64_t inverse = (uint64_t{1} << 62) / total;
        const int64_t place = flip ? axis.out - 1 - i : i;
        const int64_t first = std::min(begin - axis.start, std::max<int64_t>(0, axis.length - axis.taps));
        int16_t* weights = axis.weights + place * axis.taps;
        std::fill(weights, weights + axis.taps, int16_t{0});
        uint64_t sum = 0, before = 0;
        for (int64_t x = begin; x < end; x++) {
            sum += triangle(x);
            const uint64_t rounded = (sum * inverse + (uint64_t{1} << 47)) >> 48;
            weights[x - axis.start - first] = static_cast<int16_t>(rounded - before);
            before = rounded;
        }
        axis.first[place] = static_cast<int>(first);
    }
    for (int64_t i = axis.out; i % 4; i++) {
        axis.first[i] = 0;
        std::fill(axis.weights + i * axis.taps, axis.weights + (i + 1) * axis.taps, int16_t{0});
    }
}

void blend_rows(const uint8_t* const* rows, const int16_t* weights, int taps, int count, int16_t* out) {
    while (taps > 2 && !weights[taps - 1] && !weights[taps - 2]) taps -= 2;
#ifdef FASTKD_AVX2
    if (has_avx2 && count >= kColumns) {
        switch (taps) {
        case 2: return blend_rows_avx2<1>(rows, weights, taps, count, out);
        case 4: return blend_rows_avx2<2>(rows, weights, taps, count, out);
        default: return blend_rows_avx2<0>(rows, weights, taps, count, out);
        }
    }
#endif
    blend_rows_plain(rows, weights, taps, 0, count, out);
}

void blend_columns(const int16_t* const source[2], const Axis& axis, uint8_t* const out[2]) {
#ifdef FASTKD_AVX2
    if (has_avx2) {
        switch (axis.taps) {
        case 2: return blend_columns_avx2<1>(source, axis, out);
        case 4: return blend_columns_avx2<2>(source, axis, out);
        case 6: return blend_columns_avx2<3>(source, axis, out);
        default: return blend_columns_avx2<0>(source, axis, out);
        }
    }
#endif
    for (int row = 0; row < 2; row++) blend_columns_plain(source[row], axis, out[row]);
}

} // namespace fastkd
