"""Finished runs side by side: averages over seeds, and a table."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastkd.errors import FormatError, NotFoundError
from fastkd.report.facts import Facts, course_of, differing, facts_of, label_of, shown_names
from fastkd.train.checks import require_files
from fastkd.train.run_folder import read_result, read_run

_T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""Quantile 0.975 of Student's t for 1 … 10 degrees of freedom."""


class Finished(NamedTuple):
    """A finished run: what it was, its recipe, what came out of it, and all that run.json says."""

    facts: Facts
    recipe: dict[str, Any]
    result: dict[str, Any]
    head: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Runs that differ in nothing but what is drawn by seed. Accuracies in percent; spread is the largest minus the smallest.

    label: how the group is told from others of its student and fraction. differs_in: in what any groups of the report
    differ. facts: all that is recorded of its runs, see `facts_of`. top1_sd: of a sample, n - 1; None for a single run.
    top1_half95: half the 95 % confidence interval of the mean, by Student's t; None for a single run. runs: what there is to
    tell of each run, see `_told`, in the order of their seeds.
    """

    model: str
    num_kept: int
    fraction: float
    alpha: float
    tau: float
    epochs: int
    source: str
    """Where the logits came from: `store`, `teacher` or `labels`."""
    num_runs: int
    seeds: list[int]
    top1_mean: float
    top1_spread: float
    top1_min: float
    top1_max: float
    top1_sd: float | None
    top1_half95: float | None
    images_per_s: float
    label: str
    differs_in: list[str]
    facts: Facts
    runs: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def collect_runs(*folders: str | Path) -> list[Group]:
    """Groups of all finished runs below some folders that measured accuracy: those that differ in seeds alone are one.

    Raises:
        NotFoundError: no such folder, or no finished run below it.
        FormatError: a run whose files are damaged.
        CorruptError, MismatchError: a finished run with files that it did not write.
    """
    runs: dict[str, dict[Path, Finished]] = defaultdict(dict)
    for path, read in finished_runs(*folders).items():
        runs[json.dumps(read.facts, sort_keys=True)][path] = read
    every = [_facts_of_all(list(members.values())) for members in runs.values()]
    names = differing(every)
    groups = [
        _group(members, facts, label_of(facts, every, names), names)
        for members, facts in zip(runs.values(), every, strict=True)
    ]
    return sorted(groups, key=lambda g: (g.model, g.fraction, g.alpha, g.source, g.label))


def _facts_of_all(members: list[Finished]) -> Facts:
    """The facts that runs share, with the mean accuracy of their teachers, where these differ in seeds."""
    facts = members[0].facts
    if "teacher.training" not in facts:
        return facts
    told = [one.head["about"]["teacher"].get("val_top1") for one in members]
    top1 = [value for value in told if value is not None]
    return facts | {"teacher.val_top1": statistics.fmean(top1) if len(top1) == len(told) else None}


def finished_runs(*folders: str | Path) -> dict[Path, Finished]:
    """All finished runs below some folders that measured accuracy, in the order of their paths.

    Raises:
        NotFoundError, FormatError, CorruptError, MismatchError: as `collect_runs`.
    """
    found = {}
    for path in sorted({path for folder in folders for path in Path(folder).rglob("result.json")}):
        read = _read_finished(path.parent)
        if read is not None:
            found[path.parent] = read
    if not found:
        told = f"{folders[0]}{f' and {len(folders) - 1} more' if folders[1:] else ''}"
        raise NotFoundError(f"{told}: no finished run with a measured accuracy below it")
    return found


def _read_finished(out: Path) -> Finished | None:
    """What a finished run was, its recipe, and what came out of it; None where it is no run, or measured no accuracy."""
    head = read_run(out)
    if head is None:
        if (out / "metrics.jsonl").exists():
            raise NotFoundError(f"{out}/run.json: missing beside result.json: put it back, or remove {out}")
        return None
    result = read_result(out, head)
    if result is None or result["val_top1"] is None:
        return None
    require_files(out, result)
    try:
        facts, recipe = facts_of(head), head["params"]["recipe"]
        _require_sense(facts, recipe, head)
        return Finished(facts, recipe, result, head)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            f"{out}/run.json: damaged ({type(error).__name__}: {error}); remove {out} and train anew"
        ) from None


def _require_sense(facts: Facts, recipe: dict[str, Any], head: dict[str, Any]) -> None:
    """Raises KeyError or TypeError where what is averaged, drawn and told is not what a run can have been."""
    numbers = {name: facts[name] for name in ("num_kept", "fraction", "alpha", "epochs")}
    numbers |= {name: recipe[name] for name in ("tau", "seed")}
    numbers |= {name: facts[name] for name in ("views.num_seeds", "global_batch") if name in facts}
    for name, value in numbers.items():
        if not isinstance(value, int | float) or not abs(value) < 2**63:  # which NaN is not
            raise TypeError(f"{name} is {value!r}")
    for name in ("alpha", "tau"):
        course_of(facts, name)
    if not isinstance(facts["model"], str) or facts["fraction"] <= 0 or facts.get("global_batch", 1) < 1:
        raise TypeError(f"{facts['fraction']} of the samples by {facts['model']!r}")
    made = head.get("made") or {}
    if not all(isinstance(one, str | None) for one in (*made.values(), *head["inputs"].values())):
        raise TypeError(f"made is {made!r}")


def _group(runs: Mapping[Path, Finished], facts: Facts, label: str, names: list[str]) -> Group:
    members = list(runs.values())
    told = sorted((_told(path, one) for path, one in runs.items()), key=lambda run: (run["seed"], run["path"]))
    top1 = [run["val_top1"] for run in told]
    sd = statistics.stdev(top1) if len(top1) > 1 else None
    return Group(
        **{name: facts[name] for name in ("model", "num_kept", "fraction", "alpha", "epochs", "source")},
        tau=members[0].recipe["tau"],
        num_runs=len(members),
        seeds=[run["seed"] for run in told],
        top1_mean=statistics.fmean(top1),
        top1_spread=max(top1) - min(top1),
        top1_min=min(top1),
        top1_max=max(top1),
        top1_sd=sd,
        top1_half95=None if sd is None else student_t_975(len(top1) - 1) * sd / math.sqrt(len(top1)),
        images_per_s=statistics.median(one.result["images_per_s"] for one in members),
        label=label,
        differs_in=shown_names(names),
        facts=facts,
        runs=told,
    )


def _told(path: Path, run: Finished) -> dict[str, Any]:
    """What there is to tell of one run besides the facts of its group: its folder, its seeds, what came out of it in percent,
    the seconds that its training took by its rate, fingerprints, and by what it was made (None before that was recorded)."""
    made = run.head.get("made") or {}
    mask = (run.head.get("about") or {}).get("mask") or {}
    rate = run.result["images_per_s"]
    return {
        "path": str(path),
        "seed": run.recipe["seed"],
        "mask_seed": mask.get("seed"),
        **{name: run.result.get(name) for name in ("val_top1", "val_top5")},
        "seconds": run.facts["epochs"] * run.facts["num_kept"] / rate if rate > 0 else None,
        "command": made.get("command"),
        "made": {name: value for name, value in sorted(made.items()) if name != "command" and value is not None},
        "fingerprints": {"run": run.head["fingerprint"], "weights": run.result.get("fingerprint")} | run.head["inputs"],
    }


def student_t_975(degrees: int) -> float:
    """Quantile 0.975 of Student's t: of a table up to 10 degrees of freedom, then by Cornish and Fisher's expansion
    (Abramowitz & Stegun 26.7.5), right to 0.001."""
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    z, n = statistics.NormalDist().inv_cdf(0.975), degrees
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / n**power for power, term in enumerate(terms, 1))


COLUMNS = (
    "student",
    "kept",
    "fraction",
    "training",
    "epochs",
    "runs",
    "top-1 %",
    "lowest",
    "highest",
    "sd",
    "images/s",
)


def cells_of(group: Group) -> tuple[str, ...]:
    return (
        group.model,
        f"{group.num_kept:,}",
        f"{group.fraction:.3g}",
        group.label,
        str(group.epochs),
        str(group.num_runs),
        f"{group.top1_mean:.2f}",
        f"{group.top1_min:.2f}",
        f"{group.top1_max:.2f}",
        "-" if group.top1_sd is None else f"{group.top1_sd:.2f}",
        f"{group.images_per_s:,.0f}",
    )


def caption_of(groups: list[Group]) -> str:
    """In what the groups differ, and what their numbers are."""
    names = groups[0].differs_in
    differs = f"differs in: {', '.join(names)}" if names else "one kind of run"
    return f"{differs}; runs that differ in seeds alone are averaged; sd: of a sample, n - 1"


def format_table(groups: list[Group]) -> str:
    """The groups as a plain text table."""
    rows = [COLUMNS, *map(cells_of, groups)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", caption_of(groups)])
