"""The losses of distillation, for training loops of your own: logits or features in, a scalar with gradients out.

    from fastkd.losses import ce_loss, kd_loss, mixed_loss

    for images, labels, logits in loader:
        own = student(images)
        loss = mixed_loss(ce_loss(own, labels), kd_loss(own, logits, tau=4.0), alpha=0.5)

Those between logits (B, C) take raw ones of student and teacher, from a store or live: `kd_loss`, `dkd_loss`, `dist_loss`,
`mlld_loss`, `ttm_loss`; `ce_loss` takes labels, `mixed_loss` is the paper's sum of two, `standardised` gives Z-scores. Those
between maps (B, D, H, W) are `at_loss`, `ft_loss`, `sp_loss`, `hint_loss`, `vid_loss`, `nst_loss`, `ab_loss` and `fsp_loss`, those
between embeddings (B, D) `rkd_loss`, `pkt_loss` and `cc_loss`; `contrast_loss` is the last step of CRD. `LOGIT_LOSSES` has the
first by the name that `--kd` takes: one more of your own is a row of it, a `LogitLoss`, for `fastkd.train_student` to find.
"""

from fastkd.distil.features import ab_loss, at_loss, fsp_loss, ft_loss, hint_loss, nst_loss, sp_loss, vid_loss
from fastkd.distil.logits import (
    ce_loss,
    dist_loss,
    dkd_loss,
    kd_loss,
    mixed_loss,
    mlld_loss,
    standardised,
    ttm_loss,
)
from fastkd.distil.methods import LOGIT_LOSSES, LogitLoss
from fastkd.distil.relations import cc_loss, contrast_loss, pkt_loss, rkd_loss

__all__ = [
    "LOGIT_LOSSES",
    "LogitLoss",
    "ab_loss",
    "at_loss",
    "cc_loss",
    "ce_loss",
    "contrast_loss",
    "dist_loss",
    "dkd_loss",
    "fsp_loss",
    "ft_loss",
    "hint_loss",
    "kd_loss",
    "mixed_loss",
    "mlld_loss",
    "nst_loss",
    "pkt_loss",
    "rkd_loss",
    "sp_loss",
    "standardised",
    "ttm_loss",
    "vid_loss",
]
