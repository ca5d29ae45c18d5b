"""A distillation loss of one's own, trained with by fastkd's student as any other.

The run knows the loss by its name alone: give another name to one that is changed.

    python examples/own_loss.py train.beton m.h5 l.h5 test.beton run/ [EPOCHS]
"""

import sys
from typing import Any

import torch.nn.functional as F
from torch import Tensor

import fastkd
from fastkd.losses import LOGIT_LOSSES, LogitLoss


def cosine_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, tau: float, beta: float, squared: bool, weights: Tensor | None
) -> Tensor:
    """What the cosine of the softened probabilities (B, C) of student and teacher lacks to 1, mean over the batch."""
    own, its = (F.softmax(logits / tau, dim=1) for logits in (student, teacher))
    loss = 1 - F.cosine_similarity(own, its, dim=1)
    return (loss if weights is None else loss * weights).mean()


LOGIT_LOSSES["cosine"] = LogitLoss(cosine_loss, squares=False, standardises=True)


def train(beton: str, mask: str, store: str, val: str, out: str, *, epochs: int = 50, **options: Any) -> dict[str, Any]:
    """Trains a student by (1 - alpha)·CE + alpha·cosine."""
    return fastkd.train_student(
        beton,
        mask=mask,
        logits=store,
        val=val,
        out=out,
        model="resnet8",
        kd="cosine",
        alpha=0.9,
        epochs=epochs,
        **options,
    )


if __name__ == "__main__":
    result = train(*sys.argv[1:6], epochs=int(sys.argv[6]) if sys.argv[6:] else 50)
    print(f"top-1 {result['val_top1']:.2f} %")
