import numpy as np
import pytest

from fastkd.errors import OptionError
from fastkd.prune.select.dual import beta_parameters, beta_weights, draw_weighted


@pytest.mark.parametrize(("fraction", "b"), [(0.5, 11.25), (0.3, 9.1188), (0.1, 4.1268)])
def test_beta_parameters_of_dual(fraction, b):
    found = beta_parameters(0.2, fraction, 4)
    assert found[1] == pytest.approx(b, abs=1e-4)
    assert found[0] == pytest.approx(15 - b, abs=1e-4)
    assert beta_parameters(0.2, fraction, 4, total=16)[0] == pytest.approx(16 - b, abs=1e-4)


def test_beta_weights_are_the_density_times_the_score():
    from scipy.stats import beta

    scores, mu = (
        np.random.default_rng(0).normal(size=30).astype(np.float32) ** 2,
        np.linspace(0.01, 0.99, 30, dtype=np.float32),
    )
    anchor = mu[np.argsort(-scores)[:10]].astype(float).mean()
    a, b = beta_parameters(anchor, 0.3, 5.5)
    np.testing.assert_allclose(beta_weights(scores, mu, 0.3, 5.5), beta.pdf(mu.astype(float), a, b) * scores, rtol=1e-6)


def test_beta_weights_at_the_ends_are_finite():
    mu = np.array([0, 1, 0.5], np.float32)
    for fraction in (0.01, 1.0):
        assert np.isfinite(beta_weights(np.ones(3, np.float32), mu, fraction, 4)).all()


def test_weighted_draws_include_samples_as_often_as_numpy_does():
    weights = np.array([0.0, 1, 2, 4, 8])
    rng, times = np.random.default_rng(0), 4000
    expected = np.bincount(
        np.concatenate([rng.choice(5, 2, replace=False, p=weights / 15) for _ in range(times)]), minlength=5
    )
    found = np.bincount(
        np.concatenate([draw_weighted(weights, np.zeros(5, np.int64), 2, seed=seed) for seed in range(times)]),
        minlength=5,
    )
    assert found[0] == 0
    assert np.abs(found - expected).max() < 5 * (times / 4) ** 0.5 * 2**0.5  # five standard deviations of a difference


def test_a_shorter_weighted_draw_is_a_prefix():
    weights = np.random.default_rng(0).random(50)
    longer = draw_weighted(weights, np.zeros(50, np.int64), 40, seed=1)
    assert draw_weighted(weights, np.zeros(50, np.int64), 7, seed=1).tolist() == longer[:7].tolist()


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([0, 0, 1], "2 samples to draw, but only 1 of 3"),
        ([1, -1, 1], "finite and at least 0"),
        ([1, np.nan, 1], "finite and at least 0"),
        ([1, np.inf, 1], "finite and at least 0"),
    ],
)
def test_weights_that_cannot_be_drawn_by_are_refused(weights, words):
    with pytest.raises(OptionError, match=words):
        draw_weighted(np.array(weights, float), np.zeros(3, np.int64), 2)


def test_a_class_without_weights_is_not_drawn_from():
    with pytest.raises(OptionError, match="a class has fewer samples of a weight above 0"):
        draw_weighted(np.array([1.0, 1, 0, 0]), np.array([0, 0, 1, 1]), 2, balance="equal")
