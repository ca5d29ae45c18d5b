"""`fastkd prune`."""

from pathlib import Path
from typing import Any

import click

from fastkd.cli.common import command


@command("prune", first_rank_alone=True)
@click.argument("beton", type=click.Path(path_type=Path))
@click.option("--keep", required=True, metavar="FRACTION|COUNT", help="0.1 keeps a tenth, 5000 keeps 5,000 samples.")
@click.option(
    "--method", type=click.Choice(["random"]), default="random", show_default=True, help="How samples are chosen."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of the random order.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The mask to write.")
def prune(beton: Path, keep: str, method: str, seed: int, out: Path) -> tuple[dict[str, Any], str]:
    """Choose the samples of BETON to keep and write them as a mask.

    random keeps equal counts of all classes (a class that is too small gives all it has). Masks of one seed are nested:
    the one at 0.1 is inside the one at 0.3.

    \b
    fastkd prune train.beton --keep 0.1 --method random --out m.h5
    """
    import numpy as np

    from fastkd.feed import open_dataset, require_whole
    from fastkd.prune.mask import class_counts, parse_keep, random_order, save_mask

    dataset = open_dataset(beton)
    require_whole(dataset)
    labels = dataset.beton.labels
    ids = random_order(labels, seed)[: parse_keep(keep, len(labels))]
    counts = class_counts(labels, ids, dataset.num_classes)
    counts = counts[np.bincount(labels, minlength=dataset.num_classes) > 0]
    class_min, class_max = int(counts.min()), int(counts.max())
    mask = save_mask(
        out,
        ids,
        num_samples=len(labels),
        beton_fingerprint=dataset.fingerprint,
        params={
            "method": method,
            "seed": seed,
            "keep": keep,
            "balance": "equal",
            "class_min": class_min,
            "class_max": class_max,
        },
    )
    result = {
        "kind": "mask",
        "path": str(out),
        "num_kept": len(ids),
        "num_samples": len(labels),
        "fraction": mask.fraction,
        "class_min": class_min,
        "class_max": class_max,
        "fingerprint": mask.header.fingerprint,
    }
    return result, f"{out}: keeps {len(ids):,} of {len(labels):,} samples, {class_min} to {class_max} a class"
