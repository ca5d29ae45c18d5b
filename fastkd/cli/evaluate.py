"""`fastkd evaluate`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastkd.agree import agree
from fastkd.cli.command import command
from fastkd.cli.common import say
from fastkd.cli.numbers import MOST_BATCH, MOST_SIZE, Real
from fastkd.cli.options import (
    class_map_option,
    ema_option,
    field_options,
    loader_options,
    match_outputs,
)
from fastkd.data.beton.fields import Fields

if TYPE_CHECKING:
    from fastkd.dist import World


@command("evaluate", on_ranks=True)
@click.argument("beton", type=click.Path(path_type=Path))
@field_options
@click.option("--model", required=True, metavar="CKPT", help="A checkpoint, a run, or a torchvision / timm: name.")
@ema_option
@click.option("--model-name", metavar="NAME", help="Its network, where the checkpoint does not say.")
@click.option("--norm", metavar="NORM", help="cifar, imagenet, none or M,M,M/S,S,S, where the checkpoint does not say.")
@click.option(
    "--size",
    type=click.IntRange(1, MOST_SIZE),
    help="Side of the centre crop, and of the network's input.  [default: what CKPT was measured or trained on, else the images' own up to 64 pixels, else 224]",
)
@click.option(
    "--crop-ratio",
    type=Real(),
    default=0.875,
    show_default=True,
    help="Crop over the shorter side, where images are not of that size.",
)
@click.option(
    "--tta",
    type=click.Choice(["flip"]),
    help="Average each sample's logits over its view and the view mirrored left to right.",
)
@click.option(
    "--batch-size", type=click.IntRange(1, MOST_BATCH), default=250, show_default=True, help="Samples a step."
)
@class_map_option
@loader_options
def evaluate(
    beton: Path,
    fields: Fields,
    model: str,
    ema_weights: bool,
    model_name: str | None,
    norm: str | None,
    size: int | None,
    crop_ratio: float,
    tta: str | None,
    batch_size: int,
    class_map: str | None,
    world: "World",
    device: str,
    num_workers: int,
    prefetch: int,
) -> tuple[dict[str, Any], str]:
    """Measure top-1 and top-5 accuracy of a checkpoint on all samples of BETON, centre crops.

    --size may be another one than that of training. Where BETON has some of the network's classes, or another order of them,
    its labels are mapped by their names; the network still chooses among all of its classes.

    \b
    fastkd evaluate test.beton --model run/
    fastkd evaluate val.beton --model run/ --size 256 --tta flip
    """
    from fastkd.data.beton.dataset import open_dataset, relabelled
    from fastkd.data.identity import center_views
    from fastkd.feed.loader import Loader, choose_views
    from fastkd.models.classes import read_class_map
    from fastkd.models.fitting import require_size
    from fastkd.teacher.network import load_teacher
    from fastkd.train.metrics import evaluate as measure

    mapping = read_class_map(class_map)
    dataset = open_dataset(beton, fields)
    network = load_teacher(
        model,
        model_name=model_name,
        norm=norm,
        device=device,
        options=("--model", "--model-name", "--norm"),
        ema_weights=ema_weights,
        log=say,
    )
    agree(
        world,
        {"beton": dataset.fingerprint, "model": network.fingerprint, "--class-map": mapping and mapping.identity()},
    )
    outputs = match_outputs(dataset.classes, network.classes, mapping)
    dataset = relabelled(dataset, outputs, network.classes)
    views = center_views(
        dataset.beton, choose_views(dataset, size=size or network.view_size).size, crop_ratio=crop_ratio
    )
    used = network.norm if size is None else replace(network.norm, size=None)
    require_size(network.model, network.name, used.size or views.size, "give another --size")
    loader = Loader(
        dataset, views, batch_size=batch_size, num_workers=num_workers, prefetch=prefetch, device=device, world=world
    )
    say(f"evaluate: {loader.describe()}")
    found = measure(network.model, used, loader.epoch(0), world, mirrored=tta == "flip")
    result = {"path": str(beton), "model": model, "size": used.size or views.size, "tta": tta, **found}
    averaged = ", the mean of two mirrored views' logits" if tta else ""
    return (
        result,
        f"{model} on {beton}: top-1 {found['top1']:.2f} %, top-5 {found['top5']:.2f} % of {found['num_samples']:,}{averaged}",
    )
