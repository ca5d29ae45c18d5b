// Huffman codes of a baseline JPEG as look-up tables: by the next bits, what the code says of the coefficient.
#pragma once

#include <cstdint>

namespace fastkd {

constexpr int kFastBits = 10; // codes up to so long are found in one look-up
constexpr int kMostBits = 27; // of a code and its value: 16 and 11

// What a code says, in 32 bits: from the lowest on six of the code's length, two of nothing, six of the value's length, two of
// nothing, eight of the places to go on, eight of both lengths together. A length of 0: look among the longer codes.
using Symbol = uint32_t;

constexpr int kEnd = 128; // places that "no more coefficients" goes on, from 1 … 63 to 129 … 191
constexpr int kBad = 192; // and what no 8-bit picture has: to 193 … 255

inline int code_bits(Symbol symbol) { return symbol & 63; }
inline int value_bits(Symbol symbol) { return symbol >> 8 & 63; }
inline int places(Symbol symbol) { return symbol >> 16 & 255; }
inline int all_bits(Symbol symbol) { return symbol >> 24; }

struct Table {
    Symbol fast[1 << kFastBits];
    uint32_t end[17]; // codes of length n, and shorter ones, are below end[n] as 16 bits
    int first[17];    // index of a code of length n, less the code
    Symbol symbols[256];
    uint8_t lengths[17]; // what the table was made of: codes of each length
    uint8_t values[256]; // and what they stand for
    bool is_dc, is_made;
};

// The table of codes: lengths[n] of length n, values[i] what the i-th stands for. Made anew only where it is another one.
// False where the codes contradict each other, or a DC code says more than 15 bits; the table is then not to be used.
bool make_table(Table& table, bool is_dc, const uint8_t lengths[17], const uint8_t values[256]);

// The symbol that the left-aligned bits begin with, where its code is longer than kFastBits.
inline Symbol long_code(const Table& table, uint64_t bits) {
    const uint32_t next = static_cast<uint32_t>(bits >> 48);
    for (int n = kFastBits + 1; n <= 16; n++)
        if (next < table.end[n]) return table.symbols[(table.first[n] + static_cast<int>(next >> (16 - n))) & 255];
    return 1u | kBad << 16 | 1u << 24;
}

} // namespace fastkd
