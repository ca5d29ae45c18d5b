"""A batch: what a loader hands out, whichever it is."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What the training loop gets; its memory is its own.

    images: uint8 (B, 3, H, W), channels_last. labels, sample_ids: int64 (B,). logits: float32 (B, C), or None.
    embeddings: float32 (B, D), the teacher's, or None. aug_seed: the seed of the views. weights: float32 (B,), of the samples in the loss, or None where all weigh the same.
    """

    images: torch.Tensor
    labels: torch.Tensor
    sample_ids: torch.Tensor
    logits: torch.Tensor | None
    aug_seed: int
    weights: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        return Batch(
            images=function(self.images),
            labels=function(self.labels),
            sample_ids=function(self.sample_ids),
            logits=None if self.logits is None else function(self.logits),
            aug_seed=self.aug_seed,
            weights=None if self.weights is None else function(self.weights),
            embeddings=None if self.embeddings is None else function(self.embeddings),
        )

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device; the copy does not block where the memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def copy(self) -> "Batch":
        """An independent copy, to be changed in place."""
        return self._map(torch.clone)
