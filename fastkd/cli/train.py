"""`fastkd train`."""

from pathlib import Path
from typing import Any

import click

from fastkd.cli.common import (
    command,
    compute,
    device_options,
    make_views,
    open_teacher,
    progress_bar,
    say,
    teacher_options,
    view_options,
)

_RECIPE = "--recipe of the views: crop-flip 64, 0.05, step; rrc 128, 0.1, cosine"


@command("train")
@click.argument("beton", type=click.Path(path_type=Path))
@click.option("--mask", type=click.Path(path_type=Path), help="Samples to train on.  [default: all]")
@click.option("--logits", type=click.Path(path_type=Path), help="Store with the teacher's logits.")
@click.option(
    "--teacher", metavar="T", help="Teacher to run live where there is no store; with one, it must be the store's."
)
@teacher_options
@click.option(
    "--model",
    required=True,
    metavar="NAME",
    help="The student: resnet8 … resnet110, wrn_40_2, a torchvision or timm: name.",
)
@click.option("--val", type=click.Path(path_type=Path), help="Beton to measure accuracy on.")
@click.option(
    "--val-every",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Epochs between measurements; the last is always measured.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the run; resumes one that is there."
)
@click.option("--epochs", type=int, default=240, show_default=True, help="Passes over the kept samples.")
@click.option("--batch-size", type=int, help="Samples a step on each process.  [default: 64; 128 with rrc]")
@click.option("--lr", type=float, help="Learning rate.  [default: 0.05; 0.1 with rrc]")
@click.option("--momentum", type=float, default=0.9, show_default=True, help="Of SGD.")
@click.option("--weight-decay", type=float, default=5e-4, show_default=True, help="Of SGD.")
@click.option(
    "--schedule", type=click.Choice(["step", "cosine"]), help="Of the learning rate.  [default: step; cosine with rrc]"
)
@click.option(
    "--alpha", type=float, help="Weight of distillation, 0 to 1.  [default: 0.5 with a store or teacher, else 0]"
)
@click.option("--tau", type=float, default=4.0, show_default=True, help="Temperature of distillation.")
@click.option(
    "--tau-squared/--no-tau-squared",
    default=True,
    show_default=True,
    help="Multiply the distillation loss by tau squared.",
)
@click.option("--drop-last", is_flag=True, help="Leave out the last batch of an epoch where it is not full.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of initial weights and order.")
@click.option(
    "--norm",
    metavar="NORM",
    help="The student's input: cifar, imagenet, none or M,M,M/S,S,S.  [default: cifar up to 64 pixels, else imagenet]",
)
@view_options
@device_options
def train(
    beton: Path,
    mask: Path | None,
    logits: Path | None,
    teacher: str | None,
    val: Path | None,
    val_every: int,
    out: Path,
    alpha: float | None,
    norm: str | None,
    views: str | None,
    size: int | None,
    num_seeds: int | None,
    device: str,
    num_workers: int,
    **options: Any,
) -> tuple[dict[str, Any], str]:
    """Train a student on the kept samples of BETON: with a store, with a live teacher, or on labels alone.

    The loss is (1 - alpha)·CE + alpha·KD. With --alpha 0 a plain network is trained, which is how a teacher is made.
    Stopped at any moment, the same command goes on after the last finished epoch.

    \b
    fastkd train train.beton --mask m.h5 --logits l.h5 --model resnet20 --val test.beton --out run/
    """
    from fastkd.data.views import Views
    from fastkd.errors import MismatchError, OptionError
    from fastkd.feed import Loader, open_dataset, store_views
    from fastkd.models.registry import canonical_name, create_model
    from fastkd.prune.mask import Mask
    from fastkd.store.logit_store import LogitStore
    from fastkd.train.norm import parse_norm
    from fastkd.train.student import RECIPES, Recipe
    from fastkd.train.student import train as run

    with compute(device) as (world, device_name):
        dataset = open_dataset(beton)
        kept = Mask.load(mask) if mask else None
        store = LogitStore(logits) if logits else None
        if alpha is None:
            alpha = 0.5 if store is not None or teacher else 0.0
        if store is not None and (views or size or num_seeds):
            own = store_views(store)
            asked = Views(views or own.kind, size or own.size, num_seeds or own.num_seeds)
        else:
            asked = (
                store_views(store)
                if store is not None
                else make_views(dataset, views, size, num_seeds, options["epochs"])
            )
        model = canonical_name(options.pop("model"))
        chosen = {name: options.pop(name) for name in ("batch_size", "lr", "schedule")}
        flags = {
            name: options.pop(name)
            for name in ("epochs", "momentum", "weight_decay", "tau", "tau_squared", "drop_last", "seed")
        }
        own_values = {name: value for name, value in chosen.items() if value is not None}
        recipe = Recipe(model=model, alpha=alpha, **flags, **(RECIPES[asked.kind] | own_values))
        create_model(model, dataset.num_classes)  # an unknown name is told before anything is loaded
        network = open_teacher(teacher, options, dataset.num_classes, device_name) if teacher else None
        if network is not None and store is not None:
            if store.tables.header.inputs.get("teacher") != network.fingerprint:
                raise MismatchError(f"{logits}: filled by another teacher than --teacher {teacher}")
            network = None
        shared: dict[str, Any] = {"num_workers": num_workers, "device": device_name, "world": world}
        loader = Loader(
            dataset,
            asked,
            mask=kept,
            logits=store if alpha > 0 else None,
            batch_size=recipe.batch_size,
            shuffle=True,
            seed=recipe.seed,
            drop_last=recipe.drop_last,
            **shared,
        )
        inputs = {"beton": dataset.fingerprint}
        val_loader = None
        if val:
            val_data = open_dataset(val)
            if val_data.num_classes > dataset.num_classes:
                raise OptionError(f"--val {val}: {val_data.num_classes} classes, {beton} has {dataset.num_classes}")
            inputs["val"] = val_data.fingerprint
            val_loader = Loader(val_data, Views("center", asked.size), batch_size=250, **shared)
        for name, found in (
            ("mask", kept and kept.header.fingerprint),
            ("logits", store and store.tables.header.fingerprint),
        ):
            if found:
                inputs[name] = found
        if network is not None:
            inputs["teacher"] = network.fingerprint
        kd = (
            f"alpha {alpha:g}, tau {recipe.tau:g}, KD {'times' if recipe.tau_squared else 'not times'} tau²"
            if alpha
            else "labels alone"
        )
        source = "the store" if store is not None else "the live teacher"
        say(
            f"train: {model} on {len(loader.ids):,} samples, {asked.kind} {asked.size}, K = {asked.num_seeds}; {kd}"
            + (f" from {source}" if alpha else "")
            + f"; {recipe.epochs} epochs of {len(loader)} steps, lr {recipe.lr:g} ({recipe.schedule})"
        )
        fraction = len(loader.ids) / dataset.beton.num_samples
        params = {
            "views": asked.identity() | {"num_seeds": asked.num_seeds},
            "fraction": fraction,
            "num_kept": len(loader.ids),
        }
        with progress_bar("train", "steps") as progress:
            result = run(
                recipe,
                loader,
                out,
                norm=parse_norm(norm or ("cifar" if asked.size <= 64 else "imagenet")),
                teacher=network if alpha > 0 else None,
                val=val_loader,
                val_every=val_every,
                inputs=inputs,
                params=params,
                world=world,
                progress=progress,
                log=say,
            )
    result = {"kind": "run", "path": str(out), **result}
    accuracy = (
        "" if result["val_top1"] is None else f"; top-1 {result['val_top1']:.2f} %, top-5 {result['val_top5']:.2f} %"
    )
    text = (
        f"{out}: {result['epochs']} epochs{accuracy}; {result['images_per_s']:,.0f} images/s, "
        f"{result['data_wait_percent']:.1f} % of the time waiting for data"
    )
    return result, text
