"""Claim: no signal at any moment leaves a process, a part of a file under its final name, or work that the next start does not finish.

Every command is started again and again; after a time drawn within that of an undisturbed start it is sent SIGINT, SIGTERM, SIGHUP or
SIGKILL, once, or twice within a tenth of a second. Asserted of each: it ends within 60 s, with an exit code of its signal (SIGINT: 130;
SIGTERM: 75; SIGHUP, SIGKILL: the signal itself; before fastkd has begun, any signal's own) or 0 and its whole output where it was done before; nothing of its
session runs on; under its output's name stands nothing or the bytes of an undisturbed start, but for a run and a store, which go on;
and the same command, started once more, ends with 0 and these bytes, and no partial file is left.

    python -m benchmarks.cli.signals --times 20
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import fastkd
from benchmarks import measure
from benchmarks.cli.failing_calls import COMMANDS, OF_DATA, contents, prepare_out
from benchmarks.cli.lab import DATA, LAB, prepare

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
CODES = {signal.SIGINT: 130, signal.SIGTERM: 75, signal.SIGHUP: -signal.SIGHUP, signal.SIGKILL: -signal.SIGKILL}
ENDS_AFTER_S = 60


def start(line: str) -> subprocess.Popen:
    """A command in a session of its own."""
    command = [sys.executable, "-m", "fastkd", *line.split(), "--json"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, start_new_session=True, preexec_fn=_heed)


def _heed() -> None:
    """What started the campaign may ignore signals, as nohup does."""
    for number in SIGNALS[:3]:
        signal.signal(number, signal.SIG_DFL)


def running(session: int) -> list[str]:
    """What runs of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(its) == session and state != "Z":
            found.append(stat.parent.name)
    return found


def ended(session: int) -> bool:
    """Whether all of a session ends in time."""
    ends = time.monotonic() + ENDS_AFTER_S
    while running(session) and time.monotonic() < ends:
        time.sleep(0.01)
    return not running(session)


def undisturbed(line: str) -> tuple[dict[str, Any], float]:
    """What a command gives, and how long it takes."""
    begin = time.monotonic()
    process = start(line)
    out, err = process.communicate()
    assert process.returncode == 0, (line, err)
    return contents(line, out), time.monotonic() - begin


def one(line: str, number: signal.Signals, times: int, after_s: float, gap_s: float, whole: dict[str, Any]) -> str:
    """A start that is sent a signal: what it came to."""
    prepare_out(line)
    process = start(line)
    time.sleep(after_s)
    for _ in range(times):
        if process.poll() is None:
            process.send_signal(number)
        time.sleep(gap_s if times > 1 else 0)
    try:
        out, err = process.communicate(timeout=ENDS_AFTER_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return f"wrong: runs on {ENDS_AFTER_S} s later"
    code = process.returncode
    if not ended(process.pid):
        return f"wrong: leaves {running(process.pid)}"
    if number == signal.SIGINT and err.rstrip().endswith("KeyboardInterrupt") and not is_fastkds(err):
        # Python had not come to fastkd yet, and ends its own way.
        code = -number
    if code not in (0, CODES[number], -number):
        return f"wrong: exit code {code}: {err.strip()[-300:]}"
    if "Traceback" in err and code != -number:
        return f"wrong: {err.strip()[-300:]}"
    if code == 0 and contents(line, out) != whole:
        return "wrong: other bytes, with exit code 0"
    parts = [
        name for name in whole if name != "stdout" and Path(name).exists() and Path(name).read_bytes() != whole[name]
    ]
    if parts and not line.startswith(("train", "cache-logits")):
        return f"wrong: a part of {parts}"
    again, _ = undisturbed(line)
    left = [
        path.name for path in Path("out").rglob("*") if ".partial" in path.name or path.suffix in (".journal", ".lock")
    ]
    if again != whole or left:
        return f"wrong: the next start gives {'other bytes' if again != whole else left}"
    return "done before" if code == 0 else "stopped"


def is_fastkds(traceback: str) -> bool:
    """Whether any of it lies in fastkd, but for its first lines, before it has a say in signals."""
    package = Path(fastkd.__file__).parent
    begun = {package / "__init__.py", package / "__main__.py"}
    files = [Path(name) for name in re.findall(r'File "([^"]+)"', traceback)]
    return any(file.is_relative_to(package) and file not in begun for file in files)


def campaign(line: str, times: int, rng: random.Random) -> tuple[dict[str, Counter], list]:
    """Outcomes by signal of a command's line, and what went wrong."""
    prepare_out(line)
    whole, _ = undisturbed(line)
    prepare_out(line)
    again, seconds = undisturbed(line)
    assert again == whole
    outcomes: dict[str, Counter] = {}
    wrong = []
    for number in range(times):
        sent, twice = SIGNALS[number % 4], number // 4 % 2
        name = f"{sent.name} twice" if twice else sent.name
        result = one(line, sent, 1 + twice, rng.random() * seconds, rng.random() / 10, whole)
        outcomes.setdefault(name, Counter())[result.split(":")[0]] += 1
        if result.startswith("wrong"):
            wrong.append([line, name, number, result])
            print(wrong[-1], file=sys.stderr, flush=True)
    return outcomes, wrong


def run(commands: list[str], times: int, seed: int, *, light: bool = False) -> dict[str, Any]:
    """The campaign; every command's first line. light: of commands that need no network."""
    found: dict[str, Any] = {"commands": {}, "wrong": []}
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare(Path(), DATA if light else LAB)
        np.save("v.npy", np.arange(60.0))
        for command in commands:
            line = COMMANDS[command][0]
            outcomes, wrong = campaign(line, times, random.Random(f"{seed} {command}"))
            found["commands"][line] = dict(sum(outcomes.values(), Counter()))
            found["wrong"] += wrong
            print(line, sum(outcomes.values(), Counter()), file=sys.stderr, flush=True)
        shutil.rmtree("out")
        os.chdir(here)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="starts of a command that are sent a signal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--light", action="store_true", help="the first lines of commands that need no network alone")
    parser.add_argument("--commands", default=",".join(COMMANDS), help="those to start, joined by commas")
    parser.add_argument("--print", action="store_true", help="Print the outcomes instead of recording them.")
    args = parser.parse_args()
    from fastkd.cli import cli

    assert set(COMMANDS) == set(cli.commands), "a command that is not tried, or is no more"
    found = run(list(OF_DATA) if args.light else args.commands.split(","), args.times, args.seed, light=args.light)
    totals = sum((Counter(of) for of in found["commands"].values()), Counter())
    result = {"signals": sum(totals.values()), "seed": args.seed, "totals": dict(totals), **found}
    if args.print:
        print(result)
    else:
        measure.save("signals", result)
    sys.exit(bool(found["wrong"]))


if __name__ == "__main__":
    main()
