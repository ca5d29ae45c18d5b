// The ceiling of rrc_decode.py: a loop that only decodes and resizes. Views one after the other into one batch.
#include <cstdint>

using View = int32_t (*)(
    const uint8_t*, uint64_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, uint8_t*, int64_t,
    int32_t, int32_t, const uint8_t*, uint64_t);

// boxes: per image top, left, height, width, flip; sizes: bytes, raw, height, width; entries: where its entry of the row index
// begins, 0 without one. Returns the sum of all statuses.
extern "C" int64_t loop(
    View view, const uint8_t* file, const int64_t* starts, const int64_t (*stored)[4], const int64_t (*boxes)[5],
    const int64_t* entries, int64_t num_images, const uint8_t* index, int64_t index_bytes, uint8_t* batch, int64_t batch_size,
    int32_t size) {
    int64_t statuses = 0;
    for (int64_t i = 0; i < num_images; i++) {
        const auto [bytes, raw, height, width] = stored[i];
        const auto [top, left, box_height, box_width, flip] = boxes[i];
        statuses += view(
            file + starts[i], bytes, raw, height, width, top, left, box_height, box_width, flip,
            batch + i % batch_size * 3 * size * size, 3 * size, size, size, index + entries[i],
            entries[i] ? index_bytes - entries[i] : 0);
    }
    return statuses;
}
