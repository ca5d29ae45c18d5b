import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import GOLDEN, ROOT, TESTS
from helpers.decoding import KINDS, check, view
from helpers.synthetic import encoded, photo, pillow

from fastkd.data.modes import MODE_JPG, MODE_RAW
from fastkd.data.views import pixels
from fastkd.data.views.pixels import OK, cut_padded_view, load_library
from fastkd.errors import MissingDependencyError
from fastkd.hashing import crc32c

COMPILER = shutil.which(os.environ.get("CXX", "c++"))


def some_boxes(height: int, width: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """The whole image, single pixels at its corners, and boxes drawn from it, small ones among them."""
    yield 0, 0, height, width
    yield 0, 0, 1, 1
    yield height - 1, width - 1, 1, 1
    rng = np.random.default_rng([height, width])
    for i in range(count):
        h, w = rng.integers(1, [min(height, 5) if i % 2 else height, min(width, 5) if i % 3 else width], endpoint=True)
        yield int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), int(h), int(w)


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
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {switch: "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(GOLDEN_CHECKSUMS)


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
from fastkd.data.views.pixels import cut_view
print(cut_view(np.fromfile(sys.argv[1], np.uint8), 0, 61, 83, 7, 11, 50, 30, 1, np.empty((40, 40, 3), np.uint8)))
print([name for name in ("cv2", "ffcv") if name in sys.modules], "opencv" in open("/proc/self/maps").read())
"""
    command = [sys.executable, "-c", code, str(GOLDEN / "baseline-420.jpg")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n[] False\n"


def test_one_library_serves_every_python():
    assert sysconfig.get_config_var("SOABI") not in pixels._LIBRARY.name
