"""Stores that hold the teacher's embeddings beside its logits: the same guarantees, row by row."""

import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers.moments import stalling
from helpers.ranks import start_ranks, wait_for
from helpers.stores import IDS, cache, make_store, random_logits, save_teacher

from fastkd.data.views.draw import Views
from fastkd.errors import CorruptError, FormatError, MismatchError
from fastkd.feed.loader import Loader
from fastkd.prune.masks.mask import Mask, save_mask
from fastkd.store.filling import StoreFiller
from fastkd.store.logit_store import LogitStore
from fastkd.store.merge import merge_stores
from fastkd.store.tables import read_tables
from fastkd.store.verify import verify_store
from fastkd.teacher.network import embedding_of, load_teacher
from fastkd.teacher.recompute import recompute_rows

VIEWS = Views("crop-flip", 32, 4)
LOGITS, EMBEDDINGS = random_logits(3, len(IDS), 20), random_logits(3, len(IDS), 20, seed=1)


@pytest.fixture
def path(tmp_path) -> Path:
    """A store whose logits and embeddings have records of the same size."""
    return make_store(tmp_path / "l.h5", LOGITS, embeddings=EMBEDDINGS)


@pytest.fixture(scope="module")
def recipe(dataset, teacher, tmp_path_factory) -> dict:
    """What a store of 90 samples with embeddings is made from: 24 blocks."""
    path = tmp_path_factory.mktemp("mask") / "m.h5"
    ids = np.random.default_rng(0).permutation(600)[:90]
    save_mask(path, ids, num_samples=600, beton_fingerprint=dataset.fingerprint, params={})
    common = {"dataset": dataset, "teacher": teacher, "views": VIEWS, "mask": Mask.load(path), "block_rows": 16}
    return common | {"embedding": embedding_of(teacher, 32)}


@pytest.fixture(scope="module")
def at_once(recipe, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("at-once") / "l.h5"
    cache(path, **recipe)
    return path


def test_both_outputs_are_read_as_they_were_written(path):
    store = LogitStore(path)
    assert store.embedding_dim == 20
    assert verify_store(path) == []
    for aug_seed in range(3):
        store.prefetch(aug_seed, embeddings=True)
        assert np.array_equal(store.read(IDS, aug_seed), LOGITS[aug_seed])
        assert np.array_equal(store.read_embeddings(IDS[::-1], aug_seed), EMBEDDINGS[aug_seed, ::-1])


def test_a_store_without_embeddings_says_so(tmp_path):
    store = LogitStore(make_store(tmp_path / "l.h5", LOGITS))
    assert store.embedding_dim is None
    with pytest.raises(MismatchError, match=r"l\.h5: holds logits alone.*--outputs logits,embedding"):
        store.read_embeddings(IDS, 0)


def test_a_flipped_bit_of_an_embedding_is_found_and_the_logits_are_still_read(path):
    with path.open("r+b") as file:
        file.seek(read_tables(path).embeddings.offset + (37 + 9) * 64)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    assert verify_store(path) == ["aug_seed 1: 1 of 37 embeddings do not match their checksum"]
    store = LogitStore(path)
    with pytest.raises(CorruptError, match=f"sample {IDS[9]}, aug_seed 1: the embedding does not match its checksum"):
        store.read_embeddings(IDS, 1)
    assert np.array_equal(store.read(IDS, 1), LOGITS[1])


def test_an_embedding_in_the_place_of_the_logits_is_noticed(path):
    with h5py.File(path, "r+") as file:
        logits, embeddings = file["logits"][0, 5], file["embeddings"][0, 5]
        file["logits"][0, 5], file["embeddings"][0, 5] = embeddings, logits
    assert verify_store(path) == [
        "aug_seed 0: 1 of 37 rows do not match their checksum",
        "aug_seed 0: 1 of 37 embeddings do not match their checksum",
    ]


def test_embeddings_that_are_gone_or_of_another_shape_are_refused(path):
    with h5py.File(path, "r+") as file:
        del file["embeddings"]
    with pytest.raises(FormatError, match=r"l\.h5: .*embeddings"):
        LogitStore(path)
    with h5py.File(path, "r+") as file:
        file["embeddings"] = np.zeros((3, 37, 128), np.uint8)
    with pytest.raises(FormatError, match=r"l\.h5: embeddings of shape \(3, 37, 128\)"):
        LogitStore(path)


def test_what_is_stored_is_what_the_last_layer_reads(recipe, at_once, teacher, dataset):
    store = LogitStore(at_once)
    loader = Loader(dataset, VIEWS, mask=recipe["mask"], batch_size=90)
    (batch,) = loader.epoch(2)
    embeddings = torch.from_numpy(store.read_embeddings(batch.sample_ids.numpy(), 2))
    logits = torch.from_numpy(store.read(batch.sample_ids.numpy(), 2))
    torch.testing.assert_close(teacher.model.fc(embeddings), logits, rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(recipe["embedding"].live(batch.images)[1][0], embeddings, rtol=1e-3, atol=1e-4)


def test_two_ranks_fill_the_same_bytes(recipe, at_once, tmp_path):
    pids = start_ranks(2, tmp_path / "meet", lambda world: cache(tmp_path / "l.h5", **recipe, world=world))
    assert wait_for(pids) == [0, 0]
    assert (tmp_path / "l.h5").read_bytes() == at_once.read_bytes()


def test_a_filling_that_was_killed_goes_on_to_the_same_bytes(recipe, at_once, tmp_path, monkeypatch):
    path = tmp_path / "l.h5"
    monkeypatch.setattr("fastkd.teacher.blocks.StoreFiller", partial(StoreFiller, sync_s=0.0))  # a flag a block
    pids = start_ranks(2, tmp_path / "meet", lambda world: cache(path, **recipe, world=world, progress=stalling(4)))
    while not path.exists() or read_tables(path).done.sum() < 6:
        time.sleep(0.005)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_for(pids)
    assert 6 <= read_tables(path).done.sum() < 24
    assert cache(path, **recipe)["rows_reused"] >= 90
    assert path.read_bytes() == at_once.read_bytes()


@pytest.mark.parametrize("with_embeddings", [True, False])
def test_embeddings_of_an_older_store_are_taken_over_and_rows_without_are_computed(
    recipe, at_once, tmp_path, with_embeddings
):
    old = recipe | {"views": Views("crop-flip", 32, 2)} | ({} if with_embeddings else {"embedding": None})
    cache(tmp_path / "old.h5", **old)
    lines: list[str] = []
    counts = cache(tmp_path / "l.h5", **recipe, reuse=[tmp_path / "old.h5"], log=lines.append)
    assert (counts["rows_reused"], counts["rows_written"]) == ((180, 180) if with_embeddings else (0, 360))
    said = ["has no embeddings" in line for line in lines if "loader threads" not in line]
    assert said == ([] if with_embeddings else [True])
    assert (tmp_path / "l.h5").read_bytes() == at_once.read_bytes()


def test_a_store_of_logits_alone_takes_them_from_one_that_has_more(recipe, at_once, tmp_path):
    counts = cache(tmp_path / "l.h5", **recipe | {"embedding": None, "codec": "int8+top4"}, reuse=[at_once])
    assert counts["rows_written"] == 0
    assert read_tables(tmp_path / "l.h5").embeddings is None


def test_shards_merge_with_their_embeddings(recipe, at_once, tmp_path):
    shards = [tmp_path / f"{i}.h5" for i in (1, 2)]
    for i, path in enumerate(shards, 1):
        cache(path, **recipe, shard=(i, 2))
    merge_stores(shards, tmp_path / "l.h5")
    assert (tmp_path / "l.h5").read_bytes() == at_once.read_bytes()


@pytest.mark.parametrize("embedding", [True, False])
def test_a_store_with_other_outputs_is_not_gone_on_with(recipe, at_once, tmp_path, embedding):
    path = tmp_path / "l.h5"
    if embedding:
        shutil.copy(at_once, path)
    else:
        cache(path, **recipe | {"embedding": None})
    with pytest.raises(MismatchError, match="another logit-store is there; it differs in embedding"):
        cache(path, **recipe | ({"embedding": None} if embedding else {}))


@pytest.mark.parametrize("value", [float("nan"), 70_000.0])
def test_an_embedding_beyond_float16_stops_the_run_and_names_the_sample(recipe, tmp_path, value):
    teacher = load_teacher(str(save_teacher(tmp_path / "t.safetensors")))
    teacher.model.fc.register_forward_pre_hook(lambda module, inputs: (inputs[0].fill_(value),), prepend=True)
    teacher.model.fc.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    broken = recipe | {"teacher": teacher, "embedding": embedding_of(teacher, 32)}
    with pytest.raises(
        CorruptError, match=rf"the teacher's embedding of sample {recipe['mask'].sample_ids[0]}, aug_seed 0"
    ):
        cache(tmp_path / "l.h5", **broken)


def test_embeddings_computed_again_are_those_that_are_stored(at_once, recipe, dataset, teacher, tmp_path):
    found = recompute_rows(read_tables(at_once), dataset, teacher, num_rows=100)
    assert found.problems == []
    assert found.mean_embedding_error < 1e-3
    other = tmp_path / "other.h5"
    shutil.copy(at_once, other)
    tables = read_tables(other)
    from fastkd.store.codec import encode_rows

    rows = np.roll(LogitStore(other).read_embeddings(tables.sample_ids, 1), 1, axis=0)
    with other.open("r+b") as file:
        file.seek(tables.embeddings.offset + 90 * tables.embeddings.codec.row_bytes)
        file.write(encode_rows(tables.embeddings.codec, rows, np.arange(90, 180), tables.embeddings.salt).tobytes())
    assert verify_store(other) == []
    problems = recompute_rows(tables, dataset, teacher, num_rows=100).problems
    assert len(problems) == 2
    assert "aug_seed 1: the embedding differs by" in problems[1]
