"""A batch: what a loader hands out, whichever it is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What a loader hands out; its memory is its own, and never changes later.

    `images, labels = batch`, with a store `images, labels, logits = batch`; by its name `batch["images"]`.

    images: uint8 (B, 3, H, W), channels_last; float32 where the loader normalises. labels, sample_ids: int64 (B,). logits:
    float32 (B, C), the teacher's of these views, or None. embeddings: float32 (B, D), the teacher's, or None. aug_seed: the
    seed of the views. weights: float32 (B,), of the samples in the loss, or None where all weigh the same. Of mixed views,
    else None: partner_labels: int64 (B,); lam: float32 (B,), the share of the own label and image.
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
        """B, the samples."""
        return len(self.labels)

    def __repr__(self) -> str:
        """The batch in a line."""
        shapes = (f"{name} {'×'.join(map(str, tensor.shape[1:]))}".rstrip() for name, tensor in self._tensors().items())
        return f"Batch({len(self)} samples, aug_seed {self.aug_seed}: {', '.join(shapes)}; {self.images.device})"

    def __iter__(self) -> Iterator[torch.Tensor]:
        """images, labels and, with a store, logits: `images, labels, logits = batch`."""
        return iter((self.images, self.labels) if self.logits is None else (self.images, self.labels, self.logits))

    def __getitem__(self, name: str) -> torch.Tensor:
        """A tensor by its name: `batch["images"]`.

        Raises:
            KeyError: the batch has none of that name; says which it has.
        """
        tensors = self._tensors()
        if name not in tensors:
            raise KeyError(f"{name!r} is not in this batch, which has {', '.join(tensors)}")
        return tensors[name]

    def __contains__(self, name: object) -> bool:
        """Whether the batch has a tensor of that name."""
        return name in self._tensors()

    def keys(self) -> list[str]:
        """The names of the tensors that the batch has, so that `dict(batch)` is one of them by their names."""
        return list(self._tensors())

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: value for name in Batch.__slots__ if isinstance(value := getattr(self, name), torch.Tensor)}

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
