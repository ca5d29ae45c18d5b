"""A batch: what a loader hands out, whichever it is."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What the training loop gets; its memory is its own.

    images: uint8 (B, 3, H, W), channels_last. labels, sample_ids: int64 (B,). logits: float32 (B, C), or None.
    embeddings: float32 (B, D), the teacher's, or None. aug_seed: the seed of the views. weights: float32 (B,), of the samples
    in the loss, or None where all weigh the same. Of mixed views, else None: partner_labels: int64 (B,); lam: float32 (B,),
    the share of the own label and image.
    """

    images: torch.Tensor
    labels: torch.Tensor
    sample_ids: torch.Tensor
    logits: torch.Tensor | None
    aug_seed: int
    weights: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None
    partner_labels: torch.Tensor | None = None
    lam: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        def optional(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else function(tensor)

        return Batch(
            images=function(self.images),
            labels=function(self.labels),
            sample_ids=function(self.sample_ids),
            logits=optional(self.logits),
            aug_seed=self.aug_seed,
            weights=optional(self.weights),
            embeddings=optional(self.embeddings),
            partner_labels=optional(self.partner_labels),
            lam=optional(self.lam),
        )

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device; the copy does not block where the memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def copy(self) -> "Batch":
        """An independent copy, to be changed in place."""
        return self._map(torch.clone)
