import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkd.errors import OptionError
from fastkd.prune import scale
from fastkd.prune.masks.mask import parse_keep, random_order
from fastkd.prune.select.balance import BALANCES, equal_quotas, proportional_quotas, water_fill
from fastkd.prune.select.ccs import equal_width_bins, select_ccs
from fastkd.prune.select.centres import class_centre_distances
from fastkd.prune.select.levels import LEVELS, select_level

pytestmark = pytest.mark.usefixtures("selection_by")

SVHN = np.array([4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659])
label_arrays = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(lambda labels: np.array(labels, np.int64))
seeds = st.integers(0, 2**63 - 1)


def one_class(n: int) -> np.ndarray:
    return np.zeros(n, np.int64)


def random_scores(seed: int, n: int, distinct: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed % 2**32)
    return (rng.normal(size=n) if distinct is None else rng.integers(0, distinct, n)).astype(np.float32)


@pytest.mark.parametrize(
    ("level", "kept"), [("hard", {6, 7, 8, 9}), ("easy", {0, 1, 2, 3}), ("moderate", {3, 4, 5, 6})]
)
def test_levels_of_ten_scores(level, kept):
    scores = np.arange(10, dtype=np.float32)
    assert set(select_level(one_class(10), 4, scores=scores, level=level).tolist()) == kept


@pytest.mark.parametrize(
    ("keep", "num_samples", "count"),
    [("0.1", 50_000, 5000), ("0.29", 50_000, 14_500), ("0.1", 1_281_167, 128_117)],
)
def test_fractions_are_rounded_to_the_nearest_count(keep, num_samples, count):
    assert parse_keep(keep, num_samples) == count
    assert len(select_level(one_class(num_samples), count)) == count


def test_nothing_is_kept_where_nothing_is_asked_for():
    for balance in BALANCES:
        assert select_level(np.arange(6) % 3, 0, scores=np.ones(6, np.float32), balance=balance).tolist() == []


@given(label_arrays, seeds, st.data())
def test_a_selection_is_a_prefix_of_every_larger_one(labels, seed, data):
    scores = data.draw(st.sampled_from([None, random_scores(seed, len(labels)), random_scores(seed, len(labels), 3)]))
    options = {
        "level": data.draw(st.sampled_from(LEVELS)),
        "balance": data.draw(st.sampled_from(BALANCES)),
        "scores": scores,
        "seed": seed,
    }
    small, large = sorted(data.draw(st.integers(0, len(labels))) for _ in range(2))
    longer = select_level(labels, large, **options)
    assert select_level(labels, small, **options).tolist() == longer[:small].tolist()
    assert len(set(longer.tolist())) == large


def by_lexsort(labels: np.ndarray, num_kept: int, scores: np.ndarray, seed: int) -> set[int]:
    """The highest scores of each class in equal numbers, the plain way: sort everything, number the ranks."""
    place = np.empty(len(labels), np.int64)
    place[random_order(one_class(len(labels)), seed)] = np.arange(len(labels))  # the seeded hash of ties
    order = np.lexsort((place, -scores, labels))
    quotas = equal_quotas(np.bincount(labels), num_kept, seed)
    starts = np.cumsum(np.bincount(labels)) - np.bincount(labels)
    return {int(i) for start, quota in zip(starts, quotas, strict=True) for i in order[start : start + quota]}


@given(label_arrays, seeds, st.sampled_from([None, 2, 9]), st.data())
def test_the_best_of_each_class_are_those_of_a_full_sort(labels, seed, distinct, data):
    scores = random_scores(seed, len(labels), distinct)
    num_kept = data.draw(st.integers(0, len(labels)))
    found = select_level(labels, num_kept, scores=scores, seed=seed)
    assert set(found.tolist()) == by_lexsort(labels, num_kept, scores, seed)


@pytest.mark.parametrize("distinct", [None, 1, 40])
@pytest.mark.parametrize("balance", ["equal", "none"])
def test_large_selections_equal_a_full_sort(distinct, balance):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 50, 200_000) if balance == "equal" else one_class(200_000)
    scores = random_scores(2, 200_000, distinct) * np.float32(-1.5) ** 41
    scores[::1000] = np.inf
    scores[1::1000] = -np.inf
    for num_kept in (1, 777, 20_000, 150_000):
        found = select_level(labels, num_kept, scores=scores, balance=balance, seed=9)
        assert set(found.tolist()) == by_lexsort(labels, num_kept, scores, 9)


@given(label_arrays, seeds, st.data())
def test_few_and_many_samples_are_selected_alike(labels, seed, data):
    scores = data.draw(st.sampled_from([None, random_scores(seed, len(labels)), random_scores(seed, len(labels), 3)]))
    pool = data.draw(st.sampled_from([None, random_scores(seed + 1, len(labels), 2) > 0]))
    options = {"level": data.draw(st.sampled_from(LEVELS)), "balance": data.draw(st.sampled_from(BALANCES))}
    num_kept = data.draw(st.integers(0, len(labels) if pool is None else int(pool.sum())))
    found = []
    for compiled_from in (0, 2**60):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scale, "COMPILED_FROM", compiled_from)
            found.append(select_level(labels, num_kept, scores=scores, seed=seed, pool=pool, **options).tolist())
    assert found[0] == found[1]


def test_minus_zero_is_zero():
    scores = np.array([0.0, -0.0] * 500, np.float32)
    assert select_level(one_class(1000), 100, scores=scores).tolist() == select_level(one_class(1000), 100).tolist()


def test_equal_scores_give_the_random_mask_of_the_seed():
    labels = np.arange(200_000) % 7  # so many that the upper halves of some hashes are equal
    for level in ("hard", "easy"):
        found = select_level(labels, 150_000, scores=np.full(200_000, 0.3, np.float32), level=level, seed=4)
        assert np.array_equal(found, random_order(labels, 4)[:150_000])


def test_ties_are_broken_as_in_earlier_versions_and_on_other_machines():
    found = select_level(one_class(1000), 8, scores=np.full(1000, 7, np.float32), seed=3)
    assert found.tolist() == [446, 768, 118, 418, 957, 674, 835, 639]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any), seeds, st.data())
def test_quotas_add_up_and_keep_their_promises(sizes, seed, data):
    sizes = np.array(sizes)
    total = int(sizes.sum())
    num_kept = data.draw(st.integers(0, total))
    equal, proportional = equal_quotas(sizes, num_kept, seed), proportional_quotas(sizes, num_kept, seed)
    for quotas in (equal, proportional):
        assert quotas.sum() == num_kept
        assert ((quotas >= 0) & (quotas <= sizes)).all()
    assert (equal >= np.minimum(sizes, equal.max() - 1)).all()
    assert np.abs(proportional - num_kept * sizes / total).max() < 1 + len(sizes) / 10


def test_proportional_shares_of_svhn_are_the_rounded_ones():
    quotas = proportional_quotas(SVHN, 733, 0)
    assert quotas.tolist() == np.round(0.01 * SVHN).astype(int).tolist()
    assert quotas.sum() == 733


def test_equal_shares_of_svhn_run_out_of_nines():
    quotas = equal_quotas(SVHN, 51_280, 0)
    assert quotas.sum() == 51_280
    assert quotas[9] == 4659
    assert np.count_nonzero((quotas == 5232) | (quotas == 5233)) >= 6


@pytest.mark.parametrize(
    ("sizes", "num_kept", "expected"),
    [
        ([1, 5, 20], 10, [1, 4, 5]),
        ([0, 3, 50, 200, 10], 100, [0, 3, 43, 44, 10]),
        ([10, 10, 10], 7, [2, 2, 3]),
        ([2, 2, 2], 6, [2, 2, 2]),
    ],
)
def test_water_filling(sizes, num_kept, expected):
    assert water_fill(np.array(sizes), num_kept).tolist() == expected


def test_more_than_there_is_cannot_be_kept():
    with pytest.raises(OptionError, match="12 samples cannot be kept of 6"):
        select_level(one_class(6), 12)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any), st.data())
def test_water_filling_is_what_visiting_by_ascending_size_gives(sizes, data):
    num_kept = data.draw(st.integers(0, sum(sizes)))
    expected, rest = [0] * len(sizes), num_kept
    for left, i in zip(range(len(sizes), 0, -1), np.argsort(sizes, kind="stable"), strict=True):
        expected[i] = min(sizes[i], rest // left)
        rest -= expected[i]
    assert water_fill(np.array(sizes), num_kept).tolist() == expected


def test_moderate_keeps_the_middle_distances_from_the_centre():
    x = np.array([[0], [1], [2], [3], [10]], np.float32)
    for centre, kept in (("mean", {0, 1, 2}), ("median", {0, 1, 3})):
        distances = class_centre_distances(x, one_class(5), centre)
        found = set(select_level(one_class(5), 3, scores=distances, level="moderate", balance="none").tolist())
        assert found == kept


def test_ccs_bins_scores_below_zero():
    scores = np.array([-3, -2, -1], np.float32)
    assert equal_width_bins(scores, one_class(3), 1, 50).tolist() == [0, 25, 49]
    assert len(select_ccs(one_class(3), 3, scores=scores, hardness=scores, share_dropped=0)) == 3


def test_ccs_of_constant_scores_still_returns_what_was_asked_for():
    scores = np.full(100, 0.25, np.float32)
    assert len(set(select_ccs(one_class(100), 30, scores=scores, hardness=scores, share_dropped=0.2).tolist())) == 30


def test_ccs_drops_the_hardest_and_covers_the_rest_evenly():
    scores = np.arange(1000, dtype=np.float32)
    found = select_ccs(one_class(1000), 100, scores=scores, hardness=scores, share_dropped=0.3, num_strata=10)
    assert found.max() < 700
    assert np.bincount(found // 70, minlength=10).tolist() == [10] * 10


def test_ccs_asked_for_more_than_it_leaves_is_refused():
    scores = np.arange(100, dtype=np.float32)
    with pytest.raises(OptionError, match=r"80 samples to keep, but --drop-hardest 0\.3 leaves 70 of 100"):
        select_ccs(one_class(100), 80, scores=scores, hardness=scores, share_dropped=0.3)


def test_ccs_refuses_infinite_scores():
    with pytest.raises(OptionError, match="infinite scores"):
        select_ccs(one_class(2), 1, scores=np.array([1, np.inf]), hardness=np.zeros(2), share_dropped=0)


@given(label_arrays, seeds, st.sampled_from(BALANCES), st.data())
def test_ccs_is_nested_and_balanced(labels, seed, balance, data):
    scores = random_scores(seed, len(labels))
    options = {"scores": scores, "hardness": scores, "share_dropped": 0.2, "num_strata": 4, "balance": balance}
    most = len(labels) - int(0.2 * len(labels))
    small, large = sorted(data.draw(st.integers(0, most)) for _ in range(2))
    longer = select_ccs(labels, large, seed=seed, **options)
    assert select_ccs(labels, small, seed=seed, **options).tolist() == longer[:small].tolist()
    assert len(set(longer.tolist())) == large


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scores": np.array([1, np.nan, np.nan], np.float32)}, "2 scores are NaN, that of sample 1 the first"),
        ({"scores": np.ones(4, np.float32)}, "expected one for each of 3"),
        ({"level": "harder"}, "level 'harder'"),
        ({"balance": "fair"}, "balance 'fair'"),
    ],
)
def test_what_cannot_be_selected_by_is_refused(options, words):
    with pytest.raises(OptionError, match=words):
        select_level(one_class(3), 1, **options)
