"""What fastkd decodes itself against what libjpeg makes of it."""

import io

import numpy as np
import pytest
from helpers.scripts import benchmark
from helpers.synthetic import encoded, photo
from PIL import Image

from fastkd.data.modes import MODE_JPG
from fastkd.data.views.pixels import BAD_JPEG, OK, index_entry

decoders, same_pixels = benchmark("data.decoders"), benchmark("data.same_pixels")
SUBSAMPLINGS = {"4:4:4": {"subsampling": 0}, "4:2:2": {"subsampling": 1}, "4:2:0": {"subsampling": 2}, "grey": {}}


def jpeg(kind: str, image: np.ndarray, quality: int = 90, **options: object) -> bytes:
    mode = "L" if kind == "grey" else "RGB"
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, "JPEG", quality=quality, **SUBSAMPLINGS[kind], **options)
    return file.getvalue()


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def entry_of(content: bytes, height: int, width: int) -> bytes:
    return index_entry(np.frombuffer(content, np.uint8), MODE_JPG, height, width)


def whole(libraries, content: bytes, image: tuple[int, int], entry: bytes = b"", name: str = "own"):
    """Status and pixels of all of an image."""
    return decoders.view(libraries[name], np.frombuffer(content, np.uint8), image, (0, 0, *image), image, 0, entry)


def test_views_of_jpegs_of_every_form_are_those_that_libjpeg_makes(libraries):
    found = same_pixels.compare(libraries, 6000, seed=1)
    assert found["wrong"] == 0
    assert found["images with an index"] > 50


@pytest.mark.parametrize("kind", SUBSAMPLINGS)
def test_images_of_every_size_up_to_two_blocks_have_libjpegs_pixels(libraries, kind):
    for height in range(1, 18):
        for width in range(1, 18):
            content = jpeg(kind, noise(height, height, width))
            expected = whole(libraries, content, (height, width), name="libjpeg")
            assert expected[0] == OK
            for name in ("own", "plain"):
                np.testing.assert_array_equal(whole(libraries, content, (height, width), name=name)[1], expected[1])


@pytest.mark.parametrize("top", [2, 16, 64, 256])
@pytest.mark.parametrize("kind", SUBSAMPLINGS)
def test_random_coefficients_even_such_as_wrap_become_libjpegs_pixels(libraries, kind, top):
    rng = np.random.default_rng(top)
    for quality in (60, 90, 100):
        content = bytearray(jpeg(kind, noise(quality, 64, 80), quality))
        for at in [i for i in range(len(content) - 70) if content[i : i + 3] == b"\xff\xdb\x00"]:
            content[at + 5 : at + 69] = rng.integers(1, top, 64).astype(np.uint8).tobytes()
        entry = entry_of(bytes(content), 64, 80)
        assert entry
        expected = whole(libraries, bytes(content), (64, 80), name="libjpeg")
        for name in ("own", "plain"):
            np.testing.assert_array_equal(whole(libraries, bytes(content), (64, 80), entry, name)[1], expected[1])


@pytest.mark.parametrize("kind", SUBSAMPLINGS)
def test_an_image_of_the_regular_kind_has_an_entry(kind):
    assert len(entry_of(jpeg(kind, photo(1, 90, 120)), 90, 120)) == 8 + 10 * (6 if kind == "4:2:0" else 12)


@pytest.mark.parametrize(
    "options",
    [{"progressive": True}, {"restart_marker_rows": 1}, {"keep_rgb": True}, {"subsampling": "4:1:0"}],
    ids=["progressive", "restarts", "RGB", "4:1:0"],
)
def test_what_is_left_to_libjpeg_has_no_entry_and_its_pixels(libraries, options):
    if options == {"subsampling": "4:1:0"}:
        content = jpeg("4:2:0", photo(1, 90, 120))
        content = content.replace(
            b"\x03\x01\x22\x00", b"\x03\x01\x41\x00"
        )  # what is left to libjpeg to refuse or decode
    else:
        content = encoded(photo(1, 90, 120), **options)
    assert entry_of(content, 90, 120) == b""
    expected, found = (whole(libraries, content, (90, 120), name=name) for name in ("libjpeg", "own"))
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1], expected[1])


def test_a_damaged_scan_gets_libjpegs_verdict_and_pixels_with_its_index_and_without(libraries):
    rng, refused = np.random.default_rng(2), 0
    contents = [jpeg(kind, photo(3, 90, 120)) for kind in SUBSAMPLINGS]
    for n in range(400):
        content = bytearray(contents[n % len(contents)])
        entry = entry_of(bytes(content), 90, 120)
        scan = content.index(b"\xff\xda") + 14
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(scan, len(content) - 2)] = int(rng.integers(256))
        if n % 5 == 0:
            content = content[: rng.integers(scan, len(content))]
        h, w = (int(x) for x in rng.integers(1, [91, 121]))
        box = (int(rng.integers(91 - h)), int(rng.integers(121 - w)), h, w)
        payload = np.frombuffer(bytes(content), np.uint8)
        expected = decoders.view(libraries["libjpeg"], payload, (90, 120), box, (24, 24))
        refused += expected[0] == BAD_JPEG
        for rows in (b"", entry, entry_of(bytes(content), 90, 120)):
            found = decoders.view(libraries["own"], payload, (90, 120), box, (24, 24), 0, rows)
            assert found[0] == expected[0]
            if found[0] == OK:
                np.testing.assert_array_equal(found[1], expected[1])
    assert 50 < refused < 350


def test_an_entry_of_other_bytes_changes_no_pixel(libraries):
    content = jpeg("4:2:0", photo(4, 90, 120))
    expected = whole(libraries, content, (90, 120))[1]
    entry, other = entry_of(content, 90, 120), entry_of(jpeg("4:2:0", photo(5, 90, 120)), 90, 120)
    wrong = [other, entry[:-1], entry[:8], b"\0" * 68, entry[:8] + other[8:], other[:8] + entry[8:]]
    wrong += [entry[:i] + bytes([entry[i] ^ 1 << i % 8]) + entry[i + 1 :] for i in range(len(entry))]
    for one in wrong:
        status, pixels = whole(libraries, content, (90, 120), one)
        assert status == OK
        np.testing.assert_array_equal(pixels, expected)


def test_an_image_is_not_decoded_with_the_codes_of_the_one_before(libraries):
    contents = [jpeg("4:2:0", photo(seed, 90, 120), optimize=True) for seed in range(4)]
    alone = [whole(libraries, content, (90, 120), name="libjpeg")[1] for content in contents]
    for _ in range(2):
        for content, expected in zip(contents, alone, strict=True):
            np.testing.assert_array_equal(whole(libraries, content, (90, 120))[1], expected)
