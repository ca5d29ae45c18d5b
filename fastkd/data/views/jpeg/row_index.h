// Where the rows of MCUs of a JPEG begin, so that decoding can begin at any of them: the entry of an image in a row index.
//
// An entry is a checksum, uint64, then kRowBytes a row of MCUs: the bit in the stored bytes at which it begins, uint32, and the
// DC coefficients of the blocks before it, int16 for each of three components; all little-endian. The checksum is of the stored
// bytes and of the rows (`checksum`): an entry of other bytes than those that it was made of is not believed.
#pragma once

#include <cstdint>

#include "frame.h"

namespace fastkd {

constexpr int kEntryHead = 8, kRowBytes = 10;
constexpr int kFewestRows = 4; // of an image that has an entry
constexpr uint64_t kMostIndexed = 1 << 29; // bytes of an image whose bits 32 bits can number

struct RowStart {
    const uint8_t* at;
    int bit;
    int dc[3];
};

// The rows of an image, or none where the entry is too short or is not one of these bytes.
struct RowIndex {
    const uint8_t* rows = nullptr;

    explicit operator bool() const { return rows != nullptr; }
    RowStart start(const Frame& frame, const uint8_t* data, int row) const;
};

RowIndex open_row_index(const Frame& frame, const uint8_t* entry, uint64_t entry_size, const uint8_t* data, uint64_t size);

// Makes the entry, at most `room` bytes; gives its size, 0 where the scan is not sound or has no place in the room.
int64_t make_row_index(const Frame& frame, const uint8_t* data, uint64_t size, uint8_t* entry, int64_t room);

} // namespace fastkd
