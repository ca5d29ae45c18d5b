import numpy as np
import pytest
import torch
from helpers.traces import reference
from hypothesis import given
from hypothesis import strategies as st

from fastkd.errors import OptionError
from fastkd.prune.scores.formulas import (
    deepcore_grand,
    dual_scores,
    forgetting_scores,
    last_layer_grand,
    memorization_scores,
    row_statistics,
)
from fastkd.prune.scores.recorder import RECORDABLE, Recorder

Z = np.array([[2, 1, 0]], np.float32)
EL2N, MARGIN, ENTROPY, PROBABILITY, CORRECT = range(5)


def statistic(which: int, logits: np.ndarray, label: int) -> float:
    return row_statistics(np.asarray(logits, np.float32), np.array([label]))[0, which]


def logits_of(probabilities) -> np.ndarray:
    """float32 (T, N, 2): logits whose softmax gives label 0 these probabilities (T, N)."""
    p = np.clip(np.asarray(probabilities, np.float64), 1e-300, 1 - 1e-16)
    return np.stack([np.log(p) - np.log1p(-p), np.zeros_like(p)], axis=-1).astype(np.float32)


def record(trace_TNC: np.ndarray, labels: np.ndarray, methods=RECORDABLE, **options) -> Recorder:
    """Every sample once an epoch, in one batch."""
    recorder = Recorder(methods, len(labels), **options)
    for logits in trace_TNC:
        recorder.observe(logits, labels, np.arange(len(labels)))
        recorder.end_epoch()
    return recorder


def correct_trace(rows: list[str]) -> np.ndarray:
    """Logits (T, N, 2) of label 0, correct where the text of a sample has a 1."""
    hits = np.array([[int(c) for c in row] for row in rows], np.float32).T
    return np.stack([hits, 1 - hits], axis=-1)


@pytest.mark.parametrize(("num_classes", "expected"), [(10, 0.948683), (1000, 0.999500)])
def test_el2n_of_a_uniform_prediction(num_classes, expected):
    assert statistic(EL2N, np.zeros((1, num_classes)), 3) == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize(("label", "expected"), [(0, 0.424336), (2, 1.153465)])
def test_el2n_of_a_row(label, expected):
    assert statistic(EL2N, Z, label) == pytest.approx(expected, abs=5e-7)


def test_el2n_is_at_most_the_root_of_two():
    assert statistic(EL2N, [[80.0, 0, 0]], 1) == pytest.approx(2**0.5, abs=1e-12)
    assert statistic(EL2N, [[3e38, -3e38, 0]], 0) == 0


@pytest.mark.parametrize(("bias", "expected"), [(True, 2.163698), (False, 2.121681)])
def test_last_layer_grand_equals_autograd(bias, expected):
    features = torch.tensor([3.0, 4.0], dtype=torch.float64)
    weight = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    offset = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy((weight @ features + offset)[None], torch.tensor([0]))
    loss.backward()
    grads = [weight.grad, offset.grad] if bias else [weight.grad]
    autograd = float(torch.cat([g.reshape(-1) for g in grads]).norm())
    found = last_layer_grand(np.array(statistic(EL2N, Z, 0)), np.array(5.0), bias)
    assert found == pytest.approx(expected, abs=5e-7)
    assert found == pytest.approx(autograd, rel=1e-12)


def test_deepcore_inflates_the_short_last_batch():
    found = deepcore_grand(np.ones(50_000), 256) * 256
    assert np.flatnonzero(found != 1).tolist() == list(range(49_920, 50_000))
    assert found[-1] == pytest.approx(3.2)
    assert (deepcore_grand(np.ones(512), 256) * 256 == 1).all()


@pytest.mark.parametrize(("row", "events"), [("0110100", 2), ("1010", 2), ("1111", 0)])
def test_forgetting_counts_from_correct_to_incorrect(row, events):
    recorder = record(correct_trace([row]), np.zeros(1, np.int64), ["forgetting"])
    assert recorder.scores()["forgetting"].tolist() == [events]


@pytest.mark.parametrize(("policy", "expected"), [("zero", 0), ("total", 4), ("infinite", np.inf)])
def test_never_learned_samples_count_by_policy(policy, expected):
    recorder = record(correct_trace(["0000"]), np.zeros(1, np.int64), ["forgetting"])
    assert recorder.scores(policy)["forgetting"].tolist() == [expected]


def test_forgetting_adds_up_over_runs():
    runs = [record(correct_trace([row]), np.zeros(1, np.int64), ["forgetting"]) for row in ("0110100", "0000000")]
    assert sum(run.scores("total")["forgetting"][0] for run in runs) == 9


def test_an_unknown_policy_is_refused():
    with pytest.raises(OptionError, match="never-learned policy 'maybe'"):
        forgetting_scores(np.zeros(1), np.zeros(1, bool), np.ones(1), "maybe")


@pytest.mark.parametrize(("label", "expected"), [(0, 0.420512), (2, -0.575210)])
def test_aum_is_on_probabilities(label, expected):
    assert statistic(MARGIN, Z, label) == pytest.approx(expected, abs=5e-7)
    recorder = record(Z[None], np.array([label]), ["aum"])
    assert recorder.scores()["aum"][0] == pytest.approx(-expected, abs=1e-6)


@pytest.mark.parametrize(
    ("probabilities", "window", "expected"),
    [
        ([0.1, 0.3, 0.5, 0.7], 2, 0.0848528),
        ([0.1, 0.3, 0.5, 0.7], 4, 0.1549193),
        ([0.4] * 12, 10, 0),
        ([0, 1] * 8, 10, 0.2635231),
        ([t / 29 for t in range(30)], 10, 0.0522009),
    ],
)
def test_dual_scores(probabilities, window, expected):
    trace = np.array(probabilities, np.float64)[:, None]
    assert dual_scores(trace, window)[0] == pytest.approx(expected, abs=5e-8)
    recorder = record(logits_of(trace), np.zeros(1, np.int64), ["dual"], window=window)
    assert recorder.scores()["dual"][0] == pytest.approx(expected, abs=1e-6)
    assert recorder.scores()["target_prob_mean"][0] == pytest.approx(trace.mean(), abs=1e-6)


def test_memorization_of_four_networks():
    member = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 0]])
    correct = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]])
    assert memorization_scores(zip(member, correct, strict=True)).tolist() == [1, 1, 0.5]
    assert np.isnan(memorization_scores(zip(member, correct, strict=True), min_count=2)).tolist() == [True, True, False]


def test_memorization_is_undefined_without_networks_on_both_sides():
    assert np.isnan(memorization_scores([(np.array([1, 0]), np.ones(2))] * 2)).all()


def random_trace(seed: int, epochs: int = 14, num_samples: int = 40, num_classes: int = 5):
    rng = np.random.default_rng(seed)
    trace = rng.normal(0, 2, (epochs, num_samples, num_classes)).astype(np.float32)
    return trace, rng.integers(0, num_classes, num_samples)


@given(st.integers(0, 10**6))
def test_what_is_recorded_equals_plain_numpy_on_the_trace(seed):
    trace, labels = random_trace(seed)
    found = record(trace, labels, window=4, el2n_epochs=6).scores()
    for name, expected in reference(trace, labels, 4, 6).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-6, err_msg=name)
    assert np.array_equal(found["forgetting"], reference(trace, labels, 4, 6)["forgetting"])


@given(st.integers(0, 10**6))
def test_neither_the_order_of_batches_nor_shards_of_ranks_change_a_bit(seed):
    trace, labels = random_trace(seed)
    whole = record(trace, labels, window=4)
    rng = np.random.default_rng(seed)
    shuffled = Recorder(RECORDABLE, len(labels), window=4)
    ranks = [Recorder(RECORDABLE, len(labels), window=4) for _ in range(2)]
    for logits in trace:
        order = rng.permutation(len(labels))
        for part in np.array_split(order, 7):
            shuffled.observe(logits[part], labels[part], part)
        for rank, part in zip(ranks, np.split(order, [rng.integers(len(order))]), strict=True):
            rank.observe(logits[part], labels[part], part)
        merged = [sum(r.seen for r in ranks), sum(r.observed for r in ranks)]
        for rank in ranks:
            rank.seen[:], rank.observed[:] = merged
            rank.end_epoch()
        shuffled.end_epoch()
    for other in (shuffled, *ranks):
        for name, values in whole.state.items():
            assert np.array_equal(values, other.state[name]), name


def test_samples_that_were_never_seen_have_no_score():
    recorder = Recorder(RECORDABLE, 3)
    recorder.observe(Z, np.array([0]), np.array([1]))
    recorder.end_epoch()
    for name, values in recorder.scores().items():
        assert np.isnan(values).tolist() == [True, False, True], name


def test_an_epoch_without_a_sample_leaves_it_as_it_was():
    trace, labels = random_trace(3, epochs=5, num_samples=2)
    both, first = Recorder(RECORDABLE, 2, window=3), Recorder(RECORDABLE, 2, window=3)
    for t, logits in enumerate(trace):
        both.observe(logits, labels, np.arange(2))
        first.observe(logits[: 1 + (t != 2)], labels[: 1 + (t != 2)], np.arange(1 + (t != 2)))
        both.end_epoch()
        first.end_epoch()
    assert first.state["presented"].tolist() == [5, 4]
    assert all(first.scores()[name][0] == both.scores()[name][0] for name in both.scores())
    left = reference(trace[[0, 1, 3, 4]], labels, 3, 10)
    assert first.scores()["dual"][1] == pytest.approx(left["dual"][1], abs=1e-6)


@pytest.mark.parametrize(
    ("methods", "options", "words"),
    [
        (["loss"], {}, "--record loss: expected some of forgetting,el2n,aum,dual"),
        ([], {}, "--record nothing"),
        (["dual"], {"window": 1}, "window of 1 epochs has no standard deviation"),
        (["el2n"], {"el2n_epochs": 0}, "EL2N over 0 epochs"),
    ],
)
def test_what_cannot_be_recorded_is_refused(methods, options, words):
    with pytest.raises(OptionError, match=words):
        Recorder(methods, 5, **options)
