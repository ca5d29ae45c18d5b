"""Whether the files of a run's folder are those that the run wrote."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastkd.errors import CorruptError, FastKDError, NotFoundError
from fastkd.models.checkpoint import read_checkpoint
from fastkd.models.registry import state_fingerprint
from fastkd.prune.scores.score_file import load_scores
from fastkd.train.metrics import lines_before
from fastkd.train.resume import load_resume
from fastkd.train.run_folder import file_checksum, place_in_words, read_result, read_run, require_own_state

_STATES = ("resume.pt", "resume-previous.pt")


def verify_run(out: Path, note: Callable[[str], None] = lambda line: None) -> list[str]:
    """Reads a run's folder whole and compares its files with one another.

    Args:
        note: told what cannot be checked, as runs of version 1 have not recorded it, and where a run stands.

    Returns:
        One line for each problem, the file first; none for a whole run. A finished run needs no states any more.

    Raises:
        FormatError, CorruptError, MismatchError: run.json or result.json is damaged, or the result is another run's.
    """
    head = read_run(out)
    if head is None:
        raise NotFoundError(f"{out}/run.json: no such file, expected what the run was")
    result = read_result(out, head)
    if "about" not in head:
        note(f"{out}/run.json: what its mask and teacher were is not recorded")
    problems, states = _states(out, head, note)
    if result is not None:
        if "files" not in result:
            note(f"{out}/result.json: checksums of it and of metrics.jsonl, metrics.csv are not recorded")
        return problems + file_problems(out, result)
    if (out / "model.safetensors").exists():
        problems.append(
            f"{out}/result.json: missing, though the run has weights: the same `fastkd train` writes it anew"
        )
    if states:
        name, last = next(iter(states.items()))
        note(f"{out}: not finished, stands {place_in_words(last.get('epoch', 0), last.get('step', 0))} by {name}")
        problems += _lines_problems(out, last)
    return problems


def require_files(out: Path, result: dict[str, Any]) -> None:
    """Refuses a finished run whose files are not those that its result was written with.

    Raises:
        CorruptError: names the first such file and the way out.
    """
    for line in file_problems(out, result):
        raise CorruptError(line)


def file_problems(out: Path, result: dict[str, Any]) -> list[str]:
    """What of the files that a result names is missing or another file: one line each.

    Of a result of version 1, which names none, weights and scores are compared by the fingerprints in it where they are
    there.
    """
    way_out = f"put the run's own back, or remove {out}/result.json and run the same `fastkd train` again, which writes it anew"
    if "files" not in result:
        return [f"{line}: {way_out}" for line in _problems_of_before(out, result)]
    problems = []
    for name, checksum in result["files"].items():
        path = out / name
        if not path.is_file():
            problems.append(f"{path}: missing, the run wrote it: {way_out}")
            continue
        found = file_checksum(path)
        if found != checksum:
            problems.append(
                f"{path}: not what the run wrote (checksum {found[:12]}, result.json says {checksum[:12]}): {way_out}"
            )
    return problems


def _problems_of_before(out: Path, result: dict[str, Any]) -> list[str]:
    read = {
        "model.safetensors": ("fingerprint", lambda path: state_fingerprint(read_checkpoint(path).state_dict)),
        "scores.h5": ("scores_fingerprint", lambda path: load_scores(path).header.fingerprint),
    }
    problems = []
    for name, (key, fingerprint_of) in read.items():
        if not isinstance(result.get(key), str) or not (out / name).exists():
            continue
        try:
            found = fingerprint_of(out / name)
        except FastKDError as error:
            problems.append(str(error))
            continue
        if found != result[key]:
            problems.append(
                f"{out / name}: of another run (fingerprint {found[:12]}, result.json says {result[key][:12]})"
            )
    return problems


def _states(
    out: Path, head: dict[str, Any], note: Callable[[str], None]
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Problems of the states that are there, and those that are whole and the run's own, the last first."""
    problems, states = [], {}
    for name in _STATES:
        if not (out / name).exists():
            continue
        try:
            state = load_resume(out / name)
            require_own_state(out / name, state, head)
        except FastKDError as error:
            problems.append(str(error))
            continue
        states[name] = state
        if "run" not in state:
            note(f"{out / name}: which run it is of is not recorded")
    return problems, states


def _lines_problems(out: Path, state: dict[str, Any]) -> list[str]:
    """Lines of an unfinished run that are lost or changed."""
    problems = []
    for name, key in (("metrics.jsonl", "jsonl"), ("metrics.csv", "csv")):
        try:
            if not lines_before(out / name, state.get(key))[1]:
                problems.append(
                    f"{out / name}: lost or changed since the last state; the same `fastkd train` writes it anew from that"
                )
        except CorruptError as error:
            problems.append(str(error))
    return problems
