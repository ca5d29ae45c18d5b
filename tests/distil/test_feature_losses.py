"""Every loss on feature maps against loops in plain numpy, and its gradient against differences."""

import numpy as np
import pytest
import torch

from fastkd.distil.features import (
    ab_loss,
    at_loss,
    fsp_loss,
    ft_loss,
    hint_loss,
    nst_loss,
    same_size,
    sp_loss,
    vid_loss,
)


def maps(seed: int, *shape: int) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(0, 1, shape))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).sum())


def attention(features: np.ndarray) -> np.ndarray:
    return unit((features**2).mean(0).ravel())


S, T = maps(1, 3, 4, 2, 2), maps(2, 3, 6, 2, 2)
SAME = maps(3, 3, 6, 2, 2)


def test_at_compares_attention_maps_of_length_one():
    per_sample = [attention(s) - attention(t) for s, t in zip(S.numpy(), T.numpy(), strict=True)]
    assert float(at_loss(S, T)) == pytest.approx(np.mean(np.square(per_sample)))


def test_ft_compares_factors_by_absolute_difference():
    per_sample = [attention(s) - attention(t) for s, t in zip(S.numpy(), T.numpy(), strict=True)]
    assert float(ft_loss(S, T)) == pytest.approx(np.mean(np.abs(per_sample)))


def test_sp_compares_the_similarities_of_the_batch():
    def rows(x: np.ndarray) -> np.ndarray:
        flat = x.reshape(len(x), -1)
        return np.stack([unit(flat @ row) for row in flat])

    expected = ((rows(S.numpy()) - rows(T.numpy())) ** 2).sum() / 3**2
    assert float(sp_loss(S, T)) == pytest.approx(expected)


def test_hint_is_the_mean_square():
    assert float(hint_loss(SAME, T)) == pytest.approx(((SAME - T).numpy() ** 2).mean())


def test_vid_is_the_negative_log_likelihood_of_a_normal():
    """Up to its constant: torch's own GaussianNLLLoss is the reference."""
    variance = torch.tensor([0.5, 1.0, 2.0, 5.0, 0.1, 9.0], dtype=torch.float64)
    expected = torch.nn.GaussianNLLLoss()(SAME, T, variance.view(1, -1, 1, 1).expand_as(T))
    assert float(vid_loss(SAME, T, variance)) == pytest.approx(float(expected))


def test_vid_is_least_where_the_variance_is_the_mean_square_error():
    best = ((SAME - T) ** 2).mean((0, 2, 3))
    for factor in (0.9, 1.1):
        assert float(vid_loss(SAME, T, best)) < float(vid_loss(SAME, T, best * factor))


def test_nst_is_the_discrepancy_of_the_channels_patterns():
    expected = 0.0
    for s, t in zip(S.numpy(), T.numpy(), strict=True):
        xs, xt = ([unit(channel.ravel()) for channel in x] for x in (s, t))

        def mean(a: list, b: list) -> float:
            return float(np.mean([(x @ y) ** 2 for x in a for y in b]))

        expected += (mean(xt, xt) + mean(xs, xs) - 2 * mean(xs, xt)) / 3
    assert float(nst_loss(S, T)) == pytest.approx(expected)


def test_ab_pulls_values_to_the_teachers_side_of_the_margin():
    expected = 0.0
    for s, t in zip(SAME.numpy().ravel(), T.numpy().ravel(), strict=True):
        expected += max(0.0, 1 - s) ** 2 if t > 0 else max(0.0, 1 + s) ** 2
    assert float(ab_loss(SAME, T)) == pytest.approx(expected / 3)


def test_ab_reads_only_the_sides_of_the_teacher():
    assert float(ab_loss(SAME, T)) == float(ab_loss(SAME, T.relu() * 7))


def test_fsp_compares_the_products_of_neighbouring_layers():
    first, second = (maps(4, 2, 3, 4, 4), maps(5, 2, 3, 4, 4)), (maps(6, 2, 5, 2, 2), maps(7, 2, 5, 2, 2))
    expected = 0.0
    for b in range(2):
        matrices = []
        for k in range(2):
            pooled = first[k][b].numpy().reshape(3, 2, 2, 2, 2).mean((2, 4))  # 4×4 averaged down to 2×2
            matrices.append(np.einsum("ihw,jhw->ij", pooled, second[k][b].numpy()) / 4)
        expected += ((matrices[0] - matrices[1]) ** 2).mean() / 2
    found = fsp_loss((first[0], second[0]), (first[1], second[1]))
    assert float(found) == pytest.approx(expected)


def test_the_larger_map_is_averaged_down():
    large, small = maps(8, 2, 3, 4, 4), maps(9, 2, 3, 2, 2)
    a, b = same_size(large, small)
    np.testing.assert_allclose(a.numpy(), large.numpy().reshape(2, 3, 2, 2, 2, 2).mean((3, 5)))
    assert b is small


VARIANCE = torch.full((6,), 2.0, dtype=torch.float64)
LOSSES = {
    "at": (at_loss, S, (T,)),
    "ft": (ft_loss, S, (T,)),
    "sp": (sp_loss, S, (T,)),
    "hint": (hint_loss, SAME, (T,)),
    "vid": (vid_loss, SAME, (T, VARIANCE)),
    "nst": (nst_loss, S, (T,)),
    "ab": (ab_loss, SAME, (T,)),
    "fsp": (lambda s, t: fsp_loss((s, s * s), (t, t * t)), SAME, (T,)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_the_slopes(name):
    loss, student, rest = LOSSES[name]
    assert torch.autograd.gradcheck(lambda s: loss(s, *rest), student.clone().requires_grad_())


def test_the_variance_of_vid_gets_a_gradient():
    assert torch.autograd.gradcheck(lambda v: vid_loss(SAME, T, v), VARIANCE.clone().requires_grad_())


@pytest.mark.parametrize("name", ["at", "ft", "sp", "hint", "nst", "fsp"])
def test_a_student_that_equals_its_teacher_costs_nothing(name):
    loss, _, rest = LOSSES[name]
    assert float(loss(T.clone(), *rest)) == pytest.approx(0, abs=1e-12)
