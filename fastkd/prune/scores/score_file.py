"""Score files: what is known of each sample of a beton, kept for choosing among them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastkd.artefact import Header, found_artefact, read_artefact, require_input, write_artefact
from fastkd.errors import FormatError, MismatchError, OptionError
from fastkd.models.classes import DIGEST_KEY, names_fingerprint, require_same_names
from fastkd.prune.select.levels import first_nan
from fastkd.writing import require_replaceable

KIND, FORMAT_VERSION = "scores", 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scores:
    """Scores of all samples of one beton.

    values: method → float32 (N,), higher = keep first; NaN where undefined. methods: method → its direction (what high
    means) and policies. extras: further arrays (N,) that some methods need: `target_prob_mean`.
    """

    values: dict[str, np.ndarray]
    methods: dict[str, dict[str, Any]]
    extras: dict[str, np.ndarray]
    header: Header
    path: Path | None = field(default=None)

    @property
    def num_samples(self) -> int:
        """N of the full beton."""
        return len(next(iter(self.values.values())))

    def choose(self, method: str | None = None, option: str = "--score") -> str:
        """The method asked for, or the only one there is.

        Raises:
            OptionError: it is not there, or several are and none is named.
        """
        if method is None and len(self.values) == 1:
            return next(iter(self.values))
        if method not in self.values:
            found = ", ".join(self.values)
            missing = "" if method is None else f", not {method}"
            raise OptionError(f"{self.path}: holds scores {found}{missing}; choose one with {option} NAME")
        return method

    def extra(self, name: str, wanted_by: str) -> np.ndarray:
        """A further array.

        Raises:
            MismatchError: it is not there.
        """
        if name not in self.extras:
            raise MismatchError(f"{self.path}: has no {name}, which {wanted_by} needs: record it with --record dual")
        return self.extras[name]

    def require_beton(
        self, fingerprint: str, beton_path: str | Path, num_samples: int, class_names: Sequence[str] | None = None
    ) -> None:
        """Refuses scores of another beton, or of other classes.

        Raises:
            MismatchError: the fingerprints, the numbers of samples or the names of classes differ.
        """
        require_input(self.header, self.path or "scores", "beton", fingerprint, beton_path)
        if self.num_samples != num_samples:
            raise MismatchError(f"{self.path}: scores of {self.num_samples} samples, {beton_path} has {num_samples}")
        require_same_names(self.header.params, self.path or "scores", class_names, beton_path, "make the scores again")


def save_scores(
    path: str | Path,
    values: Mapping[str, np.ndarray],
    methods: Mapping[str, Mapping[str, Any]],
    *,
    beton_fingerprint: str,
    inputs: Mapping[str, str] | None = None,
    params: Mapping[str, Any] | None = None,
    extras: Mapping[str, np.ndarray] | None = None,
    class_names: Sequence[str] | None = None,
    force: bool = False,
) -> Scores:
    """Writes a score file atomically and returns it.

    Args:
        values: method → (N,), higher = keep first.
        methods: for each of them `direction` and `policies`, plain JSON values.
        inputs: fingerprints of what the scores come from, besides the beton. params: how they were made.
        extras: further arrays (N,). class_names: the beton's. force: replace what is there.

    Raises:
        MismatchError: something else is there; and as `write_artefact`.
    """
    scores = {name: np.ascontiguousarray(value, np.float32) for name, value in values.items()}
    further = {name: np.ascontiguousarray(value, np.float32) for name, value in (extras or {}).items()}
    described = {name: dict(methods[name]) for name in scores}
    header = write_artefact(
        path,
        kind=KIND,
        format_version=FORMAT_VERSION,
        inputs={"beton": beton_fingerprint, **(inputs or {})},
        params={**(params or {}), **names_fingerprint(class_names), "methods": described, "extras": sorted(further)},
        arrays={f"scores/{name}": value for name, value in scores.items()} | further,
        attributes={
            f"scores/{name}": {key: value if isinstance(value, str) else json.dumps(value) for key, value in of.items()}
            for name, of in described.items()
        },
        force=force,
    )
    return Scores(values=scores, methods=described, extras=further, header=header, path=Path(path))


def scores_there(
    path: str | Path,
    methods: Mapping[str, Mapping[str, Any]],
    *,
    beton_fingerprint: str,
    inputs: Mapping[str, str],
    params: Mapping[str, Any],
    class_names: Sequence[str] | None = None,
    force: bool = False,
) -> Scores | None:
    """The score file of a job, where it is there already: to be asked before the work of hours is done again.

    Args:
        methods, …, force: as of `save_scores`, of one without extras.

    Returns:
        The scores; None where there are none, or others that may be replaced.

    Raises:
        MismatchError: something else is there. CorruptError: they are damaged.
    """
    wanted = {**params, **names_fingerprint(class_names), "methods": dict(methods), "extras": []}
    other = found_artefact(Path(path), KIND, {"beton": beton_fingerprint, **inputs}, wanted, newer=(DIGEST_KEY,))
    if other is not None:
        require_replaceable(Path(path), force, other)
    return load_scores(path) if other is None and Path(path).exists() and not force else None


def load_scores(path: str | Path) -> Scores:
    """Reads a score file and checks it.

    Raises:
        NotFoundError, FormatError, CorruptError: no file; not a score file; damaged.
    """

    def datasets(header: Header) -> dict[str, tuple[str, int]]:
        methods, extras = header.params.get("methods"), header.params.get("extras")
        if (
            not (isinstance(methods, dict) and methods and isinstance(extras, list))
            or not all(isinstance(policies, dict) for policies in methods.values())
            or not all(isinstance(name, str) for name in extras)
        ):
            raise FormatError(f"{path}: a score file that does not say which scores it holds")
        return {f"scores/{name}": ("<f4", 1) for name in methods} | {str(name): ("<f4", 1) for name in extras}

    header, arrays = read_artefact(path, kind=KIND, format_version=FORMAT_VERSION, arrays=datasets)
    lengths = {len(value) for value in arrays.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise FormatError(f"{path}: scores of {' and '.join(map(str, sorted(lengths)))} samples in one file")
    methods = header.params["methods"]
    return Scores(
        values={name: arrays[f"scores/{name}"] for name in methods},
        methods=methods,
        extras={name: arrays[name] for name in header.params["extras"]},
        header=header,
        path=Path(path),
    )


def read_all_scores(
    paths: Iterable[str | Path],
    fingerprint: str,
    beton_path: str | Path,
    num_samples: int,
    class_names: Sequence[str] | None = None,
) -> list[Scores]:
    """Reads the score files of several runs, all of them of one beton.

    Raises:
        FastKDError: as `load_scores` and `Scores.require_beton`.
    """
    files = [load_scores(path) for path in paths]
    for file in files:
        file.require_beton(fingerprint, beton_path, num_samples, class_names)
    return files


def mean_score(files: list[Scores], method: str, *, allow_nan: bool = False) -> np.ndarray:
    """A score's mean over files: float32 (N,).

    Args:
        allow_nan: the mean is NaN, too, where a file has NaN: undefined, or of a sample that was never seen.

    Raises:
        OptionError: a file without that score.
        MismatchError: scores of different meaning.
        FormatError: scores that are NaN where they are not allowed.
    """
    for file in files:
        file.choose(method)
        if file.methods[method] != files[0].methods[method]:
            raise MismatchError(
                f"{file.path}: {method} is {file.methods[method]}, in {files[0].path} it is {files[0].methods[method]}"
            )
    return _mean([file.values[method] for file in files], files, method, allow_nan)


def mean_extra(files: list[Scores], name: str, wanted_by: str, *, allow_nan: bool = False) -> np.ndarray:
    """A further array's mean over files, as `mean_score`."""
    return _mean([file.extra(name, wanted_by) for file in files], files, name, allow_nan)


def _mean(values: list[np.ndarray], files: list[Scores], name: str, allow_nan: bool) -> np.ndarray:
    for value, file in zip(values, files, strict=True):
        bad = -1 if allow_nan else first_nan(value)
        if bad >= 0:
            raise FormatError(
                f"{file.path}: {int(np.isnan(value).sum())} of {len(value)} {name} scores are NaN, that of sample {bad} "
                f"the first: undefined, or of samples that the run did not see; make scores of all samples, or choose "
                f"among the others with --unscored drop"
            )
    return values[0] if len(values) == 1 else np.stack(values).mean(axis=0, dtype=np.float64).astype(np.float32)
