"""Which fields of a beton are taken for the image and the label, and what its manifest records of that."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import fastkd
from helpers.foreign import NUM_SAMPLES, picture
from helpers.synthetic import stored

from fastkd import Fields, Loader, Views
from fastkd.data.beton.dataset import open_dataset
from fastkd.data.beton.manifest import manifest_text
from fastkd.data.beton.read import Beton, identify, manifest_path, open_beton, read_manifest, write_manifest
from fastkd.errors import FormatError, MismatchError, OptionError

THIRDS = [i % 3 for i in range(NUM_SAMPLES)]
HALVES = [i % 2 for i in range(NUM_SAMPLES)]


def holds(beton: Beton, image: str, labels: list[int]) -> bool:
    same = [np.array_equal(stored(beton, i), picture(image, i)) for i in range(NUM_SAMPLES)]
    return all(same) and beton.used_fields["image"] == image and beton.labels.tolist() == labels


@pytest.fixture
def taken(foreign, tmp_path) -> Callable[[str], Path]:
    """Copies a foreign beton, to write a manifest beside it."""
    return lambda form: Path(shutil.copy(foreign / f"{form}.beton", tmp_path))


def write_manifest_of_before(path: Path, label: str, **more: object) -> None:
    """The manifest that the version before wrote: of these fields, without saying so."""
    manifest = write_manifest(open_beton(path, Fields(label=label), overrule=True), path, **more)
    del manifest["fields"]
    manifest_path(path).write_text(manifest_text(manifest | {"format_version": 1}))


# Choosing


@pytest.mark.parametrize(
    ("form", "image", "labels"),
    [
        ("index-before-label", "image", THIRDS),
        ("other-names", "picture", THIRDS),
        ("two-images", "image", THIRDS),
        ("own-sample-id", "image", THIRDS),
    ],
)
def test_fields_are_found_by_name_else_by_being_the_only_one_of_their_kind(foreign, form, image, labels):
    assert holds(open_beton(foreign / f"{form}.beton"), image, labels)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("coarse-and-fine", "2 integer fields and none called 'label' among image (RGB image), coarse (integer), fine (integer); name"),
        ("two-unnamed-images", "2 RGB image fields and none called 'image' among left (RGB image), right (RGB image), label"),
        ("float-label", "field 'label' holds floats, the label is a field of integers; its fields are image (RGB image), label (float)"),
        ("array-label", "field 'label' holds arrays"),
        ("bytes-image", "field 'image' holds byte strings, the image is a field of RGB images"),
        ("no-integer", "no integer field called 'label' among image (RGB image), weight (float), sample_id (integer)"),
        ("no-image", "no RGB image field called 'image' among label (integer), weight (float)"),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_refused_with_the_fields_and_the_way_out(foreign, form, words):
    with pytest.raises(FormatError) as caught:
        open_beton(foreign / f"{form}.beton")
    text = str(caught.value)
    assert words in text
    assert "not a whole beton" not in text
    assert ("-field NAME" in text) == (not form.startswith("no-"))


@pytest.mark.parametrize(
    ("form", "fields", "image", "labels"),
    [
        ("coarse-and-fine", Fields(label="fine"), "image", THIRDS),
        ("coarse-and-fine", Fields(label="coarse"), "image", HALVES),
        ("two-unnamed-images", Fields(image="right"), "right", THIRDS),
        ("two-images", Fields(image="left", label="label"), "left", THIRDS),
        ("float-label", Fields(label="index"), "image", list(range(NUM_SAMPLES))),
        ("bytes-image", Fields(image="picture"), "picture", THIRDS),
        ("no-integer", Fields(label="sample_id"), "image", list(range(NUM_SAMPLES))),
        ("coarse-and-fine", Fields(label="fine", strict=False), "image", THIRDS),
        ("index-before-label", Fields(label="fine", strict=False), "image", THIRDS),
    ],
)
def test_fields_that_are_named_are_taken(foreign, form, fields, image, labels):
    assert holds(open_beton(foreign / f"{form}.beton", fields), image, labels)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (Fields(label="class"), "has no field 'class' for --label-field, its fields are left (RGB image), image"),
        (Fields(image="class"), "has no field 'class' for --image-field"),
        (Fields(label="left"), "field 'left' holds RGB images, the label is a field of integers"),
        (Fields(image="label"), "field 'label' holds integers, the image is a field of RGB images"),
    ],
)
def test_a_named_field_that_is_not_there_or_of_another_kind_is_refused(foreign, fields, words):
    with pytest.raises(OptionError) as caught:
        open_beton(foreign / "two-images.beton", fields)
    assert words in str(caught.value)


def test_fields_are_no_part_of_the_fingerprint_but_by_what_they_hold(foreign):
    by_name = open_dataset(foreign / "index-before-label.beton").fingerprint
    assert open_dataset(foreign / "coarse-and-fine.beton", Fields(label="fine")).fingerprint == by_name
    assert open_dataset(foreign / "coarse-and-fine.beton", Fields(label="coarse")).fingerprint != by_name


def test_a_loader_takes_the_names_of_fields(foreign):
    loader = Loader(
        foreign / "two-images.beton", Views("center", 32), fields=Fields(image="left"), batch_size=NUM_SAMPLES
    )
    (batch,) = loader.epoch(0)
    assert batch.labels.tolist() == THIRDS
    np.testing.assert_array_equal(batch.images[5].permute(1, 2, 0), picture("left", 5))


def test_a_loader_of_an_open_dataset_refuses_names_of_fields(dataset):
    with pytest.raises(OptionError, match="fields do nothing with a dataset that is open already"):
        Loader(dataset, Views("center", 32), fields=Fields(label="label"))


# The manifest


@pytest.mark.parametrize("form", ["other-names", "index-before-label", "two-images"])
def test_the_manifest_records_the_fields(taken, form):
    beton = open_beton(taken(form))
    write_manifest(beton, beton.path)
    assert read_manifest(open_beton(beton.path))["fields"] == beton.used_fields


def test_the_manifest_of_a_beton_of_fastkds_records_them_too(photo_raw):
    assert read_manifest(open_beton(photo_raw))["fields"] == {"image": "image", "label": "label"}


def test_the_fields_that_a_manifest_records_are_followed(taken):
    path = taken("coarse-and-fine")
    write_manifest(open_beton(path, Fields(label="fine")), path)
    assert open_beton(path).labels.tolist() == THIRDS
    assert open_beton(path, Fields(label="fine")).labels.tolist() == THIRDS
    assert open_beton(path, Fields(label="absent", strict=False)).labels.tolist() == THIRDS


def test_a_name_that_contradicts_the_manifest_is_refused_with_the_way_out(taken):
    path = taken("coarse-and-fine")
    write_manifest(open_beton(path, Fields(label="fine")), path)
    with pytest.raises(MismatchError) as caught:
        open_beton(path, Fields(label="coarse"))
    assert "its manifest records 'fine' as the label, --label-field coarse contradicts it" in str(caught.value)
    assert f"`fastkd verify --write-manifest {path} --label-field coarse`" in str(caught.value)


@pytest.mark.parametrize("what", ["damaged", "of another beton"])
def test_what_a_manifest_records_counts_only_where_it_is_whole_and_the_betons_own(taken, what):
    path = taken("coarse-and-fine")
    manifest = write_manifest(open_beton(path, Fields(label="fine")), path)
    text = manifest_path(path).read_text()
    if what == "damaged":
        manifest_path(path).write_text(text.replace('"label": "fine"', '"label": "coarse"'))
    else:
        manifest_path(path).write_text(manifest_text(manifest | {"tables_crc32": 7}))
    with pytest.raises(FormatError, match="none called 'label'"):
        open_beton(path)


@pytest.mark.parametrize(
    ("form", "label", "version"),
    [("coarse-and-fine", "coarse", 1), ("coarse-and-fine", "fine", 2), ("index-before-label", None, 2)],
)
def test_the_version_is_higher_where_a_reader_of_before_would_take_another_field(taken, form, label, version):
    path = taken(form)
    assert write_manifest(open_beton(path, Fields(label=label)), path)["format_version"] == version


@pytest.mark.parametrize("fields", [None, {}, {"image": "image"}, {"image": "image", "label": 3}, ["image", "label"]])
def test_a_manifest_of_the_higher_version_has_to_record_both_fields(taken, fields):
    path = taken("index-before-label")
    manifest = write_manifest(open_beton(path), path) | {"fields": fields}
    if fields is None:
        del manifest["fields"]
    manifest_path(path).write_text(manifest_text(manifest))
    with pytest.raises(FormatError, match="not a manifest of fastkd's"):
        identify(open_beton(path))


# Manifests of the version before


def test_a_manifest_of_before_is_refused_where_it_was_made_with_another_field(taken):
    path = taken("index-before-label")
    write_manifest_of_before(path, "index")
    with pytest.raises(MismatchError) as caught:
        open_dataset(path)
    assert "was made with field 'index' as the label, which is 'label' now" in str(caught.value)
    assert f"`fastkd verify --write-manifest {path} --label-field label` makes it anew" in str(caught.value)
    assert open_dataset(path, Fields(label="index")).num_classes == 112


def test_a_manifest_of_before_is_read_where_it_was_made_with_the_same_fields(taken):
    path = taken("other-names")
    write_manifest_of_before(path, "cls", class_names=["a", "b", "c"])
    assert open_dataset(path).class_names == ["a", "b", "c"]


# Writing it anew


def renewed(path: Path, *options: str) -> tuple[str, dict]:
    """What `verify --write-manifest` says, and the manifest afterwards."""
    outcome = fastkd("verify", "--write-manifest", path, *options)
    assert outcome.code == 0, outcome.err
    return outcome.err, json.loads(manifest_path(path).read_text())


def test_fields_are_settled_by_writing_the_manifest(taken):
    path = taken("coarse-and-fine")
    assert fastkd("verify", "--write-manifest", path).code == 1
    told, manifest = renewed(path, "--label-field", "fine")
    assert "fields image and fine" in told
    assert manifest["fields"] == {"image": "image", "label": "fine"}
    assert fastkd("prune", path, "--keep", 6, "--out", path.with_name("m.h5"), "--json").result["class_max"] <= 4
    assert "whole, left as it is" in renewed(path)[0]


@pytest.mark.parametrize("of", ["before", "now"])
def test_a_manifest_of_other_fields_is_made_anew_and_keeps_what_still_holds(taken, of):
    path, names = taken("index-before-label"), [f"{i}.png" for i in range(NUM_SAMPLES)]
    more = {"names": names, "source": "photos", "class_names": [str(i) for i in range(112)]}
    if of == "before":
        write_manifest_of_before(path, "index", **more)
    else:
        write_manifest(open_beton(path, Fields(label="index")), path, **more)
    told, manifest = renewed(path, "--label-field", "label")
    assert "the old one was made with field 'index' as the label, lost: class names, which are numbers now" in told
    assert (manifest["names"], manifest["source"]) == (names, "photos")
    assert "class_names" not in manifest
    assert identify(open_beton(path)) == (manifest["fingerprint"], ["0", "1", "2"])


def test_a_manifest_of_another_image_field_gets_the_checksums_of_the_new_one(taken):
    path = taken("two-images")
    write_manifest(open_beton(path, Fields(image="left")), path, class_names=["a", "b", "c"])
    told, manifest = renewed(path, "--image-field", "right")
    assert "was made with field 'left' as the image, lost: nothing" in told
    assert manifest["class_names"] == ["a", "b", "c"]
    assert fastkd("verify", path).code == 0


def test_a_manifest_of_before_gets_a_record_of_its_fields(taken):
    path = taken("other-names")
    write_manifest_of_before(path, "cls", class_names=["a", "b", "c"])
    told, manifest = renewed(path)
    assert "the old one did not record its fields, lost: nothing" in told
    assert manifest["class_names"] == ["a", "b", "c"]
    assert manifest["fields"] == {"image": "picture", "label": "cls"}


def test_content_that_changed_is_not_made_the_manifests_by_naming_fields(taken):
    path = taken("index-before-label")
    write_manifest(open_beton(path, Fields(label="index")), path)
    beton = open_beton(path)
    with path.open("r+b") as file:
        file.seek(int(beton.ptrs[3]) + 5)
        file.write(bytes([int(beton.data[int(beton.ptrs[3]) + 5]) ^ 1]))
    outcome = fastkd("verify", "--write-manifest", path, "--label-field", "label")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "its content does not have the fingerprint in" in outcome.err


def test_a_part_keeps_the_label_of_its_full_beton(raw_beton, raw_mask, tmp_path):
    part = tmp_path / "part.beton"
    assert fastkd("build-beton", raw_beton, "--mask", raw_mask, "--out", part).code == 0
    outcome = fastkd("verify", "--write-manifest", part, "--label-field", "sample_id")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "a part of a beton, which has that one's label" in outcome.err
