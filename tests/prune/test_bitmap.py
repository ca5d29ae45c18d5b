import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkd.prune.masks.bitmap import bitmap_of, has_repeats_or_outside, pack_ids
from fastkd.prune.masks.mask import combine_ids, complement_ids

pytestmark = pytest.mark.usefixtures("selection_by")

sets = st.integers(1, 9000).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1), unique=True, max_size=300))
)


def test_a_bitmap_of_imagenet():
    ids = np.random.default_rng(0).permutation(1_281_167)[:300_000]
    bitmap = pack_ids(ids, 1_281_167)
    assert bitmap.bits.nbytes == 160_146
    assert len(bitmap) == 300_000 == np.unpackbits(bitmap.bits).sum()
    assert np.array_equal(bitmap.ids(), np.sort(ids))
    ranks = np.arange(0, 300_000, 7)
    assert np.array_equal(bitmap.rank(bitmap.select(ranks)), ranks)
    assert np.array_equal(bitmap.select(ranks), np.sort(ids)[ranks])
    assert bitmap.before.nbytes < 0.03 * bitmap.bits.nbytes


@given(sets)
def test_ids_come_back_and_rank_counts_those_below(drawn):
    num_samples, ids = drawn
    bitmap = pack_ids(np.array(ids, np.int64), num_samples)
    assert bitmap.ids().tolist() == sorted(ids)
    assert np.array_equal(bitmap.bits, np.packbits(np.isin(np.arange(num_samples), ids), bitorder="little"))
    at = np.arange(num_samples + 1)
    assert np.array_equal(bitmap.rank(at), np.r_[0, np.cumsum(np.isin(at[:-1], ids))])
    assert bitmap.select(np.arange(len(ids))).tolist() == sorted(ids)
    assert np.array_equal(bitmap.contains(at[:-1]), np.isin(at[:-1], ids))


@given(sets, st.data())
def test_set_operations_on_masks_keep_their_order(drawn, data):
    num_samples, one = drawn
    other = data.draw(st.lists(st.integers(0, num_samples - 1), unique=True, max_size=300))
    a, b = np.array(one, np.int64), np.array(other, np.int64)
    assert combine_ids("union", a, b, num_samples).tolist() == one + [i for i in other if i not in set(one)]
    assert combine_ids("intersection", a, b, num_samples).tolist() == [i for i in one if i in set(other)]
    assert combine_ids("difference", a, b, num_samples).tolist() == [i for i in one if i not in set(other)]
    assert complement_ids(a, num_samples).tolist() == sorted(set(range(num_samples)) - set(one))


def test_bits_beyond_the_last_sample_do_not_count():
    assert bitmap_of(np.full(2, 255, np.uint8), 11).ids().tolist() == list(range(11))


@pytest.mark.parametrize(
    ("ids", "bad"), [([0, 4], False), ([0, 5], True), ([-1], True), ([3, 1, 3], True), ([], False)]
)
def test_repeats_and_strangers_are_found(ids, bad):
    assert has_repeats_or_outside(np.array(ids, np.int64), 5) is bad
