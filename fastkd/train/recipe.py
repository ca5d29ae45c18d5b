"""Recipes: with which loss, for how long and how fast a student learns."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from fastkd.data.order import ORDERS
from fastkd.distil.methods import LOGIT_LOSSES, METHODS, NAMES, native_weight
from fastkd.errors import OptionError
from fastkd.models.libraries import canonical_name
from fastkd.models.registry import create_model
from fastkd.train.recipes.lines import along, number, parse_course, parse_points
from fastkd.train.recipes.update import OF_BEFORE, Update, require_timm_optimizer

ALPHA_RULE = "0.1:1,0.7:0.5"
"""alpha of the kept fraction f: the paper's optima on CIFAR-100 (Figure 6, section 4.3), straight lines between them.

K, the views of a sample that a store holds, is no part of it. Others report that few views let students of soft labels alone drift
(arXiv 2512.15647), which would ask for a smaller alpha where K is small. A first look found none of that: f = 0.1, 20 epochs of
ResNet-8, a ResNet-32 of 82.6 % as teacher, one or two runs each: alpha 1 over alpha 0.5 by 0.2 points at K = 1 and 0.3 at K = 4.
The suite `k-alpha-f` asks it with more runs, and its page says in how many settings `auto` is behind another alpha, and by how much.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe(Update):
    """How a student is trained. The defaults are the paper's for CIFAR and SVHN (appendix A)."""

    model: str
    """A name that the registry knows."""
    epochs: int = 240
    """Passes over the kept samples."""
    batch_size: int = 64
    """Samples a step on each rank; with `accumulate`, of each part of it."""
    kd: str = "kd"
    """One of LOGIT_LOSSES: (1 - alpha)·CE + alpha·KD (Eq. 2); of METHODS: CE + alpha·KD + beta·R (appendix E)."""
    alpha: float = 0.5
    """Weight of distillation, 0 … 1 with LOGIT_LOSSES, else 0 or more; 0 with them trains on labels alone."""
    beta: float = 1.0
    """Weight of R; with `dkd`, `dist` and `mlld` that of what they add: see their functions."""
    tau: float = 4.0
    """Temperature of distillation."""
    tau_squared: bool = True
    """Whether the distillation term is multiplied by τ²."""
    standardise_logits: bool = False
    """Whether the distillation term is of the logits' Z-scores."""
    layers: tuple[str, ...] = ()
    """Modules of the student that the method looks at; empty for its stages or embedding."""
    teacher_layers: tuple[str, ...] = ()
    """The same in the teacher; empty for `layers`."""
    label_smoothing: float = 0.0
    """Share of the label that is spread over all classes, in CE."""
    mask_weights: bool = True
    """CE and KD of each sample times its weight in the mask, where the mask has weights."""
    sync_bn: bool = False
    """Batch norms over the samples of all ranks."""
    amp: str = "off"
    """`bf16` or `fp16`: the network's forward pass in autocast, losses and updates in float32; fp16 scales the loss."""
    ema: float = 0.0
    """Decay of the average of the weights that is measured and saved, with the network's batch statistics; 0: none."""
    resize_from: int | None = None
    """Input size of the first epochs, in pixels: it grows in steps of an eighth of the view's size."""
    resize_start: float = 0.0
    """Epochs before it begins to grow."""
    resize_end: float | None = None
    """Epochs after which it has the view's size; None for 80 % of all."""
    drop_last: bool = False
    """Leave out the last batch of an epoch where it is not full."""
    order: str = "shuffle"
    """How an epoch is shuffled: `shuffle`, uniformly, or `pages`, page by page of the beton."""
    seed: int = 0
    """Of the initial weights and of the order."""

    def __post_init__(self) -> None:
        most_alpha = 10**6 if self.kd in METHODS else 1
        rules = (
            ("epochs", 1 <= self.epochs <= 10**6, "1 … 1,000,000"),
            ("batch-size", 1 <= self.batch_size <= 2**20, "1 … 1,048,576"),
            ("kd", self.kd in NAMES, f"one of {', '.join(NAMES)}"),
            ("alpha", 0 <= self.alpha <= most_alpha, f"0 … {most_alpha:,}"),
            ("beta", 0 <= self.beta <= 10**6, "0 … 1,000,000"),
            ("tau", 0.01 <= self.tau <= 100, "0.01 … 100, beyond which float32 rounds the loss away"),
            ("label-smoothing", 0 <= self.label_smoothing < 1, "0 <= smoothing < 1"),
            ("amp", self.amp in ("off", "bf16", "fp16"), "off, bf16 or fp16"),
            ("ema", 0 <= self.ema < 1, "0 <= decay < 1"),
            ("resize-from", self.resize_from is None or 8 <= self.resize_from <= 4096, "8 … 4096"),
            ("resize-start", 0 <= self.resize_start <= 10**6, "0 … 1,000,000"),
            ("resize-end", self.resize_end is None or 0 < self.resize_end <= 10**6, "above 0, up to 1,000,000"),
            ("order", self.order in ORDERS, " or ".join(ORDERS)),
            ("seed", 0 <= self.seed < 2**63, "0 … 2^63-1"),
        )
        for name, holds, expected in rules:
            if not holds:
                raise OptionError(f"--{name} {getattr(self, name.replace('-', '_'))}: expected {expected}")
        if self.resize_from is None and (self.resize_start or self.resize_end is not None):
            raise OptionError("--resize-start and --resize-end do nothing without --resize-from: give its pixels")
        Update.__post_init__(self)
        if self.warmup_epochs >= self.epochs:
            raise OptionError(f"--warmup-epochs {self.warmup_epochs:g}: is all of {self.epochs} epochs, expected fewer")
        if self.ema_warmup and not self.ema:
            raise OptionError("--ema-warmup does nothing without --ema: give its decay, e.g. --ema 0.999")

    def describe(self) -> dict[str, Any]:
        """As JSON, which has lists alone, for the identity of what is made by the recipe."""
        version = METHODS[self.kd].version if self.kd in METHODS else 1
        found = asdict(self) | ({"kd_version": version} if version > 1 else {})
        return {
            name: [list(one) if isinstance(one, tuple) else one for one in value] if isinstance(value, tuple) else value
            for name, value in found.items()
            if (name not in _SINCE or value != _SINCE[name]) and not (name == "momentum" and self.opt == "adamw")
        }

    @property
    def resize_by(self) -> float:
        """Epochs after which the input has the view's size."""
        return 0.8 * self.epochs if self.resize_end is None else self.resize_end

    @property
    def distils(self) -> bool:
        """Whether anything of a teacher is needed."""
        return self.alpha > 0 or self.kd in METHODS


_SINCE: dict[str, Any] = {field.name: field.default for field in fields(Update) if field.name not in OF_BEFORE}
_SINCE |= {"standardise_logits": False, "resize_start": 0.0, "resize_end": None}
"""Fields that runs of before had no word of, which stay the same runs where the value is this one."""

RECIPES: dict[str, dict[str, Any]] = {
    "crop-flip": {},
    "center": {},
    "rrc": {"batch_size": 128, "lr": 0.1, "schedule": "cosine"},
}
"""What differs from Recipe's defaults for each kind of views; `rrc`: the paper's ImageNet recipe (appendix A.2)."""

OF_ADAMW: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.05, "schedule": "cosine"}
"""What differs from both for AdamW: torch's rate, and what vision transformers are trained with (Touvron et al. 2021, Table 9)."""


def choose_recipe(view_kind: str, num_classes: int, *, beta: str | None = None, **options: Any) -> Recipe:
    """The recipe that suits the views, with the options that are not None over it.

    Args:
        options: fields of Recipe; numbers and names may be text, as they are typed.
        beta: a number, `native` for the weight that the method has in RepDistiller, or None for the paper's 1 (logit losses: their authors').

    Raises:
        OptionError: a value out of range.
        ModelError, MissingDependencyError: a network that cannot be made.
    """
    given = {name: value for name, value in options.items() if value is not None}
    kd = given.get("kd", "kd")
    if kd not in NAMES:
        raise OptionError(f"--kd {kd}: expected one of {', '.join(NAMES)}")
    if beta == "native" or (beta is None and kd in LOGIT_LOSSES and LOGIT_LOSSES[kd].beta):
        given["beta"] = native_weight(kd)
    elif beta is not None:
        given["beta"] = number(beta, "--beta", "a number or native")
    own = LOGIT_LOSSES.get(kd)
    if beta is not None and own is not None and not own.beta:
        raise OptionError(f"--beta {beta} is the weight of what --kd adds to KD: give --kd too, e.g. --kd vid")
    if given.get("standardise_logits") and not (own or LOGIT_LOSSES["kd"]).standardises:
        raise OptionError(
            f"--standardise-logits: --kd {kd} compares logits as they are; leave it out, or use kd, dkd or dist"
        )
    if given.get("tau_squared") is False and not (own or LOGIT_LOSSES["kd"]).squares:
        raise OptionError(f"--no-tau-squared: --kd {kd} has no factor of tau squared; leave it out")
    for name in ("layers", "teacher_layers"):
        if given.get(name) and kd not in METHODS:
            flag = f"--{name.replace('_', '-')} {','.join(given[name])}"
            raise OptionError(
                f"{flag}: --kd {kd} looks at logits alone; give a --kd that looks at layers, e.g. --kd vid"
            )
    if "steps" in given and "epochs" in given:
        raise OptionError(f"--steps {given['steps']} and --epochs {given['epochs']}: give one of them")
    given |= _from_texts(given)
    opt = given.get("opt", "sgd")
    if opt == "adamw" and "momentum" in given:
        raise OptionError("--momentum does nothing with --opt adamw, which has --betas: leave it out")
    if opt.startswith("timm:"):
        require_timm_optimizer(opt)
        if "lr" not in given:
            raise OptionError(f"--opt {opt}: its rates are its own, so give --lr, and --weight-decay where it has one")
    suited = RECIPES[view_kind] | (OF_ADAMW if opt == "adamw" else {})
    recipe = Recipe(**(suited | given | {"model": canonical_name(given["model"])}))
    # an unknown name is told before any file is read through
    create_model(recipe.model, num_classes, drop_path=recipe.drop_path, dropout=recipe.dropout)
    return recipe


def _from_texts(given: dict[str, Any]) -> dict[str, Any]:
    """What options come to that were given as text: lists of numbers or words, numbers, and lines along training.

    Raises:
        OptionError: a malformed one.
    """
    texts = {name: value for name, value in given.items() if isinstance(value, str)}
    found: dict[str, Any] = {}
    for name in texts.keys() & {"betas", "milestones"}:
        found[name] = tuple(
            number(one, f"--{name}", "numbers with commas between them") for one in texts[name].split(",")
        )
    if "no_decay" in texts:
        found["no_decay"] = tuple(word.strip() for word in texts["no_decay"].split(","))
    for name in texts.keys() & {"alpha", "tau"}:
        if ":" in texts[name]:
            points = parse_course(texts[name], name)
            found |= {f"{name}_course": points, name: max(value for _, value in points)}
        else:
            found[name] = number(texts[name], f"--{name}", "a number or lines such as 0:1,0.5:0.5")
    return found


def choose_alpha(alpha: str | None, rule: str | None, *, fraction: float, kd: str, has_teacher: bool) -> float | str:
    """alpha from `--alpha` (a number, `auto`, lines along training, which stay text, or nothing) and `--alpha-rule`.

    `auto` draws straight lines through the rule's pairs f:alpha, in increasing f, and keeps the outer values beyond them.

    Args:
        fraction: f, kept samples over all.

    Raises:
        OptionError: a malformed number or rule; a rule without `auto`.
    """
    if alpha != "auto":
        if rule is not None:
            raise OptionError(f"--alpha-rule {rule} is for --alpha auto, found --alpha {alpha or 'left out'}")
        if alpha is not None:
            if ":" in alpha:
                return alpha
            return number(alpha, "--alpha", "a number or auto")
        return 0.0 if not has_teacher else 1.0 if kd in METHODS else 0.5
    points = parse_points(ALPHA_RULE if rule is None else rule, "--alpha-rule", "f:alpha", ALPHA_RULE)
    if any(not 0 <= value <= 1 for _, value in points):
        raise OptionError(f"--alpha-rule {rule}: fractions and weights lie in 0 … 1")
    return along(points, fraction)


def input_size(recipe: Recipe, epoch: int, full: int) -> int | None:
    """The side in pixels to which the views of `full` pixels are resized in an epoch; None for as they are.

    From `resize_from` in a straight line to `full` from `resize_start` to `resize_by`, rounded down to multiples of full / 8.
    Boxes are relative, so that a view stays the same at any size, and the teacher's logits with it.
    """
    if recipe.resize_from is None:
        return None
    step = max(1, full // 8)
    begun = max(0.0, epoch - recipe.resize_start)
    share = min(1.0, begun / max(1.0, recipe.resize_by - recipe.resize_start))
    size = step * int((recipe.resize_from + share * (full - recipe.resize_from)) / step)
    return min(full, max(recipe.resize_from, size))
