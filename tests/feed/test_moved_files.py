"""Files that are replaced or deleted, and folders that are left, under a loader: it goes on with what it opened."""

import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from helpers.stores import VIEWS

import fastkd
from fastkd.data.batch import Batch
from fastkd.data.beton.dataset import open_dataset
from fastkd.data.beton.part import where_from
from fastkd.errors import FormatError
from fastkd.prune.masks.mask import Mask

NAMES = ("x.beton", "x.beton.json", "m.h5", "l.h5")


def replaced(folder: Path) -> None:
    for name in NAMES:
        (folder / "new").write_bytes(b"something else")
        os.replace(folder / "new", folder / name)


def deleted(folder: Path) -> None:
    for name in NAMES:
        os.unlink(folder / name)


def left(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    os.chdir(folder / "elsewhere")


HAPPENINGS: list[Callable[[Path], None]] = [replaced, deleted, left]


@pytest.fixture
def folder(raw_beton, raw_mask, teacher_store, tmp_path, monkeypatch) -> Path:
    """The current folder, with a beton, a mask and a store."""
    for name, path in zip(NAMES, (raw_beton, f"{raw_beton}.json", raw_mask, teacher_store), strict=True):
        shutil.copy(path, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(logits: bool) -> fastkd.Loader:
    options = {"mask": "m.h5", "logits": "l.h5" if logits else None}
    return fastkd.Loader("x.beton", VIEWS, **options, batch_size=64, shuffle=True, num_workers=2)


def content(batches: Iterable[Batch]) -> list[tuple[bytes, ...]]:
    """The bytes of batches."""
    arrays = ([batch.sample_ids, batch.images.contiguous(), batch.logits] for batch in batches)
    return [tuple(b"" if array is None else array.numpy().tobytes() for array in three) for three in arrays]


@pytest.mark.parametrize("happening", HAPPENINGS)
@pytest.mark.parametrize("logits", [False, True])
def test_a_loader_of_relative_paths_goes_on_with_the_files_that_it_opened(folder, happening, logits):
    undisturbed = [content(opened(logits).epoch(epoch)) for epoch in range(2)]
    loader = opened(logits)
    first = loader.epoch(0)
    batches = [next(first)]
    happening(folder)
    assert content([*batches, *first]) == undisturbed[0]
    assert content(loader.epoch(1)) == undisturbed[1]


@pytest.mark.parametrize("happening", HAPPENINGS)
def test_a_store_is_read_on(folder, happening, ids):
    store = fastkd.LogitStore("l.h5")
    expected = store.read(ids, 1)
    happening(folder)
    assert np.array_equal(store.read(ids, 1), expected)
    assert np.array_equal(store.tables.map_records()[1], store.records[1])


@pytest.mark.parametrize("name", ["dataset", "mask", "store"])
def test_what_was_opened_by_a_relative_path_is_handed_over_from_anywhere(folder, name):
    one = {"dataset": open_dataset, "mask": Mask.load, "store": fastkd.LogitStore}[name](
        {"dataset": "x.beton", "mask": "m.h5", "store": "l.h5"}[name]
    )
    left(folder)
    assert type(pickle.loads(pickle.dumps(one))) is type(one)


@pytest.mark.parametrize("name", ["x.beton", "l.h5"])
def test_a_file_that_became_shorter_is_an_error_when_the_next_batch_is_begun(folder, name):
    loader = opened(True)
    size = os.path.getsize(name)
    list(loader.epoch(0))
    os.truncate(name, size - 1)
    told = f"{name}: became shorter while it was being used, {size - 1:,} bytes of {size:,}: put the whole file back and begin anew"
    with pytest.raises(FormatError, match=f"^{re.escape(told)}$"):
        next(loader.epoch(1))


def test_a_store_that_became_shorter_is_an_error_when_it_is_read(folder, ids):
    store = fastkd.LogitStore("l.h5")
    os.truncate("l.h5", 4096)
    for read in (store.read, store.gather):
        with pytest.raises(FormatError, match=r"^l\.h5: became shorter while it was being used"):
            read(ids, 0)


def test_messages_name_the_image_that_a_sample_is_of_from_anywhere(folder):
    beton = open_dataset("x.beton").beton
    left(folder)
    assert where_from(beton, 61) == " (class1/01.png)"
