"""What a codec does to the softened probabilities."""

import numpy as np
import pytest

from fastkd.store.codec import make_codec
from fastkd.store.fidelity import codec_kl, kl_rows


@pytest.mark.parametrize(
    ("name", "num_classes", "bound"),
    [("fp16", 1000, 1e-7), ("int8+top4", 1000, 2e-5), ("int8+top4", 10, 1e-5), ("int4+top8", 1000, 5e-3)],
)
def test_a_codec_moves_the_softened_probabilities_by_next_to_nothing(name, num_classes, bound):
    """Rows like a trained network's: N(0, 2.3²) and one class far above; mean KL at temperature 4, in nats."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2.3, (500, num_classes)).astype(np.float32)
    logits[np.arange(500), rng.integers(0, num_classes, 500)] += rng.uniform(5, 15, 500).astype(np.float32)
    assert 0 < codec_kl(make_codec(name, num_classes), logits, 4) < bound


def test_the_divergence_of_rows_is_that_of_their_softened_probabilities():
    logits = np.random.default_rng(0).normal(0, 3, (2, 6, 10)).astype(np.float32)
    p, q = (np.exp(x / 2) / np.exp(x / 2).sum(axis=1, keepdims=True) for x in logits.astype(np.float64))
    assert np.allclose(kl_rows(*logits, 2), (p * np.log(p / q)).sum(axis=1), rtol=1e-12)
    assert np.array_equal(kl_rows(logits[0], logits[0], 1), np.zeros(6))
    assert np.isfinite(kl_rows(logits[0] * 2e4, logits[1] * 2e4, 1)).all()
