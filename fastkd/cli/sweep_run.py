"""Running a sweep on this machine, and what it came to: table, page and lines."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkd.cli.common import progress_bar, say
from fastkd.errors import MissingDependencyError, OptionError
from fastkd.stopping import stop_on_signals
from fastkd.writing import claim

if TYPE_CHECKING:
    from fastkd.sweep.graph import Plan
    from fastkd.sweep.jobs import Job
    from fastkd.sweep.local import Outcome
    from fastkd.sweep.suite.read import Suite

WORKER = [sys.executable, "-m", "fastkd.cli.worker"]


def gpus_here() -> list[str]:
    """The names by which CUDA_VISIBLE_DEVICES takes this machine's GPUs, those alone that it has already where it is set."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if seen is not None:
        return [name for name in seen.split(",") if name and name != "-1"]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]


def worker_envs(threads: int, jobs: int | None, jobs_per_gpu: int | None) -> list[dict[str, str]]:
    """The environment of each worker: its GPU, where there are some, and its threads, which are the suite's."""
    gpus = gpus_here()
    if not gpus:
        count = jobs or max(1, len(os.sched_getaffinity(0)) // threads)
        return [{"OMP_NUM_THREADS": str(threads)} for _ in range(count)]
    count = jobs or len(gpus) * (jobs_per_gpu or 1)
    return [
        {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(count)
    ]


def run_here(
    plan: "Plan", jobs: int | None, jobs_per_gpu: int | None, shard: tuple[int, int]
) -> tuple[dict[str, Any], str]:
    """Runs what is owed, and collects it."""
    from fastkd.sweep.costs import counted_gflops, weight_of
    from fastkd.sweep.local import run_jobs
    from fastkd.sweep.sizes import read_data
    from fastkd.sweep.state import state_of
    from fastkd.sweep.workers import Worker

    index, count = shard
    name = f"sweep-{index}-of-{count}" if count > 1 else "sweep"
    with claim(plan.folder / name, log=say), stop_on_signals() as stop:
        owed = [job for job in plan.jobs.values() if not state_of(plan, job).is_done]
        place = {job.name: number for number, job in enumerate(job for job in plan.jobs.values() if job.words)}
        data = read_data(plan.jobs)
        count_gflops = cache(counted_gflops)
        weights = {job.name: weight_of(plan, job, data, count_gflops) for job in owed}
        envs = worker_envs(plan.suite.threads, jobs, jobs_per_gpu)
        workers = [Worker(WORKER, env) for env in envs[: max(1, len(owed))]]
        with progress_bar("sweep", "GFLOP") as progress:

            def ended(job: "Job", outcome: "Outcome") -> None:
                if job.name in outcome.failed:
                    say(f"{job.name}: {outcome.failed[job.name]}")

            def moved(shares: Mapping[str, float], outcome: "Outcome") -> None:
                behind = outcome.done | outcome.failed.keys() | outcome.blocked.keys()
                done = sum(weights[name] for name in behind)
                done += sum(share * weights[name] for name, share in shares.items())
                parts = [f"{len(behind)} of {len(owed)} commands"]
                parts += [f"{len(outcome.failed)} failed"] if outcome.failed else []
                parts += [f"{plan.jobs[name].kind} {share:.0%}" for name, share in shares.items()]
                progress(round(done), round(sum(weights.values())), ", ".join(parts))

            outcome = run_jobs(
                plan,
                owed,
                workers,
                stop,
                is_mine=lambda job: place[job.name] % count == index - 1,
                to_the_end=index == 1,
                ended=ended,
                moved=moved,
                log=say,
            )
    if index > 1:
        result = {"kind": "sweep", "path": str(plan.folder), "ok": not outcome.failed} | _counts(plan, outcome)
        return result, f"{plan.folder}: the part of shard {index}/{count} is done; shard 1 writes table and page"
    return collected(plan, outcome)


def submitted(plan: "Plan", options: str | None, collect: list[str]) -> tuple[dict[str, Any], str]:
    """Hands what is owed to Slurm."""
    from fastkd.sweep.slurm import submit
    from fastkd.sweep.state import state_of

    owed = [job for job in plan.jobs.values() if not state_of(plan, job).is_done]
    with claim(plan.folder / "sweep", log=say):
        found = submit(plan, owed, shlex.split(options or ""), collect)
    lines = [
        f"level {one['level']}: job {one['job']}, {one['num_tasks']} commands, {one['file']}" for one in found["arrays"]
    ]
    lines.append(
        f"{len(owed)} commands given to Slurm by {found['script']}; job {found['collect']} writes table and page; what failed then is "
        f"told by --dry-run, and run by the same command"
    )
    return {"kind": "sweep-submitted", "path": str(plan.folder), "num_owed": len(owed)} | found, "\n".join(lines)


def theorem_of(suite: "Suite", out: Path, dry_run: bool) -> tuple[dict[str, Any], str]:
    """Checks the theorem in every cell, and writes table and page; `ok` is false where it does not hold."""
    from fastkd.report.page.theorem import write_theorem_page
    from fastkd.sweep.theorem import check_theorem, require_settings, write_theorem
    from fastkd.train.about import command_line

    settings = require_settings(suite.theorem or {}, suite.place)
    if dry_run:
        return {"kind": "sweep-plan", "path": str(out), "theorem": settings}, f"no commands: {settings}"
    lines = check_theorem(settings)
    out.mkdir(parents=True, exist_ok=True)
    table = out / f"{suite.name}.csv"
    write_theorem(lines, table)
    page = None
    try:
        drawn = out / f"{suite.name}.html"
        write_theorem_page(lines, settings, drawn, job=f"sweep {suite.name}", command=command_line())
        page = str(drawn)
    except MissingDependencyError as error:
        say(f"no page: {error}")
    num_holding, num_agreeing = (sum(line[name] for line in lines) for name in ("holds", "agrees"))
    result = {
        "kind": "theorem",
        "path": str(out),
        "csv": str(table),
        "page": page,
        "num_cells": len(lines),
    }
    result |= {"num_holding": num_holding, "num_agreeing": num_agreeing}
    result["ok"] = num_holding == len(lines)
    text = (
        f"{page or table}: the bias with a teacher on more data is no larger in {num_holding} of {len(lines)} cells; the simulation is within its "
        f"band of 99.9 % of the closed form in {num_agreeing}"
    )
    return result, text


def _counts(plan: "Plan", outcome: "Outcome") -> dict[str, Any]:
    from fastkd.sweep.state import state_of

    owed = [job.name for job in plan.jobs.values() if not state_of(plan, job).is_done]
    return {
        "num_cells": sum(map(len, plan.runs.values())),
        "num_runs": len(plan.runs),
        "num_commands_run": len(outcome.done),
        "owed": owed,
        "failed": outcome.failed,
        "blocked": outcome.blocked,
    }


def collected(plan: "Plan", outcome: "Outcome") -> tuple[dict[str, Any], str]:
    """Writes the table and the page of the runs that are done; `ok` is false where something is owed."""
    from fastkd.report.cells import write_csv
    from fastkd.report.compare import collect_runs, finished_runs, format_table
    from fastkd.report.page.write import write_page
    from fastkd.sweep.state import state_of

    result: dict[str, Any] = {"kind": "sweep", "path": str(plan.folder), "csv": None, "page": None}
    result |= _counts(plan, outcome)
    result["ok"] = not result["owed"]
    folders = [plan.jobs[name].path for name in plan.runs if state_of(plan, plan.jobs[name]).is_done]
    lines = []
    if folders:
        table = plan.folder / f"{plan.suite.name}.csv"
        write_csv(finished_runs(*folders), table, plan.folder)
        result["csv"] = str(table)
        groups = collect_runs(*folders)
        lines.append(format_table(groups))
        page = plan.folder / f"{plan.suite.name}.html"
        job = f"sweep {plan.suite.name}"  # not by its place: a folder may be moved
        try:
            try:
                write_page(groups, page, plan.folder, axes=plan.suite.axes, job=job)
            except OptionError as error:
                say(f"[report]: {error}; the page has a line for each kind of run")
                write_page(groups, page, plan.folder, job=job)
            result["page"] = str(page)
        except MissingDependencyError as error:
            say(f"no page: {error}")
    for name, line in outcome.failed.items():
        lines.append(f"failed: {name}: {line}")
    for name, cause in outcome.blocked.items():
        lines.append(f"left out: {name}: it needs {cause}")
    told = ", ".join(path for path in (result["csv"], result["page"]) if path)
    lines.append(
        f"{plan.folder}: {len(folders)} of {len(plan.runs)} runs done, {len(result['owed'])} commands owed"
        + (f"; {told}" if told else "")
    )
    return result, "\n".join(lines)
