import contextlib
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic import PAGE, files_of, overwrite, photo, stored

from fastkd.data.beton import identify, manifest_path, open_beton, read_manifest, write_manifest
from fastkd.data.build import WriteOptions, build_beton
from fastkd.data.loader import ViewLoader
from fastkd.data.manifest import manifest_text
from fastkd.data.sources import open_source
from fastkd.data.verify import verify_beton
from fastkd.data.views import Views
from fastkd.errors import FastKDError, FormatError, MismatchError, NotFoundError

NUM_SAMPLES, IMAGE = 12, 3 * 40 * 56  # photos, bytes of one of them
FIELDS, METADATA, ROW = 24, 24 + 2 * 1041, 24  # where the tables of (image, label) begin; bytes of a sample's row


def refused(path: Path, error: type[FastKDError] = FormatError) -> str:
    with pytest.raises(error) as caught:
        open_beton(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


def table_ptr(path: Path) -> int:
    return struct.unpack("<Q", path.read_bytes()[16:24])[0]


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


@pytest.mark.parametrize(("key", "value"), [("format_version", 2), ("format_version", "1"), ("fastkd_kind", "mask")])
def test_a_manifest_of_another_kind_or_version_is_refused(photo_raw, copy_of, key, value):
    path = copy_of(photo_raw)
    change_manifest(photo_raw, path, key, value)
    with pytest.raises(FormatError, match="reads beton manifests of version 1"):
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
from synthetic import photo

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
    command = [sys.executable, "-c", f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n{STOCK_WRITER}"]
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
    batch = next(ViewLoader(beton, Views("center", 20, crop_ratio=0.9)).epoch(0))
    assert batch.labels.tolist() == beton.labels.tolist()
    np.testing.assert_array_equal(batch.images[3].permute(1, 2, 0), stored(beton, 3)[1:21, 5:25])


# Malformed betons


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
    "one field less": ({2: b"\1\0"}, "no integer field"),
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
    "image field that is an integer": ({FIELDS: b"\x01"}, "no RGB image field"),
    "label field that is a float": ({FIELDS + 1041: b"\x00"}, "no integer field"),
    "label field that is an image": ({FIELDS + 1041: b"\x02"}, "no integer field"),
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
