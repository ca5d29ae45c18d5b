"""`fastkd inspect`."""

import json
from pathlib import Path
from typing import Any

import click

from fastkd.cli.command import Output, command
from fastkd.cli.options import field_options, refuse_idle_fields
from fastkd.data.beton.fields import Fields


@command("inspect")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@field_options
@click.option(
    "--beton", type=click.Path(path_type=Path), help="The data of a mask or of scores: for its classes and images."
)
@click.option("--compare", type=click.Path(path_type=Path), help="Another mask or score file, of the same data.")
@click.option("--score", metavar="NAME", help="Which scores to compare or to show.")
@click.option("--gallery", type=Output(), help="PNG of the samples of highest, middle and lowest score.")
@click.option(
    "--count", type=click.IntRange(1, 1000), default=30, show_default=True, help="Samples of each in the gallery."
)
def inspect(
    files: tuple[Path, ...],
    fields: Fields,
    beton: Path | None,
    compare: Path | None,
    score: str | None,
    gallery: Path | None,
    count: int,
    force: bool,
) -> tuple[dict[str, Any], str]:
    """Say what each FILE is: a beton, a mask, scores, a logit store, a checkpoint or the folder of a run.

    Of one mask or score file also: which classes it keeps (--beton), how far it agrees with another (--compare), and
    what its samples look like (--gallery, with --beton).

    \b
    fastkd inspect train.beton m.h5 l.h5 run/
    fastkd inspect s.h5 --compare other-seed.h5
    fastkd inspect s.h5 --score el2n --beton train.beton --gallery hard-and-easy.png
    """
    from fastkd.report.describe import describe

    found = [describe(path, fields) for path in files]
    has_beton = beton is not None or any(one["kind"] == "beton" for one in found)
    refuse_idle_fields(fields, has_beton, "a beton among FILES or --beton")
    parts = [_lines(one) for one in found]
    if beton or compare or gallery or score:
        extra, text = _closer(files, found[0]["kind"], beton, fields, compare, score, gallery, count, force)
        found[0] |= extra
        parts.append(text)
    return found[0] if len(found) == 1 else {"files": found}, "\n\n".join(parts)


def _lines(one: dict[str, Any]) -> str:
    """What is printed of a file; scores as histograms."""
    from fastkd.report.selection import format_histogram

    plain = {name: value for name, value in one.items() if not (one["kind"] == "scores" and name == "scores")}
    lines = [f"{name:16} {_plain(value)}" for name, value in plain.items()]
    if one["kind"] == "scores":
        lines += [format_histogram(name, of) for name, of in one["scores"].items()]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _closer(
    files: tuple[Path, ...],
    kind: str,
    beton: Path | None,
    fields: Fields,
    compare: Path | None,
    score: str | None,
    gallery: Path | None,
    count: int,
    force: bool,
) -> tuple[dict[str, Any], str]:
    """A mask or score file looked at closely: keys for --json, and text."""
    from fastkd.data.beton.dataset import open_dataset
    from fastkd.errors import OptionError
    from fastkd.prune.masks.mask import Mask
    from fastkd.prune.scores.score_file import load_scores
    from fastkd.report import selection

    if len(files) != 1 or kind not in ("mask", "scores"):
        raise OptionError("--beton, --compare, --score and --gallery are for one mask or score file")
    if gallery is not None:
        if beton is None:
            raise OptionError("--gallery needs --beton, where the images are")
        from fastkd.report.gallery import gallery_rows, write_gallery
    dataset = None if beton is None else open_dataset(beton, fields)
    extra: dict[str, Any] = {}
    lines: list[str] = []
    if kind == "mask":
        mask = Mask.load(files[0])
        if compare is not None:
            extra["compare"] = selection.compare_masks(mask, Mask.load(compare))
            shared, jaccard = extra["compare"]["shared"], extra["compare"]["jaccard"]
            lines.append(f"shares {shared:,} samples with {compare}, Jaccard {jaccard:.4f}")
        if dataset is not None:
            extra["class_counts"] = selection.kept_of_classes(mask, dataset)
            for name, of in extra["class_counts"].items():
                weight = f", {of['weight_percent']:.2f} % of the weight" if "weight_percent" in of else ""
                lines.append(f"{name:24} {of['kept']:,} of {of['all']:,}{weight}")
            if gallery is not None:
                of_mask = mask.header.params.get("score", mask.header.params.get("method", "a mask"))
                title = f"{of_mask}: {len(mask):,} of {mask.num_samples:,} samples of {dataset.beton.path.name}"
                first = {f"the first {count} of the mask": mask.sample_ids[:count]}
                write_gallery(gallery, dataset, first, None, title=title, meaning="first: kept first", force=force)
    else:
        scores = load_scores(files[0])
        if compare is not None:
            extra["compare"] = selection.compare_scores(scores, load_scores(compare), score)
            lines += [f"{name}: {_plain(of)}" for name, of in extra["compare"].items()]
        if dataset is not None:
            scores.require_beton(
                dataset.fingerprint, dataset.beton.path, dataset.beton.num_samples, dataset.class_names
            )
            if gallery is not None:
                chosen = scores.choose(score)
                values, high = scores.values[chosen], scores.methods[chosen].get("direction", "high = kept first")
                title = f"{chosen} of {dataset.beton.path.name}"
                rows = gallery_rows(values, count)
                write_gallery(gallery, dataset, rows, values, title=title, meaning=high, force=force)
    if gallery is not None:
        extra["gallery"] = str(gallery)
        lines.append(f"{gallery}: {count} samples of each part")
    return extra, "\n".join(lines)
