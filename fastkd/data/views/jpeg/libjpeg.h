// libjpeg-turbo, whose errors and warnings end a call with a status.
#pragma once

#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if !__has_include(<jpeglib.h>)
#error "fastkd needs libjpeg-turbo's headers: apt install libjpeg-dev, or conda install -c conda-forge libjpeg-turbo"
#endif
// In this order: jerror.h needs jpeglib.h, which needs cstdio.
#include <jpeglib.h>
#include <jerror.h>

#include "frame.h"

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2000000
#error "fastkd needs libjpeg-turbo 2.0 or newer: another libjpeg cannot decode a part of an image"
#endif

namespace fastkd {

enum Status : int32_t { kBadCall = -1, kOk = 0, kBadJpeg = 1, kWrongSize = 2, kNoMemory = 3 };

constexpr int kMostScans = 100; // of a progressive JPEG; encoders write about ten, a bomb thousands
constexpr int kTables = 4;      // of each kind that a JPEG may define

// What a thread keeps: a decompressor while it has an image, scratch memory, and the Huffman tables of the image before.
struct Decoder {
    jpeg_decompress_struct info = {};
    jpeg_error_mgr errors = {};
    jpeg_progress_mgr progress = {};
    std::jmp_buf escape;
    Status status = kOk;
    bool created = false;
    uint8_t* scratch = nullptr;
    size_t scratch_bytes = 0;
    Table (*tables)[kTables] = nullptr; // of DC, of AC

    // Ends a decompressor with its image: one that goes on keeps its tables, and an image without tables would be decoded
    // with those of the image before.
    void close() {
        if (created) jpeg_destroy_decompress(&info);
        created = false;
    }

    ~Decoder() {
        close();
        std::free(scratch);
        std::free(tables);
    }
};

[[noreturn]] inline void leave(Decoder& decoder, Status status) {
    decoder.status = status;
    std::longjmp(decoder.escape, 1);
}

inline Decoder& decoder_of(j_common_ptr info) { return *static_cast<Decoder*>(info->client_data); }

// Reads the header, and refuses what cannot be a whole image of this size.
void read_header(Decoder& decoder, const uint8_t* data, uint64_t size, int height, int width);

// What the header says, where the image is one that `BaselineRows` decodes; false for all others, which are libjpeg's.
bool find_frame(Decoder& decoder, Frame& frame);

} // namespace fastkd
