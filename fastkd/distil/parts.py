"""The modules by which methods compare layers: what they add to a student, and what of that is trained.

`forward` takes the tensors caught in student and teacher and returns R, and a second term that trains parts of the
method's own. RepDistiller's parts differ from these in form, not in what they compare:

- a regressor where sizes differ: there a convolution of stride 2, a deconvolution or one as large as the difference; here a
  1x1 convolution, with the larger map averaged down;
- the paraphraser of factor transfer: there of strided convolutions without batch norms, trained for 30 epochs beforehand;
- AB and FSP: there an initial stage of 30 epochs without a label, and no part of the loss afterwards.
"""

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.distil import features

Shape = tuple[int, ...]
"""Of what is caught, without the batch: (D, H, W), or (D,) of an embedding."""


class Pairs(nn.Module):
    """A loss without parts of its own, summed over the layers."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student: list[Tensor], teacher: list[Tensor], **_: object) -> tuple[Tensor, Tensor]:
        total = torch.stack([self.loss(s, t) for s, t in zip(student, teacher, strict=True)]).sum()
        return total, torch.zeros_like(total)


class Flows(nn.Module):
    """FSP over neighbouring layers. RepDistiller's weight of 50 is that of a term which is 0 after its initial stage."""

    def forward(self, student: list[Tensor], teacher: list[Tensor], **_: object) -> tuple[Tensor, Tensor]:
        pairs = zip(student, student[1:], teacher, teacher[1:], strict=False)
        losses = [features.fsp_loss((s1, s2), (t1, t2)) for s1, s2, t1, t2 in pairs]
        total = torch.stack(losses).sum()
        return total, torch.zeros_like(total)


class Regressed(nn.Module):
    """A loss between the student's maps through a regressor each and the teacher's.

    sigma: with trained variances (VID); the student's map, where it is the larger, is then averaged down before it is
    regressed, as in RepDistiller. version: 2 where that is so: it was regressed first before.
    """

    def __init__(
        self,
        student: list[Shape],
        teacher: list[Shape],
        regressor: Callable[[int, int], nn.Module],
        loss: Callable[..., Tensor],
        *,
        sigma: bool = False,
    ) -> None:
        super().__init__()
        sizes = [side for s, t in zip(student, teacher, strict=True) for side in zip(s[1:], t[1:], strict=True)]
        self.version = 2 if sigma and any(own > its for own, its in sizes) else 1
        self.regressors = nn.ModuleList(regressor(s[0], t[0]) for s, t in zip(student, teacher, strict=True))
        # softplus(raw) + 1e-5 = 5, RepDistiller's initial variance
        raw = math.log(math.exp(5 - 1e-5) - 1)
        self.raw_variances = nn.ParameterList(torch.full((t[0],), raw) for t in teacher) if sigma else None
        self.loss = loss

    def variances(self) -> list[tuple[Tensor, ...]]:
        """σ² of each layer's channels; empty tuples for losses without."""
        if self.raw_variances is None:
            return [()] * len(self.regressors)
        return [(F.softplus(raw) + 1e-5,) for raw in self.raw_variances]

    def forward(self, student: list[Tensor], teacher: list[Tensor], **_: object) -> tuple[Tensor, Tensor]:
        if self.raw_variances is not None:
            student = [features.same_size(s, t)[0] for s, t in zip(student, teacher, strict=True)]
        means = (regress(s) for regress, s in zip(self.regressors, student, strict=True))
        losses = [self.loss(mean, t, *var) for mean, t, var in zip(means, teacher, self.variances(), strict=True)]
        total = torch.stack(losses).sum()
        return total, torch.zeros_like(total)


class Boundaries(nn.Module):
    """Activation boundaries (Heo et al. 2019) of L layers, of which the last counts most.

    R = 3/1000 · Σ 2^(i - L + 1) · `ab_loss` of layer i, i from 0: the authors' scale, as RepDistiller has it. A layer of the
    teacher's shape is compared as it is, others go through a connector.
    """

    def __init__(self, student: list[Shape], teacher: list[Shape]) -> None:
        super().__init__()
        pairs = zip(student, teacher, strict=True)
        self.connectors = nn.ModuleList(nn.Identity() if s == t else _connector(s[0], t[0]) for s, t in pairs)

    def forward(self, student: list[Tensor], teacher: list[Tensor], **_: object) -> tuple[Tensor, Tensor]:
        layers = enumerate(zip(self.connectors, student, teacher, strict=True), 1 - len(student))
        total = 0.003 * torch.stack([2.0**i * features.ab_loss(connect(s), t) for i, (connect, s, t) in layers]).sum()
        return total, torch.zeros_like(total)


class Factors(nn.Module):
    """Factor transfer: the teacher's paraphraser (an autoencoder) and the student's translator (Kim et al. 2018).

    The paraphraser learns beside the student, from its own term, rather than in 30 epochs before.
    """

    def __init__(self, student: list[Shape], teacher: list[Shape]) -> None:
        super().__init__()
        width, factor = teacher[0][0], max(1, teacher[0][0] // 2)
        self.encoder = _convs(width, width, factor, factor)
        self.decoder = _convs(factor, factor, width, width)
        self.translator = _convs(student[0][0], student[0][0], factor, factor)

    def forward(self, student: list[Tensor], teacher: list[Tensor], **_: object) -> tuple[Tensor, Tensor]:
        factor = self.encoder(teacher[0])
        return features.ft_loss(self.translator(student[0]), factor.detach()), F.mse_loss(
            self.decoder(factor), teacher[0]
        )


def _convs(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


def hint_regressor(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 1), nn.BatchNorm2d(after), nn.ReLU())


def _connector(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))


def vid_regressor(before: int, after: int) -> nn.Module:
    convs = [nn.Conv2d(width, after, 1, bias=False) for width in (before, after, after)]
    return nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
