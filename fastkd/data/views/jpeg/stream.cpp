#include "stream.h"

#include <algorithm>
#include <cstring>

namespace fastkd {
namespace {

constexpr int kWord = 8;
constexpr uint64_t kOnes = 0x0101010101010101, kHighs = 0x8080808080808080;

// Whether one of the bytes is 0xFF.
bool has_ff(uint64_t word) { return ((~word - kOnes) & word & kHighs) != 0; }

} // namespace

Unstuffed unstuff(const uint8_t* from, const uint8_t* from_end, uint8_t* to, int64_t most) {
    uint8_t* const to_end = to + most;
    while (from < from_end && to < to_end) {
        while (from_end - from >= kWord && to_end - to >= kWord) {
            uint64_t word;
            std::memcpy(&word, from, kWord);
            if (has_ff(word)) break;
            std::memcpy(to, &word, kWord);
            from += kWord, to += kWord;
        }
        for (int i = 0; i < kWord && from < from_end && to < to_end; i++) {
            if (*from == 0xFF) {
                if (from_end - from < 2 || from[1] != 0) return {from, to, true};
                from++;
                *to++ = 0xFF;
            } else {
                *to++ = *from;
            }
            from++;
        }
    }
    return {from, to, false};
}

void Stream::begin(const uint8_t* from, const uint8_t* to, int bit, uint8_t* room) {
    raw = from, raw_end = to, buffer = room;
    next = end = buffer;
    bits = 0, count = 0, slid = 0, is_ended = false;
    slide();
    refill();
    bits <<= bit, count -= bit;
}

void Stream::slide() {
    const int64_t left = std::max<int64_t>(0, end - next);
    slid += next - buffer;
    std::memmove(buffer, next, left);
    const Unstuffed found = unstuff(raw, raw_end, buffer + left, kStreamBytes);
    raw = found.from;
    is_ended = found.at_ff || raw == raw_end;
    const bool at_marker = found.at_ff && raw_end - raw >= 2 && raw[1] != 0xFF;
    unsure = is_ended && !at_marker ? kCut : 0;
    std::memset(found.to, 0, kMostMcu + 64);
    next = buffer, end = found.to;
}

} // namespace fastkd
