"""What `fastkd prune` chooses from: scores and features, masks to combine, weights to keep beside the samples."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkd.prune.select.methods import METHODS, Candidates

if TYPE_CHECKING:
    from fastkd.data.beton.dataset import Dataset
    from fastkd.data.beton.read import Beton


def read_candidates(
    method: str,
    dataset: "Dataset",
    scores: tuple[Path, ...],
    score: str | None,
    features: Path | None,
    hardness: str | None,
    unscored: str | None,
) -> "tuple[Candidates, dict[str, str], dict[str, Any]]":
    """What is known of the samples; the fingerprints of the files that say so; and the scores' names, for the mask."""
    import numpy as np

    from fastkd.prune.scores.features import load_features
    from fastkd.prune.scores.score_file import mean_extra, mean_score, read_all_scores

    opened = dataset.beton
    of_data = (dataset.fingerprint, opened.path, opened.num_samples, dataset.class_names)
    arrays: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    used: dict[str, Any] = {}
    pool: np.ndarray | None = None
    drop = unscored == "drop"
    if scores:
        files = read_all_scores(scores, *of_data)
        usual, also = METHODS[method].usual, METHODS[method].also
        name = files[0].choose(score or (usual if usual in files[0].values else None))
        arrays["scores"] = mean_score(files, name, allow_nan=drop)
        used["score"] = name
        if "hardness" in also:
            harder = hardness or ("aum" if "aum" in files[0].values else name)
            arrays["hardness"] = mean_score(files, files[0].choose(harder, "--hardness"), allow_nan=drop)
            used["hardness"] = harder
        if "target_prob_mean" in also:
            arrays["target_prob_mean"] = mean_extra(files, "target_prob_mean", f"--method {method}", allow_nan=drop)
        if drop:
            pool = ~np.any([np.isnan(values) for values in arrays.values()], axis=0)
            used |= {"unscored": unscored, "num_unscored": int(np.count_nonzero(~pool))}
        numbered = enumerate(files[1:], start=2)
        inputs = {"scores": files[0].header.fingerprint} | {f"scores {i}": f.header.fingerprint for i, f in numbered}
    if features:
        arrays["features"], header = load_features(features, *of_data)
        inputs["features"] = header.fingerprint
    return Candidates(labels=opened.labels, pool=pool, **arrays), inputs, used


def combine_masks(
    method: str, paths: tuple[Path, ...], opened: "Beton", fingerprint: str
) -> tuple[Any, Any, dict[str, str], list[dict[str, Any]]]:
    """The sample_ids that the masks give together, their weights or None, the masks' fingerprints and how they were chosen."""
    from fastkd.errors import OptionError
    from fastkd.prune.masks.mask import Mask, combine_ids, complement_ids
    from fastkd.prune.masks.origin import origin_of
    from fastkd.prune.masks.weights import carried_weights

    masks = [Mask.load(path) for path in paths]
    for one in masks:
        one.require_beton(fingerprint, opened.path)
    ids = [one.sample_ids for one in masks]
    weights = None
    if method == "complement":
        found = complement_ids(ids[0], opened.num_samples)
    else:
        found = combine_ids(method, ids[0], ids[1], opened.num_samples)
        keepers = masks if method == "union" else masks[:1]
        weights = carried_weights(found, [(one.sample_ids, one.weights) for one in keepers], opened.num_samples)
    if not len(found):
        raise OptionError(f"the {method} of {' and '.join(map(str, paths))} holds no samples: there is no mask of none")
    inputs = {f"mask {i}": one.header.fingerprint for i, one in enumerate(masks, start=1)}
    return found, weights, inputs, [origin_of(one) for one in masks]


def read_weights(text: str, ids: Any, dataset: "Dataset") -> tuple[Any, Any, dict[str, str]]:
    """The weights that --weights asks for, float32 or None; what they are, for the mask; and a score file's fingerprint."""
    from fastkd.artefact import HDF5_MAGIC
    from fastkd.cli.import_scores import read_joined
    from fastkd.errors import OptionError
    from fastkd.prune.masks.weights import BY_CLASS, class_weights, require_weights
    from fastkd.prune.scores.score_file import read_all_scores
    from fastkd.writing import reading

    opened = dataset.beton
    if text == "none":
        return None, None, {}
    if text in BY_CLASS:
        return class_weights(text, opened.labels, ids), text, {}
    path = Path(text)
    if not path.is_file():
        raise OptionError(f"--weights {text}: neither {', '.join(BY_CLASS)} or none, nor a file that is there")
    with reading(path), path.open("rb") as file:
        is_score_file = file.read(8) == HDF5_MAGIC
    if is_score_file:
        (scores,) = read_all_scores([path], dataset.fingerprint, opened.path, opened.num_samples, dataset.class_names)
        if len(scores.values) > 1:
            raise OptionError(f"--weights {text}: holds {', '.join(scores.values)}, expected a file of one score")
        ((name, values),) = scores.values.items()
        known_as: dict[str, Any] = {"score": name}
        inputs = {"weights": scores.header.fingerprint}
    else:
        values, known_as = read_joined(path, dataset)[1:]
        inputs = {}
    weights = values[ids].astype("float32")
    require_weights(weights, ids, path)
    return weights, known_as, inputs
