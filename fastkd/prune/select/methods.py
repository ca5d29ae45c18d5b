"""The methods of `fastkd prune` by name: what each needs, and the samples that it keeps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastkd.errors import OptionError
from fastkd.prune.select.levels import (
    class_centre_distances,
    class_members,
    class_quotas,
    drop_hardest,
    in_turns,
    select_ccs,
    select_level,
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Candidates:
    """What is known of the samples that are chosen from.

    labels: int64 (N,). scores: float32 (N,), higher = harder. hardness: float32 (N,), what β drops the highest of.
    target_prob_mean: float32 (N,). features: float32 (N, D). Each may be missing but the labels. pool: bool (N,), the
    samples that are chosen from; None for all. NaN are outside it alone.
    """

    labels: np.ndarray
    scores: np.ndarray | None = None
    hardness: np.ndarray | None = None
    target_prob_mean: np.ndarray | None = None
    features: np.ndarray | None = None
    pool: np.ndarray | None = None


DEFAULTS: dict[str, dict[str, Any]] = {
    "random": {"balance": "equal"},
    "scores": {"level": "hard", "balance": "none"},
    "moderate": {"centre": "mean", "balance": "none"},
    "ccs": {"drop_hardest": 0.0, "strata": 50, "balance": "none"},
    "d2": {
        "drop_hardest": 0.0,
        "neighbours": 5,
        "gamma_forward": 1.0,
        "gamma_reverse": 0.1,
        "distance": "plain",
        "knn": "exact",
        "balance": "equal",
    },
    "dual-beta": {"exponent": None, "beta_total": 15.0, "balance": "none"},
}
"""Each method's options with their defaults; None where one has to be given."""


def options_of(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a method: those given (not None) over its defaults.

    Raises:
        OptionError: an option that the method does not have, or one that it needs and was not given.
    """
    known = DEFAULTS[method]
    for name, value in given.items():
        if value is not None and name not in known:
            raise OptionError(f"{_flag(name)} does nothing with --method {method}, leave it out")
    options = {name: default if given.get(name) is None else given[name] for name, default in known.items()}
    for name, value in options.items():
        if value is None:
            raise OptionError(f"--method {method} needs {_flag(name)}")
    return options


def choose(
    method: str, candidates: Candidates, num_kept: int, *, seed: int = 0, options: Mapping[str, Any]
) -> np.ndarray:
    """The samples that a method keeps.

    Args:
        num_kept: 1 … N. seed: of draws, and of the order of equal scores.
        options: as `options_of` gives them.

    Returns:
        int64 (num_kept,), sample_ids in priority order.

    Raises:
        OptionError: options out of range, or scores that the method cannot use.
        MissingDependencyError: faiss is asked for and missing.
    """
    labels, scores, pool, balance = candidates.labels, candidates.scores, candidates.pool, options["balance"]
    num_known = len(labels) if pool is None else int(np.count_nonzero(pool))
    if num_kept > num_known:
        raise OptionError(f"{num_kept} samples to keep, but {num_known} of {len(labels)} have a score; keep fewer")
    if method == "random":
        return select_level(labels, num_kept, balance=balance, seed=seed, pool=pool)
    if method == "scores":
        assert scores is not None
        level = options["level"]
        return select_level(labels, num_kept, scores=scores, level=level, balance=balance, seed=seed, pool=pool)
    if method == "moderate":
        if candidates.features is not None:
            scores = class_centre_distances(candidates.features, labels, options["centre"])
        return select_level(labels, num_kept, scores=scores, level="moderate", balance=balance, seed=seed, pool=pool)
    if method == "ccs":
        assert scores is not None
        assert candidates.hardness is not None
        return select_ccs(
            labels,
            num_kept,
            scores=scores,
            hardness=candidates.hardness,
            share_dropped=options["drop_hardest"],
            num_strata=options["strata"],
            balance=balance,
            seed=seed,
            pool=pool,
        )
    if method == "dual-beta":
        from fastkd.prune.select.dual import beta_weights, draw_weighted

        assert scores is not None
        assert candidates.target_prob_mean is not None
        if not options["exponent"] > 0:
            raise OptionError(f"--exponent {options['exponent']}: expected a number above 0")
        if not 15 <= options["beta_total"] < 1000:
            raise OptionError(f"--beta-total {options['beta_total']}: expected 15 (the paper's) or 16 (its code's)")
        fraction = num_kept / len(labels)
        mu = candidates.target_prob_mean
        weights = beta_weights(scores, mu, fraction, options["exponent"], options["beta_total"], pool)
        return draw_weighted(weights, labels, num_kept, balance=balance, seed=seed, pool=pool)
    return _choose_d2(candidates, num_kept, seed, options)


def _choose_d2(candidates: Candidates, num_kept: int, seed: int, options: Mapping[str, Any]) -> np.ndarray:
    """D2 within each class (or over all samples), after the hardest are dropped."""
    from fastkd.prune.select.graph import d2_orders

    labels, scores, features = candidates.labels, candidates.scores, candidates.features
    assert scores is not None
    assert features is not None
    assert candidates.hardness is not None
    balance = options["balance"]
    left = drop_hardest(candidates.hardness, options["drop_hardest"], num_kept, seed, candidates.pool)
    members = [left[part] for part in class_members(labels[left], balance)]
    quotas = class_quotas(np.array([len(ids) for ids in members]), num_kept, balance, seed)
    orders = d2_orders(
        features,
        scores,
        members,
        quotas,
        k=options["neighbours"],
        gamma_forward=options["gamma_forward"],
        gamma_reverse=options["gamma_reverse"],
        squared=options["distance"] == "squared",
        knn=options["knn"],
        seed=seed,
    )
    return in_turns(orders, members, balance, seed)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
