"""Joining published scores to the samples of a beton, and turning them so that high is hard."""

from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from fastkd.errors import FormatError, MismatchError, OptionError
from fastkd.prune.scores.published import Published


def join_samples(
    found: Published,
    path: str | Path,
    *,
    labels: np.ndarray,
    class_names: list[str],
    sample_names: list[str] | None,
    beton_path: str | Path,
    allow_nan: bool = False,
) -> tuple[np.ndarray, str]:
    """The scores in the order of a beton's samples.

    Args:
        labels: int64 (N,); class_names: of each label; sample_names: N source names, where the manifest has them.
        allow_nan: samples that are not in the file get NaN, unless none is there.

    Returns:
        float64 (N,); and how they were joined: `file name` or `position`.

    Raises:
        MismatchError: other numbers of samples, samples without a score, wrong labels, or no names to join by.
        FormatError: file names that are there twice.
    """
    if found.names is None:
        if len(found.values) != len(labels):
            raise MismatchError(
                f"{path}: {len(found.values)} scores without file names, {beton_path} has {len(labels)} samples; another data set?"
            )
        rows, joined = np.arange(len(labels)), "position"
    elif sample_names is None:
        raise MismatchError(
            f"{path}: has file names, {beton_path} has none to join them by: build it again from its images"
        )
    else:
        rows, joined = _rows_by_name(found.names, sample_names, path, beton_path, allow_nan), "file name"
    here = rows >= 0
    if found.labels is not None:
        known = {name: label for label, name in enumerate(class_names)}
        theirs = [known.get(label, -1) if isinstance(label, str) else label for label in found.labels]
        wrong = np.flatnonzero(here & (np.asarray(theirs)[rows] != labels))
        if len(wrong):
            at = int(wrong[0])
            raise MismatchError(
                f"{path}: {len(wrong)} of {len(labels)} labels differ from those of {beton_path}: sample {at} is of class "
                f"{int(labels[at])} ({class_names[int(labels[at])]}), the file says {found.labels[int(rows[at])]}"
            )
    return np.where(here, found.values[rows], np.nan), joined


def _rows_by_name(
    theirs: list[str], ours: list[str], path: str | Path, beton_path: str | Path, allow_missing: bool
) -> np.ndarray:
    """The row of each sample, -1 without one: by the file's name alone where names are distinct so, else with its folder."""
    for depth in (1, 2, None):
        keys = [[_tail(name, depth) for name in names] for names in (theirs, ours)]
        if len(set(keys[1])) == len(ours) and (len(set(keys[0])) == len(theirs) or depth is None):
            break
    twice = next((name for name, count in Counter(keys[0]).items() if count > 1), None)
    if twice is not None:
        raise FormatError(f"{path}: {twice} is there {Counter(keys[0])[twice]} times, expected each file once")
    at = {key: row for row, key in enumerate(keys[0])}
    missing = [name for name in keys[1] if name not in at]
    if len(missing) == len(ours) or (missing and not allow_missing):
        way_out = "another data set?" if len(missing) == len(ours) else "import-scores --unscored keep takes the others"
        raise MismatchError(
            f"{path}: has no score for {len(missing)} of the {len(ours)} samples of {beton_path}, {missing[0]} the first; {way_out}"
        )
    return np.array([at.get(key, -1) for key in keys[1]], np.int64)


def _tail(name: str, depth: int | None) -> str:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return "/".join(parts if depth is None else parts[-depth:])


def hard_first(found: Published, values: np.ndarray, higher: str | None, path: str | Path) -> tuple[np.ndarray, str]:
    """The scores with high = hard, and what was done to them.

    Args:
        higher: `hard` or `easy`, what high values of the file mean; None where its array's name tells.

    Raises:
        OptionError: nobody knows.
    """
    name = found.array.lower()
    consistency = name == "scores" and "cscores" in Path(path).name.lower()  # as Jiang et al. call their files
    if higher is None and name in ("tr_mem", "el2n", "forgetting"):
        higher = "hard"
    if higher is None and (consistency or name == "accumulated_margin"):
        higher = "easy"
    if higher is None:
        raise OptionError(f"{path}: are high values of {found.array} hard or easy samples? Say so with --higher")
    if higher == "hard":
        return values, "high = hard, as in the file"
    if consistency:
        return 1 - values, "high = hard: 1 - the file's"
    return -values, "high = hard: the file's, negated"
