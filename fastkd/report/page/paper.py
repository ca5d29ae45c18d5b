"""The paper's own numbers, where its text gives them: Ben Baruch et al., Distilling the Knowledge in Data Pruning, ICML 2025."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastkd.report.axes import value_of
from fastkd.report.compare import Group
from fastkd.report.facts import Facts
from fastkd.report.page.findings import Difference, difference, where_of

PAPER = "Ben Baruch et al., Distilling the Knowledge in Data Pruning, ICML 2025"
OF_POINTS = "CIFAR-100: section 1, table 1"

_TABLE_1 = {
    "none": (14.46, 22.21, 49.41, 67.47),
    "kd": (28.62, 46.27, 66.82, 70.95),
    "hint": (25.66, 44.84, 65.7, 70.77),
    "ab": (30.5, 47.68, 66.15, 71.22),
    "at": (28.26, 42.59, 65.75, 70.45),
    "ft": (28.34, 44.01, 64.95, 70.75),
    "fsp": (27.62, 37.16, 62.79, 69.72),
    "nst": (26.2, 44.5, 64.93, 70.97),
    "pkt": (27.3, 44.09, 65.22, 70.7),
    "rkd": (21.69, 43.03, 65.43, 70.36),
    "sp": (29.09, 42.53, 65.62, 70.72),
    "vid": (32.5, 49.46, 67.38, 71.16),
}
"""Top-1 on CIFAR-100, %, by the name of the loss here, at f = 0.05, 0.1, 0.3, 0.5 of the highest forgetting scores."""
_AT = (0.05, 0.1, 0.3, 0.5)
_RANDOM = {"none": {0.1: 39.8}, "kd": {0.1: 56.8}}
"""Section 1: random masks, CIFAR-100; alpha 0.5."""


class Claim(NamedTuple):
    """A difference between accuracies that the paper states, in points: of `better` minus `worse`, which groups of runs are by the
    values of names of `value_of` that they must have. of: `val_top1` or `val_top5`."""

    text: str
    better: Mapping[str, Any]
    worse: Mapping[str, Any]
    points: float
    data: str
    source: str
    of: str = "val_top1"


def _gain(method: str, fraction: float, points: float, source: str, **teacher: Any) -> Claim:
    common = {"method": method, "fraction": fraction}
    of_teacher = ", the teacher on other samples" if teacher else ""
    text = f"distillation (α 0.5) over labels alone, {method}, f {fraction:g}{of_teacher}"
    better = common | {"kd": "kd", "alpha": 0.5} | teacher
    return Claim(text, better, common | {"kd": "none"}, points, "CIFAR-100", source)


def _of_imagenet(method: str, plain: float, taught: float) -> Claim:
    claim = _gain(method, 0.1, round(taught - plain, 2), "section 1")
    text = f"top-5: {claim.text} ({taught} % over {plain} %)"
    return claim._replace(text=text, data="ImageNet", of="val_top5")


def _over_alpha(fraction: float, better: float, worse: float, points: float) -> Claim:
    common = {"method": "forgetting", "fraction": fraction, "kd": "kd"}
    text = f"α {better:g} over α {worse:g}, forgetting, f {fraction:g}: more than"
    return Claim(
        text, common | {"alpha": better}, common | {"alpha": worse}, points, "CIFAR-100", "section 3.2, figure 6"
    )


CLAIMS = (
    _gain("random", 0.1, 17.0, "section 4.1, figure 3"),
    _gain("forgetting", 0.1, 22.4, "section 4.1, figure 3"),
    _gain("grand", 0.1, 21.0, "section 4.1, figure 3"),
    _gain("el2n", 0.1, 19.7, "section 4.1, figure 3"),
    _of_imagenet("random", 82.37, 87.19),
    _of_imagenet("el2n", 62.47, 82.47),
    Claim(
        "distillation (α 0.5) on a random 0.7 over labels alone on all samples",
        {"method": "random", "fraction": 0.7, "kd": "kd", "alpha": 0.5},
        {"fraction": 1.0, "kd": "none"},
        1.6,
        "ImageNet",
        "section 4.1, figure 4",
    ),
    # half of the 30 % that the teacher has not seen
    _gain("random", 0.15, 14.5, "section 4.5, figure 8", **{"teacher.mask.method": "complement"}),
    _over_alpha(0.1, 1.0, 0.5, 8.0),
    _over_alpha(0.7, 0.5, 1.0, 1.0),
    *(
        Claim(
            f"VID over labels alone, forgetting, f {f:g}",
            {"method": "forgetting", "fraction": f, "kd": "vid"},
            {"method": "forgetting", "fraction": f, "kd": "none"},
            round(_TABLE_1["vid"][i] - _TABLE_1["none"][i], 2),
            "CIFAR-100",
            "table 1",
        )
        for i, f in enumerate(_AT)
    ),
)
TEACHERS = {
    "resnet14": 69.9,
    "resnet20": 70.23,
    "resnet32": 71.6,
    "resnet56": 72.7,
    "resnet110": 74.4,
    "wrn_40_2": 75.9,
}
"""Top-1 of the teachers of figure 7 on CIFAR-100, % (section 4.4)."""


class Told(NamedTuple):
    """What the paper states, and what some runs have of it. where: which runs, in words; empty where there is one such difference."""

    claim: Claim
    here: Difference
    where: str

    @property
    def verdict(self) -> str:
        """Whether the direction is the same."""
        if not self.here.is_clear:
            return "not to be told from 0 here"
        return "the same direction" if self.here.points * self.claim.points > 0 else "the other direction here"


def claims_of(groups: Sequence[Group]) -> list[Told]:
    """What the paper says of differences that can be formed of some groups: those of one student and the like."""
    found = []
    for claim in CLAIMS:
        pairs = [
            (group, others[0])
            for group in _matching(groups, claim.better)
            if len(others := [one for one in _matching(groups, claim.worse) if _are_alike(group, one)]) == 1
            and all(run[claim.of] is not None for one in (group, others[0]) for run in one.runs)
        ]
        for group, other in pairs:
            where = where_of(group, groups) if len(pairs) > 1 else ""
            found.append(Told(claim, difference(group, other, claim.of), where))
    return found


def _are_alike(group: Group, other: Group) -> bool:
    return other.model == group.model and other.epochs == group.epochs


def points_of(shared: Facts) -> dict[float, float]:
    """Fraction → top-1 in percent that the paper's text gives of a line with these values, of the names of `value_of`."""
    kd, alpha = shared.get("kd"), shared.get("alpha")
    if kd is None or shared.get("tau") not in (None, 4.0):  # all of the paper's are of τ 4 (appendix A.2)
        return {}
    if shared.get("method") == "random" and (kd == "none" or (kd == "kd" and alpha == 0.5)):
        return dict(_RANDOM[kd])
    if shared.get("method") == "forgetting" and kd in _TABLE_1 and (shared.get("level") or "hard") == "hard":
        # the paper's plain KD has twice the weight of the labels' loss; ours at alpha 2 is written as a method of weight 0
        return dict(zip(_AT, _TABLE_1[kd], strict=True))
    return {}


def _matching(groups: Sequence[Group], wanted: Mapping[str, Any]) -> list[Group]:
    return [group for group in groups if all(_is(value_of(group.facts, name), value) for name, value in wanted.items())]


def _is(found: Any, wanted: Any) -> bool:
    """Fractions are of whole samples, so that 0.1 may be 0.1001."""
    if isinstance(wanted, float) and isinstance(found, int | float):
        return abs(found - wanted) <= 0.01 * wanted
    return bool(found == wanted)
