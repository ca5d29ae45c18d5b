"""How the weights are updated: the optimiser, its rates, what is accumulated and clipped; fields of every recipe."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fastkd.errors import MissingDependencyError, OptionError
from fastkd.train.recipes.lines import Points

SCHEDULES = ("step", "cosine", "linear", "constant", "cyclic")
OF_BEFORE = ("lr", "momentum", "weight_decay", "schedule")
NO_DECAY = ("norm", "bias")


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """What a recipe says of its updates, and of what changes while they go on. The defaults are the paper's (appendix A).

    Runs of before have a word of OF_BEFORE alone: at their defaults the other fields are no part of a run's identity.
    """

    lr: float = 0.05
    """Initial learning rate; after a warm-up, where there is one."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay, on all parameters but `no_decay`."""
    schedule: str = "step"
    """One of SCHEDULES: `step`: times `gamma` at `milestones`; `cosine`: half a cosine, `linear`: a straight line down to
    `min_lr`; `cyclic`: up from there and down again; `constant`. A new rate each epoch, unless `by_step`."""
    opt: str = "sgd"
    """`sgd`, `adamw`: torch's; `timm:NAME`: one of timm's."""
    nesterov: bool = False
    """Nesterov's momentum, of SGD."""
    betas: tuple[float, ...] | None = None
    """Decays of AdamW's two averages; None for torch's."""
    eps: float | None = None
    """Of AdamW's denominator; None for torch's."""
    no_decay: tuple[str, ...] = ()
    """What has no weight decay: `norm`, parameters of normalisation and numbers a channel; `bias`, all biases."""
    layer_decay: float = 1.0
    """The rate of each layer of the network over that of the layer after it."""
    clip_grad: float | None = None
    """The largest norm of all gradients together; None for any."""
    accumulate: int = 1
    """Batches of an update, whose gradients are averaged over their samples."""
    steps: int | None = None
    """Updates in all, in place of epochs; the last epoch may be cut."""
    milestones: tuple[float, ...] = ()
    """Of `step`, in epochs from the start; empty for 150/240, 180/240 and 210/240 of them."""
    gamma: float = 0.1
    """Of `step`: by what the rate is multiplied at a milestone."""
    warmup_epochs: float = 0.0
    """Epochs in which the rate rises in a straight line from a hundredth; `cyclic`: from `min_lr`, 5/24 of the run where 0."""
    min_lr: float = 0.0
    """The rate at the end of `cosine`, `linear` and `cyclic`."""
    per_step: bool = False
    """The rate changes with every step; with warm-up, steps and `cyclic` it does anyway."""
    drop_path: float | None = None
    """Stochastic depth of networks that have it; None for the network's own."""
    dropout: float | None = None
    """Dropout of networks that have it; None for the network's own."""
    ema_warmup: bool = False
    """The average's decay is (1 + t)/(10 + t) after t updates as long as that is less."""
    alpha_course: Points = ()
    """alpha along the fraction of training that is done; `alpha` is the largest of it."""
    tau_course: Points = ()
    """The same of tau."""

    def __post_init__(self) -> None:
        is_adaptive = self.opt != "sgd"
        betas = () if self.betas is None else self.betas
        rules = (
            ("lr", 0 < self.lr <= 1000, "above 0, up to 1000"),
            ("momentum", 0 <= self.momentum < 1, "0 <= momentum < 1"),
            ("weight-decay", 0 <= self.weight_decay <= 1000, "0 … 1000"),
            ("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            ("opt", self.opt in ("sgd", "adamw") or self.opt.startswith("timm:"), "sgd, adamw or timm:NAME"),
            ("betas", self.betas is None or (len(betas) == 2 and _all_in(betas, 0, 1)), "two numbers, 0 <= beta < 1"),
            ("eps", self.eps is None or 0 < self.eps <= 1, "above 0, up to 1"),
            ("no-decay", set(self.no_decay) <= set(NO_DECAY), " or ".join((*NO_DECAY, "norm,bias"))),
            ("layer-decay", 0 < self.layer_decay <= 1, "above 0, up to 1"),
            ("clip-grad", self.clip_grad is None or 0 < self.clip_grad <= 10**6, "above 0, up to 1,000,000"),
            ("accumulate", 1 <= self.accumulate <= 2**16, "1 … 65,536"),
            ("steps", self.steps is None or 1 <= self.steps <= 10**9, "1 … 1,000,000,000"),
            ("milestones", _increase(self.milestones), "epochs above 0 in increasing order"),
            ("gamma", 0 < self.gamma <= 1, "above 0, up to 1"),
            ("warmup-epochs", 0 <= self.warmup_epochs <= 10**6, "0 … 1,000,000"),
            ("min-lr", 0 <= self.min_lr <= 1000, "0 … 1000"),
            ("drop-path", self.drop_path is None or 0 <= self.drop_path < 1, "0 <= rate < 1"),
            ("dropout", self.dropout is None or 0 <= self.dropout < 1, "0 <= rate < 1"),
            ("alpha", _all_in([value for _, value in self.alpha_course], 0, 10**6), "no weight below 0"),
            ("tau", all(0.01 <= value <= 100 for _, value in self.tau_course), "temperatures of 0.01 … 100"),
        )
        for name, holds, expected in rules:
            if not holds:
                raise OptionError(f"--{name} {_told(self, name)}: expected {expected}")
        idle = (
            ("nesterov", self.nesterov and is_adaptive, f"--opt {self.opt}"),
            ("nesterov", self.nesterov and self.momentum == 0, "--momentum 0"),
            ("betas", self.betas is not None and not is_adaptive, "--opt sgd"),
            ("eps", self.eps is not None and not is_adaptive, "--opt sgd"),
            ("milestones", self.milestones and self.schedule != "step", f"--schedule {self.schedule}"),
            ("gamma", self.gamma != 0.1 and self.schedule != "step", f"--schedule {self.schedule}"),
            ("min-lr", self.min_lr > 0 and self.schedule in ("step", "constant"), f"--schedule {self.schedule}"),
        )
        for name, does_nothing, where in idle:
            if does_nothing:
                raise OptionError(f"--{name} does nothing with {where}: leave it out")
        if self.min_lr > self.lr:
            raise OptionError(f"--min-lr {self.min_lr}: is above --lr, from which the rate falls; expected less")

    @property
    def by_step(self) -> bool:
        """Whether the rate changes with every step, and not with every epoch."""
        return self.per_step or self.steps is not None or self.warmup_epochs > 0 or self.schedule == "cyclic"


def _told(update: Update, name: str) -> Any:
    value = getattr(update, f"{name}_course" if name in ("alpha", "tau") else name.replace("-", "_"))
    if name in ("alpha", "tau"):
        return ",".join(f"{x:g}:{one:g}" for x, one in value)
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def _all_in(values: Iterable[float], least: float, most: float) -> bool:
    return all(least <= value < most for value in values)


def _increase(values: tuple[float, ...]) -> bool:
    return all(0 < value <= 10**6 for value in values) and list(values) == sorted(set(values))


def require_timm_optimizer(opt: str) -> Any:
    """timm.optim, if it is installed and has the optimiser that `timm:NAME` names.

    Raises:
        MissingDependencyError: no timm. OptionError: no such optimiser.
    """
    try:
        from timm import optim
    except ImportError:
        raise MissingDependencyError(
            f"--opt {opt}: needs timm, which is not installed: pip install 'fastkd[timm]'"
        ) from None
    name, known = opt.removeprefix("timm:"), [str(other) for other in optim.list_optimizers()]
    if name not in known:
        close = ", ".join(difflib.get_close_matches(name, known, n=3))
        raise OptionError(
            f"--opt {opt}: timm has none of that name; {f'did you mean {close}?' if close else 'e.g. timm:lamb'}"
        )
    return optim
