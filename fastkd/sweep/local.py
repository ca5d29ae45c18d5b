"""Running jobs on this machine: each as soon as what it reads is there, in warm workers."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fastkd.stopping import StopFlag
from fastkd.sweep.graph import Plan
from fastkd.sweep.jobs import Job
from fastkd.sweep.state import begun_words, state_of
from fastkd.sweep.workers import Ended, Worker, wait_for_any

_POLL_S, _OTHERS_S, _WAITING_S = 0.5, 2.0, 60.0
"""How often signals are looked for, and the outputs of other shards; after how long is told what is waited for."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What became of the jobs: name → the line of its failure; name → the job whose failure it waited for in vain."""

    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)


def run_jobs(
    plan: Plan,
    owed: Sequence[Job],
    workers: Sequence[Worker],
    stop: StopFlag,
    *,
    is_mine: Callable[[Job], bool] = lambda job: True,
    to_the_end: bool = True,
    ended: Callable[[Job, Outcome], None] = lambda job, outcome: None,
    moved: Callable[[Mapping[str, float], Outcome], None] = lambda shares, outcome: None,
    log: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Runs the owed jobs that are this process's, and waits for those of others.

    A job that fails leaves its line, those that need it are left out, the rest goes on.

    Args:
        owed: jobs that are not done, each after those that it reads. workers: as many jobs run at once. to_the_end: wait for
            the jobs of others even where none of this process's needs them. stop: asks for the
            end. ended: called after each job. moved: called again and again with how much is done of each job that runs, name →
            0 … 1. log: called with lines for people.

    Raises:
        StoppedError: by a signal; what ran has written its state.
    """
    outcome, waiting, started = Outcome(), list(owed), time.time()
    running: dict[int, Job] = {}
    looked = said = time.monotonic()
    for folder in ("logs", "failed"):
        (plan.folder / folder).mkdir(exist_ok=True)
    for job in filter(is_mine, owed):
        _mark(plan, job).unlink(missing_ok=True)
    try:
        while waiting or running:
            if stop.asked:
                _stop(workers, running)
                raise stop.error(f"after {len(outcome.done)} of {len(owed)} commands")
            for number, worker in enumerate(workers):
                if number in running and (end := worker.poll()) is not None:
                    job = running.pop(number)
                    _judge(plan, job, end, outcome, stop)
                    if not stop.asked:
                        ended(job, outcome)
            _leave_out(waiting, outcome)
            for number, worker in enumerate(workers):
                ready = next((job for job in waiting if is_mine(job) and _is_ready(job, owed, outcome)), None)
                if number not in running and ready is not None:
                    waiting.remove(ready)
                    running[number] = ready
                    ready.path.parent.mkdir(parents=True, exist_ok=True)
                    worker.start(begun_words(plan, ready), log_path(plan, ready))
            now = time.monotonic()
            others = [job for job in waiting if not is_mine(job)]
            if others and now - looked >= _OTHERS_S:
                looked = now
                for job in others:
                    _look(plan, job, outcome, waiting, started)
                if len(running) == 0 and now - said >= _WAITING_S:
                    said = now
                    log(f"sweep: waits for {others[0].name}, and {len(others) - 1} more of other shards")
            if not running and not to_the_end and not any(map(is_mine, waiting)):
                break
            moved({job.name: workers[number].share for number, job in running.items()}, outcome)
            wait_for_any([workers[number] for number in running], _POLL_S)
        moved({}, outcome)
    finally:
        for worker in workers:
            worker.close()
    return outcome


def _is_ready(job: Job, owed: Sequence[Job], outcome: Outcome) -> bool:
    owing = {one.name for one in owed}
    return all(name in outcome.done or name not in owing for name in job.inputs.values())


def _leave_out(waiting: list[Job], outcome: Outcome) -> None:
    """Takes out the jobs that need one that failed."""
    for job in list(waiting):
        for name in job.inputs.values():
            if name in outcome.failed or name in outcome.blocked:
                outcome.blocked[job.name] = outcome.blocked.get(name, name)
                waiting.remove(job)
                break


def _judge(plan: Plan, job: Job, end: Ended, outcome: Outcome, stop: StopFlag) -> None:
    """Enters how a job ended."""
    if stop.asked:
        return
    line = end.line
    if end.code == 0:
        state = state_of(plan, job)
        if state.is_done:
            outcome.done.add(job.name)
            return
        line = f"ended well, but its output is not whole: {state.why or 'it is not there'}"
    outcome.failed[job.name] = line
    with suppress(OSError):  # a full disk: the line is said all the same
        _mark(plan, job).write_text(
            json.dumps({"name": job.name, "code": end.code, "line": line}) + "\n", encoding="utf-8"
        )


def _look(plan: Plan, job: Job, outcome: Outcome, waiting: list[Job], started: float) -> None:
    """Whether a job of another shard has come to an end meanwhile."""
    mark = _mark(plan, job)
    if state_of(plan, job).is_done:
        outcome.done.add(job.name)
    elif mark.exists() and mark.stat().st_mtime >= started:
        try:
            outcome.failed[job.name] = json.loads(mark.read_text(encoding="utf-8"))["line"]
        except (ValueError, KeyError):
            return  # it is just being written
    else:
        return
    waiting.remove(job)


def _stop(workers: Sequence[Worker], running: dict[int, Job]) -> None:
    """Asks the running commands to write their states, and waits for them."""
    for number in running:
        workers[number].ask_to_stop()
    for number in running:
        while workers[number].is_busy and workers[number].poll() is None:
            wait_for_any([workers[number]], _POLL_S)


def _mark(plan: Plan, job: Job) -> Path:
    """Where the line of a failed job is."""
    return plan.folder / "failed" / f"{job.name.replace('/', '.')}.json"


def log_path(plan: Plan, job: Job) -> Path:
    """Where a job's own lines are."""
    return plan.folder / "logs" / f"{job.name.replace('/', '.')}.log"
