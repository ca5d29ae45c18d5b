"""Parquet files with image columns as Hugging Face writes them."""

import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.refusals import refused
from helpers.shards import class_label, write_parquet

from fastkd.data.sources.open import Source, open_source
from fastkd.errors import FormatError, MismatchError, MissingDependencyError, NotFoundError, OptionError, SourceError

pyarrow = pytest.importorskip("pyarrow")
IMAGES = [b"image 0", b"image 1", b"image 2"]
STRUCTS = [{"bytes": image, "path": f"p{i}.jpg"} for i, image in enumerate(IMAGES)]
LABELS = {"label": class_label("cat", "ant")}


def opened(folder: Path, columns: dict[str, Any], features: dict[str, Any] | None = None, **options: Any) -> Source:
    return open_source("parquet:" + write_parquet(folder / "x.parquet", columns, features), **options)


def test_rows_lie_in_their_order_with_the_names_of_a_class_label(tmp_path):
    source = opened(tmp_path, {"image": STRUCTS, "label": [1, 0, 1]}, LABELS)
    assert (source.class_names, source.labels.tolist()) == (["cat", "ant"], [1, 0, 1])
    assert source.names == ["x.parquet/p0.jpg", "x.parquet/p1.jpg", "x.parquet/p2.jpg"]
    assert [source.read(i) for i in range(3)] == IMAGES


def test_a_class_list_orders_the_classes_of_a_class_label_by_their_names(tmp_path):
    (tmp_path / "classes.txt").write_text("ant\ndog\ncat\n")
    source = opened(tmp_path, {"image": STRUCTS, "label": [1, 0, 1]}, LABELS, classes=tmp_path / "classes.txt")
    assert (source.class_names, source.labels.tolist()) == (["ant", "dog", "cat"], [0, 2, 0])


@pytest.mark.parametrize("paths", [[None, "a", "b"], ["a", "a", "b"], ["", "a", "b"]])
def test_paths_that_do_not_tell_images_apart_are_replaced_by_the_rows(tmp_path, paths):
    images = [{"bytes": image, "path": path} for image, path in zip(IMAGES, paths, strict=True)]
    assert opened(tmp_path, {"image": images, "label": [0, 0, 0]}).names == [f"x.parquet/{i}" for i in range(3)]


@pytest.mark.parametrize("kind", ["binary", "large_binary"])
def test_a_column_of_bytes_is_an_image_column_too(tmp_path, kind):
    source = opened(tmp_path, {"jpg": pyarrow.array(IMAGES, kind), "label": [0, 1, 0]})
    assert (source.names[2], source.read(2)) == ("x.parquet/2", b"image 2")


@pytest.mark.parametrize("label", [["b", "a", "b"], pyarrow.array(["b", "a", "b"]).dictionary_encode()])
def test_labels_may_be_texts_also_as_a_dictionary(tmp_path, label):
    source = opened(tmp_path, {"image": STRUCTS, "label": label})
    assert (source.class_names, source.labels.tolist()) == (["a", "b"], [1, 0, 1])


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "uint64"])
def test_numbers_of_every_width_are_labels(tmp_path, kind):
    assert opened(tmp_path, {"image": STRUCTS, "label": pyarrow.array([2, 0, 1], kind)}).labels.tolist() == [2, 0, 1]


FINE = {"fine_label": class_label("x", "y"), "coarse_label": class_label("z")}


@pytest.mark.parametrize(
    ("columns", "features", "fields", "label"),
    [
        ({"img": STRUCTS, "fine_label": [1, 0, 1], "coarse_label": [0, 0, 0]}, FINE, {"label_field": "fine_label"}, 1),
        ({"img": STRUCTS, "id": [7, 8, 9], "fine_label": [1, 0, 1]}, FINE, {}, 1),
        ({"img": STRUCTS, "mask": STRUCTS[::-1], "cls": [5, 0, 1]}, None, {"image_field": "img"}, 5),
        ({"image": STRUCTS, "mask": STRUCTS[::-1], "label": [5, 0, 1], "id": [1, 2, 3]}, None, {}, 5),
    ],
)
def test_columns_are_found_by_name_or_by_being_the_only_ones_or_are_named(tmp_path, columns, features, fields, label):
    source = opened(tmp_path, columns, features, **fields)
    assert (source.read(0), source.labels[0]) == (IMAGES[0], label)


@pytest.mark.parametrize(
    ("columns", "features", "fields", "kind", "said"),
    [
        (
            {"img": STRUCTS, "fine_label": [1, 0, 1], "coarse_label": [0, 0, 0]},
            FINE,
            {},
            FormatError,
            "2 columns that could be the label",
        ),
        ({"a": STRUCTS, "b": STRUCTS, "label": [0, 0, 0]}, None, {}, FormatError, "2 columns that could be the image"),
        ({"image": STRUCTS, "x": [0.5, 1, 2]}, None, {}, FormatError, "no columns that could be the label"),
        ({"image": STRUCTS, "label": [0.5, 1, 2]}, None, {}, FormatError, "'label' (double) for the label"),
        ({"image": STRUCTS, "label": [True, False, True]}, None, {}, FormatError, "'label' (bool) for the label"),
        ({"image": [1, 2, 3], "label": [0, 0, 0]}, None, {}, FormatError, "'image' (whole number) for the image"),
        (
            {"image": STRUCTS, "label": [0, 0, 0]},
            None,
            {"label_field": "x"},
            OptionError,
            "no column 'x' for --label-field",
        ),
        (
            {"image": STRUCTS, "label": [0, 0, 0]},
            None,
            {"image_field": "label"},
            OptionError,
            "(whole number) for the image",
        ),
        ({"image": STRUCTS, "label": [0, None, 0]}, None, {}, FormatError, "found no label in row 1"),
        ({"image": STRUCTS, "label": ["a", " ", "b"]}, None, {}, FormatError, "a label of 1 characters in row 1"),
        ({"image": STRUCTS, "label": [0, 2, 0]}, LABELS, {}, FormatError, "found the label 2 of"),
        ({"image": STRUCTS, "label": [0, -1, 0]}, LABELS, {}, FormatError, "leave out what has no label"),
        (
            {"image": STRUCTS, "label": [0, 1, 0]},
            {"label": class_label("a", "a")},
            {},
            FormatError,
            "no list of distinct texts",
        ),
        ({"image": STRUCTS, "label": [0, 1, 0]}, [], {}, None, ""),
        ({"image": STRUCTS, "label": [0, 1, 0]}, [1], {}, FormatError, "metadata 'huggingface'"),
        ({"image": [], "label": pyarrow.array([], "int64")}, None, {}, FormatError, "for the image"),
        (
            {"image": pyarrow.array([], "binary"), "label": pyarrow.array([], "int8")},
            None,
            {},
            NotFoundError,
            "found no rows",
        ),
    ],
)
def test_what_is_no_clear_image_or_label_is_refused(tmp_path, columns, features, fields, kind, said):
    if kind is None:
        assert len(opened(tmp_path, columns, features, **fields)) == 3
    else:
        assert said in refused(kind, opened, tmp_path, columns, features, **fields)


@pytest.mark.parametrize(
    "other",
    [
        ({"image": STRUCTS, "label": [0, 1, 0]}, {"label": class_label("ant", "cat")}),
        ({"image": STRUCTS, "label": ["a", "b", "c"]}, None),
        ({"img": STRUCTS, "label": [0, 1, 0]}, LABELS),
    ],
)
def test_files_of_several_data_sets_are_refused(tmp_path, other):
    write_parquet(tmp_path / "0.parquet", {"image": STRUCTS, "label": [0, 1, 0]}, LABELS)
    write_parquet(tmp_path / "1.parquet", *other)
    assert "1.parquet: its columns or classes" in refused(MismatchError, open_source, f"parquet:{tmp_path}/*.parquet")


@pytest.mark.parametrize("image", [None, {"bytes": None, "path": "here.jpg"}])
def test_a_row_without_bytes_is_named_when_it_is_read(tmp_path, image):
    source = opened(tmp_path, {"image": [STRUCTS[0], image, STRUCTS[2]], "label": [0, 0, 0]})
    assert "found no bytes, but at most a path" in refused(SourceError, source.read, 1)
    assert source.read(2) == IMAGES[2]


def test_row_groups_and_files_of_all_sizes_are_read_in_order(tmp_path):
    images = [f"image {i}".encode() for i in range(100)]
    for number, (begin, end, size) in enumerate([(0, 7, 3), (7, 7, 3), (7, 60, 40), (60, 100, 1)]):
        columns = {
            "image": pyarrow.array(images[begin:end], "binary"),
            "label": pyarrow.array([0] * (end - begin), "int8"),
        }
        write_parquet(tmp_path / f"{number}.parquet", columns, row_group_size=size)
    source = open_source(f"parquet:{tmp_path}/*.parquet")
    assert [source.read(i) for i in range(100)] == images
    assert [source.read(i) for i in range(99, -1, -7)] == images[99::-7]


def test_a_byte_of_a_page_that_flips_is_never_read_over(tmp_path):
    images = [bytes([i]) * 500 for i in range(40)]
    plain = {"row_group_size": 10, "write_page_checksum": True, "compression": "none", "use_dictionary": False}
    path = Path(write_parquet(tmp_path / "x.parquet", {"image": pyarrow.array(images), "label": [0] * 40}, **plain))
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")  # which has no checksum
    for at in range(4, len(whole), 211):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            source = open_source(f"parquet:{path}")
            found = [source.read(i) for i in range(len(source))]
        except (FormatError, SourceError):
            continue
        assert at >= footer or (found, source.labels.tolist()) == (images, [0] * 40), at


@pytest.mark.parametrize("length", [0, 3, 8, 400, -1])
def test_a_cut_file_is_refused(tmp_path, length):
    path = Path(write_parquet(tmp_path / "x.parquet", {"image": STRUCTS, "label": [0, 1, 0]}))
    path.write_bytes(path.read_bytes()[:length])
    assert "cannot be read as a parquet file" in refused(FormatError, open_source, f"parquet:{path}")


def test_more_rows_than_bytes_are_no_images(tmp_path):
    many = pyarrow.array([None] * 100_000, "binary")
    columns = {"image": many, "label": pyarrow.array([0] * 100_000, "int8")}
    assert "found 100000 rows in" in refused(FormatError, opened, tmp_path, columns)


def test_without_pyarrow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pip install 'fastkd[parquet]'" in refused(MissingDependencyError, open_source, "parquet:x")
