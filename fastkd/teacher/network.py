"""Teachers: frozen networks, each with its own preprocessing."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastkd.errors import MismatchError, ModelError, OptionError
from fastkd.fingerprint import fingerprint
from fastkd.models.checkpoint import load_model
from fastkd.models.classes import Classes, said_names
from fastkd.models.libraries import canonical_name
from fastkd.models.norm import Norm, norm_of, parse_norm
from fastkd.models.published import pretrained
from fastkd.models.registry import count_classes, weights_fingerprint
from fastkd.models.taps import Taps, embedding_name
from fastkd.prune.masks.origin import without_seeds
from fastkd.teacher.precision import PRECISIONS


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Teacher:
    """A frozen network with its preprocessing.

    fingerprint: of its weights. norm: normalisation and input size. precision: fp32, bf16 or fp16 (autocast). classes:
    those of its outputs. about: where it comes from, see `about_network`; no part of its identity. view_size: the side of the
    views that it was measured on, else trained on, in pixels; None where its checkpoint does not say.
    """

    model: nn.Module
    name: str
    fingerprint: str
    norm: Norm
    precision: str
    device: torch.device
    classes: Classes
    about: dict[str, Any] = field(default_factory=dict)
    view_size: int | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of views: uint8 (B, 3, H, W) → float32 (B, C), rounded to float16, without gradients.

        The rounding (KL 5e-7 at τ = 1) makes a live teacher and an fp16 store the same teacher wherever they sum in the same
        order: a young network's training multiplies a difference of 1e-5 a thousandfold within fifty steps. A batch of other
        rows, or of another size, may be summed in another order, and differ by the last digit of float16: on a CPU up to
        2 % of the logits do; what a GPU's choice of kernels comes to is measured by `tools/gpu-check --checks stored-live`.
        """
        dtype = PRECISIONS[self.precision]
        with torch.no_grad(), torch.autocast(self.device.type, dtype) if dtype else nullcontext(), full_fp32():
            return self.model(self.norm(images.to(self.device, non_blocking=True))).half().float()

    def identity(self) -> dict[str, Any]:
        """What its logits follow from, besides weights and views; part of a store's identity."""
        return {"model": self.name, "precision": self.precision, **self.norm.describe()}


class LiveTeacher:
    """A teacher with taps: its logits, and the tensors that are caught inside it; vectors are rounded as its logits are."""

    def __init__(self, teacher: Teacher, taps: Taps | None) -> None:
        self.teacher, self.taps = teacher, taps

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits_BC = self.teacher(images)
        layers = self.taps.take() if self.taps is not None else []
        return logits_BC, [layer.half().float() if layer.ndim == 2 else layer.float() for layer in layers]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Embedding:
    """The tensor of a teacher that its head reads. layer: its name. dim: D, its values. live: gives logits and [(B, D)]."""

    layer: str
    dim: int
    live: LiveTeacher

    def describe(self) -> dict[str, Any]:
        """Which tensor it is; part of a store's identity."""
        return {"layer": self.layer, "dim": self.dim}


def embedding_of(teacher: Teacher, size: int) -> Embedding:
    """The embedding of a teacher: the input of its last linear layer.

    Args:
        size: of the views, in pixels.

    Raises:
        ModelError: a network without a linear layer, or whose last one reads no vector.
    """
    layer = embedding_name(teacher.model, "store its logits alone")
    taps = Taps(teacher.model, [layer], "--teacher")
    (shape,) = taps.shapes(teacher.model, teacher.norm.size or size)
    if len(shape) != 1:
        raise ModelError(
            f"{teacher.name}: its last linear layer reads a tensor of shape {shape}, an embedding is a vector; store its logits alone"
        )
    return Embedding(layer=layer, dim=shape[0], live=LiveTeacher(teacher, taps))


@contextmanager
def full_fp32() -> Iterator[None]:
    """For the length of the block, products and convolutions of float32 are of float32, not of TF32 or bfloat16, so that
    logits do not depend on the kind of processor more than they must."""
    changed = [(owner, name, getattr(owner, name), full) for owner, name, full in _float32_settings()]
    changed = [setting for setting in changed if setting[2] not in ("none", setting[3])]
    for owner, name, _, full in changed:
        setattr(owner, name, full)
    try:
        yield
    finally:
        for owner, name, before, _ in changed:
            setattr(owner, name, before)


def _float32_settings() -> list[tuple[Any, str, Any]]:
    """Where the installed torch keeps the precision of float32: owner, attribute, and its value in full precision.

    Since 2.9 each kind of operation has a setting of its own, and to read the two of before fails where they contradict it.
    """
    matmul, cudnn, mkldnn = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.mkldnn  # type: Any, Any, Any
    if not hasattr(matmul, "fp32_precision"):
        return [(owner, "allow_tf32", False) for owner in (matmul, cudnn)]
    return [(owner, "fp32_precision", "ieee") for owner in (matmul, cudnn.conv, mkldnn.matmul, mkldnn.conv)]


def load_teacher(
    spec: str,
    *,
    model_name: str | None = None,
    norm: str | None = None,
    size: int | None = None,
    precision: str = "fp32",
    num_classes: int | None = None,
    device: torch.device | str = "cpu",
    options: tuple[str, str, str] = ("--teacher", "--teacher-model", "--teacher-norm"),
    ema_weights: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Teacher:
    """Loads a teacher (or any network to evaluate).

    Args:
        spec: path of a checkpoint or of the folder of a run, or a torchvision / `timm:` name for published weights.
        model_name: the network, where the checkpoint does not say.
        norm: preset or `M,M,M/S,S,S`; None for what the checkpoint or the published weights say.
        size: input size in pixels; the view is resized to it. None for the view's own size.
        num_classes: the classes that it must have.
        options: the options that spec, model_name and norm came from, for messages.
        ema_weights, log: as for `read_checkpoint`.

    Raises:
        NotFoundError, UnfinishedError, FormatError, CorruptError, ModelError, MissingDependencyError: as `load_model`,
            `pretrained`.
        OptionError: an unknown precision; averaged weights of a published network; a checkpoint that does not say its normalisation, and none given.
    """
    if precision not in PRECISIONS:
        raise OptionError(f"precision {precision!r}, expected one of {', '.join(PRECISIONS)}")
    if Path(spec).exists() or "/" in spec or Path(spec).suffix:
        model, meta = load_model(
            spec, model_name, num_classes, name_option=options[1], ema_weights=ema_weights, log=log
        )
        found, name = norm_of(meta, size), canonical_name(str(model_name or meta["model"]))
        num_outputs = count_classes(name, model.state_dict())
    else:
        if ema_weights:
            raise OptionError(
                f"--ema-weights: {options[0]} {spec} is a published network, which has one set of weights"
            )
        model, meta = pretrained(spec)
        found, name = Norm(meta["mean"], meta["std"], size), str(meta["model"])
        num_outputs = meta["num_classes"]
        if num_classes not in (None, meta["num_classes"]):
            raise MismatchError(f"{options[0]} {spec}: {meta['num_classes']} classes, the data has {num_classes}")
    if norm is not None:
        found = parse_norm(norm, options[2], size)
    if found is None:
        raise OptionError(
            f"{spec}: does not say how its inputs were normalised: give {options[2]} cifar, imagenet or M,M,M/S,S,S"
        )
    device = torch.device(device)
    model = model.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    return Teacher(
        model=model,
        name=name,
        fingerprint=weights_fingerprint(model),
        norm=found,
        precision=precision,
        device=device,
        classes=Classes(where=spec, count=num_outputs, names=said_names(meta)),
        about=about_network(model, meta),
        view_size=(meta.get("params") or {}).get("val_size") or meta.get("size"),
    )


ALL_SAMPLES = {"method": "all", "fraction": 1.0}
"""What is recorded of the mask of a run without one."""

_OF_MASK = ("method", "seed", "score", "level", "balance", "fraction", "fingerprint", "of")


def about_network(model: nn.Module, meta: dict[str, Any]) -> dict[str, Any]:
    """Where a network comes from, as far as its checkpoint says.

    Args:
        meta: of the checkpoint; {} for files of others.

    Returns:
        num_parameters; val_top1, its accuracy in percent, or None; `mask`, what it was trained on (method, fraction, …), or
        None. Checkpoints of before say of that the fraction alone, or that there was no mask. `epoch`, of weights that a run
        kept on its way: after how many. `training`, of a student of fastkd's: a digest of all that it was trained with but seeds.
    """
    params, inputs, mask = (meta.get(name) or {} for name in ("params", "inputs", "about"))
    mask = mask.get("mask")
    if mask is None and "fraction" in params:
        mask = {"method": None, "fraction": params["fraction"]} if "mask" in inputs else ALL_SAMPLES
    about = {
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "val_top1": meta.get("val_top1"),
        "mask": mask and {name: mask[name] for name in _OF_MASK if name in mask},
        **({"epoch": meta["epoch"]} if "epoch" in meta else {}),
    }
    return about | ({"training": _training_digest(meta)} if "recipe" in params and mask else {})


def _training_digest(meta: Mapping[str, Any]) -> str:
    """What a network was trained with; equal for two that differ in seeds alone, their own or those of their random masks."""
    recipe = {name: value for name, value in meta["params"]["recipe"].items() if name != "seed"}
    about = meta.get("about") or {}
    mask = without_seeds(about.get("mask") or {})
    inputs = {role: digest for role, digest in meta.get("inputs", {}).items() if role != "mask"}
    told = [meta["params"] | {"recipe": recipe}, inputs, mask, about.get("teacher"), meta.get("epoch")]
    return fingerprint([json.dumps(told, sort_keys=True)])
