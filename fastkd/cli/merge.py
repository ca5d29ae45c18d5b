"""`fastkd merge`."""

from pathlib import Path
from typing import Any

import click

from fastkd.cli.command import Output, command
from fastkd.cli.common import progress_bar


@command("merge")
@click.argument("shards", nargs=-1, required=True, metavar="SHARD...", type=click.Path(path_type=Path))
@click.option("--out", type=Output(), required=True, help="The store to write.")
def merge(shards: tuple[Path, ...], out: Path, force: bool) -> tuple[dict[str, Any], str]:
    """Make one logit store of the shards that several nodes filled with cache-logits --shard I/N.

    The store has the bytes of one that was filled in one place. Shards of different stores are refused.

    \b
    fastkd merge l.1.h5 l.2.h5 l.3.h5 --out l.h5
    """
    from fastkd.report.describe import describe
    from fastkd.store.merge import merge_stores

    with progress_bar("merge", "blocks") as progress:
        merge_stores(shards, out, force=force, progress=progress)
    found = describe(out)
    names = ("kind", "path", "num_seeds", "num_rows", "num_classes", "codec", "size_bytes", "fingerprint")
    result = {name: found[name] for name in names} | {"num_shards": len(shards)}
    text = f"{out}: {found['num_seeds']} views of {found['num_rows']:,} samples from {len(shards)} shards, {found['size_bytes']:,} bytes"
    return result, text
