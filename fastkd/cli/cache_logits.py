"""`fastkd cache-logits`."""

from pathlib import Path
from typing import Any

import click

from fastkd.cli.common import (
    command,
    compute,
    device_options,
    open_teacher,
    progress_bar,
    teacher_options,
    view_options,
)


@command("cache-logits")
@click.argument("beton", type=click.Path(path_type=Path))
@click.option("--mask", type=click.Path(path_type=Path), help="Samples to make logits for.  [default: all]")
@click.option("--teacher", required=True, metavar="T", help="A checkpoint, or a torchvision / timm: name.")
@teacher_options
@view_options
@click.option(
    "--codec",
    type=click.Choice(["auto", "fp16", "int8+top4"]),
    default="auto",
    show_default=True,
    help="How a row is stored.",
)
@click.option(
    "--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Rows of a block, the teacher's batch."
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The store to fill; resumes one that is there."
)
@device_options
def cache_logits(
    beton: Path,
    mask: Path | None,
    teacher: str,
    views: str | None,
    size: int | None,
    num_seeds: int | None,
    codec: str,
    batch_size: int,
    out: Path,
    device: str,
    num_workers: int,
    **teacher_flags: Any,
) -> tuple[dict[str, Any], str]:
    """Compute the teacher's logits for K views of each kept sample of BETON, once, into a store.

    Stopped at any moment, the same command goes on where it was. Runs under torchrun on any number of processes.

    \b
    fastkd cache-logits train.beton --mask m.h5 --teacher t.safetensors --views crop-flip --num-seeds 8 --out l.h5
    """
    from fastkd.feed import choose_views, open_dataset
    from fastkd.prune.mask import Mask
    from fastkd.store.logit_store import read_tables
    from fastkd.train.teacher import fill_store

    with compute(device) as (world, device_name):
        dataset = open_dataset(beton)
        kept = Mask.load(mask) if mask else None
        chosen = choose_views(dataset, views, size, num_seeds)
        network = open_teacher(teacher, teacher_flags, dataset.num_classes, device_name)
        with progress_bar("cache-logits", "rows") as progress:
            counts = fill_store(
                out,
                dataset,
                network,
                chosen,
                mask=kept,
                codec=codec,
                block_rows=batch_size,
                num_workers=num_workers,
                world=world,
                progress=progress,
            )
    tables = read_tables(out)
    result = {
        "kind": "logit-store",
        "path": str(out),
        "num_seeds": tables.num_seeds,
        "num_rows": tables.num_rows,
        "num_classes": tables.codec.num_classes,
        "codec": tables.codec.name,
        "size_bytes": out.stat().st_size,
        "fingerprint": tables.header.fingerprint,
        **counts,
    }
    text = (
        f"{out}: {tables.num_seeds} views of {tables.num_rows:,} samples, {tables.codec.name}, {result['size_bytes']:,} bytes; "
        f"{counts['rows_written']:,} rows written at {counts['rows_per_s']:,.0f}/s, {counts['rows_reused']:,} were there"
    )
    return result, text
