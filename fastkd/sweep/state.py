"""Where a job stands, by what its output says: done, begun, or owed."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fastkd.artefact import open_artefact
from fastkd.data.beton.dataset import open_dataset
from fastkd.errors import FastKDError
from fastkd.models.checkpoint import read_checkpoint
from fastkd.models.registry import state_fingerprint
from fastkd.store.tables import read_tables
from fastkd.sweep.graph import Plan
from fastkd.sweep.jobs import Job
from fastkd.train.run_folder import read_result, read_run


class State(NamedTuple):
    """is_done: nothing is left to be done; as a rule the output is whole and made from what the job reads. is_begun: something is
    there. why: in words, where it is not done."""

    is_done: bool
    is_begun: bool = False
    why: str = ""


class Found(NamedTuple):
    """What an output says of itself. fingerprint: of its content; of a run, of its weights. inputs: by role. is_whole: whether
    nothing is left to be done. scores: the fingerprint of what a run recorded."""

    fingerprint: str
    inputs: dict[str, str]
    is_whole: bool = True
    scores: str | None = None


def state_of(plan: Plan, job: Job) -> State:
    """Where a job stands. Reads headers alone. A store is done, too, where all runs that read it are: it may be removed then."""
    found = _output_state(plan, job)
    if job.kind == "store" and not found.is_done:
        readers = [other for other in plan.jobs.values() if job.name in other.inputs.values()]
        if readers and all(_output_state(plan, other).is_done for other in readers):
            return State(True)
    return found


def _output_state(plan: Plan, job: Job) -> State:
    if not job.words:
        return State(True)
    if not job.path.exists():
        return State(False)
    try:
        found = read_output(job)
        if found is None or not found.is_whole:
            return State(False, True, "begun")
        for role, name in job.inputs.items():
            if job.kind == "gallery" or role == "logits" or plan.jobs[name].kind in ("published", "checkpoint"):
                continue  # a run's teacher says more than its store, which a larger may replace; the user's is in the name
            wanted = _fingerprint_of(plan.jobs[name], job.reads[role])
            if wanted is None or found.inputs.get(role) != wanted:
                return State(False, True, f"made from another {role} than {name}")
    except FastKDError as error:
        return State(False, True, str(error))
    return State(True)


def read_output(job: Job) -> Found | None:
    """What a job's output says; None where it says nothing yet.

    Raises:
        FastKDError: it is damaged, or something else.
    """
    if job.kind in ("published", "checkpoint"):
        return Found(job.digest, {})
    try:
        stat = _anchor(job).stat()
    except FileNotFoundError:
        return None
    return _READERS[job.kind](job.path, stat.st_mtime_ns, stat.st_size)


def _fingerprint_of(job: Job, path: Path) -> str | None:
    """What is read of an output, the output itself or a file in or beside it, says of its content."""
    found = read_output(job)
    if found is None or path == job.path:
        return None if found is None else found.fingerprint
    if path.name == "scores.h5":
        return found.scores
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    read = _read_weights if path.suffix == ".safetensors" else _read_header
    return read(path, stat.st_mtime_ns, stat.st_size).fingerprint


def _anchor(job: Job) -> Path:
    """The file that is written last."""
    return job.path / "result.json" if job.kind in ("run", "teacher") else job.path


@cache
def _read_beton(path: Path, _changed: int, _size: int) -> Found:
    return Found(open_dataset(path).fingerprint, {})


@cache
def _read_header(path: Path, _changed: int, _size: int) -> Found:
    with open_artefact(path, None) as (_, header):
        return Found(header.fingerprint, header.inputs)


@cache
def _read_weights(path: Path, _changed: int, _size: int) -> Found:
    return Found(state_fingerprint(read_checkpoint(path).state_dict), {})


def _read_store(path: Path, _changed: int, _size: int) -> Found:
    tables = read_tables(path)
    return Found(tables.header.fingerprint, tables.header.inputs, bool(tables.done.all()))


@cache
def _read_run(path: Path, _changed: int, _size: int) -> Found | None:
    head = read_run(path)
    result = None if head is None else read_result(path, head)
    if head is None or result is None or not (path / "model.safetensors").exists():
        return None
    about = head.get("about") or {}
    teacher = (about.get("teacher") or {}).get("fingerprint")
    inputs = {role: digest for role, digest in head["inputs"].items() if role != "logits"}
    inputs |= {} if teacher is None else {"teacher": teacher}
    return Found(result["fingerprint"], inputs, scores=result.get("scores_fingerprint"))


def _read_picture(path: Path, _changed: int, _size: int) -> Found:
    return Found("", {})


_READERS: dict[str, Callable[[Path, int, int], Found | None]] = {
    "beton": _read_beton,
    "mask": _read_header,
    "scores": _read_header,
    "store": _read_store,
    "run": _read_run,
    "teacher": _read_run,
    "gallery": _read_picture,
}


def begun_words(plan: Plan, job: Job) -> tuple[str, ...]:
    """A job's command with what is there already: rows of older stores are taken over, and an unfinished run that was begun with
    another store starts anew, as it could not go on."""
    words = job.words
    if job.kind == "store" and not job.path.exists() and "--mix" not in words:
        older = sorted(path for path in job.path.parent.glob("*.h5") if path != job.path)
        words += tuple(word for path in older for word in ("--reuse", str(path)))
    if job.kind == "run" and "logits" in job.inputs and (job.path / "run.json").exists():
        said = json.loads((job.path / "run.json").read_text(encoding="utf-8")).get("inputs", {}).get("logits")
        store = read_output(plan.jobs[job.inputs["logits"]])
        if store is not None and said != store.fingerprint:
            words += ("--force",)
    return words
