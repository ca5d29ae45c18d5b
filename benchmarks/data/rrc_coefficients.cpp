// A limit of rrc_decode.py: what is left of a view where its coefficients lie in memory. Built in the place of jpeg/scan.cpp.
//
// An image is decoded whole when it is first seen, its blocks kept as 64 coefficients each, 128 bytes, one image for all its
// copies. From then on the blocks of a box are taken from there: inverse DCT, upsampling, colour and resize are as ever. Works
// without a row index; counts rows by the first lane's DC of luma, which nothing else needs here.
#include <cstring>
#include <map>
#include <memory>
#include <tuple>

namespace {
void keep_block(const int16_t* coefficients, const int16_t* quant, uint8_t* out, int64_t stride);
void keep_first(int16_t coefficient, int16_t quant, uint8_t* out, int64_t stride);
} // namespace

#include "../../fastkd/data/views/dct.h"
// Of the decoder of the scan all but what it does with a block's coefficients.
#define decode_columns decode_columns_of_scan
#define invert_block ::keep_block
#define fill_block ::keep_first
#include "../../fastkd/data/views/jpeg/scan.cpp"
#undef decode_columns
#undef invert_block
#undef fill_block

namespace {

struct alignas(32) Block {
    int16_t coefficients[64];
};

struct Kept {
    std::unique_ptr<Block[]> blocks;
    std::unique_ptr<bool[]> is_flat;
};

Kept* in_the_making = nullptr;

void keep(const int16_t* coefficients, size_t count, uint8_t* out) {
    Block* block = reinterpret_cast<Block*>(out);
    std::memcpy(block->coefficients, coefficients, count * sizeof(int16_t));
    in_the_making->is_flat[block - in_the_making->blocks.get()] = count == 1;
}

void keep_block(const int16_t* coefficients, const int16_t*, uint8_t* out, int64_t) { keep(coefficients, 64, out); }
void keep_first(int16_t coefficient, int16_t, uint8_t* out, int64_t) { keep(&coefficient, 1, out); }

} // namespace

namespace fastkd {
namespace {

// All blocks of an image, MCU by MCU.
Kept decoded(const Frame& frame) {
    const size_t in_row = static_cast<size_t>(frame.mcu_columns) * frame.num_blocks, count = in_row * frame.mcu_rows;
    Kept kept = {std::unique_ptr<Block[]>(new Block[count]()), std::unique_ptr<bool[]>(new bool[count])};
    in_the_making = &kept;
    Lane lane = {};
    uint8_t room[kStreamRoom];
    lane.stream.begin(frame.scan, frame.end, 0, room);
    for (int row = 0; row < frame.mcu_rows; row++) {
        lane.column = 0;
        for (int b = 0; b < frame.num_blocks; b++) {
            lane.pixels[b] = reinterpret_cast<uint8_t*>(kept.blocks.get() + row * in_row + b);
            lane.step[b] = frame.num_blocks * sizeof(Block), lane.from[b] = 0, lane.to[b] = frame.mcu_columns;
        }
        if (!decode_columns_of_scan(frame, &lane, nullptr, frame.mcu_columns, true)) break;
    }
    return kept;
}

const Kept& coefficients_of(const Frame& frame) {
    static thread_local std::map<std::tuple<int64_t, uint64_t, uint64_t>, Kept> images;
    uint64_t first, middle;
    std::memcpy(&first, frame.scan, sizeof first);
    std::memcpy(&middle, frame.scan + (frame.end - frame.scan) / 2, sizeof middle);
    const auto key = std::make_tuple(frame.end - frame.scan, first, middle);
    auto found = images.find(key);
    if (found == images.end()) found = images.emplace(key, decoded(frame)).first;
    return found->second;
}

} // namespace

bool decode_columns(const Frame& frame, Lane* first, Lane*, int stop, bool keep) {
    int& row = first->dc[0];
    if (first->column >= stop) return true;
    if (keep) {
        const Kept& kept = coefficients_of(frame);
        size_t number = (static_cast<size_t>(row) * frame.mcu_columns + first->column) * frame.num_blocks;
        for (int column = first->column; column < stop; column++)
            for (int b = 0; b < frame.num_blocks; b++, number++) {
                if (column < first->from[b] || column >= first->to[b]) continue;
                uint8_t* out = first->pixels[b] + column * first->step[b];
                const int16_t *block = kept.blocks[number].coefficients, *quant = frame.quant[frame.component[b]];
                if (kept.is_flat[number]) fill_block(block[0], quant[0], out, first->stride[b]);
                else invert_block(block, quant, out, first->stride[b]);
            }
    }
    first->column = stop;
    if (stop == frame.mcu_columns) row++;
    return true;
}

} // namespace fastkd
