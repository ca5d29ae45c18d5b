// The entropy-coded bytes of a scan, without what JPEG stuffs behind each 0xFF, as a buffer that slides over them.
#pragma once

#include <cstdint>

namespace fastkd {

constexpr int kMostMcu = 6 * 64 * 4;                   // bytes that decoding an MCU may go on, whatever they are
constexpr int kStreamBytes = 1 << 14;                  // that the buffer takes at a time
constexpr int kCut = 16; // bytes before an end without a marker that libjpeg may read beyond, and warn
constexpr int kStreamRoom = kStreamBytes + 2 * kMostMcu + 64; // what it needs

// Bits are read from `bits`, the next one highest: `count` of them are valid, 56 and more after `refill`.
struct Stream {
    const uint8_t* raw;     // what has not been taken into the buffer
    const uint8_t* raw_end;
    uint8_t* buffer;        // kStreamRoom bytes
    const uint8_t* end;     // of what is in the buffer; zeros follow
    const uint8_t* next;    // to be taken into `bits`
    uint64_t bits;
    int count;
    int64_t slid; // bytes that were in the buffer and are not any more
    bool is_ended;
    int unsure; // bytes in front of `end` that count as not there: none in front of a marker, else kCut

    // Begins at a bit, 0 … 7, of the first byte.
    void begin(const uint8_t* from, const uint8_t* to, int bit, uint8_t* room);

    // Has kMostMcu bytes in the buffer, where there are so many. False where more bits were read than there surely were.
    bool top_up() {
        if (end - next >= kMostMcu) return true;
        if (!is_ended) slide();
        return 8 * (next - end + unsure) <= count;
    }

    // Bits that have been read since the first byte.
    int64_t position() const { return 8 * (slid + (next - buffer)) - count; }

    inline void refill() {
        uint64_t word;
        __builtin_memcpy(&word, next, sizeof word);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        word = __builtin_bswap64(word);
#endif
        bits |= word >> count;
        next += (63 - count) >> 3;
        count |= 56;
    }

private:
    void slide();
};

// Copies bytes without the zeros that follow each 0xFF, up to another 0xFF, the end, or `most` bytes; says how far it came.
struct Unstuffed {
    const uint8_t* from;
    uint8_t* to;
    bool at_ff;
};
Unstuffed unstuff(const uint8_t* from, const uint8_t* from_end, uint8_t* to, int64_t most);

} // namespace fastkd
