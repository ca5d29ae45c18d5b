"""Betons whose bytes contradict one another, or what a beton is."""

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers.synthetic import FIELDS, METADATA, PAGE, ROW, overwrite

from fastkd.data.beton.read import open_beton
from fastkd.data.beton.verify import verify_beton
from fastkd.data.loader import ViewLoader
from fastkd.data.views.draw import Views
from fastkd.errors import FastKDError, FormatError, NotFoundError

NUM_SAMPLES, IMAGE = 12, 3 * 40 * 56  # photos, bytes of one of them


def refused(path: Path, error: type[FastKDError] = FormatError) -> str:
    with pytest.raises(error) as caught:
        open_beton(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


def table_ptr(path: Path) -> int:
    return struct.unpack("<Q", path.read_bytes()[16:24])[0]


def test_a_missing_beton_is_named(tmp_path):
    refused(tmp_path / "none.beton", NotFoundError)


def test_a_folder_is_no_beton(tmp_path):
    refused(tmp_path, NotFoundError)


def test_a_beton_that_is_cut_is_refused_wherever_it_is_cut(photo_raw, copy_of):
    path, end = copy_of(photo_raw), table_ptr(photo_raw)
    size = path.stat().st_size
    places = [
        size - 1,
        size - 24,
        end + 24,
        end + 1,
        end,
        end - 1,
        PAGE + 1,
        PAGE,
        METADATA + 7,
        METADATA,
        900,
        24,
        23,
        1,
        0,
    ]
    for place in places:
        with path.open("r+b") as file:
            file.truncate(place)
        refused(path)


def test_a_beton_with_something_after_its_end_is_refused(photo_raw, copy_of):
    path = copy_of(photo_raw)
    with path.open("ab") as file:
        file.write(bytes(5))
    assert "allocation table" in refused(path)


@pytest.mark.parametrize("content", [bytes(3 * PAGE), np.random.default_rng(0).bytes(PAGE), b"PK\x03\x04" * 999])
def test_a_file_that_is_no_beton_is_refused(tmp_path, content):
    (tmp_path / "x.beton").write_bytes(content)
    refused(tmp_path / "x.beton")


def test_a_beton_whose_writer_was_killed_is_refused_with_the_reason(photo_raw, copy_of):
    assert "stopped before the end" in refused(copy_of(photo_raw, {16: bytes(8)}))


MALFORMED = {
    "version 0": ({0: b"\0\0"}, "format version 0"),
    "version 3": ({0: b"\3\0"}, "format version 3"),
    "no fields": ({2: b"\0\0"}, "0 fields"),
    "one field less": ({2: b"\1\0"}, "no integer field called 'label'"),
    "one field more": ({2: b"\3\0"}, ""),
    "fields beyond the file": ({2: b"\xff\xff"}, "65535 fields"),
    "page size 0": ({4: bytes(4)}, "page size 0"),
    "page size 1 MiB": ({4: struct.pack("<I", 2**20)}, "page size 1048576"),
    "page size no power of two": ({4: struct.pack("<I", 3 * 2**20)}, "page size 3145728"),
    "no samples": ({8: bytes(8)}, "no samples"),
    "one sample less": ({8: struct.pack("<Q", NUM_SAMPLES - 1)}, "12 rows, 11 expected"),
    "one sample more": ({8: struct.pack("<Q", NUM_SAMPLES + 1)}, "12 rows, 13 expected"),
    "2^63 samples": ({8: struct.pack("<Q", 2**63)}, "(cut?)"),
    "2^64-1 samples": ({8: b"\xff" * 8}, "(cut?)"),
    "table in the header": ({16: struct.pack("<Q", 24)}, "allocation table at byte 24"),
    "table beyond the file": ({16: struct.pack("<Q", 2**40)}, "allocation table at byte 1,099,511,627,776"),
    "table at 2^64-1": ({16: b"\xff" * 8}, "allocation table at byte"),
    "image field of an unknown type": ({FIELDS: b"\x09"}, "'image' is of a type"),
    "image field of a custom type": ({FIELDS: b"\xff"}, "'image' is of a type"),
    "image field that is an integer": ({FIELDS: b"\x01"}, "field 'image' holds integers"),
    "label field that is a float": ({FIELDS + 1041: b"\x00"}, "field 'label' holds floats"),
    "label field that is an image": ({FIELDS + 1041: b"\x02"}, "field 'label' holds RGB images"),
    "two fields of one name": ({FIELDS + 1041 + 1: b"image"}, "two fields of one name"),
    "image mode 2": ({METADATA: b"\2"}, "sample 0 has an image mode"),
    "width 0": ({METADATA + 1: b"\0\0"}, "sample 0 has an empty image"),
    "width too large": ({METADATA + 1: b"\xff\xff"}, "sample 0 is raw with a size"),
    "height 0": ({METADATA + 3: b"\0\0"}, "sample 0 has an empty image"),
    "height too large": ({METADATA + 3: b"\xff\xff"}, "sample 0 is raw with a size"),
    "image pointer 0": ({METADATA + 5: bytes(8)}, "sample 0 points to data"),
    "image pointer 2^64-1": ({METADATA + 5: b"\xff" * 8}, "sample 0 points to data"),
    "image pointer of the next sample": ({METADATA + 5: struct.pack("<Q", PAGE + IMAGE)}, "sample 0 points to data"),
}


MALFORMED_ROWS = {
    "sample 5 twice": (4, 0, 5, "sample 4 points to data"),
    "sample_id beyond the samples": (4, 0, NUM_SAMPLES, "sample 4 points"),
    "sample_id 2^64-1": (4, 0, 2**64 - 1, "sample 4 points"),
    "pointer 0": (4, 8, 0, "sample 4 points"),
    "pointer 2^63": (4, 8, 2**63, "beyond 2^63"),
    "pointer 2^64-1": (4, 8, 2**64 - 1, "beyond 2^63"),
    "pointer into the header": (4, 8, 100, "sample 4 points"),
    "pointer of another sample": (4, 8, PAGE, "sample 4 points to data"),
    "size 0": (4, 16, 0, "sample 4 has an empty image"),
    "size one less": (4, 16, IMAGE - 1, "sample 4 is raw with a size"),
    "size one more": (4, 16, IMAGE + 1, "overlap"),
    "last size one more": (NUM_SAMPLES - 1, 16, IMAGE + 1, "sample 11 is raw with a size"),
    "size of a page": (4, 16, PAGE, "overlap"),
    "size 2^63": (4, 16, 2**63, "beyond 2^63"),
    "last size 2^63": (NUM_SAMPLES - 1, 16, 2**63, "beyond 2^63"),
    "size 2^64-1": (4, 16, 2**64 - 1, "beyond 2^63"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_header_or_row_that_contradicts_the_file_is_refused(photo_raw, copy_of, what):
    changes, words = MALFORMED[what]
    assert words in refused(copy_of(photo_raw, changes))


@pytest.mark.parametrize("what", MALFORMED_ROWS)
def test_an_allocation_that_contradicts_the_rest_is_refused(photo_raw, copy_of, what):
    row, column, value, words = MALFORMED_ROWS[what]
    path = copy_of(photo_raw, {table_ptr(photo_raw) + 24 * row + column: struct.pack("<Q", value)})
    assert words in refused(path)


def test_a_jpeg_that_reaches_into_the_next_one_is_refused(photo_jpg, copy_of):
    size = int(open_beton(photo_jpg).sizes[4])
    path = copy_of(photo_jpg, {table_ptr(photo_jpg) + 24 * 4 + 16: struct.pack("<Q", size + 1)})
    assert "overlap" in refused(path)


def test_a_jpeg_that_reaches_beyond_its_page_is_refused(photo_jpg, copy_of):
    path = copy_of(photo_jpg, {table_ptr(photo_jpg) + 24 * (NUM_SAMPLES - 1) + 16: struct.pack("<Q", PAGE)})
    assert "sample 11 lies outside the pages" in refused(path)


def test_an_image_that_lies_in_two_pages_is_refused(photo_raw, copy_of):
    # All images 1,000 bytes short of a page further on, and the tables with them.
    moved = copy_of(photo_raw)
    content = photo_raw.read_bytes()
    end, shift = table_ptr(photo_raw), PAGE - 1_000
    tables = bytearray(content[:PAGE])
    for i in range(NUM_SAMPLES):
        at = METADATA + ROW * i + 5
        tables[at : at + 8] = struct.pack("<Q", struct.unpack("<Q", tables[at : at + 8])[0] + shift)
    tables[16:24] = struct.pack("<Q", end + PAGE)
    rows = np.frombuffer(content[end:], "<u8").reshape(-1, 3).copy()
    rows[:, 1] += shift
    moved.write_bytes(bytes(tables) + bytes(shift) + content[PAGE:end] + bytes(PAGE - shift) + rows.tobytes())
    assert "sample 0 crosses a page" in refused(moved)


@pytest.mark.parametrize("kind", ["raw", "jpg"])
def test_changed_table_bytes_are_refused_or_found_or_do_not_matter(photo_raw, photo_jpg, copy_of, kind):
    path = copy_of(photo_raw if kind == "raw" else photo_jpg)
    whole, end = path.read_bytes(), table_ptr(path)
    tables = np.r_[:41, FIELDS + 1041 : FIELDS + 1041 + 17, METADATA : METADATA + NUM_SAMPLES * ROW, end : len(whole)]
    rng, opened = np.random.default_rng(1), []
    for _ in range(250):
        places = {int(at): rng.bytes(1) for at in rng.choice(tables, rng.integers(1, 4))}
        overwrite(path, places)
        with contextlib.suppress(FastKDError):
            verify_beton(open_beton(path))
            opened.append(places)
        overwrite(path, {at: whole[at : at + 1] for at in places})
    assert path.read_bytes() == whole
    assert len(opened) < 125
    for places in opened[:2]:
        overwrite(path, places)
        with contextlib.suppress(FastKDError):
            assert sum(map(len, ViewLoader(open_beton(path), Views("rrc", 8)).epoch(0))) == NUM_SAMPLES
        overwrite(path, {at: whole[at : at + 1] for at in places})
