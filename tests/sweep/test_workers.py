"""What a sweep hears of its commands while they run."""

import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from helpers.suites import GRID, planned

from fastkd.cli.common import progress_bar
from fastkd.cli.sweep_run import WORKER
from fastkd.errors import MissingDependencyError, ModelError
from fastkd.stopping import StopFlag
from fastkd.sweep.costs import counted_gflops, weight_of
from fastkd.sweep.local import run_jobs
from fastkd.sweep.sizes import Data
from fastkd.sweep.workers import Ended, Worker, wait_for_any

DIGITS = Data(num_samples=1438, num_classes=10, size=8)


class Heard(Worker):
    """A worker that keeps every share that it had, also those between two looks at it."""

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)
        shares = vars(self).setdefault("shares", [])
        if name == "share" and shares[-1:] != [value]:
            shares.append(value)


def shares_of(worker: Heard, words: list[str], log: Path) -> tuple[list[float], Ended]:
    """All that a worker tells of a command on its way, and its end."""
    worker.shares.clear()
    worker.start(words, log)
    while (ended := worker.poll()) is None:
        wait_for_any([worker], 10.0)
    return worker.shares, ended


def test_a_command_in_a_worker_tells_how_far_it_is(tmp_path):
    worker = Heard(WORKER, {})
    shares, ended = shares_of(worker, ["build-beton", "digits:", "--out", str(tmp_path / "x.beton")], tmp_path / "log")
    worker.close()
    assert ended.code == 0, ended
    assert len(shares) > 1
    assert shares == sorted(shares)
    assert 0 < shares[-1] <= 1


@pytest.mark.parametrize(
    ("lines", "shares"),
    [
        (['{"done": 1, "total": 4}', '{"done": 3, "total": 4}'], [0.0, 0.25, 0.75]),
        (['{"done": 4, "total": 4}', '{"done": 1, "total": 9}'], [0.0, 1.0]),  # a second part begins anew
        (['{"done": 7, "total": 0}'], [0.0, 1.0]),
        ([], [0.0]),
    ],
)
def test_what_is_done_never_shrinks_and_the_next_command_begins_at_nothing(lines, shares, tmp_path):
    said = "".join(f"print({line!r}, flush=True); " for line in lines)
    code = f"import sys\nfor _ in sys.stdin: {said}print('{{\"code\": 3}}', flush=True)"
    worker = Heard([sys.executable, "-c", code], {})
    for _ in range(2):
        assert shares_of(worker, ["x"], tmp_path / "log") == (shares, Ended(3, "exit code 3, no line"))
    worker.close()


def test_a_sweep_is_told_of_the_commands_that_run(tmp_path):
    """Of two workers, each job of the first level; a command that does nothing fails, as it leaves no output."""
    plan, told, go = planned(folder=tmp_path), [], tmp_path / "go"
    code = f"""
import os, sys, time
for _ in sys.stdin:
    print('{{"done": 1, "total": 2}}', flush=True)
    while not os.path.exists({str(go)!r}): time.sleep(0.01)
    print('{{"code": 0}}', flush=True)
"""
    workers = [Worker([sys.executable, "-c", code], {}) for _ in range(2)]
    jobs = [job for job in plan.jobs.values() if job.kind == "beton"]

    def moved(shares: dict[str, float], _: object) -> None:
        told.append(dict(shares))
        if shares == {job.name: 0.5 for job in jobs}:
            go.touch()

    outcome = run_jobs(plan, jobs, workers, StopFlag(), moved=moved)
    assert {job.name: 0.5 for job in jobs} in told
    assert told[-1] == {}
    assert outcome.failed.keys() == {job.name for job in jobs}


def test_work_is_what_networks_compute():
    """ResNet-20 at 32 pixels: 41 M multiplications with additions (He et al. 2016 count 40.8 M without the last layers' odds)."""
    assert counted_gflops("resnet20", 10, 32) == pytest.approx(2 * 0.041, rel=0.02)
    plan = planned(GRID)
    weights = {job.kind: weight_of(plan, job, DIGITS, lambda *_: 1.0) for job in plan.jobs.values()}
    assert weights["teacher"] == 1438 * 240 * 3
    assert weights["store"] == round(0.3 * 1438) * 5
    assert weights["beton"] == weights["mask"] == 0
    live = planned(GRID, "train.source=live")
    (weight, *_) = (weight_of(live, live.jobs[name], DIGITS, lambda *_: 1.0) for name in live.runs if "kd" in name)
    assert weight == round(0.1 * 1438) * 5 * 4


def test_lines_of_progress_come_further_apart_the_longer_it_takes(monkeypatch, capsys):
    seconds = iter(range(10**6))
    monkeypatch.setattr("fastkd.cli.common.time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    with progress_bar("sweep", "GFLOP") as tell:
        for second in range(86_400):
            tell(second, 86_400)
    lines = capsys.readouterr().err.splitlines()
    assert 200 < len(lines) < 400
    assert lines[0] == "sweep: 10 of 86,400 GFLOP, 1 GFLOP/s, 86,390 s left"


@pytest.mark.parametrize("said", ["by the suite", "by the file"])
def test_the_work_of_a_teacher_that_is_there_is_its_networks(said, teacher_file, tmp_path):
    """A checkpoint of a ResNet-8; one whose network is unknown is for its command to tell."""
    source = "\nteacher-model = 'resnet8'" if said == "by the suite" else ""
    text = GRID.replace('model = "resnet14"', f'checkpoint = "{teacher_file}"{source}')
    plan, seen = planned(text), []

    def gflops(model: str, *_: int) -> float:
        seen.append(model)
        return 2.0

    store = next(job for job in plan.jobs.values() if job.kind == "store")
    assert weight_of(plan, store, DIGITS, gflops) == round(0.3 * 1438) * 5 * 2.0
    assert seen == ["resnet8"]

    for failure in (ModelError("unknown model"), MissingDependencyError("no timm"), RuntimeError("kernel size")):
        assert weight_of(plan, store, DIGITS, mock.Mock(side_effect=failure)) == 0.0
