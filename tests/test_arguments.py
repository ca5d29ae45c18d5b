"""Python's border: arguments of other types, errors of Python's classes, objects that go to other processes."""

import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

import fastkd
from fastkd import errors
from fastkd.data.beton.dataset import open_dataset, relabelled
from fastkd.prune.masks.mask import Mask, random_order, save_mask

IDS = [7, 42, 3]
AS_IDS = {
    "list": IDS,
    "tuple": tuple(IDS),
    "int64": np.array(IDS),
    "int32": np.array(IDS, np.int32),
    "uint8": np.array(IDS, np.uint8),
    "big-endian": np.array(IDS, ">i8"),
    "every second": np.array([7, 0, 42, 0, 3, 0])[::2],
    "tensor": torch.tensor(IDS),
    "int32 tensor": torch.tensor(IDS, dtype=torch.int32),
    "numbers of numpy": [np.int64(one) for one in IDS],
}
NO_IDS = {
    "text": "7,42",
    "bytes": b"742",
    "floats": [7.0, 42.0],
    "booleans": [True, False],
    "a boolean array": np.ones(600, bool),
    "a boolean tensor": torch.ones(600, dtype=torch.bool),
    "a set": {7, 42},
    "a generator": (one for one in IDS),
    "ragged": [[7], [42, 3]],
    "a table": [[7, 42]],
    "a number": 7,
    "texts": ["7", "42"],
    "None inside": [7, None],
    "a dict": {7: 42},
    "an object": ...,
}
NO_WHOLE = ("64", 64.0, 1.5, True, np.True_, None, [64], float("nan"), torch.tensor(True), ...)


def views() -> fastkd.Views:
    return fastkd.Views("crop-flip", 32, 3)


@pytest.mark.parametrize("name", AS_IDS)
def test_ids_come_in_any_form_that_says_what_they_are(name, raw_beton, teacher_store, mask):
    loader = fastkd.Loader(raw_beton, views(), mask=AS_IDS[name], num_workers=1)
    assert torch.cat([batch.sample_ids for batch in loader.epoch(0)]).tolist() == IDS
    store = fastkd.LogitStore(teacher_store)
    own = mask.sample_ids[[4, 0, 2]]
    form = type(AS_IDS[name])(own.tolist()) if isinstance(AS_IDS[name], list | tuple) else AS_IDS[name]
    if isinstance(form, np.ndarray):
        form = own.astype("int64" if form.dtype == np.uint8 else form.dtype)
    elif isinstance(form, torch.Tensor):
        form = torch.from_numpy(own).to(form.dtype)
    assert np.array_equal(store.read(form, 1), store.read(own, 1))
    assert np.array_equal(store.rows_of(form), store.rows_of(own))
    assert np.array_equal(store.gather(form, 1), store.gather(own, 1))


@pytest.mark.parametrize("name", NO_IDS)
def test_what_is_no_ids_is_refused_with_what_was_found_and_expected(name, raw_beton, teacher_store):
    store = fastkd.LogitStore(teacher_store)
    calls = [
        lambda: store.read(NO_IDS[name], 0),
        lambda: store.gather(NO_IDS[name], 0),
        lambda: store.rows_of(NO_IDS[name]),
    ]
    if not isinstance(NO_IDS[name], str):  # which is the path of a mask
        calls.append(lambda: fastkd.Loader(raw_beton, views(), mask=NO_IDS[name]))
    for call in calls:
        with pytest.raises(ValueError, match=r"are .*, expected a one-dimensional integer array of sample_ids"):
            call()


@pytest.mark.parametrize("option", ["batch_size", "global_batch", "num_workers", "prefetch", "seed"])
def test_options_of_a_loader_are_whole_numbers(option, raw_beton):
    for number in (2, np.int32(2), torch.tensor(2)):
        assert len(fastkd.Loader(raw_beton, views(), **{option: number}))
    for value in NO_WHOLE:
        if value is not None or option != "global_batch":
            with pytest.raises(errors.OptionError, match=f"^{option} is .*, expected a whole number"):
                fastkd.Loader(raw_beton, views(), **{option: value})


@pytest.mark.parametrize("value", NO_WHOLE, ids=repr)
def test_epochs_seeds_and_sizes_are_whole_numbers(value, raw_beton, teacher_store):
    loader, store = fastkd.Loader(raw_beton, views()), fastkd.LogitStore(teacher_store)
    ids = store.sample_ids[:2]
    calls = [
        lambda: next(loader.epoch(value)),
        lambda: next(loader.epoch(0, start_batch=value)),
        lambda: store.read(ids, value),
        lambda: fastkd.Views("rrc", value),
        lambda: fastkd.Views("rrc", 32, value),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="expected a whole number"):
            call()


@pytest.mark.parametrize("option", ["shuffle", "drop_last"])
def test_flags_are_true_or_false(option, raw_beton):
    for value in ("no", 0, None, []):
        with pytest.raises(ValueError, match=f"^{option} is .*, expected True or False"):
            fastkd.Loader(raw_beton, views(), **{option: value})


def test_views_go_by_their_kind_and_mixes_by_theirs(raw_beton, teacher_store, raw_mask):
    loader = fastkd.Loader(raw_beton, "crop-flip")
    assert (loader.views.size, loader.views.num_seeds) == (32, 162)
    assert fastkd.Loader(raw_beton, "center").views.kind == "center"
    of_store = fastkd.Loader(raw_beton, "crop-flip", mask=raw_mask, logits=teacher_store)
    assert of_store.views == views()
    assert fastkd.Views("rrc", 32, mix="cutmix") == fastkd.Views("rrc", 32, mix=fastkd.Mix("cutmix"))


@pytest.mark.parametrize("value", [5, ["crop-flip"], {"kind": "rrc"}, ..., "spiral"], ids=repr)
def test_views_that_are_none_are_refused(value, raw_beton):
    for call in (
        lambda: fastkd.Loader(raw_beton, value),
        lambda: fastkd.Views(value, 32),
        lambda: fastkd.Views("rrc", 32, mix=value),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()


@pytest.mark.parametrize("value", [5, None, ["x"], ..., 1.5], ids=repr)
def test_paths_that_are_none_are_refused(value, raw_beton):
    calls = [lambda: fastkd.Mask.load(value), lambda: fastkd.LogitStore(value), lambda: fastkd.Loader(value, views())]
    if value is not None:
        calls.append(lambda: fastkd.Loader(raw_beton, views(), logits=value))
        calls.append(lambda: fastkd.Loader(raw_beton, views(), mask=value))
    for call in calls:
        with pytest.raises(ValueError, match="expected"):
            call()


def test_errors_are_of_pythons_classes_too(raw_beton, tmp_path):
    for call in (fastkd.Mask.load, fastkd.LogitStore, open_dataset):
        with pytest.raises(FileNotFoundError, match=r"^.*nothing: no such file"):
            call(tmp_path / "nothing")
    with pytest.raises(ValueError, match="batch_size is 0"):
        fastkd.Loader(raw_beton, views(), batch_size=0)


KINDS = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.FastKDError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_is_its_one_line_in_every_process(kind):
    error = kind("x:  what\n was found")
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert (type(one), str(one), one.args) == (kind, "x: what was found", ("x: what was found",))
        assert one.exit_code in (1, 75)


def first_logits(given: tuple) -> list:
    """What a spawned worker finds in what it is handed."""
    dataset, mask, store = given
    loader = fastkd.Loader(dataset, views(), mask=mask, logits=store, num_workers=1, batch_size=20)
    batch = next(loader.epoch(2))
    return [batch.sample_ids.tolist(), batch.labels.tolist(), batch.logits.tolist(), int(batch.images.sum())]


@pytest.fixture
def given(raw_beton, raw_mask, teacher_store, tmp_path, monkeypatch) -> tuple:
    """A dataset, a mask and a store, opened by relative paths in a folder that is left."""
    for path in (raw_beton, raw_beton.with_name(raw_beton.name + ".json"), raw_mask, teacher_store):
        shutil.copy(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    found = open_dataset(raw_beton.name), Mask.load(raw_mask.name), fastkd.LogitStore(teacher_store.name)
    (tmp_path / "elsewhere").mkdir()
    return found


def test_datasets_masks_and_stores_go_to_spawned_workers_by_their_paths(given, tmp_path):
    assert len(pickle.dumps(given)) < 2000
    expected = first_logits(given)
    os.chdir(tmp_path / "elsewhere")
    sent = pickle.dumps(given)
    assert first_logits(pickle.loads(sent)) == expected
    os.chdir(tmp_path)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(first_logits, given).result(timeout=120) == expected


def test_labels_that_were_mapped_go_along(given):
    dataset = given[0]
    mapped = relabelled(dataset, np.arange(10)[::-1].copy(), dataset.classes)
    assert np.array_equal(pickle.loads(pickle.dumps(mapped)).beton.labels, 9 - dataset.beton.labels)


def test_a_mask_without_a_file_goes_along_whole(given):
    mask = Mask(sample_ids=np.array(IDS), num_samples=600, header=given[1].header)
    assert pickle.loads(pickle.dumps(mask)).sample_ids.tolist() == IDS


def test_a_file_that_is_another_by_the_time_it_arrives_is_refused(given):
    dataset, mask, _ = given
    sent = pickle.dumps(mask)
    ids = random_order(dataset.beton.labels, 5)[:9]
    save_mask(Path("mask.h5"), ids, num_samples=600, beton_fingerprint=dataset.fingerprint, params={}, force=True)
    with pytest.raises(errors.MismatchError, match=r"mask\.h5: another mask is there than when it was handed over"):
        pickle.loads(sent)
