// Twice, as the resizing is: in plain C++, and for AVX2.
#include "dct.h"

#include <algorithm>
#include <cstring>

#include "cpu.h"

namespace fastkd {
namespace {

// Constants times 2^13, named after what they are, as in the literature.
constexpr int k0_298 = 2446, k0_390 = 3196, k0_541 = 4433, k0_765 = 6270, k0_899 = 7373, k1_175 = 9633, k1_501 = 12299,
              k1_847 = 15137, k1_961 = 16069, k2_053 = 16819, k2_562 = 20995, k3_072 = 25172;
constexpr int kBits = 13, kBetween = 2;
constexpr int kShift[2] = {kBits - kBetween, kBits + kBetween + 3}; // of the first pass, of the second

int16_t wrapped(int32_t value) { return static_cast<int16_t>(value); }

int16_t cut(int32_t value) { return static_cast<int16_t>(std::min(32767, std::max(-32768, value))); }

// One pass over eight lines, from in[line + 8·k] to out[8·line + k].
template <int SHIFT>
void pass_plain(const int16_t* in, int16_t* out) {
    for (int line = 0; line < 8; line++) {
        int32_t x[8];
        for (int k = 0; k < 8; k++) x[k] = in[line + 8 * k];
        const int32_t even2 = x[2] * k0_541 + x[6] * (k0_541 - k1_847), even3 = x[2] * (k0_541 + k0_765) + x[6] * k0_541;
        const int32_t even0 = wrapped(x[0] + x[4]) * (1 << kBits), even1 = wrapped(x[0] - x[4]) * (1 << kBits);
        const int32_t sum3 = wrapped(x[7] + x[3]), sum4 = wrapped(x[5] + x[1]);
        const int32_t z3 = sum3 * (k1_175 - k1_961) + sum4 * k1_175, z4 = sum3 * k1_175 + sum4 * (k1_175 - k0_390);
        const int32_t odd[4] = {
            x[7] * -k0_899 + x[1] * (k1_501 - k0_899) + z4,
            x[5] * -k2_562 + x[3] * (k3_072 - k2_562) + z3,
            x[5] * (k2_053 - k2_562) + x[3] * -k2_562 + z4,
            x[7] * (k0_298 - k0_899) + x[1] * -k0_899 + z3,
        };
        const int32_t even[4] = {even0 + even3, even1 + even2, even1 - even2, even0 - even3};
        for (int k = 0; k < 4; k++) {
            const uint32_t half = 1u << (SHIFT - 1), base = static_cast<uint32_t>(even[k]) + half;
            out[8 * line + k] = cut(static_cast<int32_t>(base + static_cast<uint32_t>(odd[k])) >> SHIFT);
            out[8 * line + 7 - k] = cut(static_cast<int32_t>(base - static_cast<uint32_t>(odd[k])) >> SHIFT);
        }
    }
}

void invert_block_plain(const int16_t* coefficients, const int16_t* quant, uint8_t* out, int64_t stride) {
    int16_t first[64], between[64], pixels[64];
    int any = 0;
    for (int k = 0; k < 64; k++) first[k] = wrapped(coefficients[k] * quant[k]);
    for (int k = 8; k < 64; k++) any |= coefficients[k];
    if (any) {
        pass_plain<kShift[0]>(first, between);
    } else {
        for (int line = 0; line < 8; line++)
            std::fill_n(between + 8 * line, 8, wrapped(first[line] * (1 << kBetween)));
    }
    pass_plain<kShift[1]>(between, pixels);
    for (int y = 0; y < 8; y++)
        for (int x = 0; x < 8; x++)
            out[y * stride + x] = static_cast<uint8_t>(std::min(127, std::max(-128, int{pixels[8 * y + x]})) + 128);
}

#ifdef FASTKD_AVX2

// Two rows of eight, pair by pair: those of columns 0 … 3 in the lower half, 4 … 7 in the upper one.
FASTKD_AVX2 inline __m256i pairs(__m128i a, __m128i b) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(a, b)), _mm_unpackhi_epi16(a, b), 1);
}

// a·(first) + b·(second), 32 bits a column.
FASTKD_AVX2 inline __m256i weighted(__m256i pairs, int first, int second) {
    return _mm256_madd_epi16(pairs, _mm256_set1_epi32((first & 0xFFFF) | second * 0x10000));
}

template <int SHIFT>
FASTKD_AVX2 inline void pass_avx2(__m128i x[8]) {
    const __m256i x26 = pairs(x[2], x[6]), x71 = pairs(x[7], x[1]), x53 = pairs(x[5], x[3]);
    const __m256i even2 = weighted(x26, k0_541, k0_541 - k1_847), even3 = weighted(x26, k0_541 + k0_765, k0_541);
    const __m256i half = _mm256_set1_epi32(1 << (SHIFT - 1));
    const __m256i even0 =
        _mm256_add_epi32(_mm256_slli_epi32(_mm256_cvtepi16_epi32(_mm_add_epi16(x[0], x[4])), kBits), half);
    const __m256i even1 =
        _mm256_add_epi32(_mm256_slli_epi32(_mm256_cvtepi16_epi32(_mm_sub_epi16(x[0], x[4])), kBits), half);
    const __m256i sums = pairs(_mm_add_epi16(x[7], x[3]), _mm_add_epi16(x[5], x[1]));
    const __m256i z3 = weighted(sums, k1_175 - k1_961, k1_175), z4 = weighted(sums, k1_175, k1_175 - k0_390);
    const __m256i odd[4] = {
        _mm256_add_epi32(weighted(x71, -k0_899, k1_501 - k0_899), z4),
        _mm256_add_epi32(weighted(x53, -k2_562, k3_072 - k2_562), z3),
        _mm256_add_epi32(weighted(x53, k2_053 - k2_562, -k2_562), z4),
        _mm256_add_epi32(weighted(x71, k0_298 - k0_899, -k0_899), z3),
    };
    const __m256i even[4] = {
        _mm256_add_epi32(even0, even3),
        _mm256_add_epi32(even1, even2),
        _mm256_sub_epi32(even1, even2),
        _mm256_sub_epi32(even0, even3),
    };
    __m256i y[8];
    for (int k = 0; k < 4; k++) {
        y[k] = _mm256_srai_epi32(_mm256_add_epi32(even[k], odd[k]), SHIFT);
        y[7 - k] = _mm256_srai_epi32(_mm256_sub_epi32(even[k], odd[k]), SHIFT);
    }
    // Transposed: columns 0 … 3 of two results beside each other, 4 … 7 in the upper half.
    const __m256i a = _mm256_packs_epi32(y[0], y[4]), b = _mm256_packs_epi32(y[1], y[5]);
    const __m256i c = _mm256_packs_epi32(y[2], y[6]), d = _mm256_packs_epi32(y[3], y[7]);
    const __m256i ab0 = _mm256_unpacklo_epi16(a, b), ab4 = _mm256_unpackhi_epi16(a, b); // of 0 and 1, of 4 and 5
    const __m256i cd0 = _mm256_unpacklo_epi16(c, d), cd4 = _mm256_unpackhi_epi16(c, d);
    const __m256i low0 = _mm256_unpacklo_epi32(ab0, cd0), low2 = _mm256_unpackhi_epi32(ab0, cd0); // 0 … 3 of two columns
    const __m256i high0 = _mm256_unpacklo_epi32(ab4, cd4), high2 = _mm256_unpackhi_epi32(ab4, cd4);
    const __m256i lines01 = _mm256_unpacklo_epi64(low0, high0), lines11 = _mm256_unpackhi_epi64(low0, high0);
    const __m256i lines23 = _mm256_unpacklo_epi64(low2, high2), lines33 = _mm256_unpackhi_epi64(low2, high2);
    x[0] = _mm256_castsi256_si128(lines01), x[4] = _mm256_extracti128_si256(lines01, 1);
    x[1] = _mm256_castsi256_si128(lines11), x[5] = _mm256_extracti128_si256(lines11, 1);
    x[2] = _mm256_castsi256_si128(lines23), x[6] = _mm256_extracti128_si256(lines23, 1);
    x[3] = _mm256_castsi256_si128(lines33), x[7] = _mm256_extracti128_si256(lines33, 1);
}

FASTKD_AVX2 void invert_block_avx2(const int16_t* coefficients, const int16_t* quant, uint8_t* out, int64_t stride) {
    const auto at = [](const int16_t* values, int row) __attribute__((target("avx2,bmi,bmi2"))) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(values) + row);
    };
    __m128i x[8], any = _mm_setzero_si128();
    for (int row = 0; row < 8; row++) {
        x[row] = at(coefficients, row);
        if (row) any = _mm_or_si128(any, x[row]);
        x[row] = _mm_mullo_epi16(x[row], at(quant, row));
    }
    if (_mm_testz_si128(any, any)) {
        const __m128i row = _mm_slli_epi16(x[0], kBetween);
        const __m128i low = _mm_unpacklo_epi16(row, row), high = _mm_unpackhi_epi16(row, row);
        x[0] = _mm_shuffle_epi32(low, 0x00), x[1] = _mm_shuffle_epi32(low, 0x55);
        x[2] = _mm_shuffle_epi32(low, 0xAA), x[3] = _mm_shuffle_epi32(low, 0xFF);
        x[4] = _mm_shuffle_epi32(high, 0x00), x[5] = _mm_shuffle_epi32(high, 0x55);
        x[6] = _mm_shuffle_epi32(high, 0xAA), x[7] = _mm_shuffle_epi32(high, 0xFF);
    } else {
        pass_avx2<kShift[0]>(x);
    }
    pass_avx2<kShift[1]>(x);
    for (int row = 0; row < 8; row += 2) {
        const __m128i two = _mm_xor_si128(_mm_packs_epi16(x[row], x[row + 1]), _mm_set1_epi8(-128));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out + row * stride), two);
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out + (row + 1) * stride), _mm_unpackhi_epi64(two, two));
    }
}

#endif

} // namespace

void invert_block(const int16_t* coefficients, const int16_t* quant, uint8_t* out, int64_t stride) {
#ifdef FASTKD_AVX2
    if (has_avx2) return invert_block_avx2(coefficients, quant, out, stride);
#endif
    invert_block_plain(coefficients, quant, out, stride);
}

void fill_block(int16_t coefficient, int16_t quant, uint8_t* out, int64_t stride) {
    const int value = wrapped(wrapped(coefficient * quant) * (1 << kBetween));
    const int pixel = std::min(255, std::max(0, ((value + (1 << (kBetween + 2))) >> (kBetween + 3)) + 128));
    for (int y = 0; y < 8; y++) std::memset(out + y * stride, pixel, 8);
}

} // namespace fastkd
