#include "scan.h"

#include <cstring>

#include "../cpu.h"
#include "../dct.h"

namespace fastkd {
namespace {

#define ALWAYS_INLINE inline __attribute__((always_inline))

// Place 1 … 64 in the zigzag → the natural place before it; what lies beyond → behind the block.
struct Natural {
    uint8_t before[256];
    constexpr Natural() : before() {
        int x = 0, y = 0;
        for (int k = 0; k < 256; k++) before[k] = 64;
        for (int k = 1; k <= 64; k++) {
            before[k] = static_cast<uint8_t>(8 * y + x);
            const bool is_up = (x + y) % 2 == 0;
            if (is_up) {
                if (x == 7) y++;
                else if (y == 0) x++;
                else x++, y--;
            } else {
                if (y == 7) x++;
                else if (x == 0) y++;
                else x--, y++;
            }
        }
    }
};
constexpr Natural kNatural;

// A value of `size` bits that the left-aligned bits begin with: JPEG writes v < 0 as v + 2^size - 1.
ALWAYS_INLINE int signed_value(uint64_t bits, uint64_t size) {
    const int64_t flip = static_cast<int64_t>(~bits) >> 63; // all ones where it is negative
    const uint64_t magnitude = ((bits ^ static_cast<uint64_t>(flip)) >> 1) >> (~size & 63);
    return static_cast<int>((static_cast<int64_t>(magnitude) ^ flip) - flip);
}

// What of a lane changes with each coefficient.
struct Cursor {
    uint64_t bits;
    const uint8_t* next;
    int count;
    int place;
};

ALWAYS_INLINE void refill(Cursor& at) {
    uint64_t word;
    std::memcpy(&word, at.next, sizeof word);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    at.bits |= word >> at.count;
    at.next += (63 - at.count) >> 3;
    at.count |= 56;
}

ALWAYS_INLINE Symbol look_up(const Symbol* fast, uint64_t bits) {
    const Symbol symbol = fast[bits >> (64 - kFastBits)];
    if (__builtin_expect(symbol == 0, 0)) return long_code(*reinterpret_cast<const Table*>(fast), bits);
    return symbol;
}

template <bool KEEP>
ALWAYS_INLINE void take_coefficient(Cursor& at, const Symbol* fast, int16_t* coefficients) {
    const Symbol symbol = look_up(fast, at.bits);
    at.place += places(symbol);
    if (KEEP) {
        const uint64_t value = at.bits << (symbol & 63);
        coefficients[kNatural.before[at.place]] = static_cast<int16_t>(signed_value(value, symbol >> 8));
    }
    at.bits <<= all_bits(symbol);
    at.count -= all_bits(symbol);
}

// Takes the DC coefficient of the next block, with the bits for one more coefficient left. False where it is none.
template <bool KEEP>
ALWAYS_INLINE bool begin_block(const Frame& frame, Lane& lane, Cursor& at) {
    const int component = frame.component[lane.block];
    refill(at);
    const Symbol symbol = look_up(frame.dc[component]->fast, at.bits);
    const int dc = lane.dc[component] + signed_value(at.bits << code_bits(symbol), symbol >> 8);
    at.bits <<= all_bits(symbol);
    at.count -= all_bits(symbol);
    at.place = 1;
    lane.ac = frame.ac[component]->fast;
    lane.dc[component] = dc;
    if (KEEP) lane.coefficients[0] = static_cast<int16_t>(dc);
    return places(symbol) == 1 && dc == static_cast<int16_t>(dc);
}

ALWAYS_INLINE void put_pixels(const Frame& frame, Lane& lane, int place) {
    const int block = lane.block;
    const bool has_ac = place != 1 + kEnd;
    if (lane.column >= lane.from[block] && lane.column < lane.to[block]) {
        uint8_t* out = lane.pixels[block] + lane.column * lane.step[block];
        const int16_t* quant = frame.quant[frame.component[block]];
        if (has_ac) invert_block(lane.coefficients, quant, out, lane.stride[block]);
        else fill_block(lane.coefficients[0], quant[0], out, lane.stride[block]);
    }
    if (has_ac) std::memset(lane.coefficients, 0, 64 * sizeof(int16_t));
}

// Ends the block whose last coefficient was taken and begins the next one. False at the lane's last column, or where the scan
// is not sound.
template <bool KEEP>
ALWAYS_INLINE bool next_block(const Frame& frame, Lane& lane, Cursor& at) {
    lane.is_sound = at.place == 64 || (at.place > kEnd && at.place < kBad);
    if (!lane.is_sound) return false;
    if (KEEP) put_pixels(frame, lane, at.place);
    if (++lane.block == frame.num_blocks) {
        lane.block = 0;
        lane.column++;
        Stream& stream = lane.stream;
        stream.bits = at.bits, stream.next = at.next, stream.count = at.count;
        lane.is_sound = stream.top_up();
        at.next = stream.next;
        if (!lane.is_sound || lane.column == lane.stop) return false;
    }
    return lane.is_sound = begin_block<KEEP>(frame, lane, at);
}

// Begins at the lane's column.
template <bool KEEP>
ALWAYS_INLINE bool enter(const Frame& frame, Lane& lane, Cursor& at) {
    at = {lane.stream.bits, lane.stream.next, lane.stream.count, 0};
    if (lane.column >= lane.stop) return false;
    lane.is_sound = lane.stream.top_up();
    at.next = lane.stream.next;
    return lane.is_sound && (lane.is_sound = begin_block<KEEP>(frame, lane, at));
}

template <bool KEEP>
ALWAYS_INLINE void go_on(const Frame& frame, Lane& lane, Cursor at) {
    for (;;) {
        refill(at);
        take_coefficient<KEEP>(at, lane.ac, lane.coefficients);
        if (at.place >= 64 && !next_block<KEEP>(frame, lane, at)) return;
        take_coefficient<KEEP>(at, lane.ac, lane.coefficients);
        if (at.place >= 64 && !next_block<KEEP>(frame, lane, at)) return;
    }
}

// A step in each lane in turn: while one waits for its table, the other goes on.
template <bool KEEP>
ALWAYS_INLINE void go_on_both(const Frame& frame, Lane& first, Cursor a, Lane& second, Cursor b) {
    const Symbol *ac_a = first.ac, *ac_b = second.ac;
    for (;;) {
        refill(a);
        refill(b);
        for (int turn = 0; turn < 2; turn++) {
            take_coefficient<KEEP>(a, ac_a, first.coefficients);
            if (__builtin_expect(a.place >= 64, 0)) {
                if (!next_block<KEEP>(frame, first, a)) {
                    if (first.is_sound) go_on<KEEP>(frame, second, b);
                    return;
                }
                ac_a = first.ac;
            }
            take_coefficient<KEEP>(b, ac_b, second.coefficients);
            if (__builtin_expect(b.place >= 64, 0)) {
                if (!next_block<KEEP>(frame, second, b)) {
                    if (second.is_sound) go_on<KEEP>(frame, first, a);
                    return;
                }
                ac_b = second.ac;
            }
        }
    }
}

template <bool KEEP>
ALWAYS_INLINE bool decode(const Frame& frame, Lane* first, Lane* second) {
    Cursor a, b;
    const bool has_first = enter<KEEP>(frame, *first, a);
    if (!second) {
        if (has_first) go_on<KEEP>(frame, *first, a);
        return first->is_sound;
    }
    const bool has_second = enter<KEEP>(frame, *second, b);
    if (has_first && has_second) go_on_both<KEEP>(frame, *first, a, *second, b);
    return first->is_sound && second->is_sound;
}

bool decode_plain(const Frame& frame, Lane* first, Lane* second, bool keep) {
    return keep ? decode<true>(frame, first, second) : decode<false>(frame, first, second);
}

#ifdef FASTKD_AVX2
FASTKD_AVX2 bool decode_bmi2(const Frame& frame, Lane* first, Lane* second, bool keep) { // its shifts take one instruction
    return keep ? decode<true>(frame, first, second) : decode<false>(frame, first, second);
}
#endif

} // namespace

bool decode_columns(const Frame& frame, Lane* first, Lane* second, int stop, bool keep) {
    Lane* const lanes[] = {first, second};
    for (Lane* lane : lanes)
        if (lane) lane->stop = stop, lane->is_sound = true, lane->block = 0;
    if (first->column >= stop) return true;
#ifdef FASTKD_AVX2
    if (has_avx2) return decode_bmi2(frame, first, second, keep);
#endif
    return decode_plain(frame, first, second, keep);
}

} // namespace fastkd
