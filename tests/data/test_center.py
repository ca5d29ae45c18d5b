"""Center views against what torchvision evaluates on: Resize and CenterCrop of PIL images; versions of their definition."""

import io
import json
import math
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import GOLDEN
from helpers.commands import fastkd
from helpers.scripts import benchmark
from helpers.stores import cache, make_store, random_logits, save_teacher
from helpers.synthetic import build, encoded, photo, pillow, write_files
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Resize

from fastkd.data.beton.dataset import open_dataset
from fastkd.data.identity import center_views
from fastkd.data.loader import ViewLoader
from fastkd.data.modes import MODE_JPG, MODE_RAW
from fastkd.data.views.draw import Views, boxes, center_view, center_window
from fastkd.data.views.pixels import BAD_BOX, BAD_JPEG, NO_ENTRY, OK, WRONG_SIZE, cut_view, cut_window
from fastkd.errors import MismatchError, OptionError
from fastkd.feed.loader import Loader, choose_views, views_of
from fastkd.hashing import crc32c
from fastkd.report.facts import differing, facts_of, label_of
from fastkd.store.logit_store import LogitStore
from fastkd.store.tables import read_tables
from fastkd.teacher.network import load_teacher
from fastkd.teacher.recipe import stored_center
from fastkd.train.inputs import started_center
from fastkd.train.run_folder import claim_folder, read_run

SHAPES = [(375, 500, 224, 0.875), (500, 333, 224, 0.875), (97, 61, 32, 0.875), (61, 97, 32, 0.875), (40, 41, 28, 1.0),
          (40, 200, 33, 0.7), (64, 64, 64, 0.875), (20, 33, 64, 0.875), (250, 250, 56, 224 / 232), (64, 90, 63, 63 / 64)]  # fmt: skip


def by_torchvision(image: Image.Image, size: int, crop_ratio: float) -> np.ndarray:
    if image.size == (size, size):
        return np.asarray(image)
    return np.asarray(CenterCrop(size)(Resize(max(size, math.floor(round(size / crop_ratio, 9))))(image)))


def center(payload: bytes, mode: int, height: int, width: int, size: int, crop_ratio: float) -> np.ndarray:
    out = np.full((size, size, 3), 77, np.uint8)
    window = center_window(height, width, size, crop_ratio)
    assert cut_window(np.frombuffer(payload, np.uint8), mode, height, width, *window, out, NO_ENTRY) == OK
    return out


def most_apart(found: np.ndarray, wanted: np.ndarray) -> int:
    return int(np.abs(found.astype(int) - wanted).max())


@pytest.mark.parametrize(("height", "width", "size", "ratio"), SHAPES)
@pytest.mark.parametrize("kind", ["smooth", "noise"])
def test_a_view_is_torchvisions_to_one_level(height, width, size, ratio, kind):
    noise = np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)
    content = encoded(photo(1, height, width) if kind == "smooth" else noise, quality=93)
    picture = Image.fromarray(pillow(content))
    wanted = by_torchvision(picture, size, ratio)
    for payload, mode in ((content, MODE_JPG), (picture.tobytes(), MODE_RAW)):
        found = center(payload, mode, height, width, size, ratio)
        assert most_apart(found, wanted) <= 1
        if picture.size == (size, size):
            np.testing.assert_array_equal(found, wanted)


def test_views_of_photos_are_torchvisions_to_one_level():
    if "FASTKD_TEST_DATA" not in os.environ:
        pytest.skip("needs FASTKD_TEST_DATA")
    with zipfile.ZipFile(Path(os.environ["FASTKD_TEST_DATA"], "imagenet-500.zip")) as photos:
        names = [name for name in photos.namelist() if name.lower().endswith(".jpeg")][::50]
        for name in names:
            picture = Image.open(io.BytesIO(photos.read(name))).convert("RGB")
            found = center(picture.tobytes(), MODE_RAW, picture.height, picture.width, 224, 0.875)
            assert most_apart(found, by_torchvision(picture, 224, 0.875)) <= 1, name


def test_the_benchmark_counts_what_differs(monkeypatch, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for i in range(3):
            archive.writestr(f"a/{i}.jpg", encoded(photo(i, 300 + i, 260)))
    monkeypatch.setattr(benchmark("measure"), "RESULTS", tmp_path)
    options = ["--photos", "2", "--rounds", "1", "--name", "found"]
    monkeypatch.setattr(sys, "argv", ["center", str(tmp_path / "photos.zip"), *options])
    benchmark("data.center").main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["photos"], found["all_within_one_level"]) == (2, True)
    assert all(0 < one["percent_off"] < 50 for one in found["of_torchvision"].values())


@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.integers(1, 300),
    st.sampled_from([1.0, 0.875, 0.9, 224 / 232, 224 / 236, 0.5]),
)
def test_the_window_is_where_torchvision_crops(height, width, size, crop_ratio):
    """The sides by torchvision's own arithmetic; the offsets by Python's rounding, to the nearest even."""
    found = center_window(height, width, size, crop_ratio)
    if (height, width) == (size, size):
        assert found == (size, size, 0, 0)
        return
    short = math.floor(round(size / crop_ratio, 9))
    long = int(short * max(height, width) / min(height, width))
    sides = (short, long) if height <= width else (long, short)
    assert found == (*sides, *(round((side - size) / 2.0) for side in sides))


@pytest.mark.parametrize(("height", "width"), [(9, 70), (70, 9), (33, 33)])
def test_any_part_of_the_resized_image_is_that_of_the_whole(height, width):
    content = encoded(photo(2, height, width))
    payload = np.frombuffer(pillow(content).tobytes(), np.uint8)
    for sides in ((50, 40), (7, 90), (height, width), (5, 5)):
        whole = np.empty((*sides, 3), np.uint8)
        assert cut_view(payload, MODE_RAW, height, width, 0, 0, height, width, 0, whole) == OK
        for top, left, h, w in ((0, 0, *sides), (1, 2, 3, 3), (sides[0] - 2, sides[1] - 1, 2, 1), (2, 0, 1, 5)):
            for data, mode in ((payload, MODE_RAW), (np.frombuffer(content, np.uint8), MODE_JPG)):
                out = np.empty((h, w, 3), np.uint8)
                assert cut_window(data, mode, height, width, *sides, top, left, out, NO_ENTRY) == OK
                np.testing.assert_array_equal(out, whole[top : top + h, left : left + w])


GOLDEN_CHECKSUMS = {
    "baseline-420.jpg": [240626962, 2555710121],
    "progressive-422.jpg": [1971673819, 4227904360],
    "grey.jpg": [2915195389, 2500129451],
    "cmyk.jpg": [3662596228, 1630543105],
}


@pytest.mark.parametrize("name", GOLDEN_CHECKSUMS)
def test_the_pixels_of_given_images_stay_what_they_are(name):
    content = (GOLDEN / name).read_bytes()
    found = [center(content, MODE_JPG, 61, 83, size, ratio) for size, ratio in ((40, 0.875), (64, 1.0))]
    assert [crc32c(one.reshape(-1)) for one in found] == GOLDEN_CHECKSUMS[name]


def test_a_window_that_cannot_be_is_a_status():
    content = np.frombuffer(encoded(photo(3, 20, 30)), np.uint8)
    out = np.empty((8, 8, 3), np.uint8)
    for window in ((8, 8, 1, 0), (8, 8, 0, 1), (8, 8, -1, 0), (7, 9, 0, 0), (0, 0, 0, 0)):
        assert cut_window(content, MODE_JPG, 20, 30, *window, out, NO_ENTRY) == BAD_BOX
    assert cut_window(content[:300], MODE_JPG, 20, 30, 10, 15, 0, 0, out, NO_ENTRY) == BAD_JPEG
    assert cut_window(content, MODE_JPG, 20, 31, 10, 15, 0, 0, out, NO_ENTRY) == WRONG_SIZE
    assert cut_window(content, MODE_RAW, 20, 30, 10, 15, 0, 0, out, NO_ENTRY) == WRONG_SIZE


# Versions


def test_version_1_is_the_box_that_it_was_and_version_2_the_crop_of_the_resized_image():
    one = np.ones(1, np.int64)
    old, new = (Views("center", 224, version=version) for version in (1, None))
    assert boxes(old, one, 0, 375 * one, 500 * one).tolist() == [[*center_view(375, 500, 224, 0.875), 0]]
    assert boxes(new, one, 0, 375 * one, 500 * one).tolist() == [[16, 58, 224, 224, 0]]
    assert (old.identity()["version"], new.identity()["version"]) == (1, 2)
    assert [Views(kind, 32).identity()["version"] for kind in ("crop-flip", "rrc")] == [1, 1]


@pytest.mark.parametrize(("kind", "version"), [("center", 3), ("center", 0), ("rrc", 2), ("crop-flip", "1")])
def test_a_version_that_is_not_known_is_refused(kind, version):
    with pytest.raises(OptionError, match=f"the version of views {kind} is .*{version}"):
        Views(kind, 32, version=version)


def test_crops_of_images_too_large_to_resize_to_are_refused():
    with pytest.raises(
        OptionError, match=r"crop ratio 0.01 of 4096 pixels: images would be resized to more than 65,535"
    ):
        Views("center", 4096, crop_ratio=0.01)
    Views("center", 4096, crop_ratio=0.01, version=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("center")
    files = {f"{'ab'[i % 2]}/{i}.png": encoded(photo(i, 40 + i, 57), "PNG") for i in range(8)}
    return open_dataset(build(write_files(folder / "images", files), folder / "x.beton").path)


def test_images_of_the_output_size_are_of_version_1_since_all_versions_take_them_whole(photos, dataset):
    assert [center_views(one.beton, 32).version for one in (photos, dataset)] == [2, 1]
    assert [choose_views(one, "center", 32).version for one in (photos, dataset)] == [2, 1]
    assert choose_views(photos, "center", 32, center_version=1).version == 1
    seen = [next(ViewLoader(dataset.beton, Views("center", 32, version=v)).epoch(0)).images.clone() for v in (1, 2)]
    np.testing.assert_array_equal(*seen)


def test_stores_of_version_1_are_read_with_its_views_and_told_from_those_of_version_2(photos, tmp_path):
    ids, logits = photos.beton.sample_ids, random_logits(1, 8, 2)
    old, new = Views("center", 32, version=1), Views("center", 32)
    path = make_store(tmp_path / "old.h5", logits, ids, dataset=photos, views=old)
    assert views_of(read_tables(path)) == old
    assert choose_views(photos, "center", store=LogitStore(path)).version == 1
    assert choose_views(photos, "rrc", store=LogitStore(path)).version == 1  # of rrc the one that there is
    batch = next(Loader(photos, "center", logits=path, batch_size=8).epoch(0))
    np.testing.assert_array_equal(batch.images, next(ViewLoader(photos.beton, old, batch_size=8).epoch(0)).images)
    with pytest.raises(MismatchError, match=r"made for views.*version 1 \(asked for 2\)"):
        Loader(photos, new, logits=path)
    assert stored_center(tmp_path / "none.h5", path) == 1
    assert stored_center(tmp_path / "none.h5") is None


def test_a_store_goes_on_with_the_version_that_it_began_with(photos, tmp_path):
    teacher = save_teacher(tmp_path / "t.safetensors", num_classes=2)
    old = Views("center", 32, version=1)
    cache(tmp_path / "l.h5", photos, load_teacher(str(teacher)), old)
    before = (tmp_path / "l.h5").read_bytes()
    common = [
        photos.beton.path,
        "--teacher",
        teacher,
        "--views",
        "center",
        "--size",
        32,
        "--num-seeds",
        1,
        "--device",
        "cpu",
    ]
    again = fastkd("cache-logits", *common, "--codec", "fp16", "--batch-size", 256, "--out", tmp_path / "l.h5")
    assert again.code == 0, again.err
    assert (tmp_path / "l.h5").read_bytes() == before
    fresh = fastkd("cache-logits", *common, "--out", tmp_path / "new.h5")
    assert fresh.code == 0, fresh.err
    assert [stored_center(tmp_path / name) for name in ("l.h5", "new.h5")] == [1, 2]


def test_a_run_goes_on_with_the_version_that_it_began_with_and_reports_tell_the_two_apart(photos, tmp_path):
    """The folder of a run of before holds a run.json that says nothing of the views of --val, which were of version 1."""
    path = photos.beton.path
    options = ("--alpha", 0, "--model", "resnet8", "--views", "center", "--size", 32, "--num-seeds", 1, "--epochs", 1)
    command = ("train", path, *options, "--batch-size", 8, "--val", path, "--device", "cpu")
    assert fastkd(*command, "--out", tmp_path / "new").code == 0
    new = read_run(tmp_path / "new")
    assert (new["params"]["views"]["version"], new["params"]["val_views_version"]) == (2, 2)
    params = {name: value for name, value in new["params"].items() if name != "val_views_version"}
    params["views"] = params["views"] | {"version": 1}
    claim_folder(tmp_path / "old", {"inputs": new["inputs"], "params": params}, {"about": new["about"]})
    outcome = fastkd(*command, "--out", tmp_path / "old")
    assert outcome.code == 0, outcome.err
    assert read_run(tmp_path / "old")["params"] == params
    assert [started_center(tmp_path / name) for name in ("old", "new", "none")] == [(1, 1), (2, 2), (None, None)]
    facts = [facts_of(read_run(tmp_path / name)) for name in ("old", "new")]
    names = differing(facts)
    assert {"views.version", "val_views_version"} <= set(names)
    assert "val views 2" in label_of(facts[1], facts, names)
    assert "val views" not in label_of(facts[0], facts, names)


def test_a_run_on_images_of_the_output_size_says_nothing_new(raw_beton, tmp_path):
    options = ("--alpha", 0, "--model", "resnet8", "--views", "center", "--epochs", 1, "--batch-size", 300)
    assert (
        fastkd("train", raw_beton, *options, "--val", raw_beton, "--device", "cpu", "--out", tmp_path / "run").code == 0
    )
    params = read_run(tmp_path / "run")["params"]
    assert params["views"]["version"] == 1
    assert "val_views_version" not in params
