"""Options that several commands have, and what is made of them."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from fastkd.agree import agree
from fastkd.cli.common import say
from fastkd.cli.numbers import MOST_PREFETCH, MOST_SIZE, MOST_WORKERS, Real
from fastkd.data.beton.fields import Fields
from fastkd.errors import OptionError

if TYPE_CHECKING:
    import numpy as np

    from fastkd.data.beton.dataset import Dataset
    from fastkd.dist import World
    from fastkd.models.classes import Classes, ClassMap
    from fastkd.teacher.network import Teacher


def option_list(*options: Callable[[Callable], Callable]) -> Callable[[Callable], Callable]:
    """One decorator that declares several options, in this order."""
    return lambda function: functools.reduce(lambda f, declare: declare(f), reversed(options), function)


device_options = option_list(
    click.option(
        "--num-workers",
        type=click.IntRange(0, MOST_WORKERS),
        default=0,
        help="Loader threads; 0 for one a CPU.  [default: 0]",
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
)

loader_options = option_list(
    device_options,
    click.option(
        "--prefetch",
        type=click.IntRange(1, MOST_PREFETCH),
        default=3,
        show_default=True,
        help="Batches made ahead, at least; the memory that takes is said at the start.",
    ),
)

_field_options = option_list(
    click.option(
        "--image-field", metavar="NAME", help="Its field of images.  [default: image, or the only one of RGB images]"
    ),
    click.option(
        "--label-field", metavar="NAME", help="Its field of classes.  [default: label, or the only one of integers]"
    ),
)


def field_options(function: Callable) -> Callable:
    """Declares --image-field and --label-field, for betons that fastkd did not write; the function gets `fields`."""

    @functools.wraps(function)
    def run(*, image_field: str | None, label_field: str | None, **options: Any) -> Any:
        return function(fields=Fields(image_field, label_field), **options)

    return _field_options(run)


def refuse_idle_fields(fields: Fields, has_beton: bool, where: str) -> None:
    """Refuses names of fields where no beton is opened.

    Raises:
        OptionError: says `where` a beton would come from.
    """
    for role in ("image", "label"):
        if getattr(fields, role) is not None and not has_beton:
            raise OptionError(f"--{role}-field {getattr(fields, role)} does nothing without {where}")


view_options = option_list(
    click.option(
        "--views",
        type=click.Choice(["crop-flip", "rrc", "center"]),
        help="Which views.  [default: crop-flip for small images of one size, else rrc]",
    ),
    click.option(
        "--size",
        type=click.IntRange(1),
        help="Side of a view in pixels.  [default: the images' own for crop-flip, else 224]",
    ),
    click.option(
        "--num-seeds",
        type=click.IntRange(1, 2**31 - 1),
        help="Views of a sample, K.  [default: 162 for crop-flip, 50 for rrc]",
    ),
    click.option(
        "--mix",
        type=click.Choice(["cutmix", "mixup"]),
        help="Mix each view with that of another kept sample; a store says it itself.",
    ),
    click.option(
        "--mix-alpha", type=Real(1e-3, 1000), help="The own image's share is of Beta(alpha, alpha).  [default: 1]"
    ),
)

class_map_option = click.option(
    "--class-map",
    metavar="FILE|same-order",
    help='Which class is which, where names do not tell: TOML lines "ours" = "theirs" or a number; or by their numbers.',
)


def match_outputs(
    data: "Classes", network: "Classes", class_map: "ClassMap | None", *, one_order: str = "", way_out: str = ""
) -> "np.ndarray | None":
    """The outputs of a network for labels of data, see `match_classes`, whose line is said."""
    from fastkd.models.classes import match_classes

    outputs, line = match_classes(data, network, class_map, one_order=one_order, way_out=way_out)
    if line:
        say(line)
    return outputs


outputs_option = click.option(
    "--outputs",
    default="logits",
    show_default=True,
    metavar="logits[,embedding]",
    help="What is stored of the teacher; embedding: the input of its last linear layer, in float16.",
)


def _known_codec(context: click.Context, option: click.Parameter, name: str) -> str:
    """Usage that names no codec is told before anything is opened; the table is not read for the help, as it imports Numba."""
    if name != "auto":
        from fastkd.store.codec import CODECS

        if name not in CODECS:
            raise click.BadParameter(f"{name!r} is not one of auto, {', '.join(CODECS)}.", context, option)
    return name


codec_option = click.option(
    "--codec",
    callback=_known_codec,
    default="auto",
    show_default=True,
    metavar="NAME",
    help="How a row is stored: fp16, int8+top4, int4+top8; auto is fp16 up to 64 classes, else int8+top4.",
)


def parse_outputs(text: str) -> bool:
    """Whether --outputs names the embedding, besides the logits that every store has."""
    names = sorted(name.strip() for name in text.split(","))
    if names not in (["logits"], ["embedding", "logits"]):
        raise click.BadParameter(f"{text!r}, expected logits or logits,embedding", param_hint="--outputs")
    return len(names) > 1


ema_option = click.option(
    "--ema-weights",
    is_flag=True,
    help="Take a checkpoint's averaged weights (model_ema and the like) where it has both.",
)

teacher_options = option_list(
    click.option("--teacher-model", metavar="NAME", help="Its network, where the checkpoint does not say."),
    click.option(
        "--teacher-norm",
        metavar="NORM",
        help="cifar, imagenet, none or M,M,M/S,S,S, where the checkpoint does not say.",
    ),
    click.option(
        "--teacher-size", type=click.IntRange(1, MOST_SIZE), help="Its input size in pixels; views are resized to it."
    ),
    click.option(
        "--teacher-precision",
        type=click.Choice(["fp32", "bf16", "fp16", "auto"]),
        default="fp32",
        show_default=True,
        help="Its arithmetic, part of a store's identity; auto: bf16 where the device computes in it, else fp32.",
    ),
    ema_option,
)
"""What loads a teacher besides --teacher itself."""


def match_teacher(
    teacher: str, options: dict[str, Any], dataset: "Dataset", device: str, class_map: "ClassMap | None"
) -> "Teacher":
    """The teacher, as `open_teacher` gives it, whose outputs are the classes of a dataset in their order."""
    network = open_teacher(teacher, options, None, device)
    one_order = (
        "a teacher's logits are taken in its own order: give a teacher of these classes in this order, or build the beton "
        "with `fastkd build-beton --classes FILE`, a list of the teacher's classes"
    )
    match_outputs(dataset.classes, network.classes, class_map, one_order=one_order)
    return network


def open_teacher(teacher: str, options: dict[str, Any], num_classes: int | None, device: str) -> "Teacher":
    """The teacher that --teacher and its options name; takes its options out of `options`."""
    from fastkd.teacher.network import load_teacher

    names = {name: options.pop(f"teacher_{name}") for name in ("model", "norm", "size", "precision")}
    return load_teacher(
        teacher,
        model_name=names["model"],
        norm=names["norm"],
        size=names["size"],
        precision=names["precision"],
        num_classes=num_classes,
        device=device,
        ema_weights=options.pop("ema_weights"),
        log=say,
    )


def take_precision(asked: str, option: str, device: str, world: "World", begun: str | None = None) -> str:
    """The precision that `asked` comes to: `auto` is that of what is there already, if something is, else what suits the device.

    Args:
        begun: the precision with which the output was begun, or the store was filled; None where nothing is there.

    Raises:
        MismatchError: devices of the ranks that it differs on.
    """
    from fastkd.teacher.precision import auto_precision

    if asked != "auto":
        return asked
    taken, reason = (begun, "what is there was begun with it") if begun else auto_precision(device)
    agree(world, {f"{option} auto": taken})
    say(f"{option} auto takes {taken}: {reason}")
    return taken


def refuse_idle(options: dict[str, Any], partner: str, given: object) -> None:
    """Refuses options that do nothing where another one is not given.

    Raises:
        OptionError: one of them was given, and its partner was not.
    """
    idle = [name for name, value in options.items() if value not in (None, False, "fp32")]
    if idle and not given:
        raise OptionError(f"--{idle[0].replace('_', '-')} does nothing without --{partner}")
