"""The distillation methods by name: losses on logits, and those that look inside the teacher, with layers and weights.

Each of the latter is a module whose forward takes the tensors caught in student and teacher and returns the term R of the loss
(appendix E of the paper: CE + alpha·KD + beta·R), and a second term that trains its own parts and takes no weight.
"""

from collections import ChainMap
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fastkd.distil import features, logits, relations
from fastkd.distil.contrast import Contrast
from fastkd.distil.parts import Boundaries, Factors, Flows, Pairs, Regressed, Shape, hint_regressor, vid_regressor
from fastkd.errors import OptionError


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

    layers: which tensors it looks at: `stages`, `preact` (the stages before their last ReLU), `middle` (one stage), `last`
    (stage), `flow` (first stage's input and the stages) or `embedding`. native: its weight in RepDistiller; None where
    fastkd's form has none there. one_label: whether it goes by one label a sample. version: of its formula, raised where the
    same tensors give another R; part of a run's identity. Where it is another for some shapes alone, the module that `make`
    gives has a `version` that says so.
    """

    layers: str
    native: float | None
    make: Callable[[list[Shape], list[Shape], Context], nn.Module]
    one_label: bool = False
    version: int = 1


@dataclass(frozen=True, slots=True)
class LogitLoss:
    """A loss between logits that takes KD's place in (1 - alpha)·CE + alpha·KD.

    loss: (student_BC, teacher_BC, labels, tau, beta, scale_tau_squared, weights) → scalar. beta: the weight of what it adds
    to KD, its authors' own; 0 where it adds nothing. one_label: whether it goes by one label a sample. standardises: whether
    it may be of standardised logits. squares: whether its formula has a factor of tau squared.
    """

    loss: Callable[[Tensor, Tensor, Tensor, float, float, bool, Tensor | None], Tensor]
    beta: float = 0.0
    one_label: bool = False
    standardises: bool = False
    squares: bool = True


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
        ),
        standardises=True,
    ),
    "dkd": LogitLoss(
        lambda s, t, labels, tau, beta, squared, weights: logits.dkd_loss(
            s, t, labels, tau=tau, beta=beta, scale_tau_squared=squared, weights=weights
        ),
        beta=8.0,
        one_label=True,
        standardises=True,
    ),
    "dist": LogitLoss(
        lambda s, t, labels, tau, beta, squared, weights: logits.dist_loss(
            s, t, tau=tau, beta=beta, scale_tau_squared=squared, weights=weights
        ),
        beta=1.0,
        standardises=True,
    ),
    "mlld": LogitLoss(
        lambda s, t, labels, tau, beta, squared, weights: logits.mlld_loss(
            s, t, tau=tau, beta=beta, scale_tau_squared=squared, weights=weights
        ),
        beta=1.0,
    ),
    "ttm": LogitLoss(
        lambda s, t, labels, tau, beta, squared, weights: logits.ttm_loss(s, t, tau=tau, weights=weights),
        squares=False,
    ),
    "wttm": LogitLoss(
        lambda s, t, labels, tau, beta, squared, weights: logits.ttm_loss(
            s, t, tau=tau, by_smoothness=True, weights=weights
        ),
        squares=False,
    ),
}
"""Losses on logits alone, by the name that --kd takes."""

METHODS: dict[str, Method] = {
    "at": Method("stages", 1000.0, _plain(features.at_loss)),
    "ft": Method("last", 200.0, lambda s, t, c: Factors(s, t)),
    "sp": Method("last", 3000.0, _plain(features.sp_loss)),
    "hint": Method("middle", 100.0, lambda s, t, c: Regressed(s, t, hint_regressor, features.hint_loss)),
    "vid": Method("stages", 1.0, lambda s, t, c: Regressed(s, t, vid_regressor, features.vid_loss, sigma=True)),
    "nst": Method("stages", 50.0, _plain(features.nst_loss)),
    "ab": Method("preact", 1.0, lambda s, t, c: Boundaries(s, t), version=2),  # 1 had no scale, and maps after the ReLU
    "fsp": Method("flow", 50.0, _flows),
    "rkd": Method("embedding", 1.0, _plain(relations.rkd_loss)),
    "pkt": Method("embedding", 30000.0, _plain(relations.pkt_loss)),
    "cc": Method("embedding", None, _plain(relations.cc_loss)),
    "crd": Method(
        "embedding", 0.8, lambda s, t, c: Contrast(s[0][0], t[0][0], c.sample_ids, c.labels, seed=c.seed), True
    ),
}
"""Losses that look inside the teacher, by the name that --kd takes."""

NAMES: Collection[str] = ChainMap[str, Any](METHODS, LOGIT_LOSSES)
"""All that --kd takes, losses on logits first, rows that a program adds to a table among them."""


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
    if kind == "preact" and not given:
        return [f"{layer}:preact" for layer in layers]
    return [layers[-1]] if kind == "last" else layers
