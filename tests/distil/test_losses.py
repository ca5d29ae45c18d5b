import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkd.distil.logits import dkd_loss, kd_loss, mixed_loss


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def logits(seed: int, batch: int = 6, num_classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    student, teacher = np.random.default_rng(seed).normal(0, 3, (2, batch, num_classes))
    return torch.tensor(student), torch.tensor(teacher)


def kl_by_numpy(student: torch.Tensor, teacher: torch.Tensor, tau: float) -> float:
    p_teacher, p_student = softmax(teacher.numpy() / tau), softmax(student.numpy() / tau)
    return float((p_teacher * np.log(p_teacher / p_student)).sum(1).mean())


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0, 4.0, 20.0]))
def test_kd_is_the_divergence_of_the_softened_probabilities_times_tau_squared(seed, tau):
    student, teacher = logits(seed)
    expected = kl_by_numpy(student, teacher, tau)
    assert float(kd_loss(student, teacher, tau=tau)) == pytest.approx(tau**2 * expected, rel=1e-4, abs=1e-6)
    plain = kd_loss(student, teacher, tau=tau, scale_tau_squared=False)
    assert float(plain) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_equal_logits_cost_nothing_and_a_shift_of_all_changes_nothing():
    student, teacher = logits(0)
    assert float(kd_loss(teacher, teacher, tau=4)) == 0
    assert float(kd_loss(teacher + 5, teacher, tau=4)) == pytest.approx(0, abs=1e-5)
    shifted = kd_loss(student + 5, teacher - 7, tau=4)
    torch.testing.assert_close(shifted, kd_loss(student, teacher, tau=4), rtol=1e-5, atol=0)


@pytest.mark.parametrize("tau", [1.0, 4.0])
@pytest.mark.parametrize("scale", [True, False])
def test_the_gradient_is_the_difference_of_the_probabilities(tau, scale):
    student, teacher = logits(1)
    student.requires_grad_()
    kd_loss(student, teacher, tau=tau, scale_tau_squared=scale).backward()
    difference = softmax(student.detach().numpy() / tau) - softmax(teacher.numpy() / tau)
    expected = difference / len(student) * (tau if scale else 1 / tau)
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-3, atol=1e-7)


def test_the_teacher_gets_no_gradient_that_it_did_not_ask_for():
    student, teacher = logits(2)
    kd_loss(student.requires_grad_(), teacher, tau=4).backward()
    assert teacher.grad is None


def test_half_precision_logits_are_softened_in_float32():
    student, teacher = (x.to(torch.bfloat16) for x in logits(3))
    loss = kd_loss(student, teacher, tau=4)
    assert loss.dtype == torch.float32
    assert float(loss) == float(kd_loss(student.float(), teacher.float(), tau=4))


def dkd_by_numpy(student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, tau: float, beta: float) -> float:
    total = 0.0
    for s, t, y in zip(softmax(student / tau), softmax(teacher / tau), labels, strict=True):
        total += t[y] * np.log(t[y] / s[y]) + (1 - t[y]) * np.log((1 - t[y]) / (1 - s[y]))
        s_rest, t_rest = np.delete(s, y) / (1 - s[y]), np.delete(t, y) / (1 - t[y])
        total += beta * float((t_rest * np.log(t_rest / s_rest)).sum())
    return total / len(labels)


@pytest.mark.parametrize("tau", [1.0, 4.0])
@pytest.mark.parametrize("beta", [0.0, 1.0, 8.0])
def test_dkd_is_the_label_against_the_rest_and_the_rest_among_itself(tau, beta):
    student, teacher = logits(4)
    labels = np.array([3, 0, 9, 3, 5, 1])
    expected = dkd_by_numpy(student.numpy(), teacher.numpy(), labels, tau, beta)
    found = dkd_loss(student, teacher, torch.tensor(labels), tau=tau, beta=beta)
    assert float(found) == pytest.approx(tau**2 * expected, rel=1e-4)
    plain = dkd_loss(student, teacher, torch.tensor(labels), tau=tau, beta=beta, scale_tau_squared=False)
    assert float(plain) == pytest.approx(expected, rel=1e-4)


def test_dkd_with_the_teachers_doubt_as_beta_is_kd():
    student, teacher = logits(5, batch=1)
    doubt = 1 - float(softmax(teacher.numpy() / 4)[0, 2])
    found = dkd_loss(student, teacher, torch.tensor([2]), tau=4, beta=doubt)
    assert float(found) == pytest.approx(float(kd_loss(student, teacher, tau=4)), rel=1e-4)


def test_dkd_stays_finite_where_a_network_is_certain():
    student = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss = dkd_loss(student, torch.tensor([[-200.0, 0.0, 1.0]]), torch.tensor([0]), tau=1, beta=8)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 2.0), (1.0, 10.0), (0.25, 4.0)])
def test_alpha_is_the_weight_of_distillation(alpha, expected):
    assert float(mixed_loss(torch.tensor(2.0), torch.tensor(10.0), alpha)) == expected
