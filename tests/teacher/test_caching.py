"""Filling stores: ranks, kills, full disks, older stores, shards, and checking against the teacher."""

import os
import resource
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.moments import stalling
from helpers.ranks import start_ranks, wait_for
from helpers.stores import cache, save_teacher

from fastkd.data.views.draw import Views
from fastkd.errors import BusyError, CorruptError, MismatchError, OptionError, SpaceError, UnfinishedError
from fastkd.prune.masks.mask import Mask, save_mask
from fastkd.store.codec import make_codec
from fastkd.store.fidelity import through
from fastkd.store.filling import StoreFiller, fill_lock
from fastkd.store.logit_store import LogitStore
from fastkd.store.merge import merge_stores
from fastkd.store.tables import read_tables
from fastkd.store.verify import verify_store
from fastkd.teacher.network import load_teacher
from fastkd.teacher.recompute import recompute_rows

VIEWS = Views("crop-flip", 32, 8)
BLOCK_ROWS = 16


@pytest.fixture(scope="module")
def masks(dataset, tmp_path_factory) -> dict[str, Mask]:
    """Nested masks that keep a tenth and three tenths of the samples, and one of the others."""
    folder, order = tmp_path_factory.mktemp("masks"), np.random.default_rng(0).permutation(600)
    kept = {"tenth": order[:60], "more": order[:180], "others": order[180:300]}
    for name, ids in kept.items():
        save_mask(folder / name, ids, num_samples=600, beton_fingerprint=dataset.fingerprint, params={})
    return {name: Mask.load(folder / name) for name in kept}


@pytest.fixture(scope="module")
def recipe(dataset, teacher, masks) -> dict:
    """What a store of three tenths of the samples, 8 views each, is made from: 96 blocks."""
    return {"dataset": dataset, "teacher": teacher, "views": VIEWS, "mask": masks["more"], "block_rows": BLOCK_ROWS}


@pytest.fixture(scope="module")
def at_once(recipe, tmp_path_factory) -> dict[str, Path]:
    """By codec, the store of `recipe` made at once."""
    folder = tmp_path_factory.mktemp("at-once")
    for codec in ("fp16", "int8+top4", "int4+top8"):
        cache(folder / codec, **recipe, codec=codec)
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_ranks_fills_the_same_bytes(recipe, at_once, tmp_path, size):
    pids = start_ranks(size, tmp_path / "meet", lambda world: cache(tmp_path / "l.h5", **recipe, world=world))
    assert wait_for(pids) == [0] * size
    assert (tmp_path / "l.h5").read_bytes() == at_once["fp16"].read_bytes()


def test_three_ranks_killed_and_two_that_go_on_fill_the_same_bytes(recipe, at_once, tmp_path, monkeypatch):
    path = tmp_path / "l.h5"
    monkeypatch.setattr("fastkd.teacher.blocks.StoreFiller", partial(StoreFiller, sync_s=0.0))  # a flag a block
    pids = start_ranks(3, tmp_path / "meet", lambda world: cache(path, **recipe, world=world, progress=stalling(8)))
    while not path.exists() or read_tables(path).done.sum() < 20:
        time.sleep(0.005)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert wait_for(pids) == [-signal.SIGKILL] * 3
    assert 20 <= read_tables(path).done.sum() < 90
    pids = start_ranks(2, tmp_path / "again", lambda world: cache(path, **recipe, world=world))
    assert wait_for(pids) == [0, 0]
    assert path.read_bytes() == at_once["fp16"].read_bytes()


def test_while_one_rank_of_a_run_lives_no_other_run_fills_the_file(recipe, at_once, tmp_path):
    path = Path(shutil.copy(at_once["fp16"], tmp_path / "l.h5"))
    with fill_lock(path, is_first=False), pytest.raises(BusyError, match=r"l\.h5: another process is filling"):
        cache(path, **recipe)


def test_progress_counts_the_rows_of_all_ranks(recipe, tmp_path):
    told = tmp_path / "told"

    def fill(world):
        with told.open("a") as file:
            note = (lambda done, total: print(done, total, file=file)) if world.is_main else lambda done, total: None
            cache(tmp_path / "l.h5", **recipe, world=world, progress=note)

    assert wait_for(start_ranks(2, tmp_path / "meet", fill)) == [0, 0]
    assert told.read_text().splitlines()[-1] == "1440 1440"


def test_a_full_disk_leaves_a_store_that_the_same_command_goes_on_with(recipe, at_once, tmp_path):
    path, limits = tmp_path / "l.h5", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(done: int, total: int) -> None:
        tables = read_tables(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (tables.logits_offset + 400 * tables.codec.row_bytes, limits[1]))

    try:
        with pytest.raises(SpaceError, match=r"l\.h5: .* while rows were written.*run the same command again") as error:
            cache(path, **recipe, progress=fill_the_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert 10 < read_tables(path).done.sum() < 30
    assert len(verify_store(path)) == 1  # blocks that are not filled yet
    assert cache(path, **recipe)["rows_reused"] > 100
    assert path.read_bytes() == at_once["fp16"].read_bytes()


def test_a_file_system_without_locks_will_do(recipe, at_once, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "TRUE")
    lines: list[str] = []
    cache(tmp_path / "l.h5", **recipe, log=lines.append)
    lines = [line for line in lines if "loader threads" not in line]
    assert len(lines) == 1
    assert "no locks" in lines[0]
    assert (tmp_path / "l.h5").read_bytes() == at_once["fp16"].read_bytes()


def test_a_machine_that_decodes_other_pixels_does_not_go_on_with_a_store(recipe, at_once, tmp_path, monkeypatch):
    path = Path(shutil.copy(at_once["fp16"], tmp_path / "l.h5"))
    monkeypatch.setattr(
        "fastkd.feed.checks.probe_checksums", lambda beton, views, probes, ids: np.zeros(len(probes), np.uint32)
    )
    with pytest.raises(MismatchError, match=r"l\.h5: 2\d\d of 2\d\d probe views decode to other pixels"):
        cache(path, **recipe)


def test_the_teachers_accuracy_is_counted(at_once, dataset):
    from fastkd.report.describe import describe

    labels = dataset.beton.labels
    for path in at_once.values():
        store = LogitStore(path)
        hits = [store.read(store.sample_ids, seed).argmax(axis=1) == labels[store.sample_ids] for seed in range(8)]
        assert describe(path)["teacher_top1"] == pytest.approx(100 * np.mean(hits))
        assert describe(path)["done_percent"] == 100


@pytest.fixture(scope="module")
def old(recipe, masks, tmp_path_factory) -> dict[str, Path]:
    """By codec, stores of a tenth of the samples with 4 views."""
    folder = tmp_path_factory.mktemp("old")
    for codec in ("fp16", "int8+top4"):
        cache(folder / codec, **recipe | {"mask": masks["tenth"], "views": Views("crop-flip", 32, 4)}, codec=codec)
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("before", "codec"),
    [("fp16", "fp16"), ("fp16", "int8+top4"), ("fp16", "int4+top8"), ("int8+top4", "int8+top4")],
)
def test_more_samples_and_views_cost_only_what_is_new(recipe, at_once, old, tmp_path, before, codec):
    counts = cache(tmp_path / "l.h5", **recipe, codec=codec, reuse=[old[before]])
    assert counts["rows_reused"] == 60 * 4
    assert counts["rows_written"] == 180 * 8 - 60 * 4
    assert (tmp_path / "l.h5").read_bytes() == at_once[codec].read_bytes()


def test_several_old_stores_and_an_unfinished_one_give_what_they_have(recipe, masks, at_once, old, tmp_path):
    part = Path(shutil.copy(at_once["fp16"], tmp_path / "part.h5"))
    tables = read_tables(part)
    with part.open("r+b") as file:  # as if aug_seed 0 … 5 had not been filled
        file.seek(tables.done_offset)
        file.write(bytes(6 * tables.num_blocks))
    counts = cache(tmp_path / "l.h5", **recipe, reuse=[old["fp16"], part])
    assert counts["rows_reused"] == 60 * 4 + 180 * 2
    assert (tmp_path / "l.h5").read_bytes() == at_once["fp16"].read_bytes()


def test_samples_that_no_old_store_has_are_all_computed(recipe, masks, old, tmp_path):
    counts = cache(tmp_path / "l.h5", **recipe | {"mask": masks["others"]}, reuse=[old["fp16"]])
    assert (counts["rows_written"], counts["rows_reused"]) == (120 * 8, 0)


def test_a_damaged_row_of_an_old_store_is_not_taken_over(recipe, old, tmp_path):
    path = Path(shutil.copy(old["fp16"], tmp_path / "old.h5"))
    tables = read_tables(path)
    with path.open("r+b") as file:
        file.seek(tables.logits_offset + 64 * 7)
        file.write(b"\xff")
    with pytest.raises(CorruptError, match=rf"old\.h5: sample {tables.sample_ids[7]}, aug_seed 0: .*checksum"):
        cache(tmp_path / "l.h5", **recipe, reuse=[path])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"views": Views("center", 32, 1)}, "rows are of views .*crop-flip.* the new store's of .*center"),
        ({"teacher": "other"}, "rows are of teacher [0-9a-f]{12}, the new store's of [0-9a-f]{12}"),
        ({"codec": "int4+top8", "reuse": "int8+top4"}, r"codec is int8\+top4, from which no int4\+top8 rows"),
        ({"codec": "fp16", "reuse": "int8+top4"}, r"codec is int8\+top4, from which no fp16 rows"),
    ],
)
def test_an_old_store_of_something_else_is_refused(recipe, old, tmp_path, changes, words):
    if "teacher" in changes:
        changes = {"teacher": load_teacher(str(save_teacher(tmp_path / "other.safetensors", seed=1)))}
    with pytest.raises(MismatchError, match=f"--reuse .*{words}"):
        cache(tmp_path / "l.h5", **recipe | {"reuse": [old[changes.pop("reuse", "fp16")]]} | changes)
    assert not (tmp_path / "l.h5").exists()


def test_shards_of_three_nodes_merge_into_the_store_of_one(recipe, at_once, tmp_path):
    shards = [tmp_path / f"{i}.h5" for i in (1, 2, 3)]
    rows = [cache(path, **recipe, shard=(i, 3))["rows_written"] for i, path in enumerate(shards, 1)]
    assert sum(rows) == 1440
    assert min(rows) > 400
    with pytest.raises(UnfinishedError, match="32 of 96 blocks are in none of the 2 shards"):
        merge_stores(shards[::2], tmp_path / "l.h5")
    assert not (tmp_path / "l.h5").exists()
    merge_stores(shards, tmp_path / "l.h5")
    assert (tmp_path / "l.h5").read_bytes() == at_once["fp16"].read_bytes()
    merge_stores([*shards, at_once["fp16"]], tmp_path / "l.h5")
    assert (tmp_path / "l.h5").read_bytes() == at_once["fp16"].read_bytes()
    assert cache(shards[0], **recipe, shard=(1, 3))["rows_written"] == 0


def test_shards_that_do_not_belong_together_are_refused(at_once, old, tmp_path):
    with pytest.raises(MismatchError, match=r"a shard of another store than .*: codec int8\+top4 instead of fp16$"):
        merge_stores([at_once["fp16"], at_once["int8+top4"]], tmp_path / "l.h5")
    with pytest.raises(MismatchError, match=r"mask [0-9a-f]+ instead of [0-9a-f]+, num_seeds 4 instead of 8"):
        merge_stores([at_once["fp16"], old["fp16"]], tmp_path / "l.h5")
    assert not list(tmp_path.iterdir())


def test_shards_with_other_logits_for_the_same_rows_are_refused(at_once, tmp_path):
    path = Path(shutil.copy(at_once["fp16"], tmp_path / "other.h5"))
    tables = read_tables(path)
    with path.open("r+b") as file:
        file.seek(tables.logits_offset + 64 * 20)
        file.write(b"\xff")
    with pytest.raises(MismatchError, match=r"other\.h5: other logits than .* aug_seed 0, rows 16 … 31"):
        merge_stores([at_once["fp16"], path], tmp_path / "l.h5")
    with pytest.raises(CorruptError, match=r"other\.h5: aug_seed 0, rows 16 … 31: .*checksum"):
        merge_stores([path], tmp_path / "l.h5")
    assert [one.name for one in tmp_path.iterdir()] == ["other.h5"]


def test_a_codec_that_loses_too_much_is_refused_before_anything_is_written(recipe, tmp_path):
    with pytest.raises(OptionError, match=r"codec int4\+top8: KL .* temperature 4 on 2\d\d real rows, --max-kl 1e-12"):
        cache(tmp_path / "l.h5", **recipe, codec="int4+top8", max_kl=1e-12)
    assert not list(tmp_path.iterdir())
    cache(tmp_path / "l.h5", **recipe, codec="fp16", max_kl=1e-12)


@pytest.mark.parametrize(
    "options", [{"max_kl": 0}, {"max_kl": float("nan")}, {"tau": 0}, {"shard": (0, 2)}, {"shard": (3, 2)}]
)
def test_options_out_of_range_are_refused(recipe, tmp_path, options):
    with pytest.raises(OptionError, match="expected"):
        cache(tmp_path / "l.h5", **recipe | options)


@pytest.mark.parametrize("codec", ["fp16", "int8+top4", "int4+top8"])
def test_rows_computed_again_are_those_that_are_stored(at_once, dataset, teacher, codec):
    found = recompute_rows(read_tables(at_once[codec]), dataset, teacher, num_rows=200)
    assert found.problems == []
    assert 150 < found.num_rows <= 200
    assert found.mean_kl < 1e-6


def test_a_store_of_other_logits_under_the_same_name_is_found(at_once, recipe, tmp_path, dataset, teacher):
    """Each row whole, sealed in its place and wrong: those of the next sample."""
    path = Path(shutil.copy(at_once["fp16"], tmp_path / "l.h5"))
    tables, codec = read_tables(path), make_codec("fp16", 10)
    logits = LogitStore(path).read(tables.sample_ids, 3)
    from fastkd.store.codec import encode_rows

    records = encode_rows(codec, np.roll(through(codec, logits), 1, axis=0), np.arange(3 * 180, 4 * 180), tables.salt)
    with path.open("r+b") as file:
        file.seek(tables.logits_offset + 3 * 180 * 64)
        file.write(records.tobytes())
    assert verify_store(path) == []
    problems = recompute_rows(tables, dataset, teacher, num_rows=200).problems
    assert len(problems) == 2
    assert "aug_seed 3: KL" in problems[1]


def test_rows_are_computed_again_by_the_same_teacher_alone(at_once, dataset, tmp_path):
    other = load_teacher(str(save_teacher(tmp_path / "other.safetensors", seed=1)))
    with pytest.raises(MismatchError, match="made for another teacher"):
        recompute_rows(read_tables(at_once["fp16"]), dataset, other)
