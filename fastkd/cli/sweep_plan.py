"""What `fastkd sweep --dry-run` says."""

import shlex
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastkd.sweep.graph import Plan


def dry_run_of(plan: "Plan") -> tuple[dict[str, Any], str]:
    """What a plan takes, and what of it is owed."""
    from fastkd.sweep.costs import cost_of, live_forwards, measured_rates, total
    from fastkd.sweep.sizes import read_data
    from fastkd.sweep.state import begun_words, state_of

    data = read_data(plan.jobs)
    rates = cache(measured_rates)
    jobs = {name: job for name, job in plan.jobs.items() if job.words}
    states = {name: state_of(plan, job) for name, job in jobs.items()}
    costs = {name: cost_of(plan, job, data, rates) for name, job in jobs.items()}
    owed = {name: cost for name, cost in costs.items() if not states[name].is_done}
    sums = {key: total(owed, key) for key in ("images", "forwards", "size_bytes")}
    timed = [cost.seconds for name, cost in owed.items() if jobs[name].kind in ("run", "teacher", "store")]
    seconds = None if any(one is None for one in timed) else sum(one for one in timed if one is not None)
    listed = [
        {
            "name": name,
            "kind": job.kind,
            "command": shlex.join(["fastkd", *begun_words(plan, job)]),
            "state": "done" if states[name].is_done else "begun" if states[name].is_begun else "owed",
            "why": states[name].why,
            "inputs": list(job.inputs.values()),
            "images": costs[name].images,
            "forwards": costs[name].forwards,
            "size_bytes": costs[name].size_bytes,
            "seconds": costs[name].seconds,
        }
        for name, job in jobs.items()
    ]
    result = {
        "kind": "sweep-plan",
        "path": str(plan.folder),
        "num_cells": sum(map(len, plan.runs.values())),
        "num_runs": len(plan.runs),
        "num_commands": len(jobs),
        "num_owed": len(owed),
        "threads": plan.suite.threads,
        "owed": sums | {"seconds": seconds},
        "live_forwards": live_forwards(plan, data),
        "commands": listed,
    }
    return result, _plan_text(result)


def _number(value: float | None, digits: int = 0) -> str:
    return "?" if value is None else "" if value == 0 else f"{value:,.{digits}f}"


def _plan_text(result: dict[str, Any]) -> str:
    rows = [("state", "images", "forwards", "bytes", "seconds", "command")]
    for one in result["commands"]:
        timed = one["kind"] in ("run", "teacher", "store")
        numbers = (_number(one[key]) for key in ("images", "forwards", "size_bytes"))
        rows.append((one["state"], *numbers, _number(one["seconds"], 1) if timed else "", one["command"]))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 5)), row[5]]) for row in rows
    ]
    lines += [f"{'':{widths[0]}}  {one['name']}: {one['why']}" for one in result["commands"] if one["why"]]
    owed, live = result["owed"], result["live_forwards"]
    lines += [
        "",
        f"{result['num_cells']:,} cells, {result['num_runs']:,} runs, {result['num_commands']:,} commands, {result['num_owed']:,} owed; "
        f"OMP_NUM_THREADS={result['threads']} for each",
        f"owed: {_number(owed['forwards']) or 0} forwards of teachers (live teachers in all runs: {_number(live) or 0}), "
        f"{_number(owed['size_bytes']) or 0} bytes of stores, {_number(owed['seconds']) or 0} s of networks one after the other",
    ]
    return "\n".join(lines)
