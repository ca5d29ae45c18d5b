// The inverse DCT of a block of coefficients: libjpeg-turbo's accurate integer one, to the bit.
#pragma once

#include <cstdint>

namespace fastkd {

// Writes 8 rows of 8 pixels, `stride` bytes apart. coefficients: 64 in natural order, 32-byte aligned, and `quant` what they are
// multiplied by.
//
// Loeffler, Ligtenberg and Moschytz (ICASSP 1989), columns first, with constants of 13 bits and 2 bits kept between the passes. As
// in libjpeg-turbo's SIMD code, coefficients that no encoder writes wrap where 16 bits do not hold them, and are cut between passes.
void invert_block(const int16_t* coefficients, const int16_t* quant, uint8_t* out, int64_t stride);

// The same of a block that has nothing but its first coefficient.
void fill_block(int16_t coefficient, int16_t quant, uint8_t* out, int64_t stride);

} // namespace fastkd
