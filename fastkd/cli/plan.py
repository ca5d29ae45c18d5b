"""`fastkd plan`."""

from pathlib import Path
from typing import Any

import click

from fastkd.cli.command import command
from fastkd.cli.common import choose_device, keep_freed_memory, say
from fastkd.cli.config import NumberText
from fastkd.cli.numbers import MOST_BATCH, MOST_EPOCHS, Real
from fastkd.cli.options import (
    codec_option,
    device_options,
    field_options,
    open_teacher,
    outputs_option,
    parse_outputs,
    refuse_idle,
    refuse_idle_fields,
    take_precision,
    teacher_options,
    view_options,
)
from fastkd.data.beton.fields import Fields
from fastkd.dist import World, read_world


@command("plan")
@click.argument("beton", required=False, type=click.Path(path_type=Path))
@field_options
@click.option("--num-samples", type=click.IntRange(1, 2**40), help="Samples, where there is no BETON yet.")
@click.option("--num-classes", type=click.IntRange(1, 2**24), help="Classes, where there is no BETON yet.")
@click.option("--mask", type=click.Path(path_type=Path), help="Samples that are kept.  [default: all]")
@click.option("--keep", type=NumberText(), metavar="FRACTION|COUNT", help="The same without a mask: 0.1 keeps a tenth.")
@view_options
@outputs_option
@click.option(
    "--embedding-dim", type=click.IntRange(1, 2**24), help="Values of an embedding, where --teacher does not say."
)
@codec_option
@click.option(
    "--batch-size", type=click.IntRange(1, MOST_BATCH), default=256, show_default=True, help="As of cache-logits."
)
@click.option("--epochs", type=click.IntRange(1, MOST_EPOCHS), default=240, show_default=True, help="Of each student.")
@click.option(
    "--num-students", type=click.IntRange(1, 10**6), default=1, show_default=True, help="Runs that read the store."
)
@click.option("--measure", is_flag=True, help="Run the --teacher on BETON for ten seconds to know its rate.")
@click.option(
    "--teacher", metavar="T", help="For --measure and --outputs: a checkpoint, or a torchvision / timm: name."
)
@teacher_options
@click.option("--images-per-s", type=Real(1e-3, 1e9), help="The teacher's rate, where it is known.")
@click.option(
    "--read-mb-per-s",
    type=Real(1e-3, 1e9),
    default=500,
    show_default=True,
    help="Rate of the disk that the store is read from.",
)
@device_options
def plan(
    beton: Path | None,
    fields: Fields,
    num_samples: int | None,
    num_classes: int | None,
    mask: Path | None,
    keep: str | None,
    views: str | None,
    size: int | None,
    num_seeds: int | None,
    outputs: str,
    embedding_dim: int | None,
    mix: str | None,
    mix_alpha: float | None,
    codec: str,
    batch_size: int,
    epochs: int,
    num_students: int,
    measure: bool,
    teacher: str | None,
    images_per_s: float | None,
    read_mb_per_s: float,
    device: str,
    num_workers: int,
    **teacher_flags: Any,
) -> tuple[dict[str, Any], str]:
    """Say what a logit store will take, and when it pays, before anything is spent.

    \b
    fastkd plan train.beton --mask m.h5 --num-seeds 8 --epochs 240 --num-students 5
    fastkd plan train.beton --num-seeds 8 --outputs logits,embedding --teacher t.safetensors
    fastkd plan --num-samples 1281167 --num-classes 1000 --keep 0.1 --num-seeds 50 --epochs 100
    """
    from fastkd.prune.masks.mask import Mask, parse_keep
    from fastkd.store.codec import make_codec
    from fastkd.store.plan import make_plan

    if beton is not None and (num_samples is not None or num_classes is not None):
        raise click.UsageError("BETON says --num-samples and --num-classes itself")
    if mask is not None and keep is not None:
        raise click.UsageError("--mask and --keep exclude each other")
    if measure and (beton is None or teacher is None):
        raise click.UsageError("--measure needs BETON and --teacher")
    if measure and images_per_s is not None:
        raise click.UsageError("--measure and --images-per-s exclude each other")
    with_embedding = parse_outputs(outputs)
    if embedding_dim is not None and not with_embedding:
        raise click.UsageError("--embedding-dim is for --outputs logits,embedding")
    if with_embedding and (embedding_dim is None) == (teacher is None):
        raise click.UsageError("--outputs logits,embedding needs either --embedding-dim or the --teacher that tells it")
    if teacher is not None and not (measure or with_embedding):
        raise click.UsageError("--teacher is for --measure and --outputs logits,embedding")
    refuse_idle(teacher_flags, "teacher", teacher)
    refuse_idle_fields(fields, beton is not None, "BETON")
    kept = Mask.load(mask) if mask else None
    if beton is None:
        if num_samples is None or num_classes is None or num_seeds is None:
            raise click.UsageError("give BETON, or --num-samples, --num-classes and --num-seeds")
        if mix is not None or mix_alpha is not None:
            raise click.UsageError(
                "--mix and --mix-alpha need BETON: the file has the same size, only --measure differs"
            )
        num_rows = len(kept.sample_ids) if kept else num_samples
    else:
        from fastkd.data.beton.dataset import open_dataset
        from fastkd.feed.loader import choose_views, kept_ids

        dataset = open_dataset(beton, fields)
        num_classes, num_rows = dataset.num_classes, len(kept_ids(dataset, kept))
        chosen = choose_views(dataset, views, size, num_seeds, mix=mix, mix_alpha=mix_alpha)
        num_seeds = chosen.num_seeds
        size = chosen.size
    num_rows = parse_keep(keep, num_rows) if keep else num_rows
    network = None
    if teacher is not None and (measure or with_embedding):
        keep_freed_memory()
        device = choose_device(device, read_world())
        asked = teacher_flags["teacher_precision"]
        teacher_flags["teacher_precision"] = take_precision(asked, "--teacher-precision", device, World())
        network = open_teacher(teacher, teacher_flags, num_classes, device)
    if network is not None and with_embedding:
        from fastkd.teacher.network import embedding_of

        embedding_dim = embedding_of(network, size or 224).dim
    made = make_plan(
        num_rows=num_rows,
        num_seeds=num_seeds,
        codec=make_codec(codec, num_classes),
        epochs=epochs,
        num_students=num_students,
        block_rows=batch_size,
        embedding_dim=embedding_dim or 0,
    )
    if measure and network is not None:
        from fastkd.teacher.rate import measure_fill_rate
        from fastkd.teacher.recipe import StoreRecipe

        recipe = StoreRecipe(dataset=dataset, teacher=network, views=chosen, mask=kept, block_rows=batch_size)
        say(f"plan: {network.name} on {network.device} for ten seconds")
        images_per_s = measure_fill_rate(recipe, num_workers=num_workers)
    result = made.describe() | {"read_s_per_epoch": made.epoch_bytes / (read_mb_per_s * 1e6)}
    if beton is not None and chosen.mix is not None:
        result["mix"] = chosen.mix.identity()
    if images_per_s is not None:
        result |= {"images_per_s": images_per_s, **made.hours(images_per_s)}
    return result, _table(result)


def _table(result: dict[str, Any]) -> str:
    mixed = f", {result['mix']['kind']} {result['mix']['alpha']:g}" if "mix" in result else ""
    dim = result["embedding_dim"]
    more = f"; {result['embedding_row_bytes']:,} bytes, an embedding of {dim:,} in fp16" if dim else ""
    lines = [
        (
            "rows",
            f"{result['num_seeds']:,} views of {result['num_rows']:,} samples, {result['num_classes']:,} classes{mixed}",
        ),
        ("record", f"{result['row_bytes']:,} bytes, {result['codec']}{more}"),
        ("file", f"{result['size_bytes']:,} bytes"),
        ("read an epoch", f"{result['epoch_bytes']:,} bytes, {result['read_s_per_epoch']:,.1f} s from a cold disk"),
        ("teacher, store", f"{result['store_forwards']:,} images, once"),
        (
            "teacher, live",
            f"{result['live_forwards']:,} images: {result['num_students']:,} × {result['epochs']:,} epochs",
        ),
        ("break-even", f"with {result['break_even_students']:,} or more runs the store takes fewer"),
    ]
    if "images_per_s" in result:
        hours = f"{result['store_hours']:,.2f} with the store, {result['live_hours']:,.2f} live"
        lines.append(("hours", f"{hours}, at {result['images_per_s']:,.0f} images/s"))
    return "\n".join(f"{name:16} {text}" for name, text in lines)
