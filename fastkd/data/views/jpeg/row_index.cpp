#include "row_index.h"

#include <cstring>
#include <memory>
#include <new>

#include "scan.h"

namespace fastkd {
namespace {

template <typename T>
T little_endian(const uint8_t* from) {
    T value = 0;
    for (size_t i = 0; i < sizeof(T); i++) value |= static_cast<T>(static_cast<T>(from[i]) << (8 * i));
    return value;
}

template <typename T>
void put_little_endian(T value, uint8_t* to) {
    for (size_t i = 0; i < sizeof(T); i++) to[i] = static_cast<uint8_t>(value >> (8 * i));
}

constexpr int kLanes = 4;
constexpr uint64_t kFactors[kLanes] = { // the odd constants of splitmix64, and two of their kind
    0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93};

uint64_t stirred(uint64_t sum, uint64_t word, uint64_t factor) {
    const uint64_t mixed = sum ^ word;
    return (mixed << 29 | mixed >> 35) * factor;
}

// Four sums of every fourth word of 64 bits, the last bytes filled up with zeros; each step is a bijection of the sum and of the
// word, so that no change of one word goes unseen.
uint64_t checksum_of(const uint8_t* data, uint64_t size, uint64_t seed) {
    uint64_t sums[kLanes];
    for (int i = 0; i < kLanes; i++) sums[i] = seed + kFactors[i];
    uint64_t at = 0;
    for (; at + 8 * kLanes <= size; at += 8 * kLanes)
        for (int i = 0; i < kLanes; i++) sums[i] = stirred(sums[i], little_endian<uint64_t>(data + at + 8 * i), kFactors[i]);
    uint8_t rest[8 * kLanes] = {};
    std::memcpy(rest, data + at, size - at);
    uint64_t all = size;
    for (int i = 0; i < kLanes; i++) {
        sums[i] = stirred(sums[i], little_endian<uint64_t>(rest + 8 * i), kFactors[i]);
        all = stirred(all, sums[i], kFactors[i]);
        all ^= all >> 32;
    }
    return all;
}

uint64_t checksum(const uint8_t* data, uint64_t size, const uint8_t* rows, uint64_t rows_size) {
    return checksum_of(rows, rows_size, checksum_of(data, size, 0));
}

} // namespace

RowStart RowIndex::start(const Frame& frame, const uint8_t* data, int row) const {
    const uint8_t* from = rows + static_cast<int64_t>(row) * kRowBytes;
    const uint32_t position = little_endian<uint32_t>(from);
    RowStart found = {data + position / 8, static_cast<int>(position % 8), {}};
    for (int c = 0; c < 3; c++) found.dc[c] = static_cast<int16_t>(little_endian<uint16_t>(from + 4 + 2 * c));
    const bool is_inside = found.at >= frame.scan && found.at < frame.end;
    if (!is_inside) found.at = frame.end, found.bit = 0;
    return found;
}

RowIndex open_row_index(const Frame& frame, const uint8_t* entry, uint64_t entry_size, const uint8_t* data, uint64_t size) {
    const uint64_t rows_size = static_cast<uint64_t>(frame.mcu_rows) * kRowBytes;
    if (entry_size < kEntryHead + rows_size || size > kMostIndexed) return {};
    const uint8_t* rows = entry + kEntryHead;
    if (little_endian<uint64_t>(entry) != checksum(data, size, rows, rows_size)) return {};
    return {rows};
}

int64_t make_row_index(const Frame& frame, const uint8_t* data, uint64_t size, uint8_t* entry, int64_t room) {
    const int64_t rows_size = static_cast<int64_t>(frame.mcu_rows) * kRowBytes;
    if (frame.mcu_rows < kFewestRows || room < kEntryHead + rows_size || size > kMostIndexed) return 0;
    struct Work {
        Lane lane;
        uint8_t room[kStreamRoom];
    };
    const std::unique_ptr<Work> work(new (std::nothrow) Work());
    if (!work) return 0;
    Lane& lane = work->lane;
    lane.stream.begin(frame.scan, frame.end, 0, work->room);
    const uint8_t* at = frame.scan; // where a bit of the scan lies in the stored bytes
    int64_t passed = 0;             // bytes of the scan before it, without what is stuffed
    for (int row = 0; row < frame.mcu_rows; row++) {
        uint8_t* to = entry + kEntryHead + static_cast<int64_t>(row) * kRowBytes;
        const int64_t position = lane.stream.position();
        for (; passed < position / 8; passed++) at += *at == 0xFF ? 2 : 1;
        put_little_endian<uint32_t>(static_cast<uint32_t>(8 * (at - data) + position % 8), to);
        for (int c = 0; c < 3; c++) put_little_endian<uint16_t>(static_cast<uint16_t>(lane.dc[c]), to + 4 + 2 * c);
        lane.column = 0;
        if (!decode_columns(frame, &lane, nullptr, frame.mcu_columns, false)) return 0;
    }
    put_little_endian<uint64_t>(checksum(data, size, entry + kEntryHead, rows_size), entry);
    return kEntryHead + rows_size;
}

} // namespace fastkd
