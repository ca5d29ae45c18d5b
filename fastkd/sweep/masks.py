"""The masks that cells ask for, the scores that these go by, and which masks lie inside one another."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from fastkd.errors import ModelError, OptionError
from fastkd.prune.scores.recorder import RECORDABLE
from fastkd.prune.select.methods import METHODS
from fastkd.sweep.jobs import Draft, Input, Job
from fastkd.sweep.suite.read import Suite

SCORED = ("el2n", "grand", "moderate", "margin", "entropy", "confidence", "memorization")
"""Scores that `fastkd score` gives; of those that a training run records, the run's own are taken."""
_OF_SCORES = {
    "memorization": ("num-models", "subset", "min-count", "student", "epochs", "seed"),
    "grand": ("grand-params", "compat"),
    "moderate": ("centre",),
}
"""Options of `score` that are for one score alone."""
_NOT_NESTED = ("dual-beta",)
"""Methods whose smaller mask is no part of the larger."""


class Family(NamedTuple):
    """Masks that are nested, and one of them. key: what they have in common. size: of the mask, comparable within a family:
    a part of the samples, or a count. is_count: which of both."""

    key: str
    mask: Job
    size: Fraction
    is_count: bool


def mask_job(
    suite: Suite,
    draft: Draft,
    train: Job,
    prune: Mapping[str, Any],
    teacher_of: Callable[..., Job],
    section: str = "prune",
) -> Job | None:
    """The mask of some options of `prune`; None where all samples are kept.

    `method` may be the name of a score: the highest of it are kept then.

    Raises:
        OptionError: options that do not go together, or scores that nothing gives; says where.
    """
    values = dict(prune)
    method = values.pop("method", "random")
    keep = values.get("keep")
    if keep is None and not set(values) - {"seed"} and method == "random":
        return None
    if isinstance(keep, float) and keep == 1.0 and method == "random" and "weights" not in values:
        return None
    if method in METHODS:
        values["method"] = method
    elif method in (*RECORDABLE, *SCORED):
        values |= {"method": "moderate"} if method == "moderate" else {"method": "scores"}
        values["score"] = method
    else:
        known = ", ".join([*METHODS, *dict.fromkeys((*RECORDABLE, *SCORED))])
        where = suite.place((section, "method"), ("matrix", section, "method"))
        raise OptionError(f"{where}: method is {method!r}, expected one of {known}")
    inputs = [Input("beton", "beton", train)]
    kind = METHODS[values["method"]]
    needs = {name for need in kind.needs for name in need.split("|")}
    if "scores" in needs and "scores" not in values and "features" not in values:
        score = values.setdefault("score", kind.usual)
        if score is None:
            where = suite.place((section, "method"), ("matrix", section, "method"))
            raise OptionError(f'{where}: method "{method}" goes by a score: say prune.score = "forgetting", or another')
        inputs.append(score_input(suite, draft, train, str(score), teacher_of))
    if "features" in kind.needs and "features" not in values:
        inputs.append(features_input(suite, draft, train, teacher_of))
    label = "-".join(
        str(part) for part in (method, values.get("level"), values.get("keep"), f"s{values.get('seed', 0)}") if part
    )
    about = {"keep": values.get("keep")}
    try:
        return draft.add("mask", "prune", "masks", label, ".h5", values, inputs, about=about)
    except (OptionError, ModelError) as error:
        raise suite.told(section, error) from None


def score_input(
    suite: Suite, draft: Draft, train: Job, score: str, teacher_of: Callable[..., Job], key: str = "scores"
) -> Input:
    """Where a score comes from: a teacher's own training run, or `fastkd score`.

    Raises:
        OptionError: nothing gives such a score.
    """
    where = suite.place(("score", "teacher"), ("score",), ("prune", "method"), ("matrix", "prune", "method"))
    if score not in (*RECORDABLE, *SCORED):
        known = ", ".join(dict.fromkeys((*RECORDABLE, *SCORED)))
        raise OptionError(
            f"{where}: no command gives a score {score!r}, expected one of {known}; or prune.scores = FILE"
        )
    others = {name for one, names in _OF_SCORES.items() if one != score for name in names} | {"teacher"}
    options = {name: value for name, value in suite.sections["score"].items() if name not in others}
    beton = Input("beton", "beton", train)
    if score == "memorization":
        job = draft.add("scores", "score", "scores", score, ".h5", {**options, "method": [score]}, [beton])
        return Input("scores", key, job)
    scorer = teacher_of(scoring_teacher(suite, where), {})
    if score in RECORDABLE and scorer.about.get("records"):
        return Input("scores", key, scorer, draft.jobs[scorer.name].path / "scores.h5")  # of all its epochs
    if score in RECORDABLE and score not in SCORED:
        raise OptionError(
            f"{where}: {score} is recorded while a network is trained on all samples, and {scorer.label} is not: say "
            f"[score] teacher = NAME of one that is"
        )
    values = {**options, "method": [score], **network_of(scorer)}
    label = f"{score}-{scorer.label}"
    job = draft.add("scores", "score", "scores", label, ".h5", values, [beton, Input("model 1", "model", scorer)])
    return Input("scores", key, job)


def features_input(suite: Suite, draft: Draft, train: Job, teacher_of: Callable[..., Job]) -> Input:
    """The features that d2 goes by: of the scoring teacher."""
    scorer = teacher_of(scoring_teacher(suite, suite.place(("score",))), {})
    label = f"features-{scorer.label}"
    values = {"method": ["moderate"], **network_of(scorer)}
    path = draft.folder / "scores" / f"{label}-{scorer.digest[:8]}.features.h5"
    job = draft.add(
        *("scores", "score", "scores", label, ".h5"),
        {**values, "features-out": str(path)},
        [Input("beton", "beton", train), Input("model 1", "model", scorer)],
        meaning=values,
        about={"also": str(path)},
    )
    return Input("features", "features", job, path)


def scoring_teacher(suite: Suite, where: str) -> str:
    """The teacher that [score] names, or the first that is trained on all samples, or the first."""
    if "teacher" in suite.sections["score"]:
        return str(suite.sections["score"]["teacher"])
    whole = [name for name, own in suite.teachers.items() if own.get("keep", 1.0) == 1.0 and "mask" not in own]
    if not suite.teachers:
        raise OptionError(f"{where}: scores come from a network: give a [teacher.NAME]")
    trained = [name for name in whole if "checkpoint" not in suite.teachers[name]]
    return (trained or whole or list(suite.teachers))[0]


def network_of(teacher: Job) -> dict[str, Any]:
    """What `score` has to be told of a teacher whose file does not say it."""
    names = {"teacher-model": "model-name", "teacher-norm": "norm", "ema-weights": "ema-weights"}
    return {names[key]: value for key, value in teacher.about["network"].items() if key in names}


def family_of(mask: Job, prune: Mapping[str, Any]) -> Family:
    """A mask among those that it is nested with."""
    keep = prune.get("keep", 1.0)
    is_count = isinstance(keep, int) or (isinstance(keep, str) and keep.isdigit())
    common = {key: str(value) for key, value in prune.items() if key != "keep"}
    alone = mask.digest if prune.get("method") in _NOT_NESTED else ""
    key = f"{sorted(common.items())} {sorted(mask.inputs.items())} {is_count} {alone}"
    return Family(key=key, mask=mask, size=Fraction(str(keep)), is_count=is_count)
