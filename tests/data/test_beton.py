import contextlib
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import TESTS
from helpers.synthetic import METADATA, PAGE, ROW, files_of, photo, stored

from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.beton.manifest import manifest_text
from fastkd.data.beton.read import identify, manifest_path, open_beton, read_manifest, write_manifest
from fastkd.data.beton.verify import verify_beton
from fastkd.data.loader import ViewLoader
from fastkd.data.sources.open import open_source
from fastkd.data.views.draw import Views
from fastkd.errors import FastKDError, FormatError, MismatchError

NUM_SAMPLES, IMAGE = 12, 3 * 40 * 56  # photos, bytes of one of them


def change_manifest(whole: Path, path: Path, key: str, value: object) -> None:
    """Writes the manifest of a beton beside a copy of it, with another entry and the checksums that belong to it."""
    manifest = json.loads(manifest_path(whole).read_text()) | {key: value}
    manifest_path(path).write_text(manifest_text(manifest))


# The manifest and the fingerprint


def test_the_manifest_says_where_every_sample_comes_from(photo_folder, photo_raw):
    manifest = read_manifest(open_beton(photo_raw), columns=True)
    assert manifest["source"] == photo_folder
    assert manifest["class_names"] == ["a", "b", "c"]
    assert manifest["names"] == [str(file.relative_to(photo_folder)) for file in files_of(photo_folder)]
    assert manifest["options"]["mode"] == "raw"
    assert set(manifest["versions"]) >= {"fastkd", "ffcv", "numpy", "pillow"}


def test_a_beton_without_a_manifest_has_the_same_fingerprint(photo_raw, copy_of):
    fingerprint, names = identify(open_beton(photo_raw))
    assert names == ["a", "b", "c"]
    assert identify(open_beton(copy_of(photo_raw))) == (fingerprint, ["0", "1", "2"])


def test_the_fingerprint_does_not_depend_on_where_the_images_lie(photo_folder, photo_raw, tmp_path):
    build_beton(open_source(photo_folder), tmp_path / "x.beton", WriteOptions(mode="raw", page_size=2 * PAGE))
    assert identify(open_beton(tmp_path / "x.beton"))[0] == identify(open_beton(photo_raw))[0]


@pytest.mark.parametrize("where", ["pixel", "label"])
def test_another_pixel_or_label_is_another_fingerprint(photo_raw, copy_of, where):
    beton = open_beton(photo_raw)
    offset = int(beton.ptrs[7]) + 100 if where == "pixel" else METADATA + 7 * ROW + 16
    changed = copy_of(photo_raw, {offset: bytes([photo_raw.read_bytes()[offset] ^ 1])})
    assert identify(open_beton(changed))[0] != identify(beton)[0]


def test_a_manifest_can_be_made_for_a_beton_that_has_none(photo_raw, copy_of):
    beton = open_beton(copy_of(photo_raw))
    assert write_manifest(beton, beton.path)["fingerprint"] == identify(open_beton(photo_raw))[0]
    assert identify(beton)[1] == ["0", "1", "2"]


def test_the_manifest_of_another_beton_is_refused(photo_raw, photo_jpg, copy_of):
    path = copy_of(photo_raw)
    shutil.copy(manifest_path(photo_jpg), manifest_path(path))
    with pytest.raises(MismatchError, match="belongs to another beton"):
        identify(open_beton(path))


def test_opening_does_not_read_the_columns_of_the_manifest(photo_raw, copy_of):
    # A million names and checksums would take a second and some hundred megabytes, at every start of every process.
    path = copy_of(photo_raw, manifest=True)
    head = manifest_path(path).read_text().partition(",\n")[0]
    manifest_path(path).write_text(head + ',\n"names": [damaged')
    assert identify(open_beton(path)) == identify(open_beton(photo_raw))
    with pytest.raises(FormatError, match="verify --write-manifest"):
        verify_beton(open_beton(path))


@pytest.mark.parametrize("indent", [None, 1])
def test_a_manifest_that_was_laid_out_anew_is_the_same(photo_raw, copy_of, indent):
    path = copy_of(photo_raw, manifest=True)
    manifest_path(path).write_text(json.dumps(json.loads(manifest_path(path).read_text()), indent=indent))
    assert identify(open_beton(path)) == identify(open_beton(photo_raw))
    assert verify_beton(open_beton(path)) == []


@pytest.mark.parametrize("old", ['"a"', '"mode": "raw"', '"source"', '"fingerprint"', '"crc32"'])
def test_a_changed_letter_of_the_manifest_is_noticed_when_the_beton_is_opened(photo_raw, copy_of, old):
    path = copy_of(photo_raw, manifest=True)
    text = manifest_path(path).read_text()
    assert text.count(old) == 1
    manifest_path(path).write_text(text.replace(old, old[:-2] + "z" + old[-1]))
    for function in (identify, verify_beton):
        with pytest.raises(FormatError, match="verify --write-manifest"):
            function(open_beton(path))


def test_a_changed_name_of_a_sample_is_noticed_where_names_are_read(photo_raw, copy_of):
    path = copy_of(photo_raw, manifest=True)
    manifest_path(path).write_text(manifest_path(path).read_text().replace("b/05.jpg", "b/15.jpg"))
    assert identify(open_beton(path)) == identify(open_beton(photo_raw))
    with pytest.raises(FormatError, match="names do not match their checksum"):
        verify_beton(open_beton(path))


MANIFESTS = ["", "{", "[]", "7", "null", "{}", '{"fastkd_kind": "beton"}', "\udcff", "[" * 100_000]


@pytest.mark.parametrize("content", MANIFESTS, ids=lambda content: ascii(content)[:30])
def test_a_manifest_that_is_none_is_refused_with_the_way_out(photo_raw, copy_of, content):
    path = copy_of(photo_raw)
    manifest_path(path).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(FormatError, match="verify --write-manifest"):
        identify(open_beton(path))


@pytest.mark.parametrize(("key", "value"), [("format_version", 3), ("format_version", "1"), ("fastkd_kind", "mask")])
def test_a_manifest_of_another_kind_or_version_is_refused(photo_raw, copy_of, key, value):
    path = copy_of(photo_raw)
    change_manifest(photo_raw, path, key, value)
    with pytest.raises(FormatError, match="reads beton manifests of versions 1 and 2"):
        identify(open_beton(path))


@pytest.mark.parametrize("key", ["fingerprint", "tables_crc32", "size_bytes", "class_names", "payload_crc32"])
@pytest.mark.parametrize("value", [None, 5, "x", [7], {}, ["a"], [None] * NUM_SAMPLES], ids=str)
def test_a_manifest_with_an_entry_of_another_kind_is_refused_or_does_not_matter(photo_raw, copy_of, key, value):
    path = copy_of(photo_raw)
    change_manifest(photo_raw, path, key, value)
    for function in (identify, verify_beton):
        with contextlib.suppress(FastKDError):
            function(open_beton(path))


def test_labels_without_a_name_are_refused(photo_raw, copy_of):
    path = copy_of(photo_raw)
    change_manifest(photo_raw, path, "class_names", ["a", "b"])
    with pytest.raises(FormatError, match="labels run from 0 to 2, the manifest names 2 classes"):
        identify(open_beton(path))


@pytest.mark.parametrize("label", [-1, -(2**63)])
def test_a_label_below_zero_is_refused(photo_raw, copy_of, label):
    path = copy_of(photo_raw, {METADATA + 16: struct.pack("<q", label)})
    with pytest.raises(FormatError, match="labels"):
        identify(open_beton(path))


def test_a_label_that_is_no_class_but_a_number_is_refused(photo_raw, copy_of):
    # One name a class would be made: with labels such as times in seconds, more than any memory holds.
    path = copy_of(photo_raw, {METADATA + 16: struct.pack("<q", 2_000_000)})
    with pytest.raises(FormatError, match="labels"):
        identify(open_beton(path))


# Betons of FFCV's own writer

STOCK_WRITER = """
import sys
import numpy as np
from ffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField
from ffcv.writer import DatasetWriter
from helpers.synthetic import photo

class Photos:
    def __init__(self, *more):
        self.more = more
    def __len__(self):
        return 8
    def __getitem__(self, i):
        return photo(i, 20 + i, 30), i % 3, *self.more

image = lambda: RGBImageField(write_mode="raw")
def write(path, fields, *more):
    DatasetWriter(path, fields, num_workers=1, page_size=2**21).from_indexed_dataset(Photos(*more), chunksize=4)

write("plain.beton", {"image": image(), "label": IntField()})
more = {"weight": FloatField(), "note": JSONField(), "raw": BytesField(), "vector": NDArrayField(np.dtype("f4"), (5,))}
vector = np.arange(5, dtype="f4")
write("more.beton", {"image": image(), "label": IntField(), **more}, 0.5, {"a": 1}, np.arange(9, dtype="u1"), vector)
"""


@pytest.fixture(scope="module")
def stock_written(tmp_path_factory) -> Path:
    """A folder with betons that FFCV's own writer wrote: one with image and label, one with four more fields."""
    folder = tmp_path_factory.mktemp("stock")
    command = [sys.executable, "-c", f"import sys; sys.path.append({str(TESTS)!r})\n{STOCK_WRITER}"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    return folder


@pytest.mark.parametrize("name", ["plain", "more"])
def test_a_beton_of_ffcvs_writer_opens_with_its_images_and_labels(stock_written, name):
    beton = open_beton(stock_written / f"{name}.beton")
    assert beton.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    for i in range(8):
        np.testing.assert_array_equal(stored(beton, i), photo(i, 20 + i, 30))


def test_the_fingerprint_of_a_beton_of_ffcvs_writer_is_of_its_images_and_labels(stock_written):
    plain, names = identify(open_beton(stock_written / "plain.beton"))
    assert names == ["0", "1", "2"]
    assert identify(open_beton(stock_written / "more.beton"))[0] == plain


def test_views_of_a_beton_of_ffcvs_writer_are_loaded(stock_written):
    beton = open_beton(stock_written / "more.beton")
    batch = next(ViewLoader(beton, Views("center", 20, crop_ratio=20 / 23)).epoch(0))
    assert batch.labels.tolist() == beton.labels.tolist()
    np.testing.assert_array_equal(batch.images[3].permute(1, 2, 0), stored(beton, 3)[2:22, 5:25])


# Verifying


@pytest.mark.parametrize("kind", ["raw", "jpg"])
def test_a_whole_beton_has_no_problems(photo_raw, photo_jpg, kind):
    assert verify_beton(open_beton({"raw": photo_raw, "jpg": photo_jpg}[kind])) == []


@pytest.mark.parametrize("kind", ["raw", "jpg"])
def test_a_changed_payload_byte_is_found_with_its_sample(photo_raw, photo_jpg, copy_of, kind):
    beton = open_beton({"raw": photo_raw, "jpg": photo_jpg}[kind])
    at = int(beton.ptrs[7] + beton.sizes[7] // 2)
    changed = copy_of(beton.path, {at: bytes([beton.data[at] ^ 1])}, manifest=True)
    problems = verify_beton(open_beton(changed))
    assert [line.split(":")[0] for line in problems[1:]] == ["sample 7"]
    assert "fingerprint" in problems[0]


def test_a_jpeg_that_does_not_decode_is_found_without_a_manifest(photo_jpg, copy_of):
    beton = open_beton(photo_jpg)
    half = int(beton.sizes[7] // 2)
    cut = copy_of(photo_jpg, {int(beton.ptrs[7]) + half: bytes(int(beton.sizes[7]) - half)})
    assert verify_beton(open_beton(cut)) == ["sample 7: its JPEG does not decode"]


@pytest.mark.parametrize(("offset", "wrong"), [(1, 55), (1, 57), (3, 39), (3, 65_535)])
def test_a_jpeg_of_another_size_than_the_table_says_is_found(photo_jpg, copy_of, offset, wrong):
    other = copy_of(photo_jpg, {METADATA + 7 * ROW + offset: struct.pack("<H", wrong)})
    assert verify_beton(open_beton(other)) == ["sample 7: its JPEG has another size than the beton's table says"]


def test_many_damaged_samples_are_counted(raw_beton, copy_of):
    beton = open_beton(raw_beton)
    changes = {int(ptr): bytes([beton.data[ptr] ^ 1]) for ptr in beton.ptrs[100:150]}
    problems = verify_beton(open_beton(copy_of(raw_beton, changes, manifest=True)))
    assert len(problems) < 30
    assert problems[-1] == "50 damaged samples in all"
