"""What a run was as a flat list of facts, and in which of them some runs differ."""

import json
from collections.abc import Sequence
from typing import Any

from fastkd.distil.methods import LOGIT_LOSSES, METHODS
from fastkd.prune.masks.origin import without_seeds

Facts = dict[str, Any]
"""Name → plain value; `mask.…`, `teacher.…` and `logits.…` are of the input that is named first."""

NOT_RECORDED = "not recorded"

_FAMILIES = {"mask": "mask", "teacher": "teacher", "logits": "store", "origin": "mask and teacher"}
"""Facts of one thing, and what that is called."""
_OF_SEEDS = ("seed", "mask.seed", "mask.fingerprint", "mask.class_min", "mask.class_max")
"""The run's seed, its mask's, and what is drawn by the latter."""
_OF_TEACHERS_SEEDS = (
    *("teacher.fingerprint", "teacher.val_top1"),
    *("teacher.mask.seed", "teacher.mask.fingerprint", "teacher.mask.of"),
)
"""What is drawn by the seeds of a teacher of which `teacher.training` says all else."""
_TWICE = ("mask.keep", "mask.fraction", "mask.num_samples")
"""What num_kept, fraction and the data's fingerprint say."""
_AS_VIEWS = ("logits.num_seeds", "logits.views.")
"""Of a store, what its students' views are as well."""
_OF_TEACHER = (
    *("kd", "tau", "tau_course", "tau_squared", "alpha_course", "alpha_rule"),
    *("beta", "layers", "teacher_layers", "teacher_precision"),
)
"""What does not bear on a student of labels alone."""
_OF_METHODS = ("beta", "layers", "teacher_layers")
"""What does not bear on losses between logits that add nothing to KD."""
_SHOWN = ("model", "epochs", "num_kept", "fraction", "kd", "alpha", "alpha_course", "tau", "tau_course", "source")
"""What columns and `_loss` tell."""
_FOLLOWING = ("num_kept", "teacher.num_parameters", "teacher_precision")
"""What follows from what is told anyway."""
_SHORT = {
    "views.num_seeds": "K",
    "val_views_version": "val views",
    "val_size": "val size",
    "mask.method": "mask",
    "teacher.model": "teacher",
    "origin": "mask and teacher",
    "alpha_course": "alpha",
    "tau_course": "tau",
}
_DETAILS = {"val_top1": "top-1", "mask.method": "mask", "mask.fraction": "fraction", "inputs": ""}


def facts_of(head: dict[str, Any]) -> Facts:
    """Everything that run.json records of what a run was, less what is drawn by seed and what did not bear on it.

    A run that recorded nothing of its mask and teacher has the facts `origin` and `origin.inputs`: fingerprints, in which a
    draw by another seed cannot be told from another choice.

    Args:
        head: what run.json says.

    Raises:
        KeyError, TypeError: it is malformed.
    """
    params, inputs, about = dict(head["params"]), dict(head["inputs"]), head.get("about")
    recipe = params.pop("recipe")
    params.pop("teacher_norm", None)  # `about` tells
    drawn = {role: inputs.pop(role) for role in ("mask", "logits", "teacher") if role in inputs}
    alone = recipe["alpha"] == 0 and recipe["kd"] not in METHODS
    facts = _flat(recipe | params | inputs)
    facts["source"] = "labels" if alone else "store" if "logits" in drawn else "teacher"
    if about is None:
        named = ", ".join(f"{role} {digest[:8]}" for role, digest in drawn.items())
        facts |= {"origin": NOT_RECORDED, "origin.inputs": named or "all samples, no teacher"}
    else:
        told = {name: about[name] for name in ("mask", "teacher", "logits") if about.get(name) is not None}
        if isinstance(told.get("mask"), dict):
            told["mask"] = without_seeds(told["mask"])
        facts |= _flat(told)
    without: tuple[str, ...]
    if alone:
        without = (*_OF_TEACHER, "teacher.", "logits.")
    else:
        adds = recipe["kd"] not in LOGIT_LOSSES or LOGIT_LOSSES[recipe["kd"]].beta > 0
        without = (*_AS_VIEWS, *(() if adds else _OF_METHODS))
    if "teacher.training" in facts:
        without = (*without, *_OF_TEACHERS_SEEDS)
    return {
        name: NOT_RECORDED if value is None and _family(name) == "teacher" else value
        for name, value in facts.items()
        if name not in (*_OF_SEEDS, *_TWICE, *without)
        and not name.startswith(tuple(w for w in without if w.endswith(".")))
    }


def differing(runs: Sequence[Facts]) -> list[str]:
    """The names of facts in which some runs differ. Of mask, teacher and store, only runs that have one are compared."""
    names = sorted({name for facts in runs for name in facts}, key=_place)
    return [name for name in names if len({_text(facts, name) for facts in runs if _bears_on(facts, name)}) > 1]


def shown_names(names: Sequence[str]) -> list[str]:
    """What some runs differ in, where people read: of mask, teacher and store, these words alone."""
    told = [name for name in names if name not in _FOLLOWING]
    return list(dict.fromkeys(_FAMILIES.get(_family(name) or "", _SHORT.get(name, name)) for name in told))


def label_of(facts: Facts, others: Sequence[Facts], names: Sequence[str]) -> str:
    """How runs are told from others of their student and fraction: the loss, and all else in which any of them differ.

    Args:
        others: the facts of all groups of runs. names: of `differing`, of all groups.
    """
    words: dict[str, str] = {}
    details: dict[str, list[str]] = {}
    for name in names:
        if name in (*_SHOWN, *_FOLLOWING) or name not in facts:
            continue
        if _is_opaque(name) and not any(_alone_tells(name, facts, other) for other in others):
            continue
        family, value = _family(name), _value(facts[name])
        if family is None:
            words[name] = f"{_SHORT.get(name, name)} {value}"
        elif name in _SHORT:
            words[family] = f"{_FAMILIES[family]} {value}"
        else:
            words.setdefault(family, _FAMILIES[family])
            detail = name.removeprefix(f"{family}.")
            details.setdefault(family, []).append(f"{_DETAILS.get(detail, detail)} {value}".strip())
    told = [f"{text} ({', '.join(details[name])})" if name in details else text for name, text in words.items()]
    return ", ".join([_loss(facts), *told])


def _loss(facts: Facts) -> str:
    if facts["source"] == "labels":
        return "no KD"
    kd = facts["kd"]
    name = "KD" if kd == "kd" else f"KD+{kd.upper()}" if kd in METHODS else kd.upper()
    alpha = "auto" if "alpha_rule" in facts else course_of(facts, "alpha") or f"{facts['alpha']:g}"
    tau = course_of(facts, "tau") or f"{facts['tau']:g}"
    return f"{name} α={alpha} τ={tau} ({facts['source']})"


def course_of(facts: Facts, name: str) -> str | None:
    """The line along which `alpha` or `tau` ran over the course of training, as it is typed; None for one value."""
    points = facts.get(f"{name}_course")
    return ",".join(f"{x:g}:{value:g}" for x, value in points) if points else None


def _is_opaque(name: str) -> bool:
    """Whether a fact is a fingerprint or a fine point, and told only where nothing else tells."""
    of_its_mask = name.startswith("teacher.mask.") and name not in ("teacher.mask.method", "teacher.mask.fraction")
    return name.endswith((".fingerprint", ".training", ".of")) or ".inputs" in name or of_its_mask


def _alone_tells(name: str, facts: Facts, other: Facts) -> bool:
    """Whether fingerprints alone tell two runs apart: of all that they are where nothing else is recorded, else of the mask
    or the teacher that the fact is of."""
    names, family = differing([facts, other]), name.split(".")[0]
    own = names if family == "origin" else [one for one in names if one.split(".")[0] == family]
    return name in own and all(map(_is_opaque, own))


def _value(value: Any) -> str:
    """A value in a label; of a fingerprint its first digits."""
    if isinstance(value, str):
        return value[:8] if len(value) == 32 and set(value) <= set("0123456789abcdef") else value
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False)


def _text(facts: Facts, name: str) -> str:
    return json.dumps(facts.get(name), sort_keys=True)


def _place(name: str) -> tuple[str, bool, str]:
    """Where a fact stands among others: families together, what an input is first."""
    first, _, rest = name.partition(".")
    return first, rest not in ("", "method", "model"), name


def _bears_on(facts: Facts, name: str) -> bool:
    """Whether runs with these facts have what a fact is of: of a run on labels alone, no teacher's and no tau counts."""
    family = _family(name)
    if family not in (None, "origin"):
        return any(other.startswith(f"{family}.") for other in facts)
    if name in ("alpha_course", "tau_course"):  # without one alpha and tau stay as they are
        return facts["source"] != "labels"
    return name in facts or name not in _OF_TEACHER


def _family(name: str) -> str | None:
    first = name.partition(".")[0]
    return first if first in _FAMILIES else None


def _flat(value: dict[str, Any], prefix: str = "") -> Facts:
    found: Facts = {}
    for name, inner in value.items():
        found |= _flat(inner, f"{prefix}{name}.") if isinstance(inner, dict) else {prefix + name: inner}
    return found
