import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import fastkd
from helpers.synthetic import PAGE, build, encoded, files_of, nearest, photo, pillow, stored, write_files
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastkd.data.beton.encode import WriteOptions, default_mode
from fastkd.data.beton.pages import PageWriter
from fastkd.data.beton.read import open_beton
from fastkd.data.beton.verify import verify_beton
from fastkd.data.sources.jpeg import find_jpeg
from fastkd.data.sources.open import open_source
from fastkd.data.views.pixels import OK, cut_view
from fastkd.errors import OptionError, SourceError

MODES = ("raw", "jpg", "keep")
LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]  # of the twelve photos
STOCK_LOADER = """
import sys
import numpy as np
from ffcv.loader import Loader, OrderOption

for path in sys.argv[1:]:
    loader = Loader(path, batch_size=5, num_workers=1, order=OrderOption.SEQUENTIAL, drop_last=False)
    batches = [(images.numpy().copy(), labels.numpy().copy()) for images, labels in loader]
    images, labels = (np.concatenate(parts) for parts in zip(*batches))
    np.savez(path + ".npz", images=images, labels=labels[:, 0])
"""


@pytest.fixture(scope="module")
def stock_read(photo_folder, tmp_path_factory) -> dict[str, np.lib.npyio.NpzFile]:
    """What FFCV's own loader and decoders, in a process without fastkd, read from a beton of each mode."""
    folder = tmp_path_factory.mktemp("stock")
    paths = [str(build(photo_folder, folder / f"{mode}.beton", mode).path) for mode in MODES]
    subprocess.run([sys.executable, "-c", STOCK_LOADER, *paths], check=True, capture_output=True, timeout=120)
    return {mode: np.load(f"{path}.npz") for mode, path in zip(MODES, paths, strict=True)}


@pytest.mark.parametrize("mode", MODES)
def test_stock_ffcv_reads_every_label(stock_read, mode):
    assert stock_read[mode]["labels"].tolist() == LABELS


def test_stock_ffcv_reads_from_a_raw_beton_what_pillow_decodes(photo_folder, stock_read):
    expected = [pillow(file.read_bytes()) for file in files_of(photo_folder)]
    np.testing.assert_array_equal(stock_read["raw"]["images"], expected)


@pytest.mark.parametrize("mode", ["jpg", "keep"])
def test_stock_ffcv_reads_each_jpeg_as_the_picture_that_it_is(photo_folder, stock_read, mode):
    sources = [pillow(file.read_bytes()) for file in files_of(photo_folder)]
    assert [nearest(image, sources) for image in stock_read[mode]["images"]] == list(range(12))


@pytest.mark.parametrize("mode", MODES)
def test_fastkd_decodes_to_the_pixels_that_stock_ffcv_decodes_to_but_for_its_fast_dct(stock_read, mode):
    beton = open_beton(stock_read[mode].fid.name.removesuffix(".npz"))
    found, out = np.empty((40, 56, 3), np.uint8), stock_read[mode]["images"].astype(int)
    for i in range(12):
        assert cut_view(beton.payload(i).view(np.ndarray), beton.modes[i], 40, 56, 0, 0, 40, 56, 0, found) == OK
        assert np.square(found - out[i]).mean() <= (0 if mode == "raw" else 255**2 / 10**4)  # 40 dB


@pytest.mark.parametrize("mode", MODES)
def test_a_beton_says_what_it_holds(photo_folder, tmp_path, mode):
    beton = build(photo_folder, tmp_path / "x.beton", mode)
    assert beton.labels.tolist() == LABELS
    assert set(beton.heights) == {40}
    assert set(beton.widths) == {56}
    assert set(beton.modes) == {1 if mode == "raw" else 0}


def test_keep_stores_the_bytes_of_the_source_files(photo_folder, tmp_path):
    beton = build(photo_folder, tmp_path / "x.beton", "keep")
    for i, file in enumerate(files_of(photo_folder)):
        assert beton.payload(i).tobytes() == file.read_bytes()


@pytest.mark.parametrize(
    "options",
    [{"progressive": True}, {"subsampling": 0}, {"quality": 20}, {"optimize": True}, {"restart_marker_rows": 1}],
    ids=lambda options: next(iter(options)),
)
def test_keep_keeps_any_rgb_jpeg(tmp_path, options):
    content = encoded(photo(1, 33, 47), "JPEG", **options)
    beton = build(write_files(tmp_path / "images", {"a/0.jpg": content}), tmp_path / "x.beton", "keep")
    assert beton.payload(0).tobytes() == content
    assert verify_beton(beton) == []


@pytest.fixture
def whole_in_structure_alone(tmp_path) -> str:
    """A JPEG whose entropy-coded bytes are damaged in a way that no marker shows."""
    content = bytearray(encoded(photo(1, 100, 120)))
    start = content.index(b"\xff\xda") + 14
    content[start : start + 300] = bytes([0x55]) * 300
    assert find_jpeg(bytes(content))
    return write_files(tmp_path / "images", {"a/0.jpg": bytes(content), "a/1.jpg": encoded(photo(2, 50, 50))})


def test_keep_without_check_takes_over_what_is_whole_in_structure_and_verify_finds_it(
    whole_in_structure_alone, tmp_path
):
    beton = build(whole_in_structure_alone, tmp_path / "x.beton", "keep", check=False)
    assert [line.split(":")[0] for line in verify_beton(beton)] == ["sample 0"]


def test_keep_never_takes_over_what_does_not_decode(whole_in_structure_alone, tmp_path):
    beton = build(whole_in_structure_alone, tmp_path / "x.beton", "keep")
    assert verify_beton(beton) == []
    assert beton.payload(1).tobytes() == (Path(whole_in_structure_alone) / "a/1.jpg").read_bytes()


@pytest.mark.parametrize("side", [32, 33, 128, 129])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}], ids=str)
def test_a_raw_beton_of_jpegs_has_pillows_pixels(tmp_path, side, options):
    content = encoded(photo(side, side, side - 5), **options)
    beton = build(write_files(tmp_path / "images", {"a/0.jpg": content}), tmp_path / "x.beton")
    np.testing.assert_array_equal(stored(beton, 0), pillow(content))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_shrunk_picture_is_pillows_antialiased_one(tmp_path, kind):
    content = encoded(photo(7, 301, 403), kind)
    beton = build(
        write_files(tmp_path / "images", {f"a/0.{kind.lower()}": content}), tmp_path / "x.beton", max_size=100
    )
    expected = Image.fromarray(pillow(content)).resize((100, 74), Image.Resampling.BILINEAR)
    difference = stored(beton, 0).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1


def test_a_file_system_that_cannot_write_past_its_cache_gets_the_same_bytes(photo_folder, tmp_path, monkeypatch):
    build(photo_folder, tmp_path / "x.beton")
    whole = PageWriter.__init__

    def misaligned(self, *args, **options):  # what makes the system refuse: EINVAL
        whole(self, *args, **options)
        self._page = np.zeros(self.page_size + 1, np.uint8)[1:]

    monkeypatch.setattr(PageWriter, "__init__", misaligned)
    build(photo_folder, tmp_path / "y.beton")
    assert (tmp_path / "x.beton").read_bytes() == (tmp_path / "y.beton").read_bytes()


GREY = photo(3, 40, 50)[:, :, 0]


NOT_KEPT = {
    "grey.jpg": encoded(GREY),
    "cmyk.jpg": encoded(Image.fromarray(photo(3, 40, 50)).convert("CMYK")),
    "colour.png": encoded(photo(3, 40, 50), "PNG"),
    "named wrongly.jpg": encoded(photo(3, 40, 50), "PNG"),
}


@pytest.mark.parametrize("name", NOT_KEPT)
def test_keep_encodes_anew_what_is_no_rgb_jpeg(tmp_path, name):
    folder = write_files(tmp_path / "images", {f"a/{name}": NOT_KEPT[name]})
    beton = build(folder, tmp_path / "x.beton", "keep", jpeg_quality=95)
    assert beton.payload(0).tobytes() != NOT_KEPT[name]
    stored = Image.open(io.BytesIO(beton.payload(0).tobytes()))
    assert (stored.format, stored.mode, stored.size) == ("JPEG", "RGB", (50, 40))
    assert np.abs(np.asarray(stored).astype(int) - pillow(NOT_KEPT[name])).mean() < 3


def test_keep_shrinks_what_is_too_large_and_keeps_what_is_not(tmp_path):
    large, fitting = encoded(photo(1, 60, 120)), encoded(photo(2, 99, 100))
    folder = write_files(tmp_path / "images", {"a/0.jpg": large, "a/1.jpg": fitting})
    beton = build(folder, tmp_path / "x.beton", "keep", max_size=100)
    assert (beton.heights[0], beton.widths[0]) == (50, 100)
    assert beton.payload(1).tobytes() == fitting


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY),
        Image.fromarray(GREY).convert("LA"),
        Image.fromarray(GREY > 100),
        Image.fromarray(photo(4, 40, 50)).convert("P"),
        Image.fromarray(photo(4, 40, 50)).convert("RGBA"),
    ],
    ids=lambda image: image.mode,
)
def test_every_picture_is_stored_as_rgb(tmp_path, image):
    folder = write_files(tmp_path / "images", {"a/0.png": encoded(image, "PNG")})
    beton = build(folder, tmp_path / "x.beton")
    np.testing.assert_array_equal(stored(beton, 0), np.asarray(image.convert("RGB")))


def test_a_picture_of_16_bits_keeps_its_upper_eight(tmp_path):
    deep = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 32
    folder = write_files(tmp_path / "images", {"a/0.png": encoded(deep, "PNG")})
    beton = build(folder, tmp_path / "x.beton")
    np.testing.assert_array_equal(stored(beton, 0)[:, :, 1], deep // 256)


def test_a_thin_picture_that_cannot_be_shrunk_is_named(tmp_path):
    folder = write_files(tmp_path / "images", {"a/thin.png": encoded(photo(1, 1, 300), "PNG")})
    with pytest.raises(SourceError, match=r"a/thin\.png"):
        build(folder, tmp_path / "x.beton", max_size=100)


def test_a_picture_larger_than_jpeg_can_say_is_named(tmp_path):
    folder = write_files(tmp_path / "images", {"a/long.png": encoded(photo(1, 1, 65_520), "PNG")})
    with pytest.raises(SourceError, match=r"a/long\.png"):
        build(folder, tmp_path / "x.beton", "jpg")


def test_a_picture_larger_than_a_page_is_named(tmp_path):
    folder = write_files(tmp_path / "images", {"a/big.png": encoded(np.zeros((900, 900, 3), np.uint8), "PNG")})
    with pytest.raises(SourceError, match=r"a/big\.png: 2,430,000 bytes, more than a page of 2,097,152"):
        build(folder, tmp_path / "x.beton")


def test_pictures_that_fill_several_pages_stay_whole(tmp_path):
    files = {f"a/{i}.png": encoded(photo(i, 300, 500), "PNG", compress_level=1) for i in range(9)}
    beton = build(write_files(tmp_path / "images", files), tmp_path / "x.beton")
    assert len(set(beton.ptrs // PAGE)) == 3
    for i in range(9):
        np.testing.assert_array_equal(stored(beton, i), photo(i, 300, 500))


@pytest.mark.parametrize(
    ("sides", "mode"),
    [
        ([63], "raw"),
        ([64], "jpg"),
        ([32, *[200] * 4], "jpg"),
        ([200, *[32] * 4], "raw"),
        ([None, 32, 32], "raw"),
        ([None, 200, 200], "jpg"),
        ([None], "jpg"),
    ],
    ids=str,
)
def test_how_images_are_stored_where_nothing_is_said_goes_by_a_sample_of_them(tmp_path, sides, mode):
    pictures = [b"no picture" if side is None else encoded(photo(0, side, 10), "PNG") for side in sides]
    folder = write_files(tmp_path / "images", {f"a/{i}.png": picture for i, picture in enumerate(pictures)})
    found, line = default_mode(open_source(folder))
    assert found == mode
    assert line.startswith(f"stored as {mode}: ")


@pytest.mark.parametrize("first", ["no picture", "larger than a page"])
def test_a_first_image_that_is_bad_is_left_out_like_any_other(tmp_path, first):
    bad = b"no picture" if first == "no picture" else encoded(np.zeros((900, 900, 3), np.uint8), "PNG")
    files = {"a/0.png": bad, "a/1.png": encoded(photo(0, 32, 32), "PNG"), "a/2.png": encoded(photo(1, 32, 32), "PNG")}
    folder = write_files(tmp_path / "images", files)
    outcome = fastkd("build-beton", folder, "--skip-bad", "--page-size", PAGE, "--out", tmp_path / "x.beton")
    assert outcome.code == 0, outcome.err
    assert "left out: a/0.png: " in outcome.err
    assert "stored as raw: of " in outcome.err
    assert open_beton(tmp_path / "x.beton").num_samples == 2


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "png"},
        {"mode": "jpg", "max_size": 0},
        {"mode": "jpg", "max_size": 65_536},
        {"mode": "jpg", "jpeg_quality": 0},
        {"mode": "jpg", "jpeg_quality": 101},
        {"mode": "raw", "page_size": 2**20},
        {"mode": "raw", "page_size": 3 * 2**20},
        {"mode": "raw", "page_size": 2**32},
    ],
    ids=str,
)
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(OptionError, match="expected"):
        WriteOptions(**options)


@pytest.mark.parametrize("size", ["none", "a third", "all but the end marker", "all but a byte"])
def test_a_jpeg_without_its_end_is_not_kept(size):
    content = encoded(photo(1, 60, 60))
    cut = {"none": 0, "a third": len(content) // 3, "all but the end marker": -2, "all but a byte": -1}[size]
    assert find_jpeg(content) == (60, 60, len(content))
    assert find_jpeg(content[:cut]) is None


def test_what_follows_the_end_of_a_jpeg_is_not_kept(tmp_path):
    picture = encoded(photo(1, 33, 47))
    film = np.random.default_rng(0).bytes(PAGE)  # such as a phone appends: more than a page holds
    beton = build(write_files(tmp_path / "images", {"a/0.jpg": picture + film}), tmp_path / "x.beton", "keep")
    assert beton.payload(0).tobytes() == picture


@given(st.integers(0, 2**32 - 1))
def test_any_bytes_are_looked_at_without_an_error(seed):
    rng = np.random.default_rng(seed)
    content = bytearray(encoded(photo(1, 40, 40)))
    for at in rng.integers(0, len(content), 20):
        content[at] = int(rng.choice([0, 255, rng.integers(256)]))
    find_jpeg(bytes(content))
    find_jpeg(b"\xff\xd8" + rng.bytes(200))
