"""Handing a sweep to Slurm: an array of jobs a level of the graph, over a file of plain commands."""

import getpass
import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastkd.errors import BusyError, FastKDError, MissingDependencyError
from fastkd.sweep.graph import Plan, levels
from fastkd.sweep.jobs import Job
from fastkd.sweep.state import begun_words
from fastkd.writing import atomic_path

MOST_TASKS = 1000
"""Tasks of an array; Slurm's own limit (MaxArraySize) is 1001 unless it is told otherwise."""

SCRIPT = r"""#!/bin/bash
#SBATCH --requeue --open-mode=append --signal=B:TERM@120
# A task of an array: the command on its line of the file that is given first. `fastkd sweep` writes this file where it is
# not there, so it may be changed: modules to load, an environment to enter, folders to copy.
#   sbatch --array=1-N run.sh level-0.txt
cd {cwd} || exit 1
export OMP_NUM_THREADS={threads}
line=$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" "$1")
echo "\$ $line"
eval "exec $line" &
child=$!
trap 'kill -TERM $child' TERM # 120 seconds before the time is up: the command writes its state and ends with 75
while wait $child; code=$?; kill -0 $child 2>/dev/null; do :; done
[ $code -eq 75 ] && exec scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
exit $code
"""


def submit(plan: Plan, owed: Sequence[Job], options: Sequence[str], collect: Sequence[str]) -> dict[str, Any]:
    """Writes commands and script below `slurm/` in the sweep's folder and gives them to sbatch.

    A level waits for the end of the one before it, however that was; a command whose inputs are not there then has its line.

    Args:
        owed: jobs that are not done. options: for sbatch. collect: the command that ends it all.

    Returns:
        `arrays`: of each, level, job (Slurm's number), file and num_tasks; `collect`: Slurm's number of the last job.

    Raises:
        BusyError: jobs of this folder are still in the queue.
        MissingDependencyError: there is no sbatch. FastKDError: Slurm refuses.
    """
    folder = plan.folder / "slurm"
    folder.mkdir(exist_ok=True)
    record = folder / "jobs.json"
    _refuse_queued(record)
    script = folder / "run.sh"
    if not script.exists():
        text = SCRIPT.format(cwd=shlex.quote(os.getcwd()), threads=plan.suite.threads)
        with atomic_path(script) as partial:
            partial.write_text(text, encoding="utf-8")
            partial.chmod(0o755)
    arrays: list[dict[str, Any]] = []
    before: list[str] = []
    for level, jobs in enumerate(levels(plan, list(owed))):
        numbers = []
        for first in range(0, len(jobs), MOST_TASKS):
            part = jobs[first : first + MOST_TASKS]
            file = folder / f"level-{level}{f'-{first // MOST_TASKS}' if first else ''}.txt"
            _write_lines(plan, part, file)
            words = [
                f"--array=1-{len(part)}",
                f"--output={folder / 'level-%A_%a.log'}",
                *options,
                str(script),
                str(file),
            ]
            numbers.append(_sbatch(before, words))
            arrays.append({"level": level, "job": int(numbers[-1]), "file": str(file), "num_tasks": len(part)})
        before = numbers
    file = folder / "collect.txt"
    with atomic_path(file) as partial:
        partial.write_text(shlex.join(["fastkd", *collect]) + "\n", encoding="utf-8")
    words = ["--array=1-1", f"--output={folder / 'collect-%A.log'}", *options, str(script), str(file)]
    last = int(_sbatch(before, words))
    with atomic_path(record) as partial:
        partial.write_text(json.dumps([one["job"] for one in arrays] + [last]) + "\n", encoding="utf-8")
    return {"arrays": arrays, "collect": last, "script": str(script)}


def _write_lines(plan: Plan, jobs: Sequence[Job], file: Path) -> None:
    for job in jobs:
        job.path.parent.mkdir(parents=True, exist_ok=True)
    lines = [shlex.join(["fastkd", *begun_words(plan, job)]) + "\n" for job in jobs]
    with atomic_path(file) as partial:
        partial.write_text("".join(lines), encoding="utf-8")


def _sbatch(after: Sequence[str], words: Sequence[str]) -> str:
    """Submits; returns Slurm's number of the job."""
    waits = [f"--dependency=afterany:{':'.join(after)}"] if after else []
    return _run(["sbatch", "--parsable", *waits, *words]).strip().split(";")[0]


def _refuse_queued(record: Path) -> None:
    if not record.exists():
        return
    own = set(json.loads(record.read_text(encoding="utf-8")))
    queued = {
        int(line) for line in _run(["squeue", "--noheader", "--format=%A", f"--user={getpass.getuser()}"]).split()
    }
    arrays = {
        int(line) for line in _run(["squeue", "--noheader", "--format=%F", f"--user={getpass.getuser()}"]).split()
    }
    still = sorted(own & (queued | arrays))
    if still:
        told = " ".join(map(str, still))
        raise BusyError(
            f"{record}: jobs {told} of this folder are still in Slurm's queue: wait for them, or scancel {told}"
        )


def _run(words: Sequence[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise MissingDependencyError(
            f"{words[0]}: no such command: --executor slurm needs Slurm's own, on this machine"
        ) from None
    if done.returncode:
        raise FastKDError(f"{words[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
