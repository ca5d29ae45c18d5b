"""A store's rows asked of the disk while an epoch goes on."""

import threading
import time

import pytest
import torch
from helpers.stores import make_store, random_logits

from fastkd.data import flow
from fastkd.data.views.draw import Views
from fastkd.feed.loader import Loader
from fastkd.store.logit_store import LogitStore

NUM_SEEDS = 3
VIEWS = Views("crop-flip", 32, NUM_SEEDS)


@pytest.fixture
def store(dataset, ids, tmp_path) -> LogitStore:
    path = tmp_path / "l.h5"
    return LogitStore(make_store(path, random_logits(NUM_SEEDS, len(ids), 10), ids, dataset=dataset, views=VIEWS))


@pytest.fixture
def asked(monkeypatch) -> list[tuple[int, int | None, str]]:
    """Plane, rows and thread of each call."""
    calls: list[tuple[int, int | None, str]] = []
    prefetch = LogitStore.prefetch

    def note(self: LogitStore, aug_seed: int, num_rows: int | None = None, **options) -> None:
        calls.append((aug_seed, num_rows, threading.current_thread().name))
        prefetch(self, aug_seed, num_rows, **options)

    monkeypatch.setattr(LogitStore, "prefetch", note)
    return calls


@pytest.mark.parametrize(("epoch", "planes"), [(0, [0, 1]), (4, [1, 2]), (5, [2, 0])])
def test_the_planes_of_an_epoch_and_of_the_next_are_asked_for_by_a_thread_of_its_own(
    dataset, ids, store, asked, epoch, planes
):
    list(Loader(dataset, mask=ids, logits=store, num_workers=1).epoch(epoch))
    assert asked == [(plane, len(ids), "fastkd-loader-ahead") for plane in planes]


def test_a_store_of_one_plane_is_asked_for_it_once(dataset, ids, store, asked):
    views = Views("crop-flip", 32, 1)
    list(Loader(dataset, views, mask=ids, logits=store, num_workers=1).epoch(0))
    assert [plane for plane, _, _ in asked] == [0]


def test_leaving_the_loop_ends_the_asking(dataset, ids, store, monkeypatch):
    def endless(self: LogitStore, *_: object, is_over, **__: object) -> None:
        while not is_over():
            time.sleep(0.001)

    monkeypatch.setattr(LogitStore, "prefetch", endless)
    for _ in Loader(dataset, mask=ids, logits=store, batch_size=20, num_workers=1).epoch(0):
        break
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastkd-loader")]


def test_a_store_that_is_moved_away_meanwhile_is_read_all_the_same(dataset, ids, store):
    loader = Loader(dataset, mask=ids, logits=store, num_workers=1)
    expected = {batch.sample_ids[0].item(): batch.logits for batch in loader.epoch(0)}
    store.tables.path.rename(store.tables.path.with_name("elsewhere.h5"))
    found = {batch.sample_ids[0].item(): batch.logits for batch in loader.epoch(0)}
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[first], found[first]) for first in expected)


def test_rows_of_a_batch_that_is_made_in_parts_are_the_stores(dataset, ids, store, monkeypatch):
    monkeypatch.setattr(flow, "_GO_BYTES", 4 * 3 * 32**2)  # four views in one go
    loader = Loader(dataset, mask=ids, logits=store, batch_size=64, shuffle=True, num_workers=5)
    for epoch in range(NUM_SEEDS):
        for batch in loader.epoch(epoch):
            assert torch.equal(batch.logits, torch.from_numpy(store.read(batch.sample_ids.numpy(), epoch)))
