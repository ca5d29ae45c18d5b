#include "huffman.h"

#include <cstring>

namespace fastkd {
namespace {

// A symbol of a code of some length, which is read with its value's bits; of what baseline JPEGs of 8 bits do not have, kBad.
Symbol symbol_of(bool is_dc, int length, int value) {
    const int size = value & 15, run = value >> 4;
    int go_on = run + 1;
    if (is_dc) go_on = value > 11 ? kBad : 1;
    else if (size > 10) go_on = kBad;
    else if (size == 0 && run != 15) go_on = run == 0 ? kEnd : kBad;
    const int extra = go_on == kBad ? 0 : size;
    return static_cast<Symbol>(length | extra << 8 | go_on << 16 | (length + extra) << 24);
}

} // namespace

bool make_table(Table& table, bool is_dc, const uint8_t lengths[17], const uint8_t values[256]) {
    int total = 0;
    for (int n = 1; n <= 16; n++) total += lengths[n];
    if (total > 256) return false;
    if (table.is_made && table.is_dc == is_dc && std::memcmp(table.lengths + 1, lengths + 1, 16) == 0 &&
        std::memcmp(table.values, values, total) == 0)
        return true;
    table.is_made = false;
    std::memset(table.fast, 0, sizeof table.fast);
    std::memset(table.symbols, 0, sizeof table.symbols);
    uint32_t code = 0;
    int index = 0;
    for (int n = 1; n <= 16; n++) {
        table.first[n] = index - static_cast<int>(code);
        for (int i = 0; i < lengths[n]; i++, index++, code++) {
            if (code >> n || (is_dc && values[index] > 15)) return false;
            const Symbol symbol = symbol_of(is_dc, n, values[index]);
            table.symbols[index] = symbol;
            if (n <= kFastBits)
                for (uint32_t k = 0; k < 1u << (kFastBits - n); k++) table.fast[(code << (kFastBits - n)) + k] = symbol;
        }
        if (lengths[n] && code >> n) return false; // no code is all ones
        table.end[n] = code << (16 - n);
        code <<= 1;
    }
    table.is_dc = is_dc;
    std::memcpy(table.lengths, lengths, 17);
    std::memcpy(table.values, values, 256);
    return table.is_made = true;
}

} // namespace fastkd
