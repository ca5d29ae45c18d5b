import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from fastkd.data.order import _shuffle, batch_ids, epoch_order, num_batches, num_in_batch
from fastkd.hashing import crc32c

IDS = np.array([4, 90, 17, 3, 55, 21, 8, 70, 2, 61, 33, 12])
SEEDS = st.integers(0, 2**63 - 1)
EPOCHS = st.integers(0, 10_000)


def order(epoch: int, seed: int, ids: np.ndarray = IDS) -> list[int]:
    return epoch_order(ids, epoch=epoch, shuffle=True, seed=seed).tolist()


@given(st.lists(st.integers(0, 10**6), min_size=1, unique=True), EPOCHS, SEEDS)
def test_an_epoch_is_a_permutation_of_the_ids(ids, epoch, seed):
    assert sorted(order(epoch, seed, np.array(ids))) == sorted(ids)


@given(EPOCHS, SEEDS)
def test_an_epoch_asked_for_again_is_the_same(epoch, seed):
    first = order(epoch, seed)
    order(epoch + 1, seed)
    assert order(epoch, seed) == first


def test_shuffling_leaves_the_ids_themselves_as_they_are():
    ids = IDS.copy()
    order(3, 5, ids)
    np.testing.assert_array_equal(ids, IDS)


def test_without_shuffling_an_epoch_is_the_ids_in_their_order():
    assert epoch_order(IDS, epoch=7, shuffle=False, seed=1).tolist() == IDS.tolist()


def test_each_seed_and_epoch_has_an_order_of_its_own():
    ids = np.arange(50)
    orders = {tuple(order(epoch, seed, ids)) for epoch, seed in itertools.product(range(30), range(30))}
    assert len(orders) == 900


@given(st.integers(0, 10_000), st.integers(0, 2**63 - 2))
def test_the_next_epoch_is_not_the_next_seed(epoch, seed):
    ids = np.arange(50)
    assert order(epoch + 1, seed, ids) != order(epoch, seed + 1, ids)


def test_every_permutation_comes_equally_often():
    seen = [tuple(order(epoch, 0, np.arange(4))) for epoch in range(4_800)]
    counts = [seen.count(permutation) for permutation in itertools.permutations(range(4))]
    assert sum(counts) == 4_800
    assert chisquare(counts).pvalue > 0.001


def test_every_permutation_comes_equally_often_where_a_large_order_is_shuffled_in_buckets():
    seen = [tuple(_shuffle(np.arange(4), 0, epoch, bits=2).tolist()) for epoch in range(4_800)]
    counts = [seen.count(permutation) for permutation in itertools.permutations(range(4))]
    assert sum(counts) == 4_800
    assert chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("num_ids", [2**16, 2**16 + 1, 300_001])
def test_a_large_epoch_is_a_permutation_that_mixes_from_end_to_end(num_ids):
    found = epoch_order(np.arange(num_ids) * 7, epoch=2, shuffle=True, seed=9)
    assert np.array_equal(np.sort(found), np.arange(num_ids) * 7)
    quarters = found // 7 * 4 // num_ids
    for part in np.array_split(quarters, 10):
        assert chisquare(np.bincount(part)).pvalue > 1e-5


def test_orders_stay_what_they_are():
    assert order(0, 0, np.arange(10)) == [2, 3, 4, 1, 7, 5, 6, 9, 0, 8]
    assert order(3, 2**63 - 1, np.arange(10)) == [3, 0, 6, 9, 4, 8, 1, 5, 2, 7]


def test_a_large_order_stays_what_it_is():
    found = epoch_order(np.arange(300_001), epoch=3, shuffle=True, seed=5)
    assert crc32c(found.view(np.uint8)) == 4138054369


# Orders that go page by page


PAGED = (
    st.lists(st.integers(0, 9), min_size=1, max_size=200),  # the page of each id
    st.integers(1, 60),  # group
    EPOCHS,
    SEEDS,
)


def paged(pages: list[int], group: int, epoch: int, seed: int) -> np.ndarray:
    """The places of the ids in the order."""
    ids = np.arange(len(pages))
    return epoch_order(ids, epoch=epoch, shuffle=True, seed=seed, pages=np.array(pages, np.int32), group=group)


@given(*PAGED)
def test_a_paged_epoch_is_a_permutation_of_the_ids_and_the_same_again(pages, group, epoch, seed):
    found = paged(pages, group, epoch, seed)
    assert sorted(found) == list(range(len(pages)))
    assert found.tolist() == paged(pages, group, epoch, seed).tolist()


@given(*PAGED)
def test_a_paged_epoch_comes_back_to_no_page_that_it_left_a_group_and_two_pages_ago(pages, group, epoch, seed):
    visited = np.array(pages)[paged(pages, group, epoch, seed)]
    most = np.bincount(pages).max()
    for page in set(pages):
        places = np.flatnonzero(visited == page)
        assert places[-1] - places[0] < 2 * group + most


@given(st.integers(1, 30), st.integers(2, 60), EPOCHS, SEEDS)
def test_a_paged_epoch_mixes_a_group_before_it_goes_on(per_page, num_pages, epoch, seed):
    pages = np.repeat(np.arange(num_pages), per_page)
    group = 3 * per_page  # of three whole pages, so
    visited = pages[paged(pages.tolist(), group, epoch, seed)]
    assert len(set(visited[:group])) >= min(3, num_pages)
    assert len(set(visited[:group])) <= 5


def test_a_paged_epoch_takes_the_pages_in_another_order_each_time():
    pages = np.repeat(np.arange(40), 5)
    firsts = {int(pages[paged(pages.tolist(), 10, epoch, 0)[0]]) for epoch in range(60)}
    assert len(firsts) > 20


def test_in_a_group_every_order_of_two_pages_comes_equally_often():
    seen = [tuple(paged([0, 0, 1, 1], 4, epoch, 0).tolist()) for epoch in range(4_800)]
    counts = [seen.count(permutation) for permutation in itertools.permutations(range(4))]
    assert chisquare(counts).pvalue > 0.001


def test_a_paged_order_does_not_need_pages_to_be_full_or_numbered_from_zero():
    found = paged([7, 100_000, 7, 3, 100_000], 2, 1, 1)
    assert sorted(found) == [0, 1, 2, 3, 4]


CUTS = (st.integers(1, 300), st.integers(1, 40), st.integers(1, 6))


def cut(num_ids: int, batch_size: int, size: int, drop_last: bool) -> list[list[np.ndarray]]:
    """The parts of every rank of every batch."""
    ids = np.arange(num_ids) * 3
    return [
        [batch_ids(ids, batch, global_batch=batch_size * size, rank=rank, size=size) for rank in range(size)]
        for batch in range(num_batches(num_ids, global_batch=batch_size * size, drop_last=drop_last))
    ]


@given(*CUTS)
def test_the_batches_of_all_ranks_are_the_order_in_one_piece(num_ids, batch_size, size):
    parts = [part for batch in cut(num_ids, batch_size, size, drop_last=False) for part in batch]
    assert np.concatenate(parts).tolist() == [3 * i for i in range(num_ids)]


@given(*CUTS)
def test_ranks_differ_by_at_most_one_sample_in_any_batch(num_ids, batch_size, size):
    for batch in cut(num_ids, batch_size, size, drop_last=False):
        lengths = [len(part) for part in batch]
        assert max(lengths) - min(lengths) <= 1
        assert max(lengths) <= batch_size


@given(*CUTS)
def test_only_the_last_batch_is_not_full(num_ids, batch_size, size):
    *full, last = cut(num_ids, batch_size, size, drop_last=False)
    assert all(len(part) == batch_size for batch in full for part in batch)
    assert sum(map(len, last)) > 0


@given(*CUTS)
def test_dropping_the_last_leaves_full_batches_and_less_than_one_out(num_ids, batch_size, size):
    parts = [part for batch in cut(num_ids, batch_size, size, drop_last=True) for part in batch]
    assert all(len(part) == batch_size for part in parts)
    assert 0 <= num_ids - sum(map(len, parts)) < batch_size * size


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 6))
def test_a_batch_is_the_same_samples_for_any_number_of_ranks(num_ids, global_batch, size):
    ids = np.arange(num_ids) * 3
    for batch in range(num_batches(num_ids, global_batch=global_batch, drop_last=False)):
        parts = [batch_ids(ids, batch, global_batch=global_batch, rank=rank, size=size) for rank in range(size)]
        whole = batch_ids(ids, batch, global_batch=global_batch)
        assert np.concatenate(parts).tolist() == whole.tolist()
        assert len(whole) == num_in_batch(num_ids, batch, global_batch=global_batch)
        assert len(parts[0]) - len(parts[-1]) <= 1


@pytest.mark.parametrize(("num_ids", "expected"), [(128, 2), (129, 3), (127, 2), (1, 1)])
def test_a_batch_counts_even_where_it_is_not_full(num_ids, expected):
    assert num_batches(num_ids, global_batch=64, drop_last=False) == expected
