"""What is trained: the student, with the parts that a distillation method adds to it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastkd.data.batch import Batch
from fastkd.data.order import num_in_batch
from fastkd.dist import World
from fastkd.distil.methods import LOGIT_LOSSES, METHODS, Context, choose_layers, teacher_needed
from fastkd.errors import OptionError
from fastkd.feed.loader import Loader
from fastkd.feed.resident import Resident
from fastkd.models.fitting import require_size
from fastkd.models.norm import PRESETS, Norm
from fastkd.models.registry import create_model
from fastkd.models.sync_norm import synchronise_norms
from fastkd.models.taps import Taps, embedding_name, stage_names
from fastkd.teacher.network import LiveTeacher, Teacher
from fastkd.teacher.precision import PRECISIONS
from fastkd.train.parts.forward import forward
from fastkd.train.parts.microbatches import num_parts
from fastkd.train.recipe import Recipe


class Learner(nn.Module):
    """The student and its method as one module, so that one wrapper and one optimiser hold both.

    model: the network. method: None without one; taps: what it looks at in the network. precision: of the network's
    forward pass; None for float32. norm: of its inputs, which the run sets. network: `network_logits`, or that compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        method: nn.Module | None = None,
        taps: Taps | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.model, self.method, self.taps, self.precision = model, method, taps, precision
        self.norm = Norm(*PRESETS["none"])
        self.network: Callable[..., Tensor] | None = None

    def described(self, recipe: Recipe) -> dict[str, Any]:
        """A recipe as JSON, with the version of the method's formula for these layers, where it is not the first."""
        version = getattr(self.method, "version", 1)
        return recipe.describe() | ({"kd_version": version} if version > 1 else {})

    def forward(
        self,
        images: Tensor,
        batch: Batch,
        teacher_layers: list[Tensor],
        step: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of images uint8 (B, 3, H, W) the logits (B, C) float32, the method's term R, and the term that its own parts learn
        from; 0 without a method."""
        logits_BC = forward(self.model, images, self.norm, self.precision, self.network)
        if self.method is None or self.taps is None:
            nothing = torch.zeros((), device=logits_BC.device)
            return logits_BC, nothing, nothing
        layers = [tensor.float() for tensor in self.taps.take()]
        own, parts = self.method(layers, teacher_layers, labels=batch.labels, sample_ids=batch.sample_ids, step=step)
        return logits_BC, own, parts


def make_learner(
    recipe: Recipe,
    loader: Loader | Resident,
    teacher: Teacher | None,
    world: World = World(),  # noqa: B008  (frozen)
) -> tuple[Learner, LiveTeacher | None]:
    """The student with fresh weights and its method, on the loader's device; and the teacher with its taps.

    Draws from torch's global generator, which the caller seeds: the student first, so that its weights do not depend on
    the method.

    Raises:
        OptionError: a method with neither a teacher nor a store's embeddings, an unknown layer, layers that do not pair up.
        ModelError: a network that cannot be made, cannot take the views or has nothing to look at.
    """
    num_classes = loader.dataset.num_classes
    if loader.views.mix is not None and (LOGIT_LOSSES | METHODS)[recipe.kd].one_label:
        raise OptionError(
            f"--kd {recipe.kd} goes by one label a sample, mixed images have two: leave --mix out, or use another"
        )
    model = create_model(recipe.model, num_classes, drop_path=recipe.drop_path, dropout=recipe.dropout)
    model = model.to(loader.device).to(memory_format=torch.channels_last)
    _require_runs(recipe, model, loader, world)
    if teacher is not None:
        size = teacher.norm.size or loader.views.size
        require_size(teacher.model, teacher.name, size, "give --teacher-size, or views of another --size")
    is_global = recipe.sync_bn and world.size > 1
    if is_global:
        model = synchronise_norms(model, loader.device.type)
    precision = PRECISIONS.get(recipe.amp)
    if recipe.kd not in METHODS:
        return Learner(model, precision=precision), LiveTeacher(teacher, None) if teacher is not None else None
    own, size = _taps(recipe.kd, model, recipe.layers, "--layers"), loader.views.size
    live = None
    if teacher is not None:
        its = _taps(recipe.kd, teacher.model, recipe.teacher_layers or recipe.layers, "--teacher-layers")
        live, its_names = LiveTeacher(teacher, its), its.names
        its_shapes = its.shapes(teacher.model, teacher.norm.size or size)
    elif loader.embeddings is not None:
        its_names = ("embedding",)
        its_shapes = [(loader.embeddings.width,)]
    else:
        raise teacher_needed(recipe.kd)
    shapes = own.shapes(model, size), its_shapes
    if len(shapes[0]) != len(shapes[1]):
        raise OptionError(
            f"--kd {recipe.kd}: {len(own.names)} layers of the student ({', '.join(own.names)}) and {len(its_names)} of the "
            f"teacher ({', '.join(its_names)}): name as many of each with --layers and --teacher-layers"
        )
    if recipe.kd == "crd" and world.size > 1:
        raise OptionError(f"--kd crd keeps a memory of all samples in one process, found {world.size} ranks; use one")
    wanted = 1 if METHODS[recipe.kd].layers == "embedding" else 3
    for names, found_shapes in ((own.names, shapes[0]), (its_names, shapes[1])):
        for name, shape in zip(names, found_shapes, strict=True):
            if len(shape) != wanted:
                kind = "vectors" if wanted == 1 else "feature maps"
                raise OptionError(f"--kd {recipe.kd} looks at {kind}, layer {name} is of shape {shape}: choose another")
    ids = torch.from_numpy(loader.ids)
    labels = torch.from_numpy(loader.beton.labels[loader.ids].astype("int64"))
    context = Context(num_samples=len(ids), sample_ids=ids, labels=labels, seed=recipe.seed)
    method = METHODS[recipe.kd].make(*shapes, context).to(loader.device)
    if is_global:
        method = synchronise_norms(method, loader.device.type)
    return Learner(model, method, own, precision), live


def _require_runs(recipe: Recipe, model: nn.Module, loader: Loader | Resident, world: World) -> None:
    """Refuses views that the student cannot take, and a batch that it cannot normalise."""
    size = loader.views.size
    single = require_size(model, recipe.model, size, "give another --size, or another --model")
    if recipe.resize_from is not None:
        single += require_size(model, recipe.model, recipe.resize_from, "give a larger --resize-from")
        if not recipe.resize_start < recipe.resize_by <= recipe.epochs:
            raise OptionError(
                f"--resize-from {recipe.resize_from} grows from epoch {recipe.resize_start:g} to {recipe.resize_by:g} of {recipe.epochs}: "
                f"expected --resize-start below --resize-end, and that within the run"
            )
    last = num_in_batch(len(loader.ids), len(loader) - 1, global_batch=loader.global_batch)
    of_rank = [(num_parts(recipe, num, world.size), num // world.size) for num in (loader.global_batch, last)]
    smallest = max(1, min(num // parts for parts, num in of_rank))
    if single and smallest == 1 and not (recipe.sync_bn and world.size > 1):
        raise OptionError(
            f"{recipe.model}: {single[0]} gets one value a channel from an image of {size} pixels, which the last batch of an "
            f"epoch, one sample on a rank, cannot be normalised by: use --drop-last or another --batch-size"
        )


def _taps(kd: str, model: nn.Module, given: Sequence[str], option: str) -> Taps:
    return Taps(model, choose_layers(kd, stage_names(model), lambda: embedding_name(model), given), option)
