"""Contrastive distillation (CRD, Tian et al. 2020): embeddings of student and teacher against memories of both."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.distil.relations import contrast_loss
from fastkd.errors import OptionError
from fastkd.hashing import draw_below

WIDTH = 128
NUM_NEGATIVES = 16384
TEMPERATURE = 0.07
MOMENTUM = 0.5
_NEGATIVES = 41  # keeps these draws apart from those of views and orders


class Contrast(nn.Module):
    """The two critics of CRD with their memories, one row a sample that training draws from.

    Negatives are drawn with replacement from the samples of other classes, so that classes may be of any sizes and the
    subset smaller than the number of negatives. The draws are a function of (seed, step): a run that resumes repeats them.

    Memory and time of a step grow with N.

    Args:
        student_width, teacher_width: values of the embeddings.
        sample_ids, labels: int64 (N,), of the samples.

    Raises:
        OptionError: samples of one class alone, which have no negatives.
    """

    student_memory: Tensor
    teacher_memory: Tensor
    normalisers: Tensor
    ids: Tensor
    rows: Tensor
    by_class: Tensor
    counts: Tensor
    starts: Tensor

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        sample_ids: Tensor,
        labels: Tensor,
        *,
        seed: int,
        num_negatives: int = NUM_NEGATIVES,
    ) -> None:
        super().__init__()
        self.seed, self.num_negatives, self.num_samples = seed, num_negatives, len(labels)
        if int(labels.min()) == int(labels.max()):
            raise OptionError(
                f"--kd crd: all {len(labels)} samples are of one class, it contrasts classes; use another"
            )
        self.student_head, self.teacher_head = nn.Linear(student_width, WIDTH), nn.Linear(teacher_width, WIDTH)
        bound = (3 / WIDTH) ** 0.5  # rows of length 1 on average
        self.register_buffer("student_memory", torch.empty(len(labels), WIDTH).uniform_(-bound, bound))
        self.register_buffer("teacher_memory", torch.empty(len(labels), WIDTH).uniform_(-bound, bound))
        self.register_buffer("normalisers", torch.zeros(2))  # of both critics, set by the first batch
        ids, order = sample_ids.sort()
        counts = torch.bincount(labels)
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("rows", order, persistent=False)
        self.register_buffer("by_class", labels.sort(stable=True).indices, persistent=False)
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("starts", counts.cumsum(0) - counts, persistent=False)

    def negatives(self, labels: Tensor, step: int) -> Tensor:
        """Rows of the memories for each sample of the batch, none of its class: int64 (B, M)."""
        generator = torch.Generator().manual_seed(draw_below(self.seed, step, _NEGATIVES, 2**32))
        uniform = torch.rand((len(labels), self.num_negatives), generator=generator, dtype=torch.float64)
        counts, starts = self.counts[labels, None], self.starts[labels, None]
        place = (_sent(uniform, labels.device) * (self.num_samples - counts)).long()
        return self.by_class[torch.where(place < starts, place, place + counts)]

    def forward(
        self, student: list[Tensor], teacher: list[Tensor], *, labels: Tensor, sample_ids: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        rows = self.rows[torch.searchsorted(self.ids, sample_ids)]
        negatives = self.negatives(labels, step)
        own, its = F.normalize(self.student_head(student[0])), F.normalize(self.teacher_head(teacher[0]))
        total = own.new_zeros(())
        for i, (anchor, memory) in enumerate(((own, self.teacher_memory), (its, self.student_memory))):
            scores = (anchor @ memory.T / TEMPERATURE).exp()
            positive, drawn = scores.gather(1, rows[:, None])[:, 0], scores.gather(1, negatives)
            first = torch.cat([positive[:, None], drawn], 1).detach().mean() * self.num_samples
            scale = torch.where(self.normalisers[i] == 0, first, self.normalisers[i])  # no question to a GPU
            self.normalisers[i] = scale
            total = total + contrast_loss(positive / scale, drawn / scale, self.num_samples)
        self._remember(rows, own.detach(), its.detach())
        return total, torch.zeros_like(total)

    @torch.no_grad()
    def _remember(self, rows: Tensor, own: Tensor, its: Tensor) -> None:
        """Moves the batch's rows of the memories towards its embeddings; the old memories stay as backward needs them."""
        for name, new in (("student_memory", own), ("teacher_memory", its)):
            memory = getattr(self, name).clone()
            memory[rows] = F.normalize(MOMENTUM * memory[rows] + (1 - MOMENTUM) * new)
            setattr(self, name, memory)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; a GPU is sent it out of pinned memory, which nobody waits for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
