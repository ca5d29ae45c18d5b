"""The losses on logits that students are trained with. Logits in, a scalar out; nothing here has state.

Shapes: B samples of the batch, C classes. Each is the mean over the batch of the samples' losses, times `weights` where
there are some: float32 (B,), positive. The mean is over samples and not over weights, so that ranks sum to one process.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def batch_mean(loss_B: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of the samples' losses times their weights."""
    return (loss_B if weights is None else loss_B * weights).mean()


def ce_loss(
    student_BC: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    weights: Tensor | None = None,
    partner_labels: Tensor | None = None,
    lam: Tensor | None = None,
) -> Tensor:
    """Cross entropy with the labels, int64 (B,), of which `label_smoothing` is spread over all classes.

    Of mixed images lam·CE(labels) + (1 - lam)·CE(partner_labels), each sample with its own lam: float32 (B,).
    """
    loss_B = F.cross_entropy(student_BC, labels, label_smoothing=label_smoothing, reduction="none")
    if partner_labels is not None and lam is not None:
        other_B = F.cross_entropy(student_BC, partner_labels, label_smoothing=label_smoothing, reduction="none")
        loss_B = lam * loss_B + (1 - lam) * other_B
    return batch_mean(loss_B, weights)


def kd_loss(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    tau: float,
    scale_tau_squared: bool = True,
    weights: Tensor | None = None,
) -> Tensor:
    """Hinton's distillation loss: KL(softmax(teacher/τ) ‖ softmax(student/τ)), averaged over the batch.

    Args:
        student_BC, teacher_BC: float (B, C), raw logits.
        tau: temperature, above 0.
        scale_tau_squared: multiply by τ², which keeps the gradient's size independent of τ (Hinton et al. 2015, section
            2.1; RepDistiller's DistillKL, with which the paper's numbers were made).

    Returns:
        Scalar in nats, 0 or more.
    """
    log_p_student = F.log_softmax(student_BC.float() / tau, dim=1)
    log_p_teacher = F.log_softmax(teacher_BC.float() / tau, dim=1)
    loss = batch_mean(_divergences(log_p_student, log_p_teacher), weights)
    return loss * tau**2 if scale_tau_squared else loss


def dkd_loss(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels: Tensor,
    *,
    tau: float,
    beta: float,
    scale_tau_squared: bool = True,
    weights: Tensor | None = None,
) -> Tensor:
    """Decoupled distillation: TCKD + beta·NCKD (Zhao et al. 2022, Eq. 7 with its alpha = 1).

    TCKD is the divergence of the pairs (p_y, 1 - p_y), NCKD that of the softmax over the classes other than the label,
    both softened by τ. With 1 - p_y of the teacher in place of beta it would be `kd_loss`.

    Args:
        student_BC, teacher_BC: float (B, C), raw logits, C at least 2.
        labels: int64 (B,).
        tau: temperature, above 0. scale_tau_squared: multiply by τ².
        beta: weight of NCKD; 8 and, for small networks, 2 in the paper's CIFAR-100 tables.

    Returns:
        Scalar in nats, 0 or more.
    """
    column = torch.arange(student_BC.shape[1] - 1, device=labels.device)
    rest_of = column + (
        column >= labels[:, None]
    )  # the columns of the other classes; a mask of them would wait for a GPU
    target, rest = [], []
    for logits_BC in (student_BC.float() / tau, teacher_BC.float() / tau):
        others = logits_BC.gather(1, rest_of)
        own = logits_BC.gather(1, labels[:, None])[:, 0]
        target.append(torch.stack([own, others.logsumexp(1)], dim=1).log_softmax(1))
        rest.append(F.log_softmax(others, dim=1))
    tckd_B, nckd_B = (_divergences(own, its) for own, its in (target, rest))
    loss = batch_mean(tckd_B + beta * nckd_B, weights)
    return loss * tau**2 if scale_tau_squared else loss


def _divergences(log_p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    """KL(q ‖ p) of each sample, in nats."""
    return F.kl_div(log_p_BC, log_q_BC, reduction="none", log_target=True).sum(1)


def mixed_loss(cross_entropy: Tensor, kd: Tensor, alpha: float) -> Tensor:
    """(1 - alpha)·CE + alpha·KD: the paper's Eq. 2. alpha is the weight of distillation, 0 … 1."""
    return (1 - alpha) * cross_entropy + alpha * kd
