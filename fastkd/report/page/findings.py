"""What some runs show, in sentences with their numbers."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fastkd.report.axes import value_of
from fastkd.report.compare import Group
from fastkd.report.facts import Facts
from fastkd.report.page.vega import text_of

_OF_ALPHA, _OF_TAU = ("alpha", "alpha_course", "alpha_rule"), ("tau", "tau_course")
_OF_KD = ("kd", *_OF_ALPHA, *_OF_TAU, "tau_squared", "beta", "layers", "teacher_layers", "source")
_OF_WEIGHTS = ("teacher.fingerprint", "teacher.training", "teacher.val_top1")
_FOLLOWING: dict[str, tuple[str, ...]] = {
    "distillation": (*_OF_KD, "teacher.", "logits."),
    "method": ("mask.",),
    "level": ("mask.level",),
    "kd": ("kd", "beta", "layers", "teacher_layers"),
    "alpha": _OF_ALPHA,
    "tau": _OF_TAU,
    "teacher": ("teacher.", "logits."),
    "teacher-fraction": ("teacher.mask.", *_OF_WEIGHTS),
    "teacher-epoch": ("teacher.epoch", *_OF_WEIGHTS),
    "num-seeds": ("views.num_seeds",),
    "codec": ("logits.codec",),
}
"""What is compared → the facts that differ with it; all others must be equal."""
_STAYING = {"teacher": ("teacher.mask.fraction", "teacher.epoch")}
"""What is compared → facts of those that must be equal all the same."""
_WORDS = {
    "method": "pruning methods",
    "level": "levels",
    "kd": "losses",
    "alpha": "weights α",
    "tau": "temperatures τ",
    "teacher": "teachers",
    "teacher-fraction": "fractions that the teacher was trained on",
    "teacher-epoch": "epochs of the teacher",
    "num-seeds": "numbers of views K",
    "codec": "codecs",
}
_SHORT = {"alpha": "α ", "tau": "τ ", "num-seeds": "K ", "epochs": "epochs "}
_SHORT |= {"teacher-fraction": "f_t ", "teacher-epoch": "teacher of epoch "}
_MOST_TOLD = 4
_OF_PAPER, _SMALL = "KD at α 0.5", 0.5
"""The paper's loss of most figures, and up to which fraction it is said where it does not help."""


class Difference(NamedTuple):
    """Of two groups' means, in points. error: its standard error; None where a group is a single run."""

    points: float
    error: float | None

    @property
    def is_clear(self) -> bool:
        """Whether it is more than twice its standard error."""
        return self.error is not None and abs(self.points) > 2 * self.error

    def __str__(self) -> str:
        points = f"{self.points:+.2f}".replace("-", "−")
        return points + (" (of one run)" if self.error is None else f" ± {self.error:.2f}")


def difference(one: Group, other: Group, of: str = "val_top1") -> Difference:
    """Of one group's mean from another's; the runs are taken to be independent: √(sd²/n + sd²/n).

    Args:
        of: `val_top1` or `val_top5`, which all of the runs must have.
    """
    first, second = ([run[of] for run in group.runs] for group in (one, other))
    points = statistics.fmean(first) - statistics.fmean(second)
    if len(first) == 1 or len(second) == 1:
        return Difference(points, None)
    parts = (statistics.variance(values) / len(values) for values in (first, second))
    return Difference(points, math.sqrt(sum(parts)))


def findings_of(groups: Sequence[Group]) -> list[str]:
    """Sentences, the first of them the page's own: what distillation gives, how much there is, which of what else differs is best."""
    best = (line for name in _WORDS for line in _best(groups, name))
    return [*_distillation(groups), _extent(groups), *best, *_by_rule(groups)]


def _extent(groups: Sequence[Group]) -> str:
    best = max(groups, key=lambda group: group.top1_mean)
    num_runs, students = sum(group.num_runs for group in groups), sorted({group.model for group in groups})
    spread = "one run" if best.top1_sd is None else f"sd {best.top1_sd:.2f}, {best.num_runs} runs"
    kinds = f" of {len(groups)} kinds" if len(groups) > 1 else ""
    return (
        f"{num_runs} run{'s' * (num_runs > 1)}{kinds}, of {', '.join(students)}: the highest mean top-1 is {best.top1_mean:.2f} % "
        f"({spread}), with {best.label} on {best.fraction:.3g} of the data."
    )


def _distillation(groups: Sequence[Group]) -> list[str]:
    """What each way of distilling gives over labels alone."""
    plain = {_others(group.facts, "distillation"): group for group in groups if group.source == "labels"}
    pairs: dict[str, list[tuple[Group, Difference]]] = defaultdict(list)
    for group in groups:
        base = plain.get(_others(group.facts, "distillation"))
        if group.source != "labels" and base is not None:
            alpha = value_of(group.facts, "alpha")
            pairs[f"{group.facts['kd'].upper()} at α {text_of(alpha)}"].append((group, difference(group, base)))
    sentences = []
    for way, found in pairs.items():
        clear = [one for _, one in found if one.is_clear and one.points > 0]
        low, high = (choose(found, key=lambda pair: pair[1].points) for choose in (min, max))
        text = f"{way} beats labels alone by more than twice the standard error in {len(clear)} of {len(found)} comparisons"
        text += f": {low[1]} points ({where_of(low[0], groups)})"
        text += f" to {high[1]} points ({where_of(high[0], groups)})" if len(found) > 1 else ""
        rest = [(group, one) for group, one in found if not (one.is_clear and one.points > 0)]
        if rest:
            text += f"; not so: {_listed([f'{where_of(group, groups)} ({one})' for group, one in rest])}"
        sentences.append(f"{text}.")
        if way == _OF_PAPER:
            sentences += _at_small_fractions(found, groups)
    return sentences


def _at_small_fractions(found: Sequence[tuple[Group, Difference]], groups: Sequence[Group]) -> list[str]:
    """Where, of f <= 0.5, the paper's loss does not help: all such places."""
    small = [pair for pair in found if pair[0].fraction <= _SMALL * (1 + 1e-6)]
    rest = [f"{where_of(group, groups)} ({one})" for group, one in small if not (one.is_clear and one.points > 0)]
    if not small:
        return []
    if not rest:
        return [f"At every f ≤ {_SMALL} here, {_OF_PAPER} gains more than twice the standard error."]
    where = "; ".join(rest)
    return [
        f"At f ≤ {_SMALL}, {_OF_PAPER} does not gain more than twice the standard error in {len(rest)} of {len(small)} comparisons: {where}."
    ]


def _best(groups: Sequence[Group], name: str) -> list[str]:
    """Which value of a name is best where nothing else differs."""
    settings: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        value = value_of(group.facts, name)  # `auto` is one of the others at its fraction
        if value not in (None, "auto") and not (name in ("kd", "alpha") and group.source == "labels"):
            settings[_others(group.facts, name)].append(group)
    compared = [
        sorted(members, key=lambda group: -group.top1_mean) for members in settings.values() if len(members) > 1
    ]
    if not compared:
        return []
    told: dict[str, list[str]] = defaultdict(list)
    for first, second, *_ in compared:
        ahead = difference(first, second)
        if ahead.is_clear:
            told[text_of(value_of(first.facts, name))].append(f"{where_of(first, groups, without=name)}: {ahead}")
    parts = [f"{value} in {len(where)} ({_listed(where)})" for value, where in told.items()]
    num_settings = f"{len(compared)} setting{'s' * (len(compared) > 1)}"
    if not parts:
        return [f"Of the {_WORDS[name]}, none is clearly the best in any of {num_settings}."]
    rest = len(compared) - sum(map(len, told.values()))
    unclear = f"; in {rest} the first two are not clearly apart" if rest else ""
    return [f"Of the {_WORDS[name]}, by points over the next, the best in {num_settings}: {', '.join(parts)}{unclear}."]


def _by_rule(groups: Sequence[Group]) -> list[str]:
    """Whether `alpha auto` is behind the best of the other alphas where nothing else differs."""
    settings: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        settings[_others(group.facts, "alpha")].append(group)
    compared, behind = 0, []
    for members in settings.values():
        ruled = [group for group in members if value_of(group.facts, "alpha") == "auto"]
        others = [group for group in members if group not in ruled and group.source != "labels"]
        if not ruled or not others:
            continue
        compared += 1
        best = max(others, key=lambda group: group.top1_mean)
        short = difference(best, ruled[0])
        if short.is_clear and short.points > 0:
            place = where_of(ruled[0], groups, without="alpha")
            behind.append(f"{place}: α {text_of(value_of(best.facts, 'alpha'))} is ahead by {short}")
    if not compared:
        return []
    text = f"α auto is behind the best other α by more than twice the standard error in {len(behind)} of {compared} settings"
    where = f" ({'; '.join(behind)})" if behind else ""
    return [f"{text}{where}."]


def _others(facts: Facts, name: str) -> str:
    """All facts but those that differ with a name, as a key."""
    following, staying = _FOLLOWING[name], _STAYING.get(name, ())
    prefixes = tuple(one for one in following if one.endswith("."))
    kept = {
        fact: value
        for fact, value in facts.items()
        if fact in staying or not (fact in following or fact.startswith(prefixes))
    }
    return json.dumps(kept, sort_keys=True)


def where_of(group: Group, groups: Sequence[Group], without: str = "distillation") -> str:
    """Where a comparison was made: the fraction, and what else differs between the groups."""
    words = {"fraction": f"f {group.fraction:.3g}"}
    skipped = ("kd", "alpha") if without == "distillation" else (without,)
    for name in (
        "model",
        "method",
        "level",
        "kd",
        "alpha",
        "tau",
        "teacher",
        "teacher-fraction",
        "teacher-epoch",
        "num-seeds",
        "epochs",
    ):
        if name not in skipped and len({str(value_of(other.facts, name)) for other in groups} - {"None"}) > 1:
            words[name] = _word(group.facts, name)
    return ", ".join(dict.fromkeys(word for word in words.values() if word))


def _word(facts: Mapping, name: str) -> str:
    value = value_of(dict(facts), name)
    if value is None or (name == "alpha" and facts["source"] == "labels"):
        return ""
    if name == "kd":
        return "labels alone" if value == "none" else str(value).upper()
    return f"{_SHORT.get(name, '')}{text_of(value)}"


def _listed(parts: Sequence[str]) -> str:
    more = len(parts) - _MOST_TOLD
    return "; ".join(parts[:_MOST_TOLD]) + (f" and {more} more in the table" if more > 0 else "")
