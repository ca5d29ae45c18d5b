// Rows of RGB of a box of a JPEG, decoded as they are asked for.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../passes.h"
#include "frame.h"
#include "row_index.h"
#include "scan.h"

namespace fastkd {

// The rows of a box, as `Passes` wants them. Decodes the MCUs of the box, two rows of them at a time where an index says where
// rows begin; without one it passes over all that lie before, and goes as far as libjpeg would, which must be sound.
struct BaselineRows {
    const Frame* frame;
    const uint8_t* data;
    RowIndex index;
    Box box;
    bool is_sound = true; // false: what was decoded since is without meaning

    // Lays out memory for `num_slots` rows.
    void place(Pieces& pieces, const Frame& frame, const Box& box, int num_slots);
    void begin();

    void need(int end);
    const uint8_t* row(int y) const { return slots + (y % num_slots) * slot_bytes; }

    // Without an index: reads on as far as libjpeg does for these rows, whether it is needed or not.
    void finish();

private:
    struct Plane {
        uint8_t* pixels; // of the first row and column of MCUs that are decoded
        int64_t stride;
        int width, height; // samples, 8·h and 8·v of an MCU: `across`, `down`
        int across, down;
    };

    const uint8_t* plane_row(const Plane& plane, int y) const;
    void decode_until(int end);
    void pass_over(int end);
    void aim(Lane& lane, int row);
    void begin_row(Lane& lane, int row);
    void chroma(int c, int y, uint8_t* out);

    int first_row, end_row, first_column, end_column; // of MCUs whose pixels are asked for
    int ring_rows;                                    // of MCUs in the planes
    int decoded;                                      // rows of MCUs that are, up to which
    int done;                                         // rows of the box
    int num_slots;
    int64_t slot_bytes;
    uint8_t *slots, *wide[2];
    Plane planes[3];
    Lane* lanes;
    uint8_t* rooms[2];
};

} // namespace fastkd
