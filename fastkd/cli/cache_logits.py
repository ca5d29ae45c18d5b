"""`fastkd cache-logits`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastkd.agree import share
from fastkd.cli.command import Output, command
from fastkd.cli.common import progress_bar, say
from fastkd.cli.numbers import MOST_BATCH, Real
from fastkd.cli.options import (
    class_map_option,
    codec_option,
    field_options,
    loader_options,
    match_teacher,
    outputs_option,
    parse_outputs,
    refuse_idle,
    take_precision,
    teacher_options,
    view_options,
)
from fastkd.data.beton.fields import Fields

_SECTIONS = {
    "Data": "image-field label-field mask class-map",
    "Views": "views size num-seeds mix mix-alpha",
    "Teacher": "teacher teacher-model teacher-norm teacher-size teacher-precision ema-weights",
    "Speed": "batch-size num-workers device",
    "Output": "out outputs codec max-kl tau reuse shard",
}
"""The headings of the help, and the options below each."""

if TYPE_CHECKING:
    from fastkd.dist import World


@command("cache-logits", on_ranks=True, sections=_SECTIONS)
@click.argument("beton", type=click.Path(path_type=Path))
@field_options
@click.option("--mask", type=click.Path(path_type=Path), help="Samples to make logits for.  [default: all]")
@class_map_option
@click.option("--teacher", required=True, metavar="T", help="A checkpoint, a run, or a torchvision / timm: name.")
@teacher_options
@view_options
@outputs_option
@codec_option
@click.option(
    "--max-kl",
    type=Real(0, min_open=True),
    help="Measure the codec's KL on real rows first, and stop where it is above this.",
)
@click.option("--tau", type=Real(0.01, 100), help="Temperature of --max-kl.  [default: 4]")
@click.option(
    "--reuse",
    multiple=True,
    type=click.Path(path_type=Path),
    help="An older store to take rows over from; may be given again.",
)
@click.option("--shard", metavar="I/N", help="Fill the I-th of N parts alone, for fastkd merge.")
@click.option(
    "--batch-size",
    type=click.IntRange(1, MOST_BATCH),
    default=256,
    show_default=True,
    help="Rows of a block, the teacher's batch.",
)
@click.option("--out", type=Output(), required=True, help="The store to fill; resumes one that is there.")
@loader_options
def cache_logits(
    beton: Path,
    fields: Fields,
    mask: Path | None,
    class_map: str | None,
    teacher: str,
    views: str | None,
    size: int | None,
    num_seeds: int | None,
    outputs: str,
    mix: str | None,
    mix_alpha: float | None,
    codec: str,
    max_kl: float | None,
    tau: float | None,
    reuse: tuple[Path, ...],
    shard: str | None,
    batch_size: int,
    out: Path,
    force: bool,
    world: "World",
    device: str,
    num_workers: int,
    prefetch: int,
    **teacher_flags: Any,
) -> tuple[dict[str, Any], str]:
    """Compute the teacher's logits for K views of each kept sample of BETON, once, into a store.

    Stopped at any moment, the same command goes on where it was. Runs under torchrun on any number of processes of one node;
    of several nodes, each fills a --shard of its own, and fastkd merge makes one store of them. --reuse OLD.h5 computes
    only what the older store lacks: more seeds, more samples, a smaller codec than its fp16. With --outputs
    logits,embedding a student learns by rkd, pkt, cc and crd from the store, too.

    \b
    fastkd cache-logits train.beton --mask m.h5 --teacher t.safetensors --views crop-flip --num-seeds 8 --out l.h5
    """
    from fastkd.data.beton.dataset import open_dataset
    from fastkd.feed.loader import choose_views
    from fastkd.models.classes import read_class_map
    from fastkd.models.fitting import require_size
    from fastkd.prune.masks.mask import Mask
    from fastkd.store.tables import read_tables
    from fastkd.teacher.fill import fill_store
    from fastkd.teacher.network import embedding_of
    from fastkd.teacher.recipe import StoreRecipe, stored_center, stored_precision

    refuse_idle({"tau": tau}, "max-kl", max_kl)
    with_embedding = parse_outputs(outputs)
    part = _parse_shard(shard)
    mapping = read_class_map(class_map)
    dataset = open_dataset(beton, fields)
    kept = Mask.load(mask) if mask else None
    version = None if force else share(world, lambda: stored_center(out, *reuse))
    begun = None if force else share(world, lambda: stored_precision(out, *reuse))
    asked = teacher_flags["teacher_precision"]
    teacher_flags["teacher_precision"] = take_precision(asked, "--teacher-precision", device, world, begun)
    chosen = choose_views(dataset, views, size, num_seeds, mix=mix, mix_alpha=mix_alpha, center_version=version)
    network = match_teacher(teacher, teacher_flags, dataset, device, mapping)
    require_size(
        network.model, network.name, network.norm.size or chosen.size, "give --teacher-size, or another --size"
    )
    recipe = StoreRecipe(
        dataset=dataset,
        teacher=network,
        views=chosen,
        mask=kept,
        by_number=mapping is not None and mapping.targets is None,
        embedding=embedding_of(network, chosen.size) if with_embedding else None,
        codec=codec,
        block_rows=batch_size,
        max_kl=max_kl,
        tau=4.0 if tau is None else tau,
    )
    with progress_bar("cache-logits", "rows", unit_bytes=recipe.row_bytes) as progress:
        counts = fill_store(
            out,
            recipe,
            reuse=reuse,
            shard=part,
            num_workers=num_workers,
            prefetch=prefetch,
            world=world,
            progress=progress,
            log=say,
            force=force,
        )
    tables = read_tables(out)
    result = {
        "kind": "logit-store",
        "path": str(out),
        "num_seeds": tables.num_seeds,
        "num_rows": tables.num_rows,
        "num_classes": tables.codec.num_classes,
        "codec": tables.codec.name,
        **({"embedding_dim": recipe.embedding.dim} if recipe.embedding is not None else {}),
        "size_bytes": out.stat().st_size,
        "fingerprint": tables.header.fingerprint,
        **counts,
    }
    more = "" if recipe.embedding is None else f" and embeddings of {recipe.embedding.dim:,}"
    text = (
        f"{out}: {tables.num_seeds} views of {tables.num_rows:,} samples, {tables.codec.name}{more}, {result['size_bytes']:,} bytes; "
        f"{counts['rows_written']:,} rows written at {counts['rows_per_s']:,.0f}/s, {counts['rows_reused']:,} were there"
    )
    return result, text


def _parse_shard(text: str | None) -> tuple[int, int]:
    """I/N as two numbers; 1/1 where it is not given."""
    index, slash, count = (text or "1/1").partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise click.BadParameter(f"{text!r}, expected I/N with I from 1 to N", param_hint="--shard")
    return int(index), int(count)
