import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from synthetic import encoded, photo, pillow

from fastkd.data import pixels
from fastkd.data.pixels import BAD_BOX, BAD_JPEG, OK, WRONG_SIZE, check_image, cut_padded_view, cut_view, load_library
from fastkd.data.tables import MODE_JPG, MODE_RAW
from fastkd.errors import MissingDependencyError
from fastkd.hashing import crc32c

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))


def cut(content: bytes, mode: int, image: tuple[int, int], box: tuple, out: tuple[int, int], flip: int = 0) -> tuple:
    """Status and pixels of a view: box (top, left, height, width), image and out as (height, width)."""
    frame = np.full(3 * out[0] * out[1] + 128, 77, np.uint8)
    target = frame[64:-64].reshape(*out, 3)
    status = cut_view(np.frombuffer(content, np.uint8), mode, *image, *box, flip, target)
    assert (frame[:64] == 77).all()
    assert (frame[-64:] == 77).all()
    return status, target


def view(content: bytes, mode: int, image: tuple[int, int], box: tuple, out: tuple[int, int], flip: int = 0):
    status, found = cut(content, mode, image, box, out, flip)
    assert status == OK
    return found


def check(content: bytes, height: int, width: int) -> int:
    return check_image(np.frombuffer(content, np.uint8), MODE_JPG, height, width)


def some_boxes(height: int, width: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """The whole image, single pixels at its corners, and boxes drawn from it, small ones among them."""
    yield 0, 0, height, width
    yield 0, 0, 1, 1
    yield height - 1, width - 1, 1, 1
    rng = np.random.default_rng([height, width])
    for i in range(count):
        h, w = rng.integers(1, [min(height, 5) if i % 2 else height, min(width, 5) if i % 3 else width], endpoint=True)
        yield int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), int(h), int(w)


def weights(length: int, out: int) -> np.ndarray:
    """The filter as resize.h defines it: int64 (out, length), rows that add up to 2^14."""
    table = np.zeros((out, length), np.int64)
    for i in range(out):
        reach = 2 * max(length, out)
        w = [max(0, reach - abs((2 * x + 1) * out - (2 * i + 1) * length)) for x in range(length)]
        inverse = 2**62 // sum(w)
        table[i] = np.diff([(sum(w[:x]) * inverse + 2**47) >> 48 for x in range(length + 1)])
    return table


def resized(image: np.ndarray, out: tuple[int, int]) -> np.ndarray:
    """The two passes of resize.h, without its code."""
    rows = (np.einsum("oh,hwc->owc", weights(image.shape[0], out[0]), image.astype(np.int64)) + 2**6) >> 7
    return ((np.einsum("ow,hwc->hoc", weights(image.shape[1], out[1]), rows) + 2**20) >> 21).astype(np.uint8)


def half_the_rows(image: np.ndarray, **options: object) -> bytes:
    """A JPEG whose chroma has half the rows, which Pillow does not write."""
    flags = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440]
    flags += [cv2.IMWRITE_JPEG_PROGRESSIVE, 1] if options.get("progressive") else []
    return cv2.imencode(".jpg", image[:, :, ::-1], flags)[1].tobytes()


def as_mode(mode: str):
    return lambda image, **options: encoded(Image.fromarray(image).convert(mode), "JPEG", **options)


KINDS = {
    "4:4:4": lambda image, **options: encoded(image, subsampling=0, **options),
    "4:2:2": lambda image, **options: encoded(image, subsampling=1, **options),
    "4:2:0": lambda image, **options: encoded(image, subsampling=2, **options),
    "4:1:1": lambda image, **options: encoded(image, subsampling="4:1:1", **options),
    "4:4:0": half_the_rows,
    "RGB": lambda image, **options: encoded(image, keep_rgb=True, **options),
    "grey": as_mode("L"),
    "CMYK": as_mode("CMYK"),
}
SIDES = [(1, 1), (1, 50), (33, 3), (8, 16), (47, 33), (96, 130)]


# Decoding


@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_box_of_a_jpeg_has_the_pixels_that_pillow_decodes_there(kind, progressive):
    for number, (height, width) in enumerate(SIDES):
        content = KINDS[kind](photo(number, height, width), progressive=progressive)
        assert check(content, height, width) == OK
        whole = pillow(content)
        for top, left, h, w in some_boxes(height, width, 40):
            found = view(content, MODE_JPG, (height, width), (top, left, h, w), (h, w))
            np.testing.assert_array_equal(
                found, whole[top : top + h, left : left + w], f"{(height, width)} {top, left}"
            )


@pytest.mark.parametrize("options", [{"restart_marker_blocks": 3}, {"restart_marker_rows": 1}, {"optimize": True}])
def test_restart_markers_and_tables_of_its_own_do_not_change_a_box(options):
    content = encoded(photo(4, 70, 90), **options)
    for box in some_boxes(70, 90, 20):
        top, left, h, w = box
        np.testing.assert_array_equal(
            view(content, MODE_JPG, (70, 90), box, (h, w)), pillow(content)[top : top + h, left : left + w]
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_of_a_jpeg_is_the_view_of_its_decoded_pixels(kind):
    content = KINDS[kind](photo(5, 75, 101))
    raw = pillow(content).tobytes()
    for number, box in enumerate(some_boxes(75, 101, 30)):
        for out in ((24, 24), (7, 90), (130, 1)):
            found = [view(c, mode, (75, 101), box, out, number % 2) for c, mode in ((content, 0), (raw, 1))]
            np.testing.assert_array_equal(*found)


def test_a_window_that_reaches_beyond_the_image_is_zero_there():
    content = encoded(photo(6, 20, 30))
    raw = pillow(content)
    padded = np.pad(raw, ((40, 40), (40, 40), (0, 0)))
    for top, left in ((0, 0), (-4, 3), (4, -4), (-16, -16), (-17, 0), (20, 0), (3, 30), (19, 29)):
        for flip in (0, 1):
            wanted = padded[40 + top : 56 + top, 40 + left : 56 + left]
            for payload, mode in ((content, MODE_JPG), (raw.tobytes(), MODE_RAW)):
                out = np.full((16, 16, 3), 9, np.uint8)
                assert cut_padded_view(np.frombuffer(payload, np.uint8), mode, 20, 30, top, left, flip, out) == OK
                np.testing.assert_array_equal(out, wanted[:, ::-1] if flip else wanted)


# Resizing

sides = st.integers(1, 70)


@given(image=st.tuples(sides, sides), out=st.tuples(sides, sides), flip=st.booleans(), seed=st.integers(0, 99))
def test_a_resize_is_the_integer_formula_to_the_bit(image, out, flip, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (*image, 3), dtype=np.uint8)
    found = view(noise.tobytes(), MODE_RAW, image, (0, 0, *image), out, flip)
    wanted = resized(noise, out)
    np.testing.assert_array_equal(found, wanted[:, ::-1] if flip else wanted)


@pytest.mark.parametrize(("image", "out"), [((900, 700), (3, 5)), ((1, 1), (224, 224)), ((3000, 2), (1, 300))])
def test_a_resize_by_a_large_factor_is_the_integer_formula_too(image, out):
    noise = np.random.default_rng(1).integers(0, 256, (*image, 3), dtype=np.uint8)
    np.testing.assert_array_equal(view(noise.tobytes(), MODE_RAW, image, (0, 0, *image), out), resized(noise, out))


@given(image=st.tuples(sides, sides), out=st.tuples(sides, sides), seed=st.integers(0, 99))
def test_a_resize_is_pillows_antialiased_bilinear_to_rounding(image, out, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (*image, 3), dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(noise).resize(out[::-1], Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(view(noise.tobytes(), MODE_RAW, image, (0, 0, *image), out) - wanted).max() <= 1


@given(image=st.tuples(sides, sides), out=st.tuples(sides, sides), grey=st.integers(0, 255))
def test_an_even_colour_stays_what_it_is(image, out, grey):
    assert (view(bytes([grey]) * (3 * image[0] * image[1]), MODE_RAW, image, (0, 0, *image), out) == grey).all()


def test_pixels_outside_the_box_do_not_matter():
    noise = np.random.default_rng(2).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    other = 255 - noise
    other[10:40, 20:70] = noise[10:40, 20:70]
    found = [view(image.tobytes(), MODE_RAW, (60, 80), (10, 20, 30, 50), (24, 24)) for image in (noise, other)]
    np.testing.assert_array_equal(*found)


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_a_machine_without_avx2_makes_the_same_bytes(tmp_path):
    sources = [str(ROOT / "fastkd" / "data" / name) for name in ("decoder.cpp", "resize.cpp")]
    path = tmp_path / "plain.so"
    command = [COMPILER, "-std=c++17", "-O2", "-shared", "-fPIC", "-DFASTKD_PLAIN", *sources, "-ljpeg", "-o", path]
    subprocess.run(command, check=True, timeout=120)
    plain = load_library(path)
    rng = np.random.default_rng(3)
    for _ in range(300):
        height, width, out_height, out_width = (int(x) for x in rng.integers(1, 90, 4))
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        box = (0, 0, height, width)
        out = np.zeros((out_height, out_width, 3), np.uint8)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (noise, out)]
        size, stride = ctypes.c_uint64(noise.size), ctypes.c_int64(3 * out_width)
        plain.fastkd_view(pointers[0], size, 1, height, width, *box, 0, pointers[1], stride, out_height, out_width)
        np.testing.assert_array_equal(
            view(noise.tobytes(), MODE_RAW, (height, width), box, (out_height, out_width)), out
        )


def checksums_of_golden_views() -> dict[str, list[int]]:
    """CRC32C of three views of each golden JPEG."""
    views = (((0, 0, 61, 83), 0), ((7, 11, 50, 30), 1), ((20, 20, 9, 13), 0))
    return {
        file.name: [
            crc32c(view(file.read_bytes(), MODE_JPG, (61, 83), box, (40, 40), flip).reshape(-1)) for box, flip in views
        ]
        for file in sorted(GOLDEN.glob("*.jpg"))
    }


GOLDEN_CHECKSUMS = {
    "baseline-420.jpg": [2961358279, 1203684200, 2100756954],
    "cmyk.jpg": [441709661, 3839943694, 1690773954],
    "grey.jpg": [603254962, 2974865044, 1212108268],
    "progressive-422.jpg": [2767716249, 3140652937, 2893438653],
}


def test_the_pixels_of_given_images_stay_what_they_are():
    assert checksums_of_golden_views() == GOLDEN_CHECKSUMS


@pytest.mark.parametrize("switch", ["JSIMD_FORCENONE", "JSIMD_FORCESSE2"])
def test_libjpegs_code_for_older_processors_makes_the_same_bytes(switch):
    code = "import test_pixels; print(test_pixels.checksums_of_golden_views())"
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {switch: "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(GOLDEN_CHECKSUMS)


# Damage


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
        [ROOT / "tools" / "fuzz-decoder", "1000", *names], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("1000 mutated JPEGs: ")


# The library


def test_a_library_that_was_not_built_is_named_with_the_way_out(tmp_path):
    with pytest.raises(MissingDependencyError, match=r"_decoder\.so: .* has not been built; install libjpeg-dev"):
        load_library(tmp_path / "_decoder.so")


def test_a_library_that_does_not_load_is_named_with_the_way_out(tmp_path):
    (tmp_path / "_decoder.so").write_bytes(b"no library")
    with pytest.raises(MissingDependencyError, match=r"_decoder\.so: .* does not load .*; install libjpeg-dev"):
        load_library(tmp_path / "_decoder.so")


def test_a_library_of_other_sources_is_refused(monkeypatch):
    monkeypatch.setattr(pixels, "_VERSION", -5)
    with pytest.raises(MissingDependencyError, match=r"is of version \d+, expected -5; "):
        load_library()


def test_opencv_has_no_part_in_the_pixels():
    code = """
import sys
import numpy as np
from fastkd.data.pixels import cut_view
print(cut_view(np.fromfile(sys.argv[1], np.uint8), 0, 61, 83, 7, 11, 50, 30, 1, np.empty((40, 40, 3), np.uint8)))
print([name for name in ("cv2", "ffcv") if name in sys.modules], "opencv" in open("/proc/self/maps").read())
"""
    command = [sys.executable, "-c", code, str(GOLDEN / "baseline-420.jpg")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n[] False\n"


def test_one_library_serves_every_python():
    assert sysconfig.get_config_var("SOABI") not in pixels._LIBRARY.name
