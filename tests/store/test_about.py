"""What a store says of its teacher, beside what makes it the store that it is."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.commands import fastkd
from helpers.refusals import refused
from helpers.stores import VIEWS, cache, save_teacher

from fastkd.errors import CorruptError
from fastkd.store.logit_store import LogitStore
from fastkd.store.merge import merge_stores
from fastkd.store.tables import read_tables
from fastkd.store.verify import verify_store
from fastkd.teacher.network import Teacher, load_teacher

TRAINED_ON = {"method": "random", "seed": 4, "fraction": 0.4, "fingerprint": "f" * 32}
TOLD = {"num_parameters": 78_330, "val_top1": 71.5, "mask": TRAINED_ON}


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Teacher:
    """A teacher whose checkpoint says where it comes from."""
    about = {"mask": TRAINED_ON | {"keep": "0.4", "num_samples": 600}}
    return load_teacher(
        str(save_teacher(tmp_path_factory.mktemp("about") / "t.safetensors", val_top1=71.5, about=about))
    )


@pytest.fixture(scope="module")
def silent(tmp_path_factory) -> Teacher:
    """The same weights in a checkpoint that says nothing of that."""
    return load_teacher(str(save_teacher(tmp_path_factory.mktemp("about") / "t.safetensors")))


def forget(path: Path) -> Path:
    """Makes of a store one of before, which says nothing of its teacher."""
    with h5py.File(path, "r+", locking=False) as file:
        for name in ("about", "about_digest"):
            del file.attrs[name]
    return path


def test_a_teacher_says_where_it_comes_from(told, silent):
    assert told.about == TOLD | {"num_parameters": silent.about["num_parameters"]}
    assert (silent.about["val_top1"], silent.about["mask"]) == (None, None)


@pytest.mark.parametrize(
    ("inputs", "mask"),
    [({}, {"method": "all", "fraction": 1.0}), ({"mask": "m" * 32}, {"method": None, "fraction": 1.0})],
)
def test_of_a_checkpoint_of_before_the_fraction_is_known(tmp_path, inputs, mask):
    path = save_teacher(tmp_path / "t.safetensors", params={"fraction": 1.0}, inputs=inputs)
    assert load_teacher(str(path)).about["mask"] == mask


def test_what_is_known_of_the_teacher_is_in_the_store_and_makes_it_no_other(dataset, mask, told, silent, tmp_path):
    for name, teacher in (("told", told), ("silent", silent)):
        cache(tmp_path / name, dataset, teacher, VIEWS, mask=mask)
    one, other = (read_tables(tmp_path / name) for name in ("told", "silent"))
    assert one.about["teacher"] == told.about
    assert one.header == other.header
    np.testing.assert_array_equal(one.map_records(), other.map_records())


def test_a_store_of_before_is_gone_on_with_and_reused_and_merged(dataset, mask, told, tmp_path):
    for i in (1, 2):
        cache(tmp_path / f"{i}", dataset, told, VIEWS, mask=mask, block_rows=64, shard=(i, 2))
    forget(tmp_path / "1")
    merge_stores([tmp_path / "1", tmp_path / "2"], tmp_path / "merged")
    cache(tmp_path / "1", dataset, told, VIEWS, mask=mask, block_rows=64)
    assert (tmp_path / "merged").read_bytes() == (tmp_path / "1").read_bytes()
    assert read_tables(tmp_path / "1").about == {}
    assert verify_store(tmp_path / "1") == []
    found = cache(tmp_path / "new", dataset, told, VIEWS, mask=mask, block_rows=64, reuse=[tmp_path / "1"])
    assert found["rows_written"] == 0
    assert read_tables(tmp_path / "new").about["teacher"] == told.about


def test_merged_shards_say_what_they_said(dataset, mask, told, tmp_path):
    for i in (1, 2):
        cache(tmp_path / f"{i}", dataset, told, VIEWS, mask=mask, block_rows=64, shard=(i, 2))
    merge_stores([tmp_path / "1", tmp_path / "2"], tmp_path / "merged")
    assert read_tables(tmp_path / "merged").about["teacher"] == told.about


@pytest.mark.parametrize("name", ["about", "about_digest"])
@pytest.mark.parametrize("value", [b"{}", b"", b"\xff", 3, None])
def test_what_is_said_otherwise_is_refused(dataset, mask, told, tmp_path, name, value):
    cache(tmp_path / "l.h5", dataset, told, VIEWS, mask=mask)
    with h5py.File(tmp_path / "l.h5", "r+", locking=False) as file:
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = np.bytes_(value) if isinstance(value, bytes) else value
    assert "l.h5: what it says about its teacher" in refused(CorruptError, LogitStore, tmp_path / "l.h5")


def test_inspect_tells_it_or_that_it_is_not_recorded(dataset, mask, told, tmp_path):
    cache(tmp_path / "l.h5", dataset, told, VIEWS, mask=mask)
    assert fastkd("inspect", tmp_path / "l.h5", "--json").result["about"]["teacher"]["val_top1"] == 71.5
    assert fastkd("inspect", forget(tmp_path / "l.h5"), "--json").result["about"] == "not recorded"
