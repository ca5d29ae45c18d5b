// Resizing of rows as they come: what needs to be in memory, and the order in which rows are asked for.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "resize.h"

#ifdef __SANITIZE_ADDRESS__ // tells where a piece of memory ends, which is within one allocation
#include <sanitizer/asan_interface.h>
#define FASTKD_FORBID(from, bytes) ASAN_POISON_MEMORY_REGION(from, bytes)
#define FASTKD_ALLOW(from, bytes) ASAN_UNPOISON_MEMORY_REGION(from, bytes)
constexpr int kFence = 64;
#else
#define FASTKD_FORBID(from, bytes)
#define FASTKD_ALLOW(from, bytes)
constexpr int kFence = 0;
#endif

namespace fastkd {

struct Box {
    int top, left, height, width;
};

// A part of the whole image resized; none, of which the height is 0, where it is the box that is resized.
struct Window {
    int64_t height, width; // of the whole image after resizing
    int64_t top, left;     // of the part in it
    int image_height, image_width;
};

struct Target {
    uint8_t* pixels;
    int64_t stride; // bytes from row to row
    int height, width;
    bool flip;
    Window window = {};
};

// Whether a target is not resized, or by the ratio of its box alone.
inline bool is_plain(const Target& target) {
    const Window& whole = target.window;
    return !whole.height || (whole.height == whole.image_height && whole.width == whole.image_width);
}

// The pixels of the image that a window is made of.
inline Box sources_of(const Target& target) {
    const Window& whole = target.window;
    int top, left, bottom, right;
    find_sources(whole.image_height, whole.height, whole.top, target.height, top, bottom);
    find_sources(whole.image_width, whole.width, whole.left, target.width, left, right);
    return {top, left, bottom - top, right - left};
}

// Scratch memory of a call, handed out piece by piece.
struct Pieces {
    uintptr_t base;
    size_t used = 0;

    template <typename T>
    T* take(size_t count) {
        T* piece = reinterpret_cast<T*>(base + used);
        used += (count * sizeof(T) + 63) / 64 * 64 + kFence;
        if (base && kFence) FASTKD_FORBID(piece + count, base + used - reinterpret_cast<uintptr_t>(piece + count));
        return piece;
    }
};

// The filters of both axes and the rows between the two passes, in memory that `place` lays out.
struct Passes {
    Axis vertical, horizontal;
    const uint8_t** rows;
    int16_t* blended[2];

    void place(Pieces& pieces, const Box& box, const Target& target) {
        const Window& whole = target.window;
        if (whole.height) {
            vertical = place_axis(pieces, box.height, target.height, whole.image_height, whole.height, whole.top, box.top);
            horizontal = place_axis(pieces, box.width, target.width, whole.image_width, whole.width, whole.left, box.left);
        } else {
            vertical = place_axis(pieces, box.height, target.height, box.height, target.height, 0, 0);
            horizontal = place_axis(pieces, box.width, target.width, box.width, target.width, 0, 0);
        }
        rows = pieces.take<const uint8_t*>(vertical.taps);
        for (int16_t*& row : blended) row = pieces.take<int16_t>(width());
    }

    int width() const { return 3 * std::max(horizontal.length, horizontal.taps) + kSlack; }

    static Axis place_axis(
        Pieces& pieces, int length, int out, int64_t whole_length, int64_t whole_out, int64_t from, int64_t start) {
        const int taps = count_taps(whole_length, whole_out), places = (out + 3) / 4 * 4;
        int* first = pieces.take<int>(places);
        int16_t* weights = pieces.take<int16_t>(static_cast<size_t>(places) * taps);
        return {length, out, taps, first, weights, whole_length, whole_out, from, start};
    }

    template <typename Rows>
    void run(Rows& source, const Target& target) {
        fill_axis(vertical, false);
        fill_axis(horizontal, target.flip);
        for (int16_t* row : blended) std::fill(row, row + width(), int16_t{0}); // zero weights take what is behind the end
        for (int i = 0; i < target.height; i += 2) {
            const int num_rows = std::min(2, target.height - i);
            uint8_t* out[2];
            for (int r = 0; r < num_rows; r++) {
                const int first = vertical.first[i + r], last = vertical.length - 1;
                source.need(std::min(first + vertical.taps, last + 1));
                for (int k = 0; k < vertical.taps; k++) rows[k] = source.row(std::min(first + k, last));
                const int16_t* weights = vertical.weights + static_cast<int64_t>(i + r) * vertical.taps;
                blend_rows(rows, weights, vertical.taps, 3 * horizontal.length, blended[r]);
                out[r] = target.pixels + (i + r) * target.stride;
            }
            if (num_rows == 1) out[1] = out[0];
            const int16_t* const pair[2] = {blended[0], blended[num_rows - 1]};
            blend_columns(pair, horizontal, out);
        }
    }
};

} // namespace fastkd
