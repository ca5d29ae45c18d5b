// From the planes of a JPEG to rows of RGB: libjpeg-turbo's "fancy" upsampling and its conversion, to the bit.
#pragma once

#include <cstdint>

namespace fastkd {

constexpr int kColourSlack = 64; // bytes that these read, whatever is there, and write behind what they are asked for

// Doubles a row of `count` samples in width, a triangle filter: out[2·i] from in[i] and in[i - 1], out[2·i + 1] from in[i] and
// in[i + 1], each (3·near + far + 1 and 2) / 4. Reads in[-1] and in[count].
void widen(const uint8_t* in, int count, uint8_t* out);

// The same of a row between two: near and far are weighted 3 to 1, then the places of a row so, (… + 8 and 7) / 16.
void widen_between(const uint8_t* near, const uint8_t* far, int count, uint8_t* out);

// JFIF's YCbCr to interleaved RGB, with constants of 16 bits. `out` may be written 64 bytes behind its end.
void to_rgb(const uint8_t* luma, const uint8_t* blue, const uint8_t* red, int count, uint8_t* out);

// Grey to interleaved RGB.
void grey_to_rgb(const uint8_t* luma, int count, uint8_t* out);

} // namespace fastkd
