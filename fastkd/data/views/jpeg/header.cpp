#include <algorithm>

#include "libjpeg.h"

namespace fastkd {
namespace {

void on_error(j_common_ptr info) {
    leave(decoder_of(info), info->err->msg_code == JERR_OUT_OF_MEMORY ? kNoMemory : kBadJpeg);
}

void on_message(j_common_ptr info, int level) {
    if (level < 0) leave(decoder_of(info), kBadJpeg);
}

void on_progress(j_common_ptr info) {
    if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number > kMostScans) leave(decoder_of(info), kBadJpeg);
}

// A table of the image by its number, made where the thread has another one there; null where it is not sound.
const Table* find_table(Decoder& decoder, bool is_dc, int number) {
    if (number < 0 || number >= kTables) return nullptr;
    if (!decoder.tables) decoder.tables = static_cast<Table(*)[kTables]>(std::calloc(2 * kTables, sizeof(Table)));
    if (!decoder.tables) leave(decoder, kNoMemory);
    const JHUFF_TBL* stored = (is_dc ? decoder.info.dc_huff_tbl_ptrs : decoder.info.ac_huff_tbl_ptrs)[number];
    Table& table = decoder.tables[is_dc ? 0 : 1][number];
    return stored && make_table(table, is_dc, stored->bits, stored->huffval) ? &table : nullptr;
}

} // namespace

void read_header(Decoder& decoder, const uint8_t* data, uint64_t size, int height, int width) {
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
}

bool find_frame(Decoder& decoder, Frame& frame) {
    const jpeg_decompress_struct& info = decoder.info;
    const jpeg_component_info* components = info.comp_info;
    const bool is_grey = info.jpeg_color_space == JCS_GRAYSCALE && info.num_components == 1;
    const bool is_colour = info.jpeg_color_space == JCS_YCbCr && info.num_components == 3;
    if (!(is_grey || is_colour) || info.comps_in_scan != info.num_components || info.data_precision != 8) return false;
    if (info.progressive_mode || info.arith_code || info.restart_interval) return false;
    if (info.Ss != 0 || info.Se != 63 || info.Ah != 0 || info.Al != 0) return false;
    const int h = components[0].h_samp_factor, v = components[0].v_samp_factor;
    if (!((h == 1 && v == 1) || (is_colour && h == 2 && (v == 1 || v == 2)))) return false;
    if (h == 2 && info.image_width <= 4) return false; // of two columns of chroma libjpeg-turbo upsamples otherwise
    frame.height = static_cast<int>(info.image_height), frame.width = static_cast<int>(info.image_width);
    frame.h = h, frame.v = v, frame.num_components = info.num_components;
    frame.mcu_columns = (frame.width + 8 * h - 1) / (8 * h), frame.mcu_rows = (frame.height + 8 * v - 1) / (8 * v);
    frame.num_blocks = 0;
    for (int c = 0; c < frame.num_components; c++) {
        const jpeg_component_info& component = components[c];
        const bool is_plain = component.h_samp_factor == 1 && component.v_samp_factor == 1;
        if (info.cur_comp_info[c] != &component || (c > 0 && !is_plain)) return false;
        const int quant = component.quant_tbl_no;
        if (quant < 0 || quant >= NUM_QUANT_TBLS || !info.quant_tbl_ptrs[quant]) return false;
        std::copy_n(info.quant_tbl_ptrs[quant]->quantval, 64, frame.quant[c]);
        frame.dc[c] = find_table(decoder, true, component.dc_tbl_no);
        frame.ac[c] = find_table(decoder, false, component.ac_tbl_no);
        if (!frame.dc[c] || !frame.ac[c]) return false;
        for (int block = 0; block < (c == 0 ? h * v : 1); block++) frame.component[frame.num_blocks++] = c;
    }
    frame.scan = info.src->next_input_byte;
    frame.end = frame.scan + info.src->bytes_in_buffer;
    return true;
}

} // namespace fastkd
