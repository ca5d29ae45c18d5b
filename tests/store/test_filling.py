"""Stores filled by a teacher: their rows, how a filling goes on, what is refused."""

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import fastkd_forked, finish, start
from helpers.moments import at_call, die
from helpers.stores import cache, save_teacher

from fastkd.data.beton.dataset import Dataset
from fastkd.data.views.draw import Views
from fastkd.errors import (
    BusyError,
    CorruptError,
    MismatchError,
    OptionError,
    UnfinishedError,
)
from fastkd.feed.loader import Loader
from fastkd.store.filling import StoreFiller
from fastkd.store.logit_store import LogitStore
from fastkd.store.tables import read_tables
from fastkd.teacher.network import Teacher, load_teacher

VIEWS = Views("crop-flip", 32, 3)
BLOCK_ROWS = 32  # of 200: the last block of a plane is shorter


@pytest.fixture
def teacher(teacher_file) -> Teacher:
    return load_teacher(str(teacher_file))


@pytest.fixture(scope="module")
def filling(dataset, mask, teacher_file, tmp_path_factory) -> tuple[Path, dict, list]:
    """A store that was filled in one go, what that returned, and the progress it told."""
    path, told = tmp_path_factory.mktemp("teacher") / "l.h5", []
    counts = cache(
        path,
        dataset,
        load_teacher(str(teacher_file)),
        VIEWS,
        mask=mask,
        block_rows=BLOCK_ROWS,
        progress=lambda done, total: told.append((done, total)),
    )
    return path, counts, told


@pytest.fixture
def filled(filling) -> Path:
    return filling[0]


def clear(path: Path, blocks: list[tuple[int, int]]) -> None:
    """As if the process had been killed before these (aug_seed, block) were written."""
    tables = read_tables(path)
    with path.open("r+b") as file:
        for aug_seed, block in blocks:
            rows = min(BLOCK_ROWS, tables.num_rows - block * BLOCK_ROWS)
            row = aug_seed * tables.num_rows + block * BLOCK_ROWS
            file.seek(tables.logits_offset + row * tables.codec.row_bytes)
            file.write(bytes(rows * tables.codec.row_bytes))
            file.seek(tables.done_offset + aug_seed * tables.num_blocks + block)
            file.write(b"\0")


@functools.cache
def loader_of(dataset: Dataset) -> Loader:
    """One loader for all tests."""
    return Loader(dataset, VIEWS)


def live(dataset: Dataset, teacher: Teacher, ids: np.ndarray, aug_seed: int) -> np.ndarray:
    (batch,) = loader_of(dataset).run([(ids, aug_seed)])
    return teacher(batch.images).numpy()


def test_filling_counts_its_rows(filling):
    _, counts, told = filling
    assert (counts["rows_written"], counts["rows_reused"]) == (600, 0)
    assert counts["rows_per_s"] > 0
    assert told[0] == (32, 600)
    assert told[-1] == (600, 600)


def test_rows_are_in_the_priority_order_of_the_mask(filled, mask):
    assert np.array_equal(LogitStore(filled).sample_ids, mask.sample_ids)


def test_the_cached_logits_are_the_teachers_rounded_to_float16(filled, dataset, mask, teacher):
    store = LogitStore(filled)
    for aug_seed, block in ((0, 0), (1, 3), (2, 6)):
        ids = mask.sample_ids[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS]
        expected = live(dataset, teacher, ids, aug_seed).astype(np.float16)
        assert np.array_equal(store.read(ids, aug_seed), expected.astype(np.float32))


def test_any_samples_in_any_view_get_the_live_teachers_logits(filled, dataset, mask, teacher):
    """To the last digit of float16, as other batches sum in another order."""
    store, rng = LogitStore(filled), np.random.default_rng(0)
    for aug_seed in range(3):
        ids = rng.permutation(mask.sample_ids)[:45]
        expected = live(dataset, teacher, ids, aug_seed)
        cached = store.read(ids, aug_seed)
        assert (np.abs(cached - expected) <= np.spacing(np.abs(expected).astype(np.float16))).all()
        assert (cached == expected).mean() > 0.98
        assert (cached == live(dataset, teacher, ids, (aug_seed + 1) % 3)).mean() < 0.1


def test_the_codec_is_the_one_asked_for(dataset, teacher, tmp_path):
    cache(tmp_path / "l.h5", dataset, teacher, Views("center", 32), codec="int8+top4", block_rows=300)
    assert read_tables(tmp_path / "l.h5").codec.name == "int8+top4"
    assert LogitStore(tmp_path / "l.h5").read(np.arange(600), 0).shape == (600, 10)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_resumed_store_is_the_undisturbed_one_byte_for_byte(filled, dataset, mask, teacher, tmp_path, num_workers):
    path = Path(shutil.copy(filled, tmp_path / "l.h5"))
    clear(path, [(0, 0), (1, 2), (1, 3), (2, 6)])
    with pytest.raises(UnfinishedError, match="4 of 21 blocks"):
        LogitStore(path)
    counts = cache(path, dataset, teacher, VIEWS, mask=mask, block_rows=BLOCK_ROWS, num_workers=num_workers)
    assert (counts["rows_written"], counts["rows_reused"]) == (3 * 32 + 8, 600 - 3 * 32 - 8)
    assert path.read_bytes() == filled.read_bytes()


def test_a_fill_that_an_exception_ends_goes_on_where_it_was(filled, dataset, mask, teacher, tmp_path):
    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    options = {"mask": mask, "block_rows": BLOCK_ROWS}
    with pytest.raises(KeyboardInterrupt):
        cache(tmp_path / "l.h5", dataset, teacher, VIEWS, **options, progress=interrupt)
    assert 0.5 < read_tables(tmp_path / "l.h5").done.mean() < 0.8  # and the blocks that were at the writer
    assert cache(tmp_path / "l.h5", dataset, teacher, VIEWS, **options)["rows_reused"] > 300
    assert (tmp_path / "l.h5").read_bytes() == filled.read_bytes()


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_a_teacher_without_finite_logits_stops_and_names_the_sample(dataset, mask, teacher, tmp_path, value):
    teacher.model.fc.bias.data[4] = value
    with pytest.raises(CorruptError, match=rf"sample {mask.sample_ids[0]}, aug_seed 0: not all finite"):
        cache(tmp_path / "l.h5", dataset, teacher, VIEWS, mask=mask, block_rows=BLOCK_ROWS)
    assert not read_tables(tmp_path / "l.h5").done.any()


def test_a_finished_store_is_left_alone(filled, dataset, mask, teacher):
    before = filled.read_bytes()
    told = []
    counts = cache(filled, dataset, teacher, VIEWS, mask=mask, block_rows=BLOCK_ROWS, log=told.append)
    assert (counts["rows_written"], counts["rows_reused"], counts["rows_per_s"]) == (0, 600, 0)
    assert re.search(r"l\.h5: this store is finished", told[0])
    assert filled.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"views": Views("crop-flip", 32, 4)}, "num_seeds 3 .asked for 4"),
        ({"views": Views("rrc", 32, 3)}, "views.kind crop-flip .asked for rrc"),
        ({"codec": "int8+top4"}, r"codec fp16 .asked for int8\+top4"),
        ({"block_rows": 64}, "block_rows 32 .asked for 64"),
        ({"mask": None}, "mask [0-9a-f]{12} .asked for none"),
    ],
)
def test_another_store_in_the_same_place_is_refused_and_told_apart(
    filled, dataset, mask, teacher, tmp_path, changes, words
):
    path = Path(shutil.copy(filled, tmp_path / "l.h5"))
    clear(path, [(1, 1)])
    before = path.read_bytes()
    options = {"views": VIEWS, "mask": mask, "block_rows": BLOCK_ROWS} | changes
    with pytest.raises(MismatchError, match=rf"l\.h5: another logit-store is there; it differs in {words}"):
        cache(path, dataset, teacher, options.pop("views"), **options)
    assert path.read_bytes() == before


def test_a_store_of_another_teacher_is_refused(filled, dataset, mask, tmp_path):
    other = load_teacher(str(save_teacher(tmp_path / "other.safetensors", seed=1)))
    with pytest.raises(MismatchError, match=f"differs in teacher [0-9a-f]{{12}} .asked for {other.fingerprint[:12]}"):
        cache(filled, dataset, other, VIEWS, mask=mask, block_rows=BLOCK_ROWS)


@pytest.mark.parametrize(
    ("options", "words"), [({"precision": "bf16"}, "precision.*fp32.*bf16"), ({"norm": "cifar"}, "mean .*0.5.*0.5071")]
)
def test_another_precision_or_normalisation_is_another_store(filled, dataset, mask, teacher_file, options, words):
    with pytest.raises(MismatchError, match=rf"differs in teacher\.{words}"):
        cache(filled, dataset, load_teacher(str(teacher_file), **options), VIEWS, mask=mask, block_rows=BLOCK_ROWS)


def test_a_store_that_another_process_fills_is_busy(filled, dataset, mask, teacher, tmp_path):
    path = Path(shutil.copy(filled, tmp_path / "l.h5"))
    clear(path, [(0, 0)])
    hold = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        other.stdout.readline()
        with pytest.raises(BusyError, match=r"l\.h5: another process"):
            cache(path, dataset, teacher, VIEWS, mask=mask, block_rows=BLOCK_ROWS)
        other.communicate("\n")
    assert read_tables(path).done[0, 0] == 0


def test_no_batch_size_below_one(dataset, teacher, tmp_path):
    with pytest.raises(OptionError, match="batch size 0"):
        cache(tmp_path / "l.h5", dataset, teacher, VIEWS, block_rows=0)


def test_a_published_teacher_fills_a_store(dataset, mask, tmp_path):
    if "FASTKD_TEST_DATA" not in os.environ:
        pytest.skip("needs FASTKD_TEST_DATA")
    (path,) = Path(os.environ["FASTKD_TEST_DATA"], "cifar10-resnets").glob("resnet20-*.th")
    published = load_teacher(str(path), model_name="resnet20", norm="imagenet", num_classes=10)
    cache(tmp_path / "l.h5", dataset, published, Views("crop-flip", 32, 1), mask=mask, block_rows=200)
    expected = live(dataset, published, mask.sample_ids, 0).astype(np.float16).astype(np.float32)
    assert np.array_equal(LogitStore(tmp_path / "l.h5").read(mask.sample_ids, 0), expected)


@pytest.fixture(scope="module")
def many_blocks(raw_beton, raw_mask, teacher_file) -> tuple:
    """A command that fills 182 small blocks."""
    options = ["--mask", raw_mask, "--teacher", teacher_file, "--views", "crop-flip", "--num-seeds", 14]
    return ("cache-logits", raw_beton, *options, "--batch-size", 16, "--device", "cpu", "--num-workers", 1, "--json")


@pytest.fixture(scope="module")
def undisturbed(many_blocks, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "undisturbed.h5"
    outcome = finish(start(*many_blocks, "--out", path))
    assert outcome.code == 0, outcome.err
    return path


def test_a_fill_that_was_killed_goes_on_to_the_bytes_of_an_undisturbed_one(
    many_blocks, undisturbed, tmp_path, monkeypatch
):
    path = tmp_path / "killed.h5"
    monkeypatch.setattr(
        "fastkd.teacher.blocks.StoreFiller", functools.partial(StoreFiller, sync_s=0.0)
    )  # a flag a block
    killed = fastkd_forked(*many_blocks, "--out", path, first=at_call("write_records " * 6, die))()
    assert killed.code == -signal.SIGKILL, killed.err
    num_done = int(read_tables(path).done.sum())
    assert num_done == 5
    outcome = finish(start(*many_blocks, "--out", path))
    assert outcome.code == 0, outcome.err
    assert 0 < outcome.result["rows_reused"] <= 16 * num_done
    assert path.read_bytes() == undisturbed.read_bytes()


def test_two_ranks_fill_the_bytes_of_one(many_blocks, undisturbed, tmp_path):
    outcome = finish(start(*many_blocks, "--out", tmp_path / "two.h5", ranks=2))
    assert outcome.code == 0, outcome.err
    assert outcome.result["rows_written"] == 2800
    assert (tmp_path / "two.h5").read_bytes() == undisturbed.read_bytes()
