"""Feature files: the last layer's inputs of each sample of a beton, for methods that look at distances."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastkd.artefact import Header, found_artefact, read_artefact, require_input, write_artefact
from fastkd.errors import FormatError, MismatchError
from fastkd.models.classes import DIGEST_KEY, names_fingerprint, require_same_names
from fastkd.writing import require_replaceable

KIND, FORMAT_VERSION = "features", 1


def save_features(
    path: str | Path,
    features: np.ndarray,
    *,
    beton_fingerprint: str,
    inputs: Mapping[str, str],
    params: dict[str, Any],
    class_names: Sequence[str] | None = None,
    force: bool = False,
) -> Header:
    """Writes the features of all samples, float32 (N, D), as `write_artefact` does."""
    return write_artefact(
        path,
        kind=KIND,
        format_version=FORMAT_VERSION,
        inputs={"beton": beton_fingerprint, **inputs},
        params=params | names_fingerprint(class_names),
        arrays={"features": np.ascontiguousarray(features, np.float32)},
        force=force,
    )


def features_there(
    path: str | Path,
    beton_fingerprint: str,
    inputs: Mapping[str, str],
    params: Mapping[str, Any],
    *,
    class_names: Sequence[str] | None = None,
    force: bool = False,
) -> bool:
    """Whether the feature file of a job is there already.

    Raises:
        MismatchError: something else is there, and may not be replaced.
    """
    wanted = {"beton": beton_fingerprint, **inputs}
    params = {**params, **names_fingerprint(class_names)}
    other = found_artefact(Path(path), KIND, wanted, params, newer=(DIGEST_KEY,))
    if other is not None:
        require_replaceable(Path(path), force, other)
    return other is None and Path(path).exists() and not force


def load_features(
    path: str | Path,
    fingerprint: str,
    beton_path: str | Path,
    num_samples: int,
    class_names: Sequence[str] | None = None,
) -> tuple[np.ndarray, Header]:
    """Reads the features of a beton's samples: float32 (N, D), all finite.

    Raises:
        NotFoundError, FormatError, CorruptError: no file; not a feature file; damaged.
        MismatchError: features of another beton, or of other classes.
    """
    header, arrays = read_artefact(path, kind=KIND, format_version=FORMAT_VERSION, arrays={"features": ("<f4", 2)})
    require_input(header, path, "beton", fingerprint, beton_path)
    require_same_names(header.params, path, class_names, beton_path, "make the features again")
    features = arrays["features"]
    if len(features) != num_samples:
        raise MismatchError(f"{path}: features of {len(features)} samples, {beton_path} has {num_samples}")
    if not np.isfinite(features).all():
        raise FormatError(f"{path}: features that are not finite numbers")
    return features, header
