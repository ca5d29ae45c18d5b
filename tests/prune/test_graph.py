import numpy as np
import pytest

from fastkd.errors import MissingDependencyError, OptionError
from fastkd.prune.select.graph import d2_orders, pass_forward, pick_in_turn, symmetric_edges
from fastkd.prune.select.neighbours import nearest_neighbours

X = np.array([[0], [1], [3]], np.float32)
S = np.array([1.0, 2, 3])


def graph_of(features: np.ndarray, k: int, symmetric: bool = True):
    return symmetric_edges(*nearest_neighbours(features, k), symmetric)


@pytest.mark.parametrize(
    ("symmetric", "power", "expected"),
    [
        (True, 1, [1.735759, 2.773885, 3.270671]),
        (False, 1, [1.735759, 2.367879, 3.270671]),
        (True, 2, [1.735759, 2.422826, 3.036631]),
    ],
)
def test_forward_passing_on_three_points(symmetric, power, expected):
    assert pass_forward(S, graph_of(X, 1, symmetric), 1.0, power) == pytest.approx(expected, abs=5e-7)


def order(features, scores, count, *, k, gamma_reverse, **options):
    scores = np.asarray(scores, np.float32)
    return d2_orders(
        features, scores, [np.arange(len(scores))], np.array([count]), k=k, gamma_reverse=gamma_reverse, **options
    )[0].tolist()


@pytest.mark.parametrize(
    ("k", "gamma_reverse", "expected"),
    [(1, 1.0, [2, 1, 0]), (1, 0.0, [2, 0, 1]), (0, 1.0, [2, 1, 0]), (1, np.inf, [2, 1, 0])],
)
def test_picking_three_points(k, gamma_reverse, expected):
    assert order(X, S, 3, k=k, gamma_reverse=gamma_reverse) == expected


def dense_reference(features: np.ndarray, scores: np.ndarray, count: int, k: int, gamma_reverse: float) -> list[int]:
    """D2 with full matrices in float64 and an argmax a pick."""
    x = features.astype(np.float64)
    distances = np.sqrt(np.square(x[:, None] - x[None]).sum(axis=2))
    away = distances + np.diag(np.full(len(x), np.inf))
    linked = np.zeros(distances.shape, bool)
    linked[np.arange(len(x))[:, None], np.argsort(away, axis=1, kind="stable")[:, :k]] = True
    linked |= linked.T
    rho = scores + (np.exp(-distances) * linked) @ scores
    taken = []
    for _ in range(count):
        best = int(np.argmax(rho))
        taken.append(best)
        rho -= np.where(linked[best], np.exp(-gamma_reverse * distances[best]) * rho[best], 0)
        rho[taken] = -np.inf
    return taken


@pytest.mark.parametrize(("sign", "gamma_reverse"), [(1, 0.1), (1, 1.0), (-1, 0.3)])
def test_picks_equal_those_of_a_dense_reference(sign, gamma_reverse):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2000, 16)).astype(np.float32)
    scores = (sign * rng.random(2000)).astype(np.float32)
    expected = dense_reference(features, scores.astype(np.float64), 600, 10, gamma_reverse)
    assert order(features, scores, 600, k=10, gamma_reverse=gamma_reverse) == expected


def test_fewer_picks_are_the_start_of_more():
    features, scores = np.random.default_rng(1).normal(size=(300, 8)).astype(np.float32), np.arange(300)
    more = order(features, scores, 200, k=5, gamma_reverse=0.1)
    assert order(features, scores, 30, k=5, gamma_reverse=0.1) == more[:30]
    assert len(set(more)) == 200


@pytest.mark.parametrize("offset", [0, 1000])
def test_neighbours_are_the_nearest_far_from_the_origin_too(offset):
    x = np.random.default_rng(2).normal(size=(700, 5)).astype(np.float32) + np.float32(offset)
    found, distances = nearest_neighbours(x, 4)
    wide = x.astype(np.float64)
    away = np.sqrt(np.square(wide[:, None] - wide[None]).sum(axis=2)) + np.diag(np.full(700, np.inf))
    np.testing.assert_allclose(distances, np.sort(away, axis=1)[:, :4], rtol=1e-12)
    assert (away[np.arange(700)[:, None], found] == distances).all()


def test_equal_points_are_neighbours_by_row():
    found, distances = nearest_neighbours(np.zeros((6, 3), np.float32), 2)
    assert found.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]]
    assert (distances == 0).all()


def test_there_are_no_more_neighbours_than_others():
    assert nearest_neighbours(X, 10)[0].tolist() == [[1, 2], [0, 2], [1, 0]]
    assert nearest_neighbours(X[:1], 3)[0].shape == (1, 0)


def test_each_class_has_a_graph_of_its_own():
    features = np.random.default_rng(3).normal(size=(60, 4)).astype(np.float32)
    scores = np.random.default_rng(4).random(60).astype(np.float32)
    members = [np.arange(0, 60, 2), np.arange(1, 60, 2)]
    orders = d2_orders(features, scores, members, np.array([10, 10]), k=3)
    alone = order(features[members[1]], scores[members[1]], 10, k=3, gamma_reverse=0.1)
    assert orders[1].tolist() == members[1][alone].tolist()


def test_faiss_is_asked_for_where_it_is_missing():
    try:
        import faiss  # noqa: F401
    except ImportError:
        with pytest.raises(MissingDependencyError, match=r"fastkd\[faiss\]"):
            nearest_neighbours(X, 1, "faiss")
    else:
        features = np.random.default_rng(5).normal(size=(500, 8)).astype(np.float32)
        assert np.array_equal(nearest_neighbours(features, 5, "faiss")[0], nearest_neighbours(features, 5)[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": -1}, "expected none below 0"),
        ({"k": 1, "gamma_reverse": -0.1}, "expected none below 0"),
        ({"k": 1, "gamma_forward": np.nan}, "expected none below 0"),
        ({"k": 1, "knn": "annoy"}, "knn 'annoy'"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        d2_orders(X, S.astype(np.float32), [np.arange(3)], np.array([1]), **options)


def test_infinite_scores_are_refused():
    with pytest.raises(OptionError, match="not finite"):
        d2_orders(X, np.array([1, np.inf, 0], np.float32), [np.arange(3)], np.array([1]), k=1)


def test_the_heap_takes_equal_values_in_the_order_of_their_ties():
    graph = symmetric_edges(np.empty((4, 0), np.int64), np.empty((4, 0)))
    ties = np.array([3, 1, 2, 0], np.uint64)
    assert pick_in_turn(np.zeros(4), graph, 4, gamma=1.0, ties=ties).tolist() == [3, 1, 2, 0]
