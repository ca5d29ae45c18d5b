"""Options of `fastkd train` on how long, how fast and by which updates it learns; and recipes, which are values of options."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fastkd.cli.common import say
from fastkd.cli.config import suggest
from fastkd.cli.numbers import MOST_EPOCHS, Real
from fastkd.cli.options import option_list
from fastkd.train.recipes.named import NAMED, read_named
from fastkd.train.recipes.update import SCHEDULES

if TYPE_CHECKING:
    from fastkd.train.recipe import Recipe


def _load_recipe(context: click.Context, option: click.Parameter, name: str | None) -> str | None:
    """--recipe: its values become defaults, below those of --config."""
    if name is not None:
        values, _ = read_named(name)
        if (context.default_map or {}).get("steps") is not None:  # of a file, which goes before the recipe
            del values["epochs"]
        suggest(context, values)
    return name


def _one_length(context: click.Context, option: click.Parameter, value: int | None) -> int | None:
    """A callback for --epochs and --steps: the one that is typed takes the place of the other's default in a file or a recipe."""
    other = "steps" if option.name == "epochs" else "epochs"
    typed = ParameterSource.COMMANDLINE
    is_typed = context.params.get(other) is not None and context.get_parameter_source(other) is typed
    own = context.get_parameter_source(option.name or "")
    return None if is_typed and own is not typed else value


schedule_options = option_list(
    click.option(
        "--recipe",
        type=click.Choice(NAMED),
        is_eager=True,
        callback=_load_recipe,
        help="Values for the options below and of views, of a published recipe; --dump-config shows them, flags override them.",
    ),
    click.option("--epochs", type=int, callback=_one_length, help="Passes over the kept samples.  [default: 240]"),
    click.option(
        "--steps",
        type=int,
        callback=_one_length,
        help="Updates in all, in place of --epochs; the last epoch may be cut.",
    ),
    click.option(
        "--batch-size",
        type=int,
        help="Samples a step on each process; a run that goes on with more or fewer processes shares out its first total.  [default: 64; 128 with rrc]",
    ),
    click.option(
        "--accumulate",
        type=int,
        default=1,
        show_default=True,
        help="Batches of an update: their gradients are averaged over the samples.",
    ),
    click.option("--opt", metavar="sgd|adamw|timm:NAME", help="The optimizer.  [default: sgd]"),
    click.option("--lr", type=float, help="Learning rate.  [default: 0.05; 0.1 with rrc; 0.001 with adamw]"),
    click.option("--momentum", type=float, help="Of SGD.  [default: 0.9]"),
    click.option("--nesterov", is_flag=True, help="Nesterov's momentum, of SGD."),
    click.option("--betas", metavar="B1,B2", help="Of AdamW.  [default: 0.9,0.999]"),
    click.option("--eps", type=float, help="Of AdamW.  [default: 1e-8]"),
    click.option("--weight-decay", type=float, help="Weight decay.  [default: 0.0005; 0.05 with adamw]"),
    click.option("--no-decay", metavar="norm,bias", help="Parameters without weight decay: of norms, biases."),
    click.option(
        "--layer-decay",
        type=float,
        default=1.0,
        show_default=True,
        help="Rate of a layer over that of the next one.",
    ),
    click.option("--clip-grad", type=float, metavar="NORM", help="The largest norm of all gradients together."),
    click.option(
        "--schedule",
        type=click.Choice(SCHEDULES),
        help="Of the learning rate.  [default: step; cosine with rrc or adamw]",
    ),
    click.option(
        "--milestones", metavar="E,F,…", help="Of step: epochs.  [default: 150, 180 and 210 of 240, in proportion]"
    ),
    click.option("--gamma", type=float, help="Of step: the factor at each milestone.  [default: 0.1]"),
    click.option(
        "--warmup-epochs",
        type=float,
        default=0.0,
        show_default=True,
        help="In which the rate rises in a straight line; part of the whole length.",
    ),
    click.option(
        "--min-lr", type=float, default=0.0, show_default=True, help="At the end of cosine, linear and cyclic."
    ),
    click.option(
        "--per-step", is_flag=True, help="A new rate each step, not each epoch; so it is with --steps, warm-up, cyclic."
    ),
    click.option("--ema-warmup", is_flag=True, help="With --ema: a decay of at most (1 + t)/(10 + t) after t updates."),
    click.option("--drop-path", type=Real(0, 1, max_open=True), help="Stochastic depth.  [default: the network's own]"),
    click.option("--dropout", type=Real(0, 1, max_open=True), help="Dropout.  [default: the network's own]"),
)

order_options = option_list(
    click.option("--drop-last", is_flag=True, help="Leave out the last batch of an epoch where it is not full."),
    click.option(
        "--order",
        type=click.Choice(["shuffle", "pages"]),
        default="shuffle",
        show_default=True,
        help="Of the samples in an epoch: uniform, or page by page for a BETON larger than memory.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Of initial weights and order."),
)

keep_option = click.option(
    "--keep-every",
    type=click.IntRange(1, MOST_EPOCHS),
    metavar="N",
    help="Keep the weights after every Nth epoch, as epoch-….safetensors, e.g. for teachers that are not trained to the end.",
)


def say_recipe(name: str | None, options: Mapping[str, Any], num_ranks: int) -> None:
    """Says what fastkd does not do of a named recipe, and where its learning rate meets updates of other sizes than its own."""
    if name is None:
        return
    own, left_out = read_named(name)
    if left_out:
        say(f"train: --recipe {name} is its source's but for: {left_out}")
    samples = options["batch_size"] * options["accumulate"] * num_ranks
    own_samples = own["batch-size"] * own.get("accumulate", 1)
    if options["lr"] == own["lr"] and samples != own_samples:
        say(
            f"train: lr {own['lr']:g} is the recipe's for {own_samples:,} samples an update, here are {samples:,}; a good one for them is "
            f"likely {'lower' if samples < own_samples else 'higher'}: --lr"
        )


def describe_update(recipe: "Recipe") -> str:
    """What of a recipe's updates is not as by default, in a line; empty where all is."""
    told = []
    if recipe.opt != "sgd":
        told.append(f"{recipe.opt}, weight decay {recipe.weight_decay:g}")
    told += ["Nesterov"] if recipe.nesterov else []
    if recipe.no_decay:
        told.append(f"none on {' and '.join(recipe.no_decay)}")
    if recipe.accumulate > 1:
        told.append(f"{recipe.accumulate} batches of {recipe.batch_size} an update")
    words = {"warmup_epochs": "warm-up {:g} epochs", "min_lr": "down to {:g}", "layer_decay": "layer decay {:g}"}
    words |= {"clip_grad": "gradients clipped to {:g}", "drop_path": "drop path {:g}", "dropout": "dropout {:g}"}
    plain = {"warmup_epochs": 0, "min_lr": 0, "layer_decay": 1}
    told += [
        text.format(value)
        for name, text in words.items()
        if (value := getattr(recipe, name)) not in (None, plain.get(name))
    ]
    for name, points in (("alpha", recipe.alpha_course), ("tau", recipe.tau_course)):
        if points:
            told.append(f"{name} along {', '.join(f'{x:g}: {value:g}' for x, value in points)} of training")
    return ", ".join(told)
