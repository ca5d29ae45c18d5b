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


def standardised(logits_BC: Tensor) -> Tensor:
    """Z-scores of each sample's logits: less their mean, over their standard deviation (Sun et al. 2024, Algorithm 1).

    The deviation is that of the C logits as the paper has it, by C; its authors' code has C - 1. float32.
    """
    return F.layer_norm(logits_BC.float(), logits_BC.shape[1:], eps=1e-7)


def dist_loss(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    tau: float,
    beta: float,
    scale_tau_squared: bool = True,
    weights: Tensor | None = None,
) -> Tensor:
    """DIST: inter + beta·intra, what correlations lack to 1 (Huang et al. 2022; τ² as in its authors' code).

    Of the probabilities softened by τ, inter correlates those of all classes of a sample, and is averaged over the samples;
    intra those of all samples of a class, and is averaged over the classes. Their CE + 2·inter + 2·intra is three times
    (1 - alpha)·CE + alpha·DIST at beta 1 and alpha 2/3.

    Args:
        student_BC, teacher_BC: float (B, C), raw logits.
        tau: temperature, above 0. scale_tau_squared: multiply by τ².
        beta: weight of intra over that of inter; 1 in the paper.
        weights: of the samples in inter; intra, which relates samples, has none.

    Returns:
        Scalar, 0 … 2·(1 + beta), times τ².
    """
    own_BC, its_BC = (F.softmax(logits_BC.float() / tau, dim=1) for logits_BC in (student_BC, teacher_BC))
    inter = batch_mean(1 - _correlations(own_BC, its_BC), weights)
    loss = inter + beta * (1 - _correlations(own_BC.T, its_BC.T)).mean()
    return loss * tau**2 if scale_tau_squared else loss


def _correlations(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's coefficient of each row of x with that of y; 0 of even rows."""
    return F.cosine_similarity(x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True), dim=1)


MLLD_TEMPERATURES = (0.5, 0.75, 1.0, 1.25, 1.5)
"""Over τ: 2 … 6 where it is 4, as in the authors' code."""


def mlld_loss(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    tau: float,
    beta: float,
    scale_tau_squared: bool = True,
    weights: Tensor | None = None,
) -> Tensor:
    """Multi-level logits, summed over five temperatures T: KD + beta·(samples + classes) (Jin et al. 2023, section 3).

    With the probabilities P = softmax(logits/T), (B, C), samples are ‖PsPsᵀ - PtPtᵀ‖²/B and classes ‖PsᵀPs - PtᵀPt‖²/C.
    Their code looks at two views of each image, and takes about half of the weaker one's terms; here one counts in full.

    Args:
        student_BC, teacher_BC: float (B, C), raw logits.
        tau: the middle one of the temperatures, above 0. scale_tau_squared: multiply KD by T².
        beta: weight of samples and classes; 1 in the paper.
        weights: of the samples in KD; the others relate samples and have none.

    Returns:
        Scalar, 0 or more.
    """
    total = student_BC.new_zeros((), dtype=torch.float32)
    for temperature in (tau * one for one in MLLD_TEMPERATURES):
        kd = kd_loss(student_BC, teacher_BC, tau=temperature, scale_tau_squared=scale_tau_squared, weights=weights)
        own, its = (F.softmax(logits_BC.float() / temperature, dim=1) for logits_BC in (student_BC, teacher_BC))
        samples = (own @ own.T - its @ its.T).square().sum() / len(own)
        classes = (own.T @ own - its.T @ its).square().sum() / own.shape[1]
        total = total + kd + beta * (samples + classes)
    return total


def ttm_loss(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    tau: float,
    by_smoothness: bool = False,
    weights: Tensor | None = None,
) -> Tensor:
    """Transformed teacher matching: KL(softmax(teacher/τ) ‖ softmax(student)) (Zheng & Yang 2024).

    The teacher's probabilities alone are softened, which is to raise them to the power γ = 1/τ and normalise; there is no
    factor of τ². The paper's CE + β·TTM is (1 + β) times (1 - alpha)·CE + alpha·TTM at alpha = β/(1 + β).

    Args:
        student_BC, teacher_BC: float (B, C), raw logits.
        tau: temperature of the teacher, above 0.
        by_smoothness: WTTM: times Σ p_t^γ of each sample, the power sum of the teacher's probabilities, 1 … C^(1-γ) at τ > 1.

    Returns:
        Scalar in nats, 0 or more.
    """
    powers_BC = F.log_softmax(teacher_BC.float(), dim=1) / tau
    log_sum_B = powers_BC.logsumexp(1)
    loss_B = _divergences(F.log_softmax(student_BC.float(), dim=1), powers_BC - log_sum_B[:, None])
    return batch_mean(loss_B * log_sum_B.exp() if by_smoothness else loss_B, weights)


def mixed_loss(cross_entropy: Tensor, kd: Tensor, alpha: float) -> Tensor:
    """(1 - alpha)·CE + alpha·KD: the paper's Eq. 2. alpha is the weight of distillation, 0 … 1."""
    return (1 - alpha) * cross_entropy + alpha * kd
