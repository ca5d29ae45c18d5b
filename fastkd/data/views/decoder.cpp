// One view of one stored image: region decode, by fastkd itself or by libjpeg-turbo, resize by resize.cpp, a row at a time.
//
// libjpeg reads the header. A JPEG of the regular kind (frame.h) is then decoded by the code in jpeg/, from the first row of the
// box where a row index says where that begins. All others, and those whose scan is not sound, are libjpeg's: entropy-decoded
// down to the last row of the box; the inverse DCT (the accurate integer one), upsampling ("fancy") and colour conversion run
// only for the box and one more pixel to both sides, which the upsampling looks at. Both give the pixels of a whole decode.
// Errors of libjpeg, and its warnings too, end the call. A thread has one scratch memory, which goes with it; an image has a
// decompressor of its own.
#include <algorithm>
#include <csetjmp>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "jpeg/libjpeg.h"
#include "jpeg/row_index.h"
#include "jpeg/rows.h"
#include "passes.h"

namespace fastkd {
namespace {

constexpr int kMostSide = 65'535; // of any image
#ifdef FASTKD_LIBJPEG // all images libjpeg's way: the same pixels, to compare with
constexpr bool kDecodesItself = false;
#else
constexpr bool kDecodesItself = true;
#endif
constexpr int kUnaligned = 8;     // libjpeg-turbo writes aligned rows past the caches, and they are needed at once

thread_local Decoder decoder_of_thread;

// The bytes of an image, and of its entry in a row index; none where `entry_size` is 0.
struct Stored {
    const uint8_t* data;
    uint64_t size;
    const uint8_t* entry;
    uint64_t entry_size;
};

// Runs `work(decoder)` with a place for libjpeg's errors to jump to. Nothing on the way may need a destructor.
template <typename Work>
Status guarded(const Work& work) {
    if (setjmp(decoder_of_thread.escape)) { // no local variable is used from here on: a jump back may have lost it
        decoder_of_thread.close();
        return decoder_of_thread.status;
    }
    return work(decoder_of_thread);
}

void reserve(Decoder& decoder, size_t bytes) {
    if (bytes <= decoder.scratch_bytes) return;
    bytes = (bytes + 63) / 64 * 64;
    std::free(decoder.scratch);
    decoder.scratch_bytes = 0;
    decoder.scratch = static_cast<uint8_t*>(std::aligned_alloc(64, bytes));
    if (!decoder.scratch) leave(decoder, kNoMemory);
    decoder.scratch_bytes = bytes;
}

// Runs `place(pieces)` twice: to learn how much memory it takes, and to give it that.
template <typename Place>
void lay_out(Decoder& decoder, const Place& place) {
    Pieces counted = {0};
    place(counted);
    reserve(decoder, counted.used);
    FASTKD_ALLOW(decoder.scratch, decoder.scratch_bytes);
    Pieces pieces = {reinterpret_cast<uintptr_t>(decoder.scratch)};
    place(pieces);
}

// Rows of pixels where they are in memory already.
struct StoredRows {
    const uint8_t* pixels;
    int64_t stride;

    void need(int) {}
    const uint8_t* row(int y) const { return pixels + y * stride; }
};

// Rows of a JPEG, decoded when they are needed into a ring that holds the last of them.
struct DecodedRows {
    j_decompress_ptr info;
    uint8_t* ring;
    uint8_t* inks; // a row of CMYK, null where libjpeg gives RGB
    int64_t stride;
    int num_slots;
    int skipped; // bytes of a row in front of the box
    int done;

    uint8_t* slot(int y) const { return ring + (y % num_slots) * stride; }
    const uint8_t* row(int y) const { return slot(y) + skipped; }

    void need(int end) {
        while (done < end) {
            JSAMPROW row = inks ? inks : slot(done);
            if (jpeg_read_scanlines(info, &row, 1) != 1) leave(decoder_of(reinterpret_cast<j_common_ptr>(info)), kBadJpeg);
            if (inks) print(slot(done));
            done++;
        }
    }

    // CMYK to RGB as Pillow does it: what the black leaves, less the ink's part of it. Adobe stores inks inverted.
    void print(uint8_t* out) const {
        const int inverted = info->saw_Adobe_marker ? 0 : 255;
        for (JDIMENSION x = 0; x < info->output_width; x++) {
            const int light = inks[4 * x + 3] ^ inverted;
            for (int c = 0; c < 3; c++) {
                const int product = (255 - (inks[4 * x + c] ^ inverted)) * light + 128;
                out[3 * x + c] = static_cast<uint8_t>(std::max(0, light - ((product + (product >> 8)) >> 8)));
            }
        }
    }
};

// Mirrors a row. Of all pixels but the last, which nothing need follow, four bytes are read; the fourth that is written is the next one's.
void copy_flipped(const uint8_t* from, int width, uint8_t* to) {
    const uint8_t* pixel = from + 3 * static_cast<int64_t>(width - 1);
    std::memcpy(to, pixel, 3);
    for (int x = 1; x < width - 1; x++) std::memcpy(to += 3, pixel -= 3, 4);
    if (width > 1) std::memcpy(to + 3, from, 3);
}

Status view_of_raw(const uint8_t* data, uint64_t size, int height, int width, const Box& box, const Target& target) {
    if (size != 3 * static_cast<uint64_t>(height) * width) return kWrongSize;
    StoredRows source = {data + 3 * (static_cast<int64_t>(box.top) * width + box.left), 3 * static_cast<int64_t>(width)};
    if (is_plain(target) && box.height == target.height && box.width == target.width) { // the weights would be 2^14 at one place
        for (int y = 0; y < box.height; y++) {
            if (target.flip) copy_flipped(source.row(y), box.width, target.pixels + y * target.stride);
            else std::memcpy(target.pixels + y * target.stride, source.row(y), 3 * static_cast<size_t>(box.width));
        }
        return kOk;
    }
    return guarded([&](Decoder& decoder) {
        Passes passes;
        lay_out(decoder, [&](Pieces& pieces) { passes.place(pieces, box, target); });
        passes.run(source, target);
        return kOk;
    });
}

// The view of a JPEG that fastkd decodes itself, with the entry of its row index or without. False where that is not done, or not
// to its end: `target` is then in part written, and what there is to say of the image libjpeg says.
bool view_of_baseline(Decoder& decoder, const Stored& stored, const Box& box, const Target& target) {
    Frame frame;
    if (!kDecodesItself || !find_frame(decoder, frame)) return false;
    Passes passes;
    BaselineRows source = {};
    lay_out(decoder, [&](Pieces& pieces) {
        passes.place(pieces, box, target);
        source.place(pieces, frame, box, std::min(passes.vertical.taps, box.height));
    });
    source.data = stored.data;
    source.index = open_row_index(frame, stored.entry, stored.entry_size, stored.data, stored.size);
    source.begin();
    if (source.is_sound) passes.run(source, target);
    source.finish();
    return source.is_sound;
}

void start(Decoder& decoder) {
    decoder.info.dct_method = JDCT_ISLOW;
    decoder.info.do_fancy_upsampling = TRUE;
    decoder.info.do_block_smoothing = FALSE;
    jpeg_start_decompress(&decoder.info);
}

void skip_rows(Decoder& decoder, int count) {
    if (count && jpeg_skip_scanlines(&decoder.info, count) != static_cast<JDIMENSION>(count)) leave(decoder, kBadJpeg);
}

Status view_of_jpeg(Decoder& decoder, const Stored& stored, int height, int width, const Box& box, const Target& target) {
    j_decompress_ptr info = &decoder.info;
    read_header(decoder, stored.data, stored.size, height, width);
    if (view_of_baseline(decoder, stored, box, target)) {
        decoder.close();
        return kOk;
    }
    start(decoder);
    // Of a strip with less than two columns of chroma libjpeg-turbo upsamples otherwise, so none is narrower than a block.
    const int right = std::min(width, std::max(box.left + box.width + 1, 8 * info->max_h_samp_factor));
    JDIMENSION left = std::max(0, std::min(box.left - 1, right - 8 * info->max_h_samp_factor));
    JDIMENSION columns = right - left;
    if (columns < info->output_width) jpeg_crop_scanline(info, &left, &columns);
    skip_rows(decoder, box.top);

    Passes passes;
    const int64_t stride = (3 * static_cast<int64_t>(columns) + kUnaligned + 63) / 64 * 64;
    DecodedRows source = {info, nullptr, nullptr, stride, 0, 3 * (box.left - static_cast<int>(left)), 0};
    lay_out(decoder, [&](Pieces& pieces) {
        passes.place(pieces, box, target);
        source.num_slots = std::min(passes.vertical.taps, box.height);
        source.ring = pieces.take<uint8_t>(source.num_slots * stride) + kUnaligned;
        if (info->out_color_space == JCS_CMYK) source.inks = pieces.take<uint8_t>(4 * static_cast<size_t>(columns));
    });
    passes.run(source, target);
    decoder.close();
    return kOk;
}

} // namespace
} // namespace fastkd

#pragma GCC visibility push(default)
extern "C" {

// Raised whenever a function below changes what it takes or gives.
int32_t fastkd_decoder_version() { return 4; }

// One view of a stored image, into `out`.
//
// data, size: the stored bytes: a JPEG, or 3·height·width bytes of RGB where `raw` is set.
// height, width: of the stored image, as the beton's table says. top … box_width: the box, inside the image.
// flip: mirror the view left to right. out: out_height rows of out_width RGB pixels, `stride` bytes apart.
// entry: `entry_size` bytes at which the image's entry in a row index (row_index.h) begins; other bytes, or none, cost time alone.
// Returns 0; 1 where the JPEG does not decode, 2 where it (or the raw data) has another size, 3 where memory is short,
// -1 for a box outside the image or a size outside 1 … 65535. `out` is then in part written.
int32_t fastkd_indexed_view(
    const uint8_t* data, uint64_t size, int32_t raw, int32_t height, int32_t width, int32_t top, int32_t left,
    int32_t box_height, int32_t box_width, int32_t flip, uint8_t* out, int64_t stride, int32_t out_height,
    int32_t out_width, const uint8_t* entry, uint64_t entry_size) {
    using namespace fastkd;
    for (int32_t side : {height, width, box_height, box_width, out_height, out_width})
        if (side < 1 || side > kMostSide) return kBadCall;
    if (top < 0 || left < 0 || top > height - box_height || left > width - box_width) return kBadCall;
    const Box box = {top, left, box_height, box_width};
    const Target target = {out, stride, out_height, out_width, flip != 0};
    if (raw) return view_of_raw(data, size, height, width, box, target);
    return guarded([&](Decoder& decoder) {
        return view_of_jpeg(decoder, {data, size, entry, entry_size}, height, width, box, target);
    });
}

// The same of a part of the whole image resized, out_height × out_width pixels from (top, left) on; -1 also for a part beyond it.
int32_t fastkd_window(
    const uint8_t* data, uint64_t size, int32_t raw, int32_t height, int32_t width, int64_t resized_height,
    int64_t resized_width, int64_t top, int64_t left, uint8_t* out, int64_t stride, int32_t out_height, int32_t out_width,
    const uint8_t* entry, uint64_t entry_size) {
    using namespace fastkd;
    for (int32_t side : {height, width, out_height, out_width}) if (side < 1 || side > kMostSide) return kBadCall;
    if (top < 0 || left < 0 || top > resized_height - out_height || left > resized_width - out_width) return kBadCall;
    const Target target = {out, stride, out_height, out_width, false, {resized_height, resized_width, top, left, height, width}};
    const Box box = sources_of(target);
    if (raw) return view_of_raw(data, size, height, width, box, target);
    return guarded([&](Decoder& decoder) {
        return view_of_jpeg(decoder, {data, size, entry, entry_size}, height, width, box, target);
    });
}

// A view as the first, without a row index.
int32_t fastkd_view(
    const uint8_t* data, uint64_t size, int32_t raw, int32_t height, int32_t width, int32_t top, int32_t left,
    int32_t box_height, int32_t box_width, int32_t flip, uint8_t* out, int64_t stride, int32_t out_height,
    int32_t out_width) {
    return fastkd_indexed_view(
        data, size, raw, height, width, top, left, box_height, box_width, flip, out, stride, out_height, out_width, nullptr, 0);
}

// Makes the entry of a JPEG in a row index, at most `room` bytes: its size, or 0 where the image has none.
int64_t fastkd_index_rows(
    const uint8_t* data, uint64_t size, int32_t height, int32_t width, uint8_t* entry, int64_t room) {
    using namespace fastkd;
    int64_t entry_size = 0;
    const Status status = guarded([&](Decoder& decoder) {
        read_header(decoder, data, size, height, width);
        Frame frame;
        if (find_frame(decoder, frame)) entry_size = make_row_index(frame, data, size, entry, room);
        decoder.close();
        return kOk;
    });
    return status == kOk ? entry_size : 0;
}

// Decodes a whole JPEG to its last byte and says, as above, whether every view of it can be had.
int32_t fastkd_check_jpeg(const uint8_t* data, uint64_t size, int32_t height, int32_t width) {
    using namespace fastkd;
    return guarded([&](Decoder& decoder) {
        read_header(decoder, data, size, height, width);
        start(decoder);
        skip_rows(decoder, height - 1);
        reserve(decoder, 4 * static_cast<size_t>(width)); // CMYK at most
        FASTKD_ALLOW(decoder.scratch, decoder.scratch_bytes);
        JSAMPROW row = decoder.scratch;
        jpeg_read_scanlines(&decoder.info, &row, 1);
        jpeg_finish_decompress(&decoder.info);
        decoder.close();
        return kOk;
    });
}

} // extern "C"
