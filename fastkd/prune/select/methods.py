"""The methods of `fastkd prune` by name: what each needs, its options, and the samples that it keeps.

The command line is made from these tables, so nothing heavy is imported before a method runs.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fastkd.errors import OptionError

if TYPE_CHECKING:
    import numpy as np


class Candidates(NamedTuple):
    """What is known of the samples that are chosen from.

    labels: int64 (N,). scores: float32 (N,), higher = harder. hardness: float32 (N,), what β drops the highest of.
    target_prob_mean: float32 (N,). features: float32 (N, D). Each may be missing but the labels. pool: bool (N,), the
    samples that are chosen from; None for all. NaN are outside it alone.
    """

    labels: "np.ndarray"
    scores: "np.ndarray | None" = None
    hardness: "np.ndarray | None" = None
    target_prob_mean: "np.ndarray | None" = None
    features: "np.ndarray | None" = None
    pool: "np.ndarray | None" = None


class Method(NamedTuple):
    """A way to choose. choose: (candidates, num_kept, seed, options) → int64 (num_kept,), sample_ids in priority order.

    needs: what it goes by, `scores`, `features`, or either of them as `scores|features`. also: further arrays of
    Candidates that come from the score files. usual: the score that it is made for. options: name → default; None where
    one has to be given.
    """

    choose: "Callable[[Candidates, int, int, Mapping[str, Any]], np.ndarray]"
    options: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    usual: str | None = None


class Span(NamedTuple):
    """Numbers from least to most, both of them included. kind: int or float."""

    kind: type
    least: float
    most: float


OPTIONS: dict[str, tuple["Span | list[str]", str]] = {
    "level": (["hard", "moderate", "easy"], "Which scores are kept.  [default: hard]"),
    "balance": (
        ["equal", "proportional", "none"],
        "Samples of each class.  [default: equal for random and d2, else none]",
    ),
    "drop_hardest": (Span(float, 0, 1), "ccs, d2: the part that is never kept, β.  [default: 0]"),
    "strata": (Span(int, 1, 10**6), "ccs: strata of equal width.  [default: 50]"),
    "neighbours": (Span(int, 0, 10**6), "d2: neighbours of a sample.  [default: 5]"),
    "gamma_forward": (Span(float, 0, 10**6), "d2: decay of what neighbours lend.  [default: 1]"),
    "gamma_reverse": (Span(float, 0, 10**6), "d2: decay of what a pick takes away.  [default: 0.1]"),
    "distance": (["plain", "squared"], "d2: in the exponents.  [default: plain]"),
    "knn": (["exact", "faiss"], "d2: how neighbours are found.  [default: exact]"),
    "centre": (["mean", "median"], "moderate: of a class.  [default: mean]"),
    "exponent": (Span(float, 0, 1000), "dual-beta: c_D (5.5 CIFAR-10, 4 CIFAR-100, 11 ImageNet)."),
    "beta_total": (Span(float, 15, 16), "dual-beta: a + b; 16 as in the authors' code.  [default: 15]"),
}
"""The options of all methods: the numbers or the words to choose from, and their help."""


def _random(known: Candidates, num_kept: int, seed: int, options: Mapping[str, Any]) -> "np.ndarray":
    from fastkd.prune.select.levels import select_level

    return select_level(known.labels, num_kept, balance=options["balance"], seed=seed, pool=known.pool)


def _scores(known: Candidates, num_kept: int, seed: int, options: Mapping[str, Any]) -> "np.ndarray":
    from fastkd.prune.select.levels import select_level

    return select_level(known.labels, num_kept, scores=known.scores, seed=seed, pool=known.pool, **options)


def _moderate(known: Candidates, num_kept: int, seed: int, options: Mapping[str, Any]) -> "np.ndarray":
    from fastkd.prune.select.centres import class_centre_distances
    from fastkd.prune.select.levels import select_level

    scores, balance = known.scores, options["balance"]
    if known.features is not None:
        scores = class_centre_distances(known.features, known.labels, options["centre"])
    return select_level(
        known.labels, num_kept, scores=scores, level="moderate", balance=balance, seed=seed, pool=known.pool
    )


def _ccs(known: Candidates, num_kept: int, seed: int, options: Mapping[str, Any]) -> "np.ndarray":
    from fastkd.prune.select.ccs import select_ccs

    assert known.scores is not None
    assert known.hardness is not None
    return select_ccs(
        known.labels,
        num_kept,
        scores=known.scores,
        hardness=known.hardness,
        share_dropped=options["drop_hardest"],
        num_strata=options["strata"],
        balance=options["balance"],
        seed=seed,
        pool=known.pool,
    )


def _d2(known: Candidates, num_kept: int, seed: int, options: Mapping[str, Any]) -> "np.ndarray":
    from fastkd.prune.select.graph import select_d2

    assert known.scores is not None
    assert known.features is not None
    assert known.hardness is not None
    how = {name: options[name] for name in ("gamma_forward", "gamma_reverse", "knn", "balance")}
    return select_d2(
        known.labels,
        num_kept,
        features=known.features,
        scores=known.scores,
        hardness=known.hardness,
        share_dropped=options["drop_hardest"],
        k=options["neighbours"],
        squared=options["distance"] == "squared",
        seed=seed,
        pool=known.pool,
        **how,
    )


def _dual_beta(known: Candidates, num_kept: int, seed: int, options: Mapping[str, Any]) -> "np.ndarray":
    from fastkd.prune.select.dual import select_dual

    assert known.scores is not None
    assert known.target_prob_mean is not None
    return select_dual(
        known.labels,
        num_kept,
        scores=known.scores,
        target_prob_mean=known.target_prob_mean,
        exponent=options["exponent"],
        beta_total=options["beta_total"],
        balance=options["balance"],
        seed=seed,
        pool=known.pool,
    )


METHODS: dict[str, Method] = {
    "random": Method(choose=_random, options={"balance": "equal"}),
    "scores": Method(choose=_scores, needs=("scores",), options={"level": "hard", "balance": "none"}),
    "moderate": Method(
        choose=_moderate,
        needs=("features|scores",),
        usual="moderate",
        options={"centre": "mean", "balance": "none"},
    ),
    "ccs": Method(
        choose=_ccs,
        needs=("scores",),
        also=("hardness",),
        options={"drop_hardest": 0.0, "strata": 50, "balance": "none"},
    ),
    "d2": Method(
        choose=_d2,
        needs=("scores", "features"),
        also=("hardness",),
        options={
            "drop_hardest": 0.0,
            "neighbours": 5,
            "gamma_forward": 1.0,
            "gamma_reverse": 0.1,
            "distance": "plain",
            "knn": "exact",
            "balance": "equal",
        },
    ),
    "dual-beta": Method(
        choose=_dual_beta,
        needs=("scores",),
        also=("target_prob_mean",),
        usual="dual",
        options={"exponent": None, "beta_total": 15.0, "balance": "none"},
    ),
}
"""By the name that --method takes."""


def options_of(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a method: those given (not None) over its defaults.

    Raises:
        OptionError: an option that the method does not have, or one that it needs and was not given.
    """
    known = METHODS[method].options
    for name, value in given.items():
        if value is not None and name not in known:
            raise OptionError(f"{flag(name)} does nothing with --method {method}, leave it out")
    options = {name: default if given.get(name) is None else given[name] for name, default in known.items()}
    for name, value in options.items():
        if value is None:
            raise OptionError(f"--method {method} needs {flag(name)}")
    return options


def choose(
    method: str, candidates: Candidates, num_kept: int, *, seed: int = 0, options: Mapping[str, Any]
) -> "np.ndarray":
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
    pool, num_all = candidates.pool, len(candidates.labels)
    num_known = num_all if pool is None else int(pool.sum())
    if num_kept > num_known:
        raise OptionError(f"{num_kept} samples to keep, but {num_known} of {num_all} have a score; keep fewer")
    return METHODS[method].choose(candidates, num_kept, seed, options)


def flag(name: str) -> str:
    """An option's name as it is typed."""
    return "--" + name.replace("_", "-")
