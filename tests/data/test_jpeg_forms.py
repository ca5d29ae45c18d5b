"""JPEGs of odd headers: what a build keeps of them, the loader decodes, to Pillow's pixels."""

import io

import numpy as np
import pytest
from helpers.synthetic import build, encoded, photo, pillow, write_files
from PIL import Image

from fastkd.data.beton.encode import WriteOptions, encode, keepable
from fastkd.data.sources.jpeg import find_jpeg
from fastkd.data.views.pixels import OK, check_image, cut_view

BASELINE = encoded(photo(3, 70, 90), quality=90)
PROGRESSIVE = encoded(photo(3, 70, 90), quality=90, progressive=True)
RESTARTS = encoded(photo(3, 70, 90), quality=90, restart_marker_rows=1)
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"


def scans_of(content: bytes) -> list[int]:
    """Where the scans of a JPEG begin."""
    return [i for i in range(len(content)) if content[i : i + 2] == b"\xff\xda"]


def with_jfif(major: int, minor: int = 1) -> bytes:
    at = BASELINE.index(b"JFIF\0") + 5
    return BASELINE[:at] + bytes([major, minor]) + BASELINE[at + 2 :]


def with_adobe(transform: int) -> bytes:
    """The picture with Adobe's segment in the place of JFIF's, which would be believed before it."""
    return BASELINE[:2] + ADOBE + bytes([transform]) + BASELINE[20:]


def with_spectrum(first: int, last: int, bits: int) -> bytes:
    at = scans_of(BASELINE)[0]
    end = at + 2 + int.from_bytes(BASELINE[at + 2 : at + 4], "big")
    return BASELINE[: end - 3] + bytes([first, last, bits]) + BASELINE[end:]


def with_scans(count: int) -> bytes:
    return (
        PROGRESSIVE[: scans_of(PROGRESSIVE)[count]] + b"\xff\xd9" if count < len(scans_of(PROGRESSIVE)) else PROGRESSIVE
    )


def renumbered(content: bytes, marker: bytes, nth: int) -> bytes:
    """The picture with one of its tables under the number of another, so that one is missing."""
    at = [i for i in range(scans_of(content)[0]) if content[i : i + 2] == marker][nth] + 4
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def without_restart(number: int) -> bytes:
    at = RESTARTS.index(bytes([0xFF, 0xD0 + number]))
    return RESTARTS[:at] + RESTARTS[at + 2 :]


HEADERS = {
    **{f"JFIF {major}.{minor}": with_jfif(major, minor) for major in range(5) for minor in (0, 1, 2, 255)},
    **{f"Adobe transform {value}": with_adobe(value) for value in range(256)},
    **{
        f"spectrum {numbers}": with_spectrum(*numbers)
        for numbers in [(0, 0, 0), (0, 62, 0), (1, 63, 0), (0, 63, 1), (63, 0, 0x21)]
    },
    **{f"{count} scans": with_scans(count) for count in range(1, len(scans_of(PROGRESSIVE)) + 1)},
    **{f"quantisation table {i} missing": renumbered(BASELINE, b"\xff\xdb", i) for i in range(2)},
    **{f"Huffman table {i} missing": renumbered(BASELINE, b"\xff\xc4", i) for i in range(4)},
    "bytes between segments": BASELINE[:20] + b"\0\0\0" + BASELINE[20:],
    "fill bytes": BASELINE[:20] + b"\xff\xff\xff" + BASELINE[20:],
}
"""Name → one picture, under a header of another form."""
FORMS = HEADERS | {
    **{f"without restart {number}": without_restart(number) for number in range(3)},
    "bytes before the end": BASELINE[:-2] + b"\xff\x00" * 9 + b"\xff\xd9",
}
"""And with entropy-coded data of another form."""


def equals_pillow(payload: np.ndarray, content: bytes) -> bool:
    expected = pillow(content)
    size, out = expected.shape[:2], np.empty(expected.shape, np.uint8)
    return cut_view(payload, 0, *size, 0, 0, *size, 0, out) == OK and bool((out == expected).all())


@pytest.mark.parametrize(("name", "check"), [*((name, True) for name in FORMS), *((name, False) for name in HEADERS)])
def test_a_jpeg_of_any_header_that_is_kept_loads_with_pillows_pixels(name, check):
    content = FORMS[name]
    jpeg = keepable(content, WriteOptions(mode="keep", check=check))
    if jpeg is not None:
        payload = np.frombuffer(content, np.uint8, jpeg.end)
        assert check_image(payload, 0, jpeg.height, jpeg.width) == OK
        assert equals_pillow(payload, content)


@pytest.mark.parametrize("name", [name for name in FORMS if "missing" in name])
def test_a_jpeg_without_one_of_its_tables_is_not_whole_whatever_was_decoded_before(name):
    assert find_jpeg(BASELINE) is not None
    assert find_jpeg(FORMS[name]) is None


@pytest.mark.parametrize("name", [name for name in FORMS if "missing" not in name])
def test_a_jpeg_of_any_header_is_stored_raw_as_pillow_decodes_it(name):
    image = encode(FORMS[name], name, WriteOptions(mode="raw"))
    np.testing.assert_array_equal(image.payload.reshape(image.height, image.width, 3), pillow(FORMS[name]))


@pytest.mark.parametrize(
    "name", ["JFIF 1.1", "JFIF 1.255", "Adobe transform 0", "Adobe transform 1", "spectrum (0, 63, 0)", "fill bytes"]
)
def test_forms_that_the_loader_takes_are_kept(name):
    content = {**FORMS, "spectrum (0, 63, 0)": BASELINE}[name]
    assert keepable(content, WriteOptions(mode="keep")) is not None


def test_only_a_progressive_jpeg_of_all_its_scans_is_whole():
    num_scans = len(scans_of(PROGRESSIVE))
    assert [find_jpeg(with_scans(count)) is not None for count in range(1, num_scans + 1)] == [False] * (
        num_scans - 1
    ) + [True]


def test_a_jpeg_that_the_loader_would_refuse_is_encoded_anew(tmp_path):
    folder = write_files(tmp_path / "images", {"a/0.jpg": with_jfif(2)})
    beton = build(folder, tmp_path / "x.beton", "keep", jpeg_quality=95)
    stored = Image.open(io.BytesIO(beton.payload(0).tobytes()))
    assert stored.info["jfif_version"][0] == 1
    assert np.abs(np.asarray(stored).astype(int) - pillow(with_jfif(2))).mean() < 2
