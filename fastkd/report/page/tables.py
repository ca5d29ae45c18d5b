"""The parts of the page below its figures, as HTML: the paper beside, tables, costs, and how each point was made."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fastkd.report.compare import Group, caption_of
from fastkd.report.page import paper
from fastkd.report.page.costs import costs_of


def beside_the_paper(groups: Sequence[Group]) -> str:
    """What the paper says of differences, and of teachers, and what these runs have of it; empty where there is nothing to compare."""
    told = paper.claims_of(groups)
    teachers = {
        group.facts["teacher.model"]: group.facts.get("teacher.val_top1")
        for group in groups
        if group.facts.get("teacher.model") in paper.TEACHERS
    }
    if not told and len(teachers) < 2:
        return ""
    rows = [
        (
            f"{one.claim.text}{one.where and f' ({one.where})'}",
            one.claim.data,
            f"{one.claim.points:+.2f}",
            str(one.here),
            one.verdict,
            one.claim.source,
        )
        for one in told
    ]
    if len(teachers) > 1:
        for name, top1 in teachers.items():
            here = f"{top1:.2f} %" if isinstance(top1, float) else "not recorded"
            rows.append(
                (f"top-1 of the teacher {name}", "CIFAR-100", f"{paper.TEACHERS[name]} %", here, "", "section 4.4")
            )
    head = ("what", "the paper’s data", "the paper", "here", "", "where")
    note = (
        f"{paper.PAPER}. Differences are in points of top-1 where nothing else is said, ± one standard error; levels on other data are not to "
        "be compared, directions are. The paper’s are of 240 epochs, ResNet-32 (ImageNet: ResNet-50)."
    )
    return (
        f"<h2 id=paper>Beside the paper</h2>{rows_html(head, rows, numbers=(2, 3), words=(0,))}<p class=note>{note}</p>"
    )


def table_of(groups: Sequence[Group]) -> str:
    """A line for each kind of runs."""
    head = (
        "student",
        "kept",
        "fraction",
        "training",
        "epochs",
        "runs",
        "top-1 %",
        "sd",
        "95 % ±",
        "lowest",
        "highest",
        "images/s",
    )
    rows = []
    for group in groups:
        spread = ("–" if value is None else f"{value:.2f}" for value in (group.top1_sd, group.top1_half95))
        found = [group.model, f"{group.num_kept:,}", f"{group.fraction:.3g}", group.label, group.epochs, group.num_runs]
        found += [
            f"{group.top1_mean:.2f}",
            *spread,
            f"{group.top1_min:.2f}",
            f"{group.top1_max:.2f}",
            f"{group.images_per_s:,.0f}",
        ]
        rows.append(found)
    numbers = (1, 2, 4, 5, 6, 7, 8, 9, 10, 11)
    return f"<h2>All kinds of runs</h2>{rows_html(head, rows, numbers=numbers, words=(3,))}<p class=note>{escape(caption_of(list(groups)))}</p>"


def costs_in_words(groups: Sequence[Group]) -> str:
    """Time, bytes, and the teacher's passes."""
    costs = costs_of(groups)
    num_runs = sum(group.num_runs for group in groups)
    lines = [f"Training: {_time(costs.seconds)} for {num_runs} runs by their rates, without validation."]
    if costs.live_forwards:
        saved = costs.live_forwards - costs.taken_forwards
        stores = f"{costs.num_stores} store{'s' * (costs.num_stores != 1)}"
        size = "" if costs.store_bytes is None else f" ({_size(costs.store_bytes)} of logits)"
        lines.append(
            f"Teachers: {costs.taken_forwards:,} forward passes of a sample, for the rows of {stores}{size} that these runs read and for "
            f"live teachers; {costs.live_forwards:,} had every teacher been live: {saved:,} saved ({100 * saved / costs.live_forwards:.0f} %)."
        )
    return f"<h2>Costs</h2><ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def runs_of(groups: Sequence[Group], folder: Path) -> str:
    """For each point its runs: what came out, the command, fingerprints and versions."""
    parts = ["<h2>How each point was made</h2>"]
    for number, group in enumerate(groups, 1):
        runs = "".join(_run(run, folder) for run in group.runs)
        title = f"{group.model}, f {group.fraction:.3g}, {group.label}: {group.top1_mean:.2f} %, {group.num_runs} run{'s' * (group.num_runs > 1)}"
        parts.append(f"<details class=runs id=runs-{number}><summary>{escape(title)}</summary>{runs}</details>")
    return "".join(parts)


def _run(run: Mapping[str, Any], folder: Path) -> str:
    path = Path(run["path"])
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
    seeds = f"seed {run['seed']}" + ("" if run["mask_seed"] is None else f", of the mask {run['mask_seed']}")
    top5 = "" if run["val_top5"] is None else f", top-5 {run['val_top5']:.2f} %"
    command = run["command"] or "the command was not recorded"
    prints = ", ".join(f"{role} {digest}" for role, digest in run["fingerprints"].items() if digest)
    made = ", ".join(f"{what} {value}" for what, value in run["made"].items())
    return (
        f"<p><b>{escape(name)}</b>: {escape(seeds)}; top-1 {run['val_top1']:.2f} %{top5}</p><pre>{escape(command)}</pre>"
        f"<p class=fine>{escape(made)}<br><code>{escape(prints)}</code></p>"
    )


def rows_html(
    head: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Sequence[int] = (), words: Sequence[int] = ()
) -> str:
    """A table that scrolls by itself where the page is narrow."""

    def row(tag: str, cells: Sequence[Any]) -> str:
        kinds = [" class=number" if i in numbers else " class=words" if i in words else "" for i in range(len(cells))]
        return f"<tr>{''.join(f'<{tag}{kind}>{escape(str(cell))}</{tag}>' for kind, cell in zip(kinds, cells, strict=True))}</tr>"

    return f"<div class=scroll><table>{row('th', head)}{''.join(row('td', cells) for cells in rows)}</table></div>"
