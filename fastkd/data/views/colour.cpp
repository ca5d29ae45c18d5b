// Twice, as the resizing is: in plain C++, and for AVX2.
#include "colour.h"

#include <algorithm>

#include "cpu.h"

namespace fastkd {
namespace {

void widen_plain(const uint8_t* in, int count, uint8_t* out) {
    for (int i = 0; i < count; i++) {
        out[2 * i] = static_cast<uint8_t>((3 * in[i] + in[i - 1] + 1) >> 2);
        out[2 * i + 1] = static_cast<uint8_t>((3 * in[i] + in[i + 1] + 2) >> 2);
    }
}

void widen_between_plain(const uint8_t* near, const uint8_t* far, int count, uint8_t* out) {
    for (int i = 0; i < count; i++) {
        const int sum = 3 * near[i] + far[i];
        out[2 * i] = static_cast<uint8_t>((3 * sum + 3 * near[i - 1] + far[i - 1] + 8) >> 4);
        out[2 * i + 1] = static_cast<uint8_t>((3 * sum + 3 * near[i + 1] + far[i + 1] + 7) >> 4);
    }
}

// Parts of 1.402, 0.34414, 0.71414 and 1.772, times 2^16, that 16 bits hold: what is taken from the next whole number.
constexpr int kRedOfRed = 26345, kGreenOfBlue = -22554, kGreenOfRed = 18734, kBlueOfBlue = -14942;

void to_rgb_plain(const uint8_t* luma, const uint8_t* blue, const uint8_t* red, int count, uint8_t* out) {
    const auto limited = [](int value) { return static_cast<uint8_t>(std::min(255, std::max(0, value))); };
    for (int i = 0; i < count; i++) {
        const int y = luma[i], b = blue[i] - 128, r = red[i] - 128, half = 1 << 15;
        out[3 * i] = limited(y + r + ((kRedOfRed * r + half) >> 16));
        out[3 * i + 1] = limited(y - r + ((kGreenOfBlue * b + kGreenOfRed * r + half) >> 16));
        out[3 * i + 2] = limited(y + 2 * b + ((kBlueOfBlue * b + half) >> 16));
    }
}

#ifdef FASTKD_AVX2

FASTKD_AVX2 inline __m256i sixteen(const uint8_t* from) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// Bytes of two lists in turn, each 16 values of 0 … 255.
FASTKD_AVX2 inline void store_in_turn(__m256i even, __m256i odd, uint8_t* out) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_or_si256(even, _mm256_slli_epi16(odd, 8)));
}

FASTKD_AVX2 void widen_avx2(const uint8_t* in, int count, uint8_t* out) {
    for (int i = 0; i < count; i += 16) {
        const __m256i here = sixteen(in + i), thrice = _mm256_add_epi16(here, _mm256_slli_epi16(here, 1));
        const __m256i before = _mm256_add_epi16(sixteen(in + i - 1), _mm256_set1_epi16(1));
        const __m256i after = _mm256_add_epi16(sixteen(in + i + 1), _mm256_set1_epi16(2));
        store_in_turn(
            _mm256_srli_epi16(_mm256_add_epi16(thrice, before), 2), _mm256_srli_epi16(_mm256_add_epi16(thrice, after), 2),
            out + 2 * i);
    }
}

FASTKD_AVX2 inline __m256i between(const uint8_t* near, const uint8_t* far) {
    const __m256i three = sixteen(near);
    return _mm256_add_epi16(_mm256_add_epi16(three, _mm256_slli_epi16(three, 1)), sixteen(far));
}

FASTKD_AVX2 void widen_between_avx2(const uint8_t* near, const uint8_t* far, int count, uint8_t* out) {
    for (int i = 0; i < count; i += 16) {
        const __m256i here = between(near + i, far + i), thrice = _mm256_add_epi16(here, _mm256_slli_epi16(here, 1));
        const __m256i before = _mm256_add_epi16(between(near + i - 1, far + i - 1), _mm256_set1_epi16(8));
        const __m256i after = _mm256_add_epi16(between(near + i + 1, far + i + 1), _mm256_set1_epi16(7));
        store_in_turn(
            _mm256_srli_epi16(_mm256_add_epi16(thrice, before), 4), _mm256_srli_epi16(_mm256_add_epi16(thrice, after), 4),
            out + 2 * i);
    }
}

// (a·first + b·second + 2^15) >> 16 of 16 values.
FASTKD_AVX2 inline __m256i scaled(__m256i a, __m256i b, int first, int second) {
    const __m256i factors = _mm256_set1_epi32((first & 0xFFFF) | second * 0x10000), half = _mm256_set1_epi32(1 << 15);
    const __m256i low = _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), factors);
    const __m256i high = _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), factors);
    return _mm256_packs_epi32(
        _mm256_srai_epi32(_mm256_add_epi32(low, half), 16), _mm256_srai_epi32(_mm256_add_epi32(high, half), 16));
}

// Three times 16 bytes, interleaved, into 48.
FASTKD_AVX2 inline void store_rgb(__m128i red, __m128i green, __m128i blue, uint8_t* out) {
    const __m128i thirds = _mm_setr_epi8(0, 11, 6, 1, 12, 7, 2, 13, 8, 3, 14, 9, 4, 15, 10, 5);
    const __m128i r = _mm_shuffle_epi8(red, thirds);
    const __m128i g = _mm_shuffle_epi8(green, _mm_setr_epi8(5, 0, 11, 6, 1, 12, 7, 2, 13, 8, 3, 14, 9, 4, 15, 10));
    const __m128i b = _mm_shuffle_epi8(blue, _mm_setr_epi8(10, 5, 0, 11, 6, 1, 12, 7, 2, 13, 8, 3, 14, 9, 4, 15));
    const __m128i first = _mm_setr_epi8(-1, 0, 0, -1, 0, 0, -1, 0, 0, -1, 0, 0, -1, 0, 0, -1);  // every third from 0
    const __m128i second = _mm_setr_epi8(0, -1, 0, 0, -1, 0, 0, -1, 0, 0, -1, 0, 0, -1, 0, 0);  // from 1
    const auto mixed = [](__m128i x, __m128i y, __m128i z, __m128i of_x, __m128i of_y) __attribute__((target("avx2,bmi,bmi2"))) {
        return _mm_blendv_epi8(_mm_blendv_epi8(z, y, of_y), x, of_x);
    };
    __m128i* to = reinterpret_cast<__m128i*>(out);
    _mm_storeu_si128(to, mixed(r, g, b, first, second));
    _mm_storeu_si128(to + 1, mixed(g, b, r, first, second));
    _mm_storeu_si128(to + 2, mixed(b, r, g, first, second));
}

FASTKD_AVX2 void to_rgb_avx2(const uint8_t* luma, const uint8_t* blue, const uint8_t* red, int count, uint8_t* out) {
    const __m256i middle = _mm256_set1_epi16(128), zero = _mm256_setzero_si256();
    for (int i = 0; i < count; i += 16) {
        const __m256i y = sixteen(luma + i);
        const __m256i b = _mm256_sub_epi16(sixteen(blue + i), middle), r = _mm256_sub_epi16(sixteen(red + i), middle);
        const __m256i of_red = _mm256_add_epi16(_mm256_add_epi16(y, r), scaled(r, zero, kRedOfRed, 0));
        const __m256i of_green = _mm256_add_epi16(_mm256_sub_epi16(y, r), scaled(b, r, kGreenOfBlue, kGreenOfRed));
        const __m256i of_blue =
            _mm256_add_epi16(_mm256_add_epi16(y, _mm256_slli_epi16(b, 1)), scaled(b, zero, kBlueOfBlue, 0));
        const __m256i red_green = _mm256_permute4x64_epi64(_mm256_packus_epi16(of_red, of_green), 0xD8);
        const __m256i blue_only = _mm256_permute4x64_epi64(_mm256_packus_epi16(of_blue, of_blue), 0xD8);
        store_rgb(
            _mm256_castsi256_si128(red_green), _mm256_extracti128_si256(red_green, 1), _mm256_castsi256_si128(blue_only),
            out + 3 * i);
    }
}

FASTKD_AVX2 void grey_to_rgb_avx2(const uint8_t* luma, int count, uint8_t* out) {
    for (int i = 0; i < count; i += 16) {
        const __m128i y = _mm_loadu_si128(reinterpret_cast<const __m128i*>(luma + i));
        store_rgb(y, y, y, out + 3 * i);
    }
}

#endif

} // namespace

void widen(const uint8_t* in, int count, uint8_t* out) {
#ifdef FASTKD_AVX2
    if (has_avx2) return widen_avx2(in, count, out);
#endif
    widen_plain(in, count, out);
}

void widen_between(const uint8_t* near, const uint8_t* far, int count, uint8_t* out) {
#ifdef FASTKD_AVX2
    if (has_avx2) return widen_between_avx2(near, far, count, out);
#endif
    widen_between_plain(near, far, count, out);
}

void to_rgb(const uint8_t* luma, const uint8_t* blue, const uint8_t* red, int count, uint8_t* out) {
#ifdef FASTKD_AVX2
    if (has_avx2) return to_rgb_avx2(luma, blue, red, count, out);
#endif
    to_rgb_plain(luma, blue, red, count, out);
}

void grey_to_rgb(const uint8_t* luma, int count, uint8_t* out) {
#ifdef FASTKD_AVX2
    if (has_avx2) return grey_to_rgb_avx2(luma, count, out);
#endif
    for (int i = 0; i < count; i++) std::fill_n(out + 3 * i, 3, luma[i]);
}

} // namespace fastkd
