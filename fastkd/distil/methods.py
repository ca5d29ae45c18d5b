"""The distillation methods that look inside the teacher, by name: their layers, their trainable parts, their weights.

Each is a module whose forward takes the tensors caught in student and teacher and returns the term R of the loss
(appendix E of the paper: CE + alpha·KD + beta·R), and a second term that trains its own parts and takes no weight.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.distil import features, logits, relations
from fastkd.distil.contrast import Contrast
from fastkd.errors import OptionError

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a method may know besides the tensors.

    num_samples: N, the samples that training draws from. sample_ids: int64 (N,). labels: int64 (N,), theirs.
    """

    num_samples: int
    sample_ids: Tensor
    labels: Tensor
    seed: int


@dataclass(frozen=True, slots=True)
class Method:
    """A way to distil.

    layers: which tensors it looks at: `stages`, `middle` (one stage), `last` (stage), `flow` (first stage's input and the
    stages) or `embedding`. native: its weight in RepDistiller; None where fastkd's form has none there. one_label: whether
    it goes by one label a sample.
    """

    layers: str
    native: float | None
    make: Callable[[list[Shape], list[Shape], Context], nn.Module]
    one_label: bool = False


@dataclass(frozen=True, slots=True)
class LogitLoss:
    """A loss between logits that takes KD's place in (1 - alpha)·CE + alpha·KD.

    loss: (student_BC, teacher_BC, labels, tau, beta, scale_tau_squared, weights) → scalar. beta: the weight of what it adds
    to KD, its authors' own; 0 where it adds nothing. one_label: whether it goes by one label a sample.
    """

    loss: Callable[[Tensor, Tensor, Tensor, float, float, bool, Tensor | None], Tensor]
    beta: float = 0.0
    one_label: bool = False


class Pairs(nn.Module):
    """A loss without parts of its own, summed over the layers."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student: list[Tensor], teacher: list[Tensor], **_: object) -> tuple[Tensor, Tensor]:
        total = torch.stack([self.loss(s, t) for s, t in zip(student, teacher, strict=True)]).sum()
        return total, torch.zeros_like(total)


class Flows(nn.Module):
    """FSP over neighbouring layers."""

    def forward(self, student: list[Tensor], teacher: list[Tensor], **_: object) -> tuple[Tensor, Tensor]:
        pairs = zip(student, student[1:], teacher, teacher[1:], strict=False)
        losses = [features.fsp_loss((s1, s2), (t1, t2)) for s1, s2, t1, t2 in pairs]
        total = torch.stack(losses).sum()
        return total, torch.zeros_like(total)


class Regressed(nn.Module):
    """A loss between the student's maps through a regressor each and the teacher's; `sigma`: with trained variances."""

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
        means = (regress(s) for regress, s in zip(self.regressors, student, strict=True))
        losses = [self.loss(mean, t, *var) for mean, t, var in zip(means, teacher, self.variances(), strict=True)]
        total = torch.stack(losses).sum()
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


def _hint_regressor(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 1), nn.BatchNorm2d(after), nn.ReLU())


def _connector(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))


def _vid_regressor(before: int, after: int) -> nn.Module:
    convs = [nn.Conv2d(width, after, 1, bias=False) for width in (before, after, after)]
    return nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])


def _flows(student: list[Shape], teacher: list[Shape], context: Context) -> nn.Module:
    widths = [s[0] for s in student], [t[0] for t in teacher]
    if widths[0] != widths[1]:
        raise OptionError(
            f"--kd fsp: layers of {widths[0]} and {widths[1]} channels, it needs equal numbers; use another"
        )
    return Flows()


def _plain(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[list[Shape], list[Shape], Context], nn.Module]:
    return lambda student, teacher, context: Pairs(loss)


LOGIT_LOSSES: dict[str, LogitLoss] = {
    "kd": LogitLoss(
        lambda s, t, labels, tau, beta, squared, weights: logits.kd_loss(
            s, t, tau=tau, scale_tau_squared=squared, weights=weights
        )
    ),
    "dkd": LogitLoss(
        lambda s, t, labels, tau, beta, squared, weights: logits.dkd_loss(
            s, t, labels, tau=tau, beta=beta, scale_tau_squared=squared, weights=weights
        ),
        beta=8.0,
        one_label=True,
    ),
}
"""Losses on logits alone, by the name that --kd takes."""

METHODS: dict[str, Method] = {
    "at": Method("stages", 1000.0, _plain(features.at_loss)),
    "ft": Method("last", 200.0, lambda s, t, c: Factors(s, t)),
    "sp": Method("last", 3000.0, _plain(features.sp_loss)),
    "hint": Method("middle", 100.0, lambda s, t, c: Regressed(s, t, _hint_regressor, features.hint_loss)),
    "vid": Method("stages", 1.0, lambda s, t, c: Regressed(s, t, _vid_regressor, features.vid_loss, sigma=True)),
    "nst": Method("stages", 50.0, _plain(features.nst_loss)),
    "ab": Method("stages", 1.0, lambda s, t, c: Regressed(s, t, _connector, features.ab_loss)),
    "fsp": Method("flow", 50.0, _flows),
    "rkd": Method("embedding", 1.0, _plain(relations.rkd_loss)),
    "pkt": Method("embedding", 30000.0, _plain(relations.pkt_loss)),
    "cc": Method("embedding", None, _plain(relations.cc_loss)),
    "crd": Method(
        "embedding", 0.8, lambda s, t, c: Contrast(s[0][0], t[0][0], c.sample_ids, c.labels, seed=c.seed), True
    ),
}
"""Losses that look inside the teacher, by the name that --kd takes."""

NAMES = (*LOGIT_LOSSES, *METHODS)


def native_weight(name: str) -> float:
    """beta of a method in RepDistiller, for the form of the loss that it has here; of a loss on logits its authors'.

    Raises:
        OptionError: a method that has none.
    """
    weight = LOGIT_LOSSES[name].beta if name in LOGIT_LOSSES else METHODS[name].native
    if weight is None:
        raise OptionError(f"--beta native: no weight is known for --kd {name} in the form it has here; give a number")
    return weight


def teacher_needed(name: str, store: str | None = None) -> OptionError:
    """What to say where there is nothing of the teacher that a method looks at.

    Args:
        store: the path of a store without embeddings, where one was given.
    """
    if METHODS[name].layers != "embedding":
        return OptionError(f"--kd {name} looks inside the teacher, which a store does not hold: give --teacher CKPT")
    found = f"{store} holds logits alone" if store else "found neither a teacher nor a store"
    return OptionError(
        f"--kd {name} compares embeddings, {found}: give --teacher CKPT, or --logits with a store that was filled with "
        f"cache-logits --outputs logits,embedding"
    )


def choose_layers(name: str, stages: Sequence[str], embedding: Callable[[], str], given: Sequence[str]) -> list[str]:
    """The names of the layers that a method looks at in one network.

    Args:
        stages: the network's stages; `given`, where it is not empty, takes their place.
        embedding: gives the name of the embedding.

    Raises:
        OptionError: no stages are known and none given.
    """
    kind = METHODS[name].layers
    if kind == "embedding":
        return list(given) or [embedding()]
    layers = list(given or stages)
    if not layers:
        raise OptionError(f"--kd {name}: the network has no stages named layer1 … or block1 …: name them with --layers")
    if kind == "flow" and not given:
        return [f"{layers[0]}:input", *layers]
    if kind == "middle" and not given:
        return [layers[len(layers) // 2]]
    return [layers[-1]] if kind == "last" else layers
