// Decoding rows of MCUs: blocks that are asked for into planes of pixels, the others only passed over.
#pragma once

#include <cstdint>

#include "frame.h"
#include "stream.h"

namespace fastkd {

// Where decoding stands in a row of MCUs, and where its pixels go.
struct Lane {
    Stream stream;
    int dc[3]; // of the last block of each component
    int column, stop;
    int block; // of the MCU
    int place; // of the next coefficient, 0 … 63; what lies beyond ends the block
    bool is_sound;
    const Symbol* ac;
    alignas(32) int16_t coefficients[64 + 16]; // natural order; what no place is for goes behind them

    // Of each block of an MCU: pixels of that in column 0, bytes from column to column and from row to row, and the columns
    // from … to - 1 whose pixels are asked for.
    uint8_t* pixels[kMostBlocks];
    int64_t step[kMostBlocks], stride[kMostBlocks];
    int from[kMostBlocks], to[kMostBlocks];
};

// Goes on to column `stop`, in one lane or in two, which takes less time than one after the other; `keep` is whether pixels
// are asked for on the way. False where a lane met what an undamaged scan of an 8-bit picture does not have.
bool decode_columns(const Frame& frame, Lane* first, Lane* second, int stop, bool keep);

} // namespace fastkd
