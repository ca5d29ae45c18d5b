"""Claim: no damage of a mask, score or feature file, logit store or run hangs, fills memory, ends in an internal error or is read as else.

COUNT damaged copies, each in a way of its own drawn by seed (`damages.py`: bytes, cuts, splices of two files, HDF5 and JSON edited,
hostile HDF5, and contents sealed again with right fingerprints), each read by the commands that read such a file, in a process
that an alarm ends after 10 s. Each call is held to the memory of the same one on a whole file and 200 MB, and what it accepts to
the whole file's values. An outcome is

    refused    an error of fastkd's by a reader, in one line that names the file, or `verify` lists its problems
    harmless   every reader gives the whole file's values
    another    sealed again, it reads as what it now says
    wrong      anything else: a crash, a hang, more memory, another exception, other values

    python -m benchmarks.cli.damaged_artefacts --count 10_000
"""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.cli.artefact_kinds import KINDS, Value
from benchmarks.cli.damages import ways_of
from benchmarks.cli.lab import prepare

HANGS_AFTER_S, MOST_BYTES, EACH = 10, 200 << 20, 250
SHARES = {"mask": 20, "scores": 20, "features": 10, "store": 18, "shard": 10, "finished run": 12, "stopped run": 10}
"""Of a hundred copies."""


def memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def measured(read: Callable[[], Value]) -> tuple[Value, int]:
    """What a call gives, or its error, and the most memory above what there was before."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = memory("VmRSS")
    try:
        value: Value = read()
    except Exception as error:
        value = error
    return value, memory("VmHWM") - before


def place(kind: str, rng: np.random.Generator | None) -> tuple[str, bool]:
    """A copy of the whole file, damaged unless there is no generator; what was done to it, and whether it is sealed again."""
    whole, other, parts, _ = KINDS[kind]
    shutil.rmtree("copy")
    os.mkdir("copy")
    if not parts:
        copy = Path("copy", Path(whole).name)
        shutil.copy(whole, copy)
    else:
        shutil.copytree(Path(whole, "run") if whole == "stopped" else whole, "copy/run")
    if rng is None:
        return "", False
    name = str(rng.choice(parts)) if parts else ""
    copy = Path("copy/run", name) if parts else copy
    its = Path(other, "run" if other == "stopped5" else "", name) if parts else Path(other)
    if parts and rng.random() < 0.05:
        copy.unlink()
        return f"{name} missing", name == "result.json"  # without it a run is one that is not finished
    if parts and rng.random() < 0.05:
        shutil.copy(its, copy)
        return f"{name} of the other", name == "run.json"  # which says itself whose the folder is
    ways = ways_of(copy)
    way = ways[int(rng.integers(len(ways)))]
    is_sealed = way(copy, its, rng)
    is_sealed |= copy.read_bytes() == its.read_bytes()  # which is then whole
    return f"{name} {way.__name__}".strip(), is_sealed


def judge(value: Value, peak: int, whole: Value, whole_peak: int, is_sealed: bool) -> str:
    """What a call on a damaged copy came to."""
    from fastkd.errors import FastKDError

    if peak > whole_peak + MOST_BYTES:
        return f"wrong: {peak - whole_peak:,} bytes more than for a whole file"
    if isinstance(value, FastKDError):
        is_clear = (is_sealed or "copy" in str(value)) and "\n" not in str(value)
        return "refused" if is_clear else f"wrong: says {value}"
    if isinstance(value, Exception):
        return f"wrong: {type(value).__name__}: {' '.join(str(value).split())[:200]}"
    return "harmless" if value == whole else "another" if is_sealed else "wrong: other values"


def work(kind: str, first: int, end: int, seed: int) -> None:
    """Damages and reads the copies first … end-1, and prints a line for each; what the parent reads."""
    sys.path.append(str(measure.ROOT / "tests"))  # for the hostile forms that the tests know
    readers = KINDS[kind][3]
    wholes = []
    for read in readers:
        for _ in range(2):  # the first call loads what reads
            place(kind, None)
            value, peak = measured(read)
            if isinstance(value, Exception):
                raise value
        wholes.append((value, peak))
    for number in range(first, end):
        what, is_sealed = place(kind, np.random.default_rng([seed, sorted(KINDS).index(kind), number]))
        print(json.dumps([number, what, None, 0, 0]), flush=True)
        results, longest, most = [], 0.0, 0
        for at, (read, (whole, whole_peak)) in enumerate(zip(readers, wholes, strict=True)):
            signal.alarm(HANGS_AFTER_S)
            begin = time.monotonic()
            value, peak = measured(read)
            signal.alarm(0)
            longest, most = max(longest, time.monotonic() - begin), max(most, peak - whole_peak)
            result = judge(value, peak, whole, whole_peak, is_sealed)
            results.append(f"{result} (reader {at})" if result.startswith("wrong") else result)
        if results[0].startswith("wrong: other values") and set(results[1:]) == {"refused"}:
            results[0] = "refused"  # `inspect` reads the tables of a store alone, here whole ones of the other store
        order = ("wrong", "refused", "another", "harmless")
        worst = min(results, key=lambda result: order.index(result.split(":")[0]))
        print(json.dumps([number, what, worst, round(longest, 2), most]), flush=True)


def campaign(folder: Path, kind: str, count: int, seed: int, ends: float = math.inf) -> dict[str, Any]:
    """Outcomes of damaged copies of a kind by what was done; processes that end go on behind the copy that ended them.

    One that the alarm ended is tried once more: the machine may have been busy with something else. ends: the time, of
    `time.monotonic`, after which no process is started any more.
    """
    outcomes: dict[str, Counter] = {}
    wrong, at, longest, most, tried = [], 0, 0.0, 0, -1
    while at < count and time.monotonic() < ends:
        end = min(at + EACH, count)
        command = measure.script(__spec__.name, "--worker", kind, at, end, seed)
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        what, begun = "the start", at
        for line in done.stdout.splitlines():
            number, what, outcome, seconds, peak = json.loads(line)
            begun = number
            if outcome is not None:
                outcomes.setdefault(what, Counter())[outcome.split(":")[0]] += 1
                if outcome.startswith("wrong"):
                    wrong.append([number, what, outcome])
                at, longest, most = number + 1, max(longest, seconds), max(most, peak)
        if at < end and done.returncode == -signal.SIGALRM and tried != begun:
            tried = begun
        elif at < end:
            outcomes.setdefault(what, Counter())["wrong"] += 1
            wrong.append([begun, what, f"the process ended with {done.returncode}: {done.stderr.strip()[-900:]}"])
            at = begun + 1
    totals = sum(outcomes.values(), Counter())
    return {
        "copies": at,
        "totals": dict(totals),
        "longest_s": longest,
        "most_bytes_above_whole": most,
        "outcomes": {what: dict(found) for what, found in sorted(outcomes.items())},
        "wrong": wrong,
    }


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        kind, first, end, seed = sys.argv[2:]
        work(kind, int(first), int(end), int(seed))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="those to damage, joined by commas")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no process is started after them")
    parser.add_argument("--jobs", type=int, default=1, help="kinds at once")
    parser.add_argument("--print", action="store_true", help="Print the outcomes instead of recording them.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        lab, kinds = Path(name, "lab"), args.kinds.split(",")
        lab.mkdir()
        os.chdir(lab)
        prepare(lab)
        for kind in kinds:
            shutil.copytree(lab, Path(name, kind))
        with ThreadPoolExecutor(args.jobs) as pool:
            counts = [args.count * SHARES[kind] // 100 for kind in kinds]
            each = (
                [Path(name, kind) for kind in kinds],
                kinds,
                counts,
                [args.seed] * len(kinds),
                [time.monotonic() + 60 * args.minutes] * len(kinds),
            )
            found = dict(zip(kinds, pool.map(campaign, *each), strict=True))
    result = {"copies": sum(one["copies"] for one in found.values()), "seed": args.seed, "kinds": found}
    if args.print:
        print(json.dumps(result, indent=1))
    else:
        measure.save("damaged_artefacts", result)
    sys.exit(any(one["wrong"] for one in found.values()))


if __name__ == "__main__":
    main()
