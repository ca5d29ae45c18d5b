#include "rows.h"

#include "../colour.h"

namespace fastkd {
namespace {

constexpr int kRing = 4;    // rows of MCUs that are kept: two are decoded at a time, and those before are looked at
constexpr int kMargin = 64; // bytes at both sides of a row of samples

} // namespace

void BaselineRows::place(Pieces& pieces, const Frame& frame_of_image, const Box& box_of_view, int num_slots_wanted) {
    frame = &frame_of_image, box = box_of_view, num_slots = num_slots_wanted;
    const int h = frame->h, v = frame->v, bottom = box.top + box.height - 1, right = box.left + box.width - 1;
    const int height = (frame->height + v - 1) / v, width = (frame->width + h - 1) / h; // of chroma
    // Upsampling looks at the row of chroma above an even row and below an odd one, and at a column to both sides.
    const int first_y = v == 2 && box.top % 2 == 0 ? std::max(0, box.top / 2 - 1) : box.top / v;
    const int last_y = v == 2 && bottom % 2 == 1 ? std::min(height - 1, bottom / 2 + 1) : bottom / v;
    const int first_x = h == 2 ? std::max(0, box.left / 2 - 1) : box.left;
    const int last_x = h == 2 ? std::min(width - 1, right / 2 + 1) : right;
    first_row = first_y / 8, end_row = last_y / 8 + 1, first_column = first_x / 8, end_column = last_x / 8 + 1;
    ring_rows = std::min(kRing, end_row - first_row);
    for (int c = 0; c < frame->num_components; c++) {
        Plane& plane = planes[c];
        plane.across = c == 0 ? 8 * h : 8, plane.down = c == 0 ? 8 * v : 8;
        plane.width = c == 0 ? frame->width : width, plane.height = c == 0 ? frame->height : height;
        plane.stride = (end_column - first_column) * plane.across + 2 * kMargin;
        plane.pixels = pieces.take<uint8_t>(ring_rows * plane.down * plane.stride) + kMargin;
    }
    slot_bytes = (3 * static_cast<int64_t>(box.width) + kColourSlack + 63) / 64 * 64;
    slots = pieces.take<uint8_t>(num_slots * slot_bytes);
    for (uint8_t*& row : wide) row = pieces.take<uint8_t>(static_cast<size_t>(box.width) + 2 + kColourSlack);
    lanes = pieces.take<Lane>(2);
    for (uint8_t*& room : rooms) room = pieces.take<uint8_t>(kStreamRoom);
}

void BaselineRows::begin() {
    is_sound = true, done = 0, decoded = first_row;
    for (int i = 0; i < 2; i++) lanes[i] = Lane();
    if (index) return;
    lanes[0].stream.begin(frame->scan, frame->end, 0, rooms[0]);
    decoded = 0;
    pass_over(first_row);
}

void BaselineRows::pass_over(int end) {
    for (; is_sound && decoded < end; decoded++) {
        lanes[0].column = 0;
        is_sound = decode_columns(*frame, &lanes[0], nullptr, frame->mcu_columns, false);
    }
}

void BaselineRows::finish() {
    if (index) return;
    const int bottom = box.top + box.height - 1, down = 8 * frame->v;
    const int end = bottom / down + (frame->v == 2 && bottom % down >= down - 2 ? 2 : 1);
    pass_over(std::min(frame->mcu_rows, end));
}

const uint8_t* BaselineRows::plane_row(const Plane& plane, int y) const {
    const int in_ring = y / plane.down % ring_rows * plane.down + y % plane.down;
    return plane.pixels + in_ring * plane.stride - first_column * plane.across;
}

// Where the pixels of a row of MCUs go.
void BaselineRows::aim(Lane& lane, int row) {
    const int first_x = box.left / 8, end_x = (box.left + box.width - 1) / 8 + 1;
    const int first_y = box.top / 8, end_y = (box.top + box.height - 1) / 8 + 1;
    for (int block = 0; block < frame->num_blocks; block++) {
        const int c = frame->component[block], h = c == 0 ? frame->h : 1, v = c == 0 ? frame->v : 1;
        const int x = c == 0 ? block % h : 0, y = c == 0 ? block / h : 0;
        const Plane& plane = planes[c];
        lane.pixels[block] = const_cast<uint8_t*>(plane_row(plane, row * plane.down + 8 * y)) + 8 * x;
        lane.step[block] = plane.across, lane.stride[block] = plane.stride;
        lane.from[block] = first_column, lane.to[block] = end_column;
        if (c != 0) continue;
        lane.from[block] = std::max(first_column, (first_x - x + h - 1) / h);
        lane.to[block] = std::min(end_column, (end_x - x + h - 1) / h);
        if (row * v + y < first_y || row * v + y >= end_y) lane.to[block] = 0;
    }
}

void BaselineRows::begin_row(Lane& lane, int row) {
    aim(lane, row);
    lane.column = 0;
    if (!index) return;
    const RowStart start = index.start(*frame, data, row);
    const uint8_t* end = frame->end;
    if (row + 1 < frame->mcu_rows) { // as far as to the next row's first byte, with kCut bytes behind it
        const uint8_t* next = index.start(*frame, data, row + 1).at;
        end = next + std::min<int64_t>(end - next, 2 * (kCut + 1));
    }
    lane.stream.begin(std::min(start.at, end), end, start.bit, rooms[&lane - lanes]);
    std::copy_n(start.dc, 3, lane.dc);
}

void BaselineRows::decode_until(int end) {
    while (is_sound && decoded < end) {
        const int count = index && decoded + 1 < end_row ? 2 : 1;
        for (int i = 0; i < count; i++) begin_row(lanes[i], decoded + i);
        Lane* second = count == 2 ? &lanes[1] : nullptr;
        is_sound = decode_columns(*frame, lanes, second, first_column, false) &&
                   decode_columns(*frame, lanes, second, end_column, true) &&
                   (index || decode_columns(*frame, lanes, nullptr, frame->mcu_columns, false));
        decoded += count;
    }
}

// One row of a chroma plane, as wide as the box.
void BaselineRows::chroma(int c, int y, uint8_t* out) {
    const Plane& plane = planes[c];
    const int first = box.left / 2, count = (box.left + box.width - 1) / 2 + 1 - first;
    const int near = y / frame->v;
    const int far = frame->v == 1 ? near : std::min(plane.height - 1, std::max(0, y % 2 ? near + 1 : near - 1));
    uint8_t* rows[2] = {const_cast<uint8_t*>(plane_row(plane, near)), const_cast<uint8_t*>(plane_row(plane, far))};
    for (uint8_t* row : rows) { // beyond the edge lies what is at the edge
        if (first_column == 0) row[-1] = row[0];
        if (end_column == frame->mcu_columns) row[plane.width] = row[plane.width - 1];
    }
    if (frame->v == 1) widen(rows[0] + first, count, out);
    else widen_between(rows[0] + first, rows[1] + first, count, out);
}

void BaselineRows::need(int end) {
    for (; is_sound && done < end; done++) {
        const int y = box.top + done;
        const int chroma_height = (frame->height + frame->v - 1) / frame->v;
        const int last = frame->v == 2 && y % 2 == 1 ? std::min(chroma_height - 1, y / 2 + 1) : y / frame->v;
        decode_until(last / 8 + 1);
        if (!is_sound) return;
        uint8_t* out = slots + (done % num_slots) * slot_bytes;
        const uint8_t* luma = plane_row(planes[0], y) + box.left;
        if (frame->num_components == 1) {
            grey_to_rgb(luma, box.width, out);
            continue;
        }
        const uint8_t* inks[2];
        for (int c = 0; c < 2; c++) {
            if (frame->h == 1) {
                inks[c] = plane_row(planes[c + 1], y) + box.left;
            } else {
                chroma(c + 1, y, wide[c]);
                inks[c] = wide[c] + box.left % 2;
            }
        }
        to_rgb(luma, inks[0], inks[1], box.width, out);
    }
}

} // namespace fastkd
