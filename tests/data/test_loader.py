import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from helpers.batches import ids_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.event import install_recorder

from fastkd.data.batch import Batch
from fastkd.data.beton.read import Beton, open_beton
from fastkd.data.loader import ViewLoader, default_num_workers
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.errors import CorruptError


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fastkd-loader")]


def outcome(function: Callable[[], object]) -> object:
    """What the function returns or raises; fails where it does not come back."""
    found: list[object] = []

    def call() -> None:
        try:
            found.append(function())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(60)
    assert found, "hangs"
    return found[0]


@pytest.fixture(scope="module")
def raw(raw_beton) -> ViewLoader:
    """A loader with two workers, for what does not depend on its options."""
    return ViewLoader(open_beton(raw_beton), Views("crop-flip", 32, 162), batch_size=64, num_workers=2)


# Batches


def test_a_batch_holds_the_labels_and_ids_of_its_images(raw):
    for batch in raw.epoch(0):
        assert batch.labels.tolist() == raw.beton.labels[batch.sample_ids].tolist()
        assert (batch.labels.dtype, batch.sample_ids.dtype, batch.logits) == (torch.int64, torch.int64, None)


def test_images_are_bytes_in_channels_last_order(raw):
    for batch in raw.epoch(0):
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (len(batch), 3, 32, 32)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_that_was_handed_out_never_changes(raw):
    kept, copies = [], []
    for batch in raw.epoch(0):
        kept.append(batch)
        copies.append(batch.copy())
    list(raw.epoch(1))
    for batch, copy in zip(kept, copies, strict=True):
        assert torch.equal(batch.images, copy.images)
        assert torch.equal(batch.labels, copy.labels)
        assert torch.equal(batch.sample_ids, copy.sample_ids)


def test_any_part_of_a_batch_keeps_all_of_its_memory(raw):
    corners = [batch.images[:, 0, :2, :2] for batch in raw.epoch(0)]  # the rest of each batch is let go
    labels = [batch.labels.numpy()[1:] for batch in raw.epoch(0)]
    before = [part.clone() for part in corners], [part.copy() for part in labels]
    for epoch in range(1, 4):
        list(raw.epoch(epoch))
    assert all(map(torch.equal, corners, before[0]))
    assert all(map(np.array_equal, labels, before[1]))


def test_epochs_take_no_more_memory_than_the_batches_under_way(raw):
    places = set()
    for epoch in range(5):
        for batch in raw.epoch(epoch):
            places.add(batch.images.data_ptr())
    assert len(places) <= raw.prefetch + 3


def test_a_copy_of_a_batch_can_be_changed_by_itself(raw):
    batch = next(raw.epoch(0))
    copy = batch.copy()
    copy.images.zero_()
    copy.labels.fill_(-1)
    assert batch.images.any()
    assert (batch.labels >= 0).all()
    assert copy.images.is_contiguous(memory_format=torch.channels_last)


def test_the_last_batch_is_what_is_left(raw):
    assert [len(batch) for batch in raw.epoch(0)] == [64] * 9 + [24]
    assert len(raw) == 10


def test_the_last_batch_is_left_out_where_that_is_asked_for(raw_beton):
    loader = ViewLoader(open_beton(raw_beton), Views("crop-flip", 32), batch_size=64, drop_last=True)
    assert [len(batch) for batch in loader.epoch(0)] == [64] * 9
    assert len(loader) == 9


def test_a_rank_without_a_sample_in_the_last_batch_gets_an_empty_one(raw_beton):
    beton, ids = open_beton(raw_beton), np.arange(9)
    lengths = [
        [len(batch) for batch in ViewLoader(beton, Views("crop-flip", 32), ids=ids, batch_size=4, world=world).epoch(0)]
        for world in (World(rank=0, size=2), World(rank=1, size=2))
    ]
    assert lengths == [[4, 1], [4, 0]]


@settings(max_examples=25)
@given(
    jobs=st.lists(st.tuples(st.lists(st.integers(0, 599), max_size=20), st.sampled_from([0, 1, 161])), max_size=12),
)
def test_batches_that_are_named_come_in_the_order_of_their_names(raw, jobs):
    batches = list(raw.run((np.array(ids, np.int64), aug_seed) for ids, aug_seed in jobs))
    assert [(batch.sample_ids.tolist(), batch.aug_seed) for batch in batches] == jobs


def test_workers_are_shared_among_the_processes_of_a_node(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cpus = len(os.sched_getaffinity(0))
    assert default_num_workers() == cpus
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cpus))
    assert default_num_workers() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(100 * cpus))
    assert default_num_workers() == 1


# Ending


def test_leaving_a_loop_early_leaves_no_threads(raw):
    for number, _ in enumerate(raw.epoch(0)):
        assert loader_threads()
        if number == 1:
            break
    assert not loader_threads()


@pytest.mark.parametrize("num_seen", [1, 5, 20])  # at an end of what is made in one go, and between
def test_a_loop_over_small_batches_can_be_left_anywhere(raw_beton, num_seen):
    loader = ViewLoader(open_beton(raw_beton), Views("crop-flip", 32), batch_size=4, num_workers=2)
    seen = [batch for _, batch in zip(range(num_seen), loader.epoch(0), strict=False)]
    assert ids_of(seen) == list(range(4 * num_seen))
    assert not loader_threads()


def test_an_error_in_the_loop_leaves_no_threads(raw):
    def loop() -> None:
        for _ in raw.epoch(0):
            raise ValueError("of the training loop")

    with pytest.raises(ValueError, match="of the training loop"):
        loop()
    assert not loader_threads()


def test_the_end_of_an_epoch_leaves_no_threads(raw):
    list(raw.epoch(0))
    assert not loader_threads()


def test_an_error_of_the_jobs_reaches_the_caller_and_leaves_no_threads(raw):
    def jobs() -> Iterable[tuple[np.ndarray, int]]:
        yield np.arange(3), 0
        raise KeyError("of the jobs")

    with pytest.raises(KeyError, match="of the jobs"):
        list(raw.run(jobs()))
    assert not loader_threads()


# Damage


def zeros_in_the_second_half(beton: Beton, sample_id: int) -> dict[int, bytes]:
    size = int(beton.sizes[sample_id])
    return {int(beton.ptrs[sample_id]) + size // 2: bytes(size - size // 2)}


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("batch_size", [4, 1])  # of 1, several are made in one go
def test_a_corrupt_jpeg_is_named_where_its_batch_would_have_come(jpg_beton, copy_of, batch_size, num_workers):
    whole = open_beton(jpg_beton)
    path = copy_of(jpg_beton, zeros_in_the_second_half(whole, 10))
    loader = ViewLoader(open_beton(path), Views("rrc", 24), batch_size=batch_size, num_workers=num_workers)
    before: list[Batch] = []
    error = outcome(lambda: before.extend(loader.epoch(0)))
    assert isinstance(error, CorruptError)
    assert str(error).startswith(f"{path}: sample 10: its JPEG does not decode")
    assert ids_of(before) == list(range(10 - 10 % batch_size))
    assert not loader_threads()


def test_a_corrupt_jpeg_that_is_not_kept_does_not_matter(jpg_beton, copy_of):
    path = copy_of(jpg_beton, zeros_in_the_second_half(open_beton(jpg_beton), 10))
    ids = np.delete(np.arange(24), 10)
    assert ids_of(ViewLoader(open_beton(path), Views("rrc", 24), ids=ids).epoch(0)) == ids.tolist()


def test_a_jpeg_of_another_size_than_the_table_says_is_refused(jpg_beton, copy_of):
    width = int(open_beton(jpg_beton).widths[10])
    path = copy_of(jpg_beton, {24 + 2 * 1041 + 24 * 10 + 1: (width - 1).to_bytes(2, "little")})
    loader = ViewLoader(open_beton(path), Views("rrc", 24))
    with pytest.raises(CorruptError, match="sample 10: its JPEG has another size than the beton's table says"):
        list(loader.epoch(0))


# What else is in the process


def in_a_new_process(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def beside_ffcvs_loader(photo_jpg) -> subprocess.CompletedProcess[str]:
    """A process that says how many threads torch has after an import, and uses a loader of FFCV's own between two."""
    code = """
import sys
import torch
torch.set_num_threads(3)
from fastkd.data.loader import ViewLoader
print("threads", torch.get_num_threads(), flush=True)
import numba.typed
print("dictionaries of", numba.typed.Dict.__module__, flush=True)
from fastkd.data.beton.read import open_beton
from fastkd.data.views.draw import Views
from ffcv.loader import Loader

def views():
    return [batch.images for batch in ViewLoader(open_beton(sys.argv[1]), Views("rrc", 24)).epoch(0)]

before = views()
print("ffcv", sum(len(labels) for _, labels in Loader(sys.argv[1], batch_size=4, num_workers=1)), flush=True)
print("equal", all((a == b).all().item() for a, b in zip(before, views(), strict=True)))
"""
    return in_a_new_process(code, photo_jpg)


def test_loaders_of_a_process_share_what_is_compiled(raw_beton, jpg_beton):
    list(ViewLoader(open_beton(raw_beton), Views("crop-flip", 32)).epoch(0))
    with install_recorder("numba:compile") as compiled:
        list(ViewLoader(open_beton(jpg_beton), Views("rrc", 24)).epoch(0))
    assert compiled.buffer == []


def test_importing_the_loader_leaves_torchs_threads_and_numbas_dictionary_as_they_are(beside_ffcvs_loader):
    assert beside_ffcvs_loader.stdout.splitlines()[:2] == ["threads 3", "dictionaries of numba.typed.typeddict"]


def test_a_loader_of_ffcvs_own_in_the_same_process_does_no_harm(beside_ffcvs_loader):
    assert beside_ffcvs_loader.stdout.splitlines()[2:] == ["ffcv 12", "equal True"]
    assert beside_ffcvs_loader.stderr == ""


def test_building_a_beton_leaves_torchs_threads_as_they_are(photo_folder, tmp_path):
    code = """
import sys
import torch
torch.set_num_threads(3)
from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.sources.open import open_source
build_beton(open_source(sys.argv[1]), sys.argv[2], WriteOptions(mode="jpg"), num_workers=1)
print("threads", torch.get_num_threads())
"""
    assert in_a_new_process(code, photo_folder, tmp_path / "x.beton").stdout == "threads 3\n"
