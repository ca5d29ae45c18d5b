"""The loss of a recipe, put together from its terms."""

import torch
from torch import Tensor

from fastkd.distil.logits import ce_loss, mixed_loss, standardised
from fastkd.distil.methods import LOGIT_LOSSES, METHODS
from fastkd.train.recipe import Recipe


def objective(
    recipe: Recipe,
    student_BC: Tensor,
    teacher_BC: Tensor | None,
    labels: Tensor,
    method_term: Tensor,
    weights: Tensor | None = None,
    *,
    partner_labels: Tensor | None = None,
    lam: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and of its terms CE and KD (0 where alpha is).

    LOGIT_LOSSES: (1 - alpha)·CE + alpha·KD (paper, Eq. 2). METHODS: CE + alpha·KD + beta·R (appendix E).

    Args:
        student_BC, teacher_BC: float32 (B, C), raw logits; no teacher where alpha is 0.
        labels: int64 (B,).
        method_term: R. weights: float32 (B,), of the samples in CE and KD; R, which also relates samples, has none.
        partner_labels, lam: of mixed images, see `ce_loss`.
    """
    ce = ce_loss(
        student_BC,
        labels,
        label_smoothing=recipe.label_smoothing,
        weights=weights,
        partner_labels=partner_labels,
        lam=lam,
    )
    kd = torch.zeros_like(ce)
    if recipe.alpha > 0:
        assert teacher_BC is not None
        loss = LOGIT_LOSSES.get(recipe.kd, LOGIT_LOSSES["kd"]).loss
        if recipe.standardise_logits:
            student_BC, teacher_BC = standardised(student_BC), standardised(teacher_BC)
        kd = loss(student_BC, teacher_BC, labels, recipe.tau, recipe.beta, recipe.tau_squared, weights)
    if recipe.kd in METHODS:
        return ce + recipe.alpha * kd + recipe.beta * method_term, ce, kd
    return mixed_loss(ce, kd, recipe.alpha), ce, kd
