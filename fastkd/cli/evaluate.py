"""`fastkd evaluate`."""

from pathlib import Path
from typing import Any

import click

from fastkd.cli.common import command, compute
from fastkd.cli.options import class_map_option, device_options, match_outputs


@command("evaluate")
@click.argument("beton", type=click.Path(path_type=Path))
@click.option("--model", required=True, metavar="CKPT", help="A checkpoint, or a torchvision / timm: name.")
@click.option("--model-name", metavar="NAME", help="Its network, where the checkpoint does not say.")
@click.option("--norm", metavar="NORM", help="cifar, imagenet, none or M,M,M/S,S,S, where the checkpoint does not say.")
@click.option(
    "--size",
    type=click.IntRange(1),
    help="Side of the centre crop.  [default: the images' own up to 64 pixels, else 224]",
)
@click.option(
    "--crop-ratio",
    type=float,
    default=0.875,
    show_default=True,
    help="Crop over the shorter side, where images are not of that size.",
)
@click.option("--batch-size", type=click.IntRange(1), default=250, show_default=True, help="Samples a step.")
@class_map_option
@device_options
def evaluate(
    beton: Path,
    model: str,
    model_name: str | None,
    norm: str | None,
    size: int | None,
    crop_ratio: float,
    batch_size: int,
    class_map: str | None,
    device: str,
    num_workers: int,
) -> tuple[dict[str, Any], str]:
    """Measure top-1 and top-5 accuracy of a checkpoint on all samples of BETON, centre crops.

    Where BETON has some of the network's classes, or another order of them, its labels are mapped by their names; the
    network still chooses among all of its classes.

    \b
    fastkd evaluate test.beton --model run/model.safetensors
    """
    from fastkd.classes import read_class_map
    from fastkd.data.beton.dataset import open_dataset, relabelled
    from fastkd.data.views.draw import Views
    from fastkd.feed.loader import Loader, choose_views
    from fastkd.models.fitting import require_size
    from fastkd.teacher.network import load_teacher
    from fastkd.train.metrics import evaluate as measure

    mapping = read_class_map(class_map)
    with compute(device) as (world, device_name):
        dataset = open_dataset(beton)
        network = load_teacher(
            model, model_name=model_name, norm=norm, device=device_name, options=("--model", "--model-name", "--norm")
        )
        outputs = match_outputs(dataset.classes, network.classes, mapping)
        dataset = relabelled(dataset, outputs, network.classes)
        views = Views("center", choose_views(dataset, size=size).size, crop_ratio=crop_ratio)
        require_size(network.model, network.name, network.norm.size or views.size, "give another --size")
        loader = Loader(dataset, views, batch_size=batch_size, num_workers=num_workers, device=device_name, world=world)
        found = measure(network.model, network.norm, loader.epoch(0), world)
    result = {"path": str(beton), "model": model, **found}
    return (
        result,
        f"{model} on {beton}: top-1 {found['top1']:.2f} %, top-5 {found['top5']:.2f} % of {found['num_samples']:,}",
    )
