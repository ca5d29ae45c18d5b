"""What the decoder makes of damaged, cut and lying images."""

import os
import shutil
import subprocess

import numpy as np
import pytest
from helpers import ROOT
from helpers.decoding import KINDS, check, cut, view
from helpers.synthetic import encoded, photo

from fastkd.data.modes import MODE_JPG, MODE_RAW
from fastkd.data.views.pixels import BAD_BOX, BAD_JPEG, OK, WRONG_SIZE, check_image

COMPILER = shutil.which(os.environ.get("CXX", "c++"))
WHOLE = encoded(photo(7, 90, 120), quality=90)
SIDE = (90, 120)


def progressive_of_scans(num_scans: int) -> bytes:
    """A grey 64×64 JPEG whose one scan, of nothing but zeros, is there many times."""
    first = encoded(np.full((64, 64), 128, np.uint8))
    tables = first[2 : first.index(b"\xff\xda")].replace(b"\xff\xc0", b"\xff\xc2")
    scan = bytes.fromhex("ffda 0008 01 01 00 00 00 00") + bytes(16)
    return b"\xff\xd8" + tables + scan * num_scans + b"\xff\xd9"


def claiming(content: bytes, marker: bytes, height: int, width: int) -> bytes:
    """The same JPEG with another size in the frame header after the marker."""
    at = content.index(marker) + 5
    return content[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + content[at + 4 :]


def without(content: bytes, *markers: int) -> bytes:
    """The same JPEG without its segments of these markers."""
    kept, at = content[:2], 2
    while content[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4])
        kept += content[at:end] if content[at + 1] not in markers else b""
        at = end
    return kept + content[at:]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"\xff\xd8",
        b"not a JPEG at all" * 9,
        encoded(photo(1, 90, 120), "PNG"),
        WHOLE[2:],
        WHOLE[:300],
        WHOLE[:-600],
        WHOLE[:600] + b"\xff\xd9",
        WHOLE[: len(WHOLE) // 2] + bytes(len(WHOLE) // 2),
    ],
    ids=["empty", "a byte", "a marker", "text", "a PNG", "no start", "headers", "cut", "ended early", "zeros"],
)
def test_what_is_no_whole_jpeg_is_bad(content):
    assert cut(content, MODE_JPG, SIDE, (0, 0, *SIDE), (24, 24))[0] == BAD_JPEG
    assert check(content, *SIDE) == BAD_JPEG


def test_a_damaged_image_does_not_show_in_the_next():
    before = view(WHOLE, MODE_JPG, SIDE, (3, 5, 80, 100), (24, 24))
    for end in range(0, len(WHOLE) - 600, 97):
        cut(WHOLE[:end], MODE_JPG, SIDE, (3, 5, 80, 100), (24, 24))
        np.testing.assert_array_equal(view(WHOLE, MODE_JPG, SIDE, (3, 5, 80, 100), (24, 24)), before)


def test_what_lies_below_the_box_is_not_read():
    half = WHOLE[: 3 * len(WHOLE) // 4]
    box = (0, 10, 30, 100)
    np.testing.assert_array_equal(view(half, MODE_JPG, SIDE, box, (24, 24)), view(WHOLE, MODE_JPG, SIDE, box, (24, 24)))
    assert check(half, *SIDE) == BAD_JPEG


def test_a_cut_anywhere_is_found_by_reading_to_the_end():
    assert check(WHOLE, *SIDE) == OK
    assert {check(WHOLE[:end], *SIDE) for end in range(0, len(WHOLE) - 1, 13)} == {BAD_JPEG}


@pytest.mark.parametrize(("height", "width"), [(91, 120), (90, 119), (120, 90), (1, 1), (65_535, 65_535)])
def test_a_jpeg_of_another_size_than_it_should_have_is_told(height, width):
    assert cut(WHOLE, MODE_JPG, (height, width), (0, 0, 1, 1), (8, 8))[0] == WRONG_SIZE
    assert check(WHOLE, height, width) == WRONG_SIZE


def test_raw_pixels_of_another_size_than_they_should_have_are_told():
    assert cut(bytes(299), MODE_RAW, (10, 10), (0, 0, 10, 10), (8, 8))[0] == WRONG_SIZE
    assert check_image(np.zeros(299, np.uint8), MODE_RAW, 10, 10) == WRONG_SIZE


@pytest.mark.parametrize(
    "box", [(-1, 0, 5, 5), (0, -1, 5, 5), (86, 0, 5, 5), (0, 116, 5, 5), (0, 0, 0, 5), (0, 0, 5, 121)]
)
@pytest.mark.parametrize("mode", [MODE_JPG, MODE_RAW])
def test_a_box_outside_the_image_is_refused(box, mode):
    content = WHOLE if mode == MODE_JPG else bytes(3 * 90 * 120)
    assert cut(content, mode, SIDE, box, (8, 8))[0] == BAD_BOX


def test_an_image_without_tables_is_not_decoded_with_those_of_the_image_before():
    no_quantization, motion = without(WHOLE, 0xDB), without(WHOLE, 0xC4)
    for before in (WHOLE, encoded(photo(9, 90, 120), optimize=True, quality=30)):
        assert check(before, *SIDE) == OK
        assert check(no_quantization, *SIDE) == BAD_JPEG
        view(before, MODE_JPG, SIDE, (0, 0, *SIDE), SIDE)
        assert cut(no_quantization, MODE_JPG, SIDE, (0, 0, *SIDE), SIDE)[0] == BAD_JPEG
        view(before, MODE_JPG, SIDE, (0, 0, *SIDE), SIDE)
        found = view(motion, MODE_JPG, SIDE, (0, 0, *SIDE), SIDE)  # Motion JPEG: the standard's codes
        np.testing.assert_array_equal(found, view(WHOLE, MODE_JPG, SIDE, (0, 0, *SIDE), SIDE))


def test_a_short_file_cannot_claim_a_huge_image():
    for marker, whole in ((b"\xff\xc0", WHOLE), (b"\xff\xc2", encoded(photo(7, 90, 120), progressive=True))):
        content = claiming(whole, marker, 65_500, 65_500)
        assert check(content, 65_500, 65_500) == BAD_JPEG
        assert cut(content, MODE_JPG, (65_500, 65_500), (65_000, 0, 9, 9), (8, 8))[0] == BAD_JPEG


def test_a_jpeg_of_thousands_of_scans_is_refused():
    assert check(progressive_of_scans(20), 64, 64) == OK
    assert check(progressive_of_scans(5000), 64, 64) == BAD_JPEG
    assert cut(progressive_of_scans(5000), MODE_JPG, (64, 64), (0, 0, 9, 9), (8, 8))[0] == BAD_JPEG


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_mutated_jpegs_never_leave_their_memory_and_never_give_two_answers(tmp_path):
    names = []
    for kind, encode in KINDS.items():
        for progressive in (False, True):
            path = tmp_path / f"{kind}{progressive}.jpg".replace(":", "")
            path.write_bytes(encode(photo(8, 45, 61), progressive=progressive))
            names.append(str(path))
    done = subprocess.run(
        [ROOT / "tools" / "fuzz-decoder", "1000", *names], capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("1000 mutated JPEGs: ")
