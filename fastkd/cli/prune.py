"""`fastkd prune`."""

from pathlib import Path
from typing import Any

import click

from fastkd.cli.command import Output, command
from fastkd.cli.config import NumberText
from fastkd.cli.numbers import Real
from fastkd.cli.options import field_options, option_list
from fastkd.cli.prune_inputs import combine_masks, read_candidates, read_weights
from fastkd.data.beton.fields import Fields
from fastkd.prune.select.methods import METHODS, OPTIONS, Span, choose, flag, options_of

_OF_MASKS = ("union", "intersection", "difference", "complement")
_OF_ALL = ("level", "balance")  # options of several methods

_SECTIONS = {
    "Selection": "keep method seed level balance",
    "Inputs": "image-field label-field scores score unscored features mask",
    "Of single methods": " ".join(["hardness", *(flag(name)[2:] for name in OPTIONS if name not in _OF_ALL)]),
    "Output": "weights out",
}
"""The headings of the help, and the options below each."""


def _type_of(kind: Span | list[str]) -> click.ParamType:
    """The type of a method's option."""
    if isinstance(kind, list):
        return click.Choice(kind)
    return Real(kind.least, kind.most) if kind.kind is float else click.IntRange(int(kind.least), int(kind.most))


_method_options = option_list(
    *(click.option(flag(name), type=_type_of(kind), help=text) for name, (kind, text) in OPTIONS.items()),
    click.option(
        "--hardness", metavar="NAME", help="ccs, d2: the score β goes by.  [default: aum if there, else --score]"
    ),
)


@command("prune", sections=_SECTIONS)
@click.argument("beton", type=click.Path(path_type=Path))
@field_options
@click.option(
    "--keep", type=NumberText(), metavar="FRACTION|COUNT", help="0.1 keeps a tenth, 5000 keeps 5,000 samples."
)
@click.option(
    "--method",
    type=click.Choice([*METHODS, *_OF_MASKS]),
    default="random",
    show_default=True,
    help="How samples are chosen.",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of draws and of ties.")
@click.option(
    "--scores", type=click.Path(path_type=Path), multiple=True, help="Score file; of several, the mean counts."
)
@click.option("--score", metavar="NAME", help="Which of the file's scores, where it holds several.")
@click.option(
    "--unscored",
    type=click.Choice(["refuse", "drop"]),
    help="Samples whose score is NaN; drop: choose among the others, --keep stays of all.  [default: refuse]",
)
@click.option("--features", type=click.Path(path_type=Path), help="Feature file, for moderate and d2.")
@click.option("--mask", type=click.Path(path_type=Path), multiple=True, help="Masks to combine.")
@_method_options
@click.option(
    "--weights",
    metavar="inverse-class|inverse-rate|none|FILE",
    help="Weight of each kept sample in the loss of `train`. inverse-class: all classes weigh the same; inverse-rate: as in "
    "BETON (1/p of the part p that is kept of a class); both of mean 1. FILE: a score file of one score, or what "
    "import-scores reads, taken as it is.  [default: none; those of the masks that are combined]",
)
@click.option("--out", type=Output(), required=True, help="The mask to write.")
def prune(
    beton: Path,
    fields: Fields,
    keep: str | None,
    method: str,
    seed: int,
    scores: tuple[Path, ...],
    score: str | None,
    unscored: str | None,
    features: Path | None,
    mask: tuple[Path, ...],
    hardness: str | None,
    weights: str | None,
    out: Path,
    force: bool,
    **options: Any,
) -> tuple[dict[str, Any], str]:
    """Choose the samples of BETON to keep and write them as a mask.

    Masks of one method, seed and scores are nested: the one at 0.1 is inside the one at 0.3 (but not those of dual-beta,
    whose weights depend on the fraction). Equal scores are in the order of the seed's random mask. union, intersection,
    difference and complement combine masks; a sample keeps the weight that it has in the first of them that keeps it.

    \b
    fastkd prune train.beton --keep 0.1 --method random --out m.h5
    fastkd prune train.beton --keep 0.1 --method scores --scores s.h5 --score el2n --level hard --out m.h5
    fastkd prune train.beton --keep 0.1 --method ccs --scores run/scores.h5 --score aum --drop-hardest 0.3 --out m.h5
    fastkd prune train.beton --method union --mask a.h5 --mask b.h5 --out m.h5
    fastkd prune train.beton --keep 0.3 --method random --weights inverse-rate --out m.h5
    """
    from fastkd.data.beton.dataset import open_dataset, require_whole
    from fastkd.errors import OptionError
    from fastkd.prune.masks.mask import class_counts, parse_keep, save_mask
    from fastkd.prune.masks.weights import describe_weights

    _check_inputs(method, keep, scores, score, unscored, features, mask, hardness, options)
    dataset = open_dataset(beton, fields)
    require_whole(dataset)
    opened, fingerprint, class_names = dataset.beton, dataset.fingerprint, dataset.class_names
    labels = opened.labels
    if method in _OF_MASKS:
        ids, of_samples, inputs, of = combine_masks(method, mask, opened, fingerprint)
        params: dict[str, Any] = {"method": method, "keep": keep, "of": of}
        if of_samples is not None:
            params["weights"] = "carried"
        if keep is not None:
            count = parse_keep(keep, len(labels))
            if count > len(ids):
                raise OptionError(f"--keep {keep} is {count} samples, the {method} has {len(ids)}")
            ids, of_samples = ids[:count], None if of_samples is None else of_samples[:count]
    else:
        assert keep is not None
        of_samples = None
        num_kept = parse_keep(keep, len(labels))
        chosen = options_of(method, options)
        known, inputs, used = read_candidates(method, dataset, scores, score, features, hardness, unscored)
        ids = choose(method, known, num_kept, seed=seed, options=chosen)
        params = {"method": method, "seed": seed, "keep": keep, **chosen, **used}
    if weights is not None:
        of_samples, known_as, their_inputs = read_weights(weights, ids, dataset)
        params, inputs = {**params, "weights": known_as}, inputs | their_inputs
        if of_samples is None:
            del params["weights"]
    counts = class_counts(labels, ids, len(class_names))
    counts = counts[class_counts(labels, slice(None), len(class_names)) > 0]
    params |= {"class_min": int(counts.min()), "class_max": int(counts.max())}
    written = save_mask(
        out,
        ids,
        num_samples=len(labels),
        beton_fingerprint=fingerprint,
        params=params,
        inputs=inputs,
        weights=of_samples,
        force=force,
    )
    result = {
        "kind": "mask",
        "path": str(out),
        "num_kept": len(ids),
        "num_samples": len(labels),
        "fraction": written.fraction,
        "class_min": params["class_min"],
        "class_max": params["class_max"],
        "fingerprint": written.header.fingerprint,
    }
    text = (
        f"{out}: keeps {len(ids):,} of {len(labels):,} samples, {params['class_min']} to {params['class_max']} a class"
    )
    if "num_unscored" in params:
        result["num_unscored"] = params["num_unscored"]
        text += f"; {params['num_unscored']:,} without a score left out"
    if written.weights is not None:
        result["weights"] = describe_weights(written.weights)
        text += "; weights {min:.4g} to {max:.4g}, mean {mean:.4g}".format(**result["weights"])
    return result, text


def _check_inputs(
    method: str,
    keep: str | None,
    scores: tuple[Path, ...],
    score: str | None,
    unscored: str | None,
    features: Path | None,
    mask: tuple[Path, ...],
    hardness: str | None,
    options: dict[str, Any],
) -> None:
    """Refuses inputs that the method does not use, and asks for those that it needs; before any file is read."""
    from fastkd.errors import OptionError

    of_masks = method in _OF_MASKS
    needs, also = ((), ()) if of_masks else (METHODS[method].needs, METHODS[method].also)

    def uses(name: str, other: object) -> bool | None:
        """Whether the method needs an input, can do with or without it, or has no use for it."""
        if name in needs:
            return True
        return None if any(name in need.split("|") for need in needs) and not other else False

    wanted = {
        "--scores": uses("scores", features),
        "--score": None if scores else False,
        "--unscored": None if scores else False,
        "--features": uses("features", scores),
        "--mask": of_masks,
        "--hardness": None if "hardness" in also else False,
    }
    if keep is None and not of_masks:
        raise click.MissingParameter(param_hint="'--keep'", param_type="option")
    given = {
        "--scores": scores,
        "--score": score,
        "--unscored": unscored,
        "--features": features,
        "--mask": mask,
        "--hardness": hardness,
    }
    for name, value in given.items():
        if wanted[name] is True and not value:
            raise OptionError(f"--method {method} needs {name}")
        if wanted[name] is False and value:
            raise OptionError(f"{name} does nothing with --method {method}, leave it out")
    if "features|scores" in needs and not scores and not features:
        usual = METHODS[method].usual
        raise OptionError(f"--method {method} needs --features, or --scores with a score {usual or 'of its own'}")
    if of_masks:
        number = 1 if method == "complement" else 2
        if len(mask) != number:
            raise OptionError(f"--method {method} takes {number} --mask, {len(mask)} are given")
        for name, value in options.items():
            if value is not None:
                raise OptionError(f"{flag(name)} does nothing with --method {method}, leave it out")
