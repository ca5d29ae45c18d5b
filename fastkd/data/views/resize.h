// Antialiased resizing of RGB rows in integers: the filter of both axes, and the two passes that apply it.
#pragma once

#include <cstdint>

namespace fastkd {

// The filter of one axis. Output place i is the sum over k < taps of weights[i·taps + k] · source[first[i] + k].
//
// The weights are those of the triangle filter, which reaches max(1, length/out) source places to both sides of the
// centre (2i + 1)·length/(2·out): what Pillow calls BILINEAR, cut at the box and normalised there. In integers:
//     w[x] = max(0, S - |(2x + 1)·out - (2i + 1)·length|), S = 2·max(length, out)
// and with R(t) = (t · floor(2^62 / sum w) + 2^47) >> 48, which takes the sum of all w to 2^14,
//     weight[x] = R(w[0] + … + w[x]) - R(w[0] + … + w[x-1]):
// the weights of a place add up to 2^14 exactly, so that an even colour stays what it is.
//
// Of an image that is resized as a whole, of which an axis makes some places alone, length and out in the formula are those of
// the whole, whole_length and whole_out: the first place made is `from`, the first source place there is `start`.
struct Axis {
    int length;       // source places
    int out;          // output places; `first` and `weights` go on to the next multiple of four, with weights of 0
    int taps;         // even; those beyond the triangle have weight 0
    int* first;       // 0 … max(0, length - taps)
    int16_t* weights; // 0 … 2^14
    int64_t whole_length, whole_out, from, start;
};

constexpr int kSlack = 32; // elements that the passes may read, whatever is there, and write behind a row of their own

int count_taps(int64_t length, int64_t out);

// The source places, first to end, that `count` output places from `from` on are made of, of `length` resized to `out`.
void find_sources(int64_t length, int64_t out, int64_t from, int64_t count, int& first, int& end);

// Fills axis.first and axis.weights, the output places in reverse order where `flip` is set.
void fill_axis(const Axis& axis, bool flip);

// One output row of the vertical pass: out[c] = (Σ weights[k]·rows[k][c] + 2^6) >> 7, a value times 2^7, for c < count.
// Reads no byte behind `count`.
void blend_rows(const uint8_t* const* rows, const int16_t* weights, int taps, int count, int16_t* out);

// Two output rows of the horizontal pass, of interleaved channels: (Σ weights[k]·source[first + k] + 2^20) >> 21.
void blend_columns(const int16_t* const source[2], const Axis& axis, uint8_t* const out[2]);

} // namespace fastkd
