"""Every loss on embeddings against loops in plain numpy, and its gradient against differences."""

import math

import numpy as np
import pytest
import torch

from fastkd.distil.relations import cc_loss, contrast_loss, pkt_loss, rkd_loss


def embeddings(seed: int, *shape: int) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(0, 1, shape))


S, T = embeddings(1, 5, 3), embeddings(2, 5, 7)


def huber(a: float, b: float) -> float:
    return 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5


def distances(x: np.ndarray) -> np.ndarray:
    d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
    return d / d[d > 0].mean()


def angles(x: np.ndarray) -> np.ndarray:
    out = np.zeros((len(x),) * 3)
    for j, b in enumerate(x):
        for i, a in enumerate(x):
            for k, c in enumerate(x):
                lengths = np.linalg.norm(a - b) * np.linalg.norm(c - b)
                out[j, i, k] = (a - b) @ (c - b) / lengths if lengths else 0.0
    return out


def test_rkd_compares_distances_and_angles():
    terms = []
    for relation in (distances, angles):
        pairs = zip(relation(S.numpy()).ravel(), relation(T.numpy()).ravel(), strict=True)
        terms.append(np.mean([huber(a, b) for a, b in pairs]))
    assert float(rkd_loss(S, T)) == pytest.approx(25 * terms[0] + 50 * terms[1])


def test_rkd_does_not_see_scale_shift_or_rotation():
    rotation = torch.linalg.qr(embeddings(3, 3, 3)).Q
    assert float(rkd_loss(3 * S @ rotation + 1, S)) == pytest.approx(0, abs=1e-12)


def test_rkd_of_a_batch_of_equal_samples_is_finite():
    same = torch.ones(4, 3, requires_grad=True)
    loss = rkd_loss(same, torch.randn(4, 3))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(same.grad).all()


def test_pkt_is_the_divergence_of_the_neighbourhoods():
    def neighbours(x: np.ndarray) -> np.ndarray:
        cosine = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in x] for a in x])
        similarity = (cosine + 1) / 2
        return similarity / similarity.sum(1, keepdims=True)

    student, teacher = neighbours(S.numpy()), neighbours(T.numpy())
    expected = (teacher * np.log(teacher / student)).mean()
    assert float(pkt_loss(S, T)) == pytest.approx(expected, rel=1e-4)


def test_cc_compares_kernels_that_are_nearly_gaussian():
    def kernel(x: np.ndarray, order: int) -> np.ndarray:
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        out = np.zeros((len(x), len(x)))
        for i, a in enumerate(unit):
            for j, b in enumerate(unit):
                out[i, j] = math.exp(-0.8) * sum(0.8**p / math.factorial(p) * (a @ b) ** p for p in range(order + 1))
        return out

    expected = ((kernel(S.numpy(), 2) - kernel(T.numpy(), 2)) ** 2).mean()
    assert float(cc_loss(S, T)) == pytest.approx(expected)
    # With many terms the series is the kernel itself: exp(-gamma·‖x - y‖²).
    units = [x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True) for x in (S, T)]
    exact = [np.exp(-0.4 * ((u[:, None] - u[None]) ** 2).sum(2)) for u in units]
    assert float(cc_loss(S, T, order=20)) == pytest.approx(((exact[0] - exact[1]) ** 2).mean())


def test_the_contrast_is_the_cross_entropy_of_telling_data_from_noise():
    positive, negatives = np.array([2.0, 0.3]), np.array([[0.1, 0.5, 1.0], [0.2, 0.2, 3.0]])
    noise = 3 / 10  # M / N
    expected = 0.0
    for p, row in zip(positive, negatives, strict=True):
        expected -= np.log(p / (p + noise)) + sum(np.log(1 - n / (n + noise)) for n in row)
    found = contrast_loss(torch.tensor(positive), torch.tensor(negatives), 10)
    assert float(found) == pytest.approx(expected / 2, rel=1e-5)


LOSSES = {
    "rkd": lambda s: rkd_loss(s, T),
    "pkt": lambda s: pkt_loss(s, T),
    "cc": lambda s: cc_loss(s, T),
    "contrast": lambda s: contrast_loss(s.exp()[:, 0], s.exp()[:, 1:], 10),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_the_slopes(name):
    assert torch.autograd.gradcheck(LOSSES[name], S.clone().requires_grad_())


@pytest.mark.parametrize("loss", [rkd_loss, pkt_loss, cc_loss])
def test_a_student_that_equals_its_teacher_costs_nothing(loss):
    assert float(loss(T.clone(), T)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss", [rkd_loss, pkt_loss, cc_loss])
def test_the_order_of_the_batch_does_not_count(loss):
    order = torch.tensor([3, 0, 4, 1, 2])
    assert float(loss(S[order], T[order])) == pytest.approx(float(loss(S, T)))
