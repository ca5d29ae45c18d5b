// One view of one stored image: region decode by libjpeg-turbo, resize by resize.cpp, a row at a time.
//
// A JPEG is entropy-decoded down to the last row of the box; the inverse DCT (the accurate integer one), upsampling
// ("fancy") and colour conversion run only for the box and one more pixel to both sides, which the upsampling looks at:
// the pixels of the box are those of a whole decode. Errors of libjpeg, and its warnings too, end the call. A thread has
// one scratch memory, which goes with it; an image has a decompressor of its own.
#include <algorithm>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if !__has_include(<jpeglib.h>)
#error "fastkd needs libjpeg-turbo's headers: apt install libjpeg-dev, or conda install -c conda-forge libjpeg-turbo"
#endif
// In this order: jerror.h needs jpeglib.h, which needs cstdio.
#include <jpeglib.h>
#include <jerror.h>

#include "passes.h"

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2000000
#error "fastkd needs libjpeg-turbo 2.0 or newer: another libjpeg cannot decode a part of an image"
#endif

namespace fastkd {
namespace {

enum Status : int32_t { kBadCall = -1, kOk = 0, kBadJpeg = 1, kWrongSize = 2, kNoMemory = 3 };

constexpr int kMostScans = 100;   // of a progressive JPEG; encoders write about ten, a bomb thousands
constexpr int kMostSide = 65'535; // of any image
constexpr int kUnaligned = 8;     // libjpeg-turbo writes aligned rows past the caches, and they are needed at once

struct Decoder {
    jpeg_decompress_struct info = {};
    jpeg_error_mgr errors = {};
    jpeg_progress_mgr progress = {};
    std::jmp_buf escape;
    Status status = kOk;
    bool created = false;
    uint8_t* scratch = nullptr;
    size_t scratch_bytes = 0;

    // Ends a decompressor with its image: one that goes on keeps its tables, and an image without tables would be decoded
    // with those of the image before.
    void close() {
        if (created) jpeg_destroy_decompress(&info);
        created = false;
    }

    ~Decoder() {
        close();
        std::free(scratch);
    }
};

[[noreturn]] void leave(Decoder& decoder, Status status) {
    decoder.status = status;
    std::longjmp(decoder.escape, 1);
}

Decoder& decoder_of(j_common_ptr info) { return *static_cast<Decoder*>(info->client_data); }

void on_error(j_common_ptr info) {
    leave(decoder_of(info), info->err->msg_code == JERR_OUT_OF_MEMORY ? kNoMemory : kBadJpeg);
}

void on_message(j_common_ptr info, int level) {
    if (level < 0) leave(decoder_of(info), kBadJpeg);
}

void on_progress(j_common_ptr info) {
    if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number > kMostScans) leave(decoder_of(info), kBadJpeg);
}

thread_local Decoder decoder_of_thread;

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

void copy_flipped(const uint8_t* from, int width, uint8_t* to) {
    for (int x = 0; x < width; x++)
        for (int c = 0; c < 3; c++) to[3 * x + c] = from[3 * (width - 1 - x) + c];
}

Status view_of_raw(Decoder& decoder, const uint8_t* data, int width, const Box& box, const Target& target) {
    StoredRows source = {data + 3 * (static_cast<int64_t>(box.top) * width + box.left), 3 * static_cast<int64_t>(width)};
    if (is_plain(target) && box.height == target.height && box.width == target.width) { // the weights would be 2^14 at one place
        for (int y = 0; y < box.height; y++) {
            if (target.flip) copy_flipped(source.row(y), box.width, target.pixels + y * target.stride);
            else std::memcpy(target.pixels + y * target.stride, source.row(y), 3 * static_cast<size_t>(box.width));
        }
        return kOk;
    }
    Passes passes;
    lay_out(decoder, [&](Pieces& pieces) { passes.place(pieces, box, target); });
    passes.run(source, target);
    return kOk;
}

// Reads the header, refuses what cannot be a whole image of this size, and starts to decompress.
void start(Decoder& decoder, const uint8_t* data, uint64_t size, int height, int width) {
    jpeg_decompress_struct& info = decoder.info;
    info.err = jpeg_std_error(&decoder.errors);
    decoder.errors.error_exit = on_error;
    decoder.errors.emit_message = on_message;
    info.client_data = &decoder;
    jpeg_create_decompress(&info);
    decoder.created = true;
    decoder.progress.progress_monitor = on_progress;
    info.progress = &decoder.progress;
    jpeg_mem_src(&info, const_cast<uint8_t*>(data), static_cast<unsigned long>(size));
    jpeg_read_header(&info, TRUE);
    if (info.image_height != static_cast<JDIMENSION>(height) || info.image_width != static_cast<JDIMENSION>(width))
        leave(decoder, kWrongSize);
    // A block takes a bit at least, so that a short file cannot claim an image that takes minutes. Arithmetic coding,
    // which nobody uses, has no such bound, and reads zeros behind the end of the data without a warning.
    const uint64_t columns = (width + 8 * info.max_h_samp_factor - 1) / (8 * info.max_h_samp_factor);
    const uint64_t rows = (height + 8 * info.max_v_samp_factor - 1) / (8 * info.max_v_samp_factor);
    if (info.arith_code || columns * rows > 8 * size) leave(decoder, kBadJpeg);
    switch (info.jpeg_color_space) {
    case JCS_GRAYSCALE:
    case JCS_RGB:
    case JCS_YCbCr: info.out_color_space = JCS_RGB; break;
    case JCS_CMYK:
    case JCS_YCCK: info.out_color_space = JCS_CMYK; break;
    default: leave(decoder, kBadJpeg);
    }
    info.dct_method = JDCT_ISLOW;
    info.do_fancy_upsampling = TRUE;
    info.do_block_smoothing = FALSE;
    jpeg_start_decompress(&info);
}

void skip_rows(Decoder& decoder, int count) {
    if (count && jpeg_skip_scanlines(&decoder.info, count) != static_cast<JDIMENSION>(count)) leave(decoder, kBadJpeg);
}

Status view_of_jpeg(
    Decoder& decoder, const uint8_t* data, uint64_t size, int height, int width, const Box& box, const Target& target) {
    j_decompress_ptr info = &decoder.info;
    start(decoder, data, size, height, width);
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
int32_t fastkd_decoder_version() { return 3; }

// One view of a stored image, into `out`.
//
// data, size: the stored bytes: a JPEG, or 3·height·width bytes of RGB where `raw` is set.
// height, width: of the stored image, as the beton's table says. top … box_width: the box, inside the image.
// flip: mirror the view left to right. out: out_height rows of out_width RGB pixels, `stride` bytes apart.
// Returns 0; 1 where the JPEG does not decode, 2 where it (or the raw data) has another size, 3 where memory is short,
// -1 for a box outside the image or a size outside 1 … 65535. `out` is then in part written.
int32_t fastkd_view(
    const uint8_t* data, uint64_t size, int32_t raw, int32_t height, int32_t width, int32_t top, int32_t left,
    int32_t box_height, int32_t box_width, int32_t flip, uint8_t* out, int64_t stride, int32_t out_height,
    int32_t out_width) {
    using namespace fastkd;
    for (int32_t side : {height, width, box_height, box_width, out_height, out_width})
        if (side < 1 || side > kMostSide) return kBadCall;
    if (top < 0 || left < 0 || top > height - box_height || left > width - box_width) return kBadCall;
    const Box box = {top, left, box_height, box_width};
    const Target target = {out, stride, out_height, out_width, flip != 0};
    if (raw && size != 3 * static_cast<uint64_t>(height) * width) return kWrongSize;
    return guarded([&](Decoder& decoder) {
        return raw ? view_of_raw(decoder, data, width, box, target)
                   : view_of_jpeg(decoder, data, size, height, width, box, target);
    });
}

// The same of a part of the whole image resized, out_height × out_width pixels from (top, left) on; -1 also for a part beyond it.
int32_t fastkd_window(
    const uint8_t* data, uint64_t size, int32_t raw, int32_t height, int32_t width, int64_t resized_height,
    int64_t resized_width, int64_t top, int64_t left, uint8_t* out, int64_t stride, int32_t out_height, int32_t out_width) {
    using namespace fastkd;
    for (int32_t side : {height, width, out_height, out_width}) if (side < 1 || side > kMostSide) return kBadCall;
    if (top < 0 || left < 0 || top > resized_height - out_height || left > resized_width - out_width) return kBadCall;
    const Target target = {out, stride, out_height, out_width, false, {resized_height, resized_width, top, left, height, width}};
    if (raw && size != 3 * static_cast<uint64_t>(height) * width) return kWrongSize;
    return guarded([&](Decoder& decoder) {
        return raw ? view_of_raw(decoder, data, width, sources_of(target), target)
                   : view_of_jpeg(decoder, data, size, height, width, sources_of(target), target);
    });
}

// Decodes a whole JPEG to its last byte and says, as above, whether every view of it can be had.
int32_t fastkd_check_jpeg(const uint8_t* data, uint64_t size, int32_t height, int32_t width) {
    using namespace fastkd;
    return guarded([&](Decoder& decoder) {
        start(decoder, data, size, height, width);
        skip_rows(decoder, height - 1);
        reserve(decoder, 4 * static_cast<size_t>(width)); // CMYK at most
        JSAMPROW row = decoder.scratch;
        jpeg_read_scanlines(&decoder.info, &row, 1);
        jpeg_finish_decompress(&decoder.info);
        decoder.close();
        return kOk;
    });
}

} // extern "C"
