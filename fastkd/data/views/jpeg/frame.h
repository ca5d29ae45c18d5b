// What the header of a JPEG says, where it is of the regular kind that is decoded here.
#pragma once

#include <cstdint>

#include "huffman.h"

namespace fastkd {

constexpr int kMostBlocks = 6; // of an MCU

// One scan of 8-bit baseline Huffman codes without restarts; grey, or YCbCr of 4:4:4, 4:2:2 or 4:2:0.
struct Frame {
    int height, width;
    int num_components; // 1 or 3
    int h, v;           // luma samples for one of chroma, across and down: 1 or 2
    int mcu_columns, mcu_rows;
    int num_blocks;             // of an MCU: h·v of luma, in rows, then those of chroma
    int component[kMostBlocks]; // of each of them
    const Table *dc[3], *ac[3];
    alignas(32) int16_t quant[3][64];
    const uint8_t *scan, *end; // the entropy-coded bytes, and the end of all bytes
};

} // namespace fastkd
