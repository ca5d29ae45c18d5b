"""`fastkd import-scores`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastkd.cli.command import Output, command
from fastkd.cli.options import field_options
from fastkd.data.beton.fields import Fields

if TYPE_CHECKING:
    from numpy import ndarray

    from fastkd.data.beton.dataset import Dataset
    from fastkd.prune.scores.published import Published


@command("import-scores")
@click.argument("beton", type=click.Path(path_type=Path))
@field_options
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="What to call the scores.  [default: the array's name]")
@click.option("--array", metavar="NAME", help="Column or array that holds them, where that is not plain.")
@click.option(
    "--higher", type=click.Choice(["hard", "easy"]), help="What high values mean; asked for where nobody knows."
)
@click.option(
    "--unscored",
    type=click.Choice(["refuse", "keep"]),
    default="refuse",
    show_default=True,
    help="Samples that FILE has no score of, or NaN; keep: NaN, which prune --unscored drop leaves out.",
)
@click.option("--trust-pickle", is_flag=True, help="Read pickles, which run whatever code they hold.")
@click.option("--out", type=Output(), required=True, help="The score file to write.")
def import_scores(
    beton: Path,
    fields: Fields,
    file: Path,
    name: str | None,
    array: str | None,
    higher: str | None,
    unscored: str,
    trust_pickle: bool,
    out: Path,
    force: bool,
) -> tuple[dict[str, Any], str]:
    """Turn published scores in FILE into a score file for the samples of BETON.

    FILE is a CSV (Sorscher et al.), npz (Feldman & Zhang, C-scores), npy or torch file. Where it has file names, scores
    are joined by them, in any order; where it has labels, they must be those of BETON.

    \b
    fastkd import-scores imagenet.beton ImageNet-1K_EL2N-20-models.csv --name el2n --higher hard --out s.h5
    """
    import numpy as np

    from fastkd.data.beton.dataset import open_dataset, require_whole
    from fastkd.prune.scores.imports import hard_first
    from fastkd.prune.scores.score_file import save_scores

    dataset = open_dataset(beton, fields)
    require_whole(dataset)
    found, values, policies = read_joined(
        file, dataset, array=array, trust_pickle=trust_pickle, allow_nan=unscored == "keep"
    )
    values, direction = hard_first(found, values, higher, file)
    called = name or ("imported" if " " in found.array or "/" in found.array else found.array)
    described = {called: {"direction": direction, "policies": policies}}
    saved = save_scores(
        out,
        {called: values},
        described,
        beton_fingerprint=dataset.fingerprint,
        params={"source": "import"},
        class_names=dataset.class_names,
        force=force,
    )
    undefined = int(np.isnan(saved.values[called]).sum())
    result = {
        "kind": "scores",
        "path": str(out),
        "num_samples": saved.num_samples,
        "methods": [called],
        "undefined": {called: undefined},
        **policies,
        "fingerprint": saved.header.fingerprint,
    }
    checked = "labels checked" if found.labels is not None else "no labels to check"
    joined = f"joined by {policies['joined_by']}, {checked}"
    without = f" ({undefined:,} undefined)" if undefined else ""
    return result, f"{out}: {called}{without} of {saved.num_samples:,} samples, {joined}; {direction}"


def read_joined(
    file: Path,
    dataset: "Dataset",
    *,
    array: str | None = None,
    trust_pickle: bool = False,
    allow_nan: bool = False,
) -> "tuple[Published, ndarray, dict[str, Any]]":
    """A file that others wrote: what it holds, its values in the order of the samples, and how it was read."""
    import hashlib

    from fastkd.data.beton.read import read_manifest
    from fastkd.prune.scores.imports import join_samples
    from fastkd.prune.scores.published import read_published
    from fastkd.writing import reading

    names = (read_manifest(dataset.beton, columns=True) or {}).get("names")
    found = read_published(file, array=array, trust_pickle=trust_pickle, allow_nan=allow_nan)
    values, joined = join_samples(
        found,
        file,
        labels=dataset.beton.labels,
        class_names=dataset.class_names,
        sample_names=names or None,
        beton_path=dataset.beton.path,
        allow_nan=allow_nan,
    )
    with reading(file):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    how = {
        "file": file.name,
        "sha256": digest,
        "joined_by": joined,
        "labels_checked": found.labels is not None,
    }
    return found, values, how
