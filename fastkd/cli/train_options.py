"""Options of `fastkd train` alone, what their texts mean, and what they come to, in a line."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastkd.cli.common import say
from fastkd.cli.config import NumberText
from fastkd.cli.numbers import MOST_EPOCHS, MOST_SIZE, Real
from fastkd.cli.options import match_outputs, option_list, refuse_idle
from fastkd.errors import OptionError
from fastkd.train.recipes.lines import parse_course

if TYPE_CHECKING:
    from fastkd.data.beton.dataset import Dataset
    from fastkd.models.classes import ClassMap
    from fastkd.models.init import Init
    from fastkd.scoring.recording import Record
    from fastkd.train.inputs import RunInputs
    from fastkd.train.recipe import Recipe


def _number_or(*words: str, lines: bool = False) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """A callback that takes a number, a word or, with `lines`, lines such as 0:1,0.5:0.5; what else is a usage error."""
    told = " nor ".join([*words, *(["lines such as 0:1,0.5:0.5"] if lines else [])])

    def check(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
        if value is not None and value not in words:
            try:
                if lines and ":" in value:
                    parse_course(value, str(option.name))
                else:
                    float(value)
            except OptionError as error:
                raise click.BadParameter(str(error), context, option) from None
            except ValueError:
                raise click.BadParameter(f"{value!r} is neither a number nor {told}.", context, option) from None
        return value

    return check


_STATES = re.compile(r"([1-9][0-9]{0,8})( ?epochs?)?")


def states_every(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A callback for --checkpoint-every; what `parse_states` cannot read is a usage error."""
    if value is not None and not _STATES.fullmatch(value):
        raise click.BadParameter(
            f"{value!r} is not in the range of steps, 1 … 999999999, nor a number of epochs, e.g. 10epochs.",
            context,
            option,
        )
    return value


def parse_states(text: str | None) -> dict[str, int]:
    """When states are written, as `train` takes it: steps between those within an epoch, or epochs between those after epochs."""
    found = _STATES.fullmatch(text or "")
    if found is None:
        return {}
    return {"checkpoint_epochs" if found[2] else "checkpoint_every": int(found[1])}


loss_options = option_list(
    click.option(
        "--kd",
        default="kd",
        show_default=True,
        metavar="METHOD",
        help="kd, dkd, dist, mlld, ttm, wttm: (1-alpha) CE + alpha KD. at, ft, sp, hint, vid, nst, ab, fsp with a live --teacher, rkd, pkt, cc, crd with one or "
        "a store's embeddings: CE + alpha KD + beta R.",
    ),
    click.option(
        "--alpha",
        type=NumberText(),
        callback=_number_or("auto", lines=True),
        metavar="X|auto|LINES",
        help="Weight of KD, 0 to 1; auto: by the kept fraction; 0:1,0.5:0.5,…: lines over the fraction of training that is done.  "
        "[default: 0.5, 1 with an R, 0 without a teacher]",
    ),
    click.option("--alpha-rule", metavar="F:X,…", help="Lines that auto follows.  [default: 0.1:1,0.7:0.5]"),
    click.option(
        "--beta",
        type=NumberText(),
        callback=_number_or("native"),
        metavar="X|native",
        help="Weight of R, or of what dkd, dist, mlld add; native: RepDistiller's.  [default: 1; dkd 8]",
    ),
    click.option(
        "--layers", metavar="A,B,…", help="Modules that R compares.  [default: the stages, or the head's input]"
    ),
    click.option("--teacher-layers", metavar="A,B,…", help="The teacher's, where they have other names."),
    click.option(
        "--label-smoothing", type=float, default=0.0, show_default=True, help="Share of labels spread over all classes."
    ),
    click.option(
        "--tau",
        type=NumberText(),
        callback=_number_or(lines=True),
        metavar="X|LINES",
        help="Temperature of distillation; lines as of --alpha.  [default: 4]",
    ),
    click.option(
        "--tau-squared/--no-tau-squared",
        default=True,
        show_default=True,
        help="Multiply the distillation loss by tau squared.",
    ),
    click.option(
        "--standardise-logits", is_flag=True, help="With kd, dkd, dist: distil the Z-scores of each sample's logits."
    ),
)

step_options = option_list(
    click.option("--sync-bn", is_flag=True, help="Batch norms over the samples of all processes."),
    click.option(
        "--amp",
        type=click.Choice(["off", "bf16", "fp16", "auto"]),
        default="off",
        show_default=True,
        help="The student's arithmetic; auto: bf16 where the device computes in it, else off.",
    ),
    click.option(
        "--compile", "compiled", is_flag=True, help="Run the student through torch.compile; CUDA graphs on a GPU."
    ),
    click.option("--ema", type=float, default=0.0, metavar="DECAY", help="Measure and save an average of the weights."),
    click.option(
        "--resize-from", type=int, metavar="PIXELS", help="Grow the student's input from this size to the view's."
    ),
    click.option(
        "--resize-start",
        type=Real(0, MOST_EPOCHS),
        default=0.0,
        show_default=True,
        help="With --resize-from: epochs before it grows.",
    ),
    click.option(
        "--resize-end",
        type=Real(0, MOST_EPOCHS, min_open=True),
        help="With --resize-from: epochs after which it has the view's size.  [default: 80 % of all]",
    ),
    click.option(
        "--resident",
        type=click.Choice(["auto", "on", "off"]),
        default="auto",
        show_default=True,
        help="Decode once and cut the views on the device; auto: on a GPU whose memory holds the data.",
    ),
)

val_options = option_list(
    click.option("--val", type=click.Path(path_type=Path), help="Beton to measure accuracy on."),
    click.option(
        "--val-every",
        type=click.IntRange(1, MOST_EPOCHS),
        default=1,
        show_default=True,
        help="Epochs between measurements; the last is always measured.",
    ),
    click.option(
        "--val-size",
        type=click.IntRange(1, MOST_SIZE),
        help="Side of the centre crop of --val, in pixels.  [default: that of the views]",
    ),
)

record_options = option_list(
    click.option(
        "--record", metavar="SCORES", help="Of forgetting,el2n,aum,dual: recorded on the way, into scores.h5."
    ),
    click.option(
        "--never-learned",
        type=click.Choice(["total", "infinite", "zero"]),
        help="forgetting of samples that never are: epochs, infinity or 0.  [default: total]",
    ),
    click.option("--dual-window", type=click.IntRange(2, MOST_EPOCHS), help="dual: epochs of a window.  [default: 10]"),
    click.option(
        "--el2n-epochs",
        type=click.IntRange(1, MOST_EPOCHS),
        help="el2n: the first epochs, whose mean it is.  [default: 10]",
    ),
)


def parse_recorded(text: str | None, **options: Any) -> "Record | None":
    """What is to be recorded, if anything is."""
    from fastkd.scoring.recording import parse_record

    refuse_idle({{"window": "dual_window"}.get(name, name): value for name, value in options.items()}, "record", text)
    if text is None:
        return None
    return parse_record(text, **options)


def open_init(
    path: Path,
    model_name: str,
    dataset: "Dataset",
    class_map: "ClassMap | None",
    *,
    reset_head: bool,
    ema_weights: bool,
) -> "Init":
    """The weights that --init names; of the classes of a dataset in their order, unless the head is reset."""
    from fastkd.models.init import load_init

    start = load_init(path, model_name, dataset.num_classes, reset_head=reset_head, ema_weights=ema_weights, log=say)
    if not reset_head:
        anew = "with --reset-head the last layer starts anew"
        match_outputs(dataset.classes, start.classes, class_map, one_order=anew, way_out=anew)
    return start


def parse_names(text: str | None) -> tuple[str, ...] | None:
    """Names with commas between them; None where there are none."""
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else None


def headline(recipe: "Recipe", inputs: "RunInputs") -> str:
    """What is about to be trained, and with which loss."""
    from fastkd.distil.methods import LOGIT_LOSSES, METHODS

    loader, views = inputs.loader, inputs.loader.views
    mixed = "" if views.mix is None else f" with {views.mix.kind} {views.mix.alpha:g}"
    loss = "labels alone"
    if recipe.alpha > 0 and (inputs.teacher is not None or loader.logits is not None):
        both = "the store, embeddings too" if loader.embeddings is not None else "the store"
        source = both if inputs.teacher is None else f"{inputs.teacher.name}, live"
        own = recipe.kd if recipe.kd in LOGIT_LOSSES else "kd"
        square = "times tau², " if recipe.tau_squared else "not times tau², "
        added = f", beta {recipe.beta:g}" if LOGIT_LOSSES[own].beta else ""
        loss = (
            f"alpha {recipe.alpha:g}{added}, tau {recipe.tau:g}, {own.upper()} {square if LOGIT_LOSSES[own].squares else ''}"
            f"{'standardised ' if recipe.standardise_logits else ''}logits from {source}"
        )
    if recipe.kd in METHODS:
        loss = f"CE + {recipe.alpha:g}·KD + {recipe.beta:g}·{recipe.kd.upper()}; {loss}"
    length = f"{recipe.epochs} epochs" if recipe.steps is None else f"{recipe.steps} steps, in epochs"
    return (
        f"train: {recipe.model} on {len(loader.ids):,} samples, {views.kind} {views.size}{mixed}, K = {views.num_seeds}; {loss}; "
        f"{length} of {len(loader)} steps of {loader.global_batch}, lr {recipe.lr:g} ({recipe.schedule}); "
        f"{loader.describe()}"
    )
