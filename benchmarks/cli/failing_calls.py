"""Claim: a system call that fails, or does less than asked, ends every command in one line that names file and cause, or in its result.

A library of ours (`failing_calls.c`) is preloaded, which lets the N-th call of a kind on the files of a lab fail, for N over all
calls that the command makes of that kind, or as many of them, evenly spread, as --most says. Each trial is a forked process that an
alarm ends after 60 s, and is followed by an undisturbed start of the same command. Asserted of each trial:

    done     exit code 0, and the bytes that an undisturbed command gives
    told     exit code 1, one line on stderr with a file of the lab and what the system said, nothing or the whole under the final
             name (but a run and a store that the same command goes on with), no empty partial; the next start gives the bytes

Interrupted calls (EINTR), short reads and writes and file systems without locks (ENOLCK, ENOSYS) must end in `done`.

    python -m benchmarks.cli.failing_calls --most 40
"""

import argparse
import ctypes
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.cli.lab import CPU, DATA, LAB, RUN, prepare

COMMANDS: dict[str, tuple[str, ...]] = {
    "build-beton": ("build-beton images --mode raw --out out/y.beton",),
    "score": (f"score x.beton --method el2n --model t --out out/s.h5 {CPU}",),
    "import-scores": ("import-scores x.beton v.npy --higher hard --out out/i.h5",),
    "prune": ("prune x.beton --method union --mask m.h5 --mask m5.h5 --out out/p.h5",),
    "plan": ("plan x.beton --mask m.h5 --num-seeds 2 --images-per-s 1",),
    "cache-logits": (
        f"cache-logits x.beton --mask m.h5 --teacher t --num-seeds 2 --batch-size 8 --out out/l.h5 {CPU}",
    ),
    "merge": ("merge a.h5 b.h5 --out out/j.h5",),
    "train": (f"{RUN} --out out/run",),
    "evaluate": (f"evaluate x.beton --model run {CPU}",),
    "report": ("report run --out out/r.html",),
    "inspect": ("inspect m.h5 --beton x.beton --count 3 --gallery out/g.png", "inspect x.beton l.h5 t/scores.h5 run"),
    "sweep": ("sweep paper:theorem --scale smoke --out out/D",),
    "verify": ("verify out/y.beton --write-manifest", "verify x.beton l.h5 m.h5 run stopped/run"),
    "models": ("models resnet",),
}
"""Lines of every command; what they write lies in out/."""
OF_DATA = ("build-beton", "import-scores", "prune", "plan", "inspect", "verify")
"""Those whose first lines need no network."""
OPEN, CREATE, READ, WRITE, SYNC, RENAME, TRUNCATE, LOCK = (1 << i for i in range(8))
FAILURES: dict[str, tuple[int, int, int]] = {
    **{
        f"{name} {errno.errorcode[number]}": (kinds, number, 0)
        for name, kinds, numbers in (
            ("write", WRITE, (errno.EIO, errno.ENOSPC)),
            ("sync", SYNC, (errno.EIO, errno.ENOSPC)),
            ("rename", RENAME, (errno.EIO, errno.ENOSPC)),
            ("create", CREATE, (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EACCES)),
            ("truncate", TRUNCATE, (errno.EIO, errno.ENOSPC)),
            ("open", OPEN, (errno.EIO, errno.EACCES)),
            ("read", READ, (errno.EIO,)),
        )
        for number in numbers
    },
    "all locks ENOLCK": (LOCK, errno.ENOLCK, 1),
    "all locks ENOSYS": (LOCK, errno.ENOSYS, 1),
    "every second read and write EINTR": (READ | WRITE, errno.EINTR, 2),
    "every third open, sync and lock EINTR": (OPEN | CREATE | SYNC | LOCK, errno.EINTR, 3),
    "all reads and writes short": (READ | WRITE, 0, 1),
}
"""Name → which calls, the error (0: half of it is done), and whether that one alone (0), or each so many fail."""
HANGS_AFTER_S = 60


def shim(folder: Path) -> Path:
    """The library, compiled."""
    source, library = Path(__file__).with_suffix(".c"), folder / "failing.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-w", "-o", library, source, "-ldl"], check=True)
    return library


def reset() -> None:
    """out/ as commands find it."""
    shutil.rmtree("out", ignore_errors=True)
    os.mkdir("out")


def trial(line: str, failure: tuple[int, int, int], at: int) -> tuple[int, str, str, int]:
    """A command in a forked process, of whose calls some fail: its exit code, stdout, stderr, and how many could have failed."""
    library = ctypes.CDLL(None)
    told = Path("..", "told")
    if not (pid := os.fork()):
        signal.alarm(HANGS_AFTER_S)
        for number in (1, 2):
            os.dup2(os.open(told.with_suffix(f".{number}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        code = 1
        try:
            from fastkd.cli import main as command

            sys.argv = ["fastkd", *line.split(), "--json"]
            kinds, number, every = failure
            library.failing_set(os.getcwd().encode(), kinds, number, at, every)
            command()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            count = library.failing_count()
            library.failing_set(b"", 0, 0, -1, 0)
            sys.stdout.flush()
            sys.stderr.flush()
            told.with_suffix(".count").write_text(str(count))
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    count = int(told.with_suffix(".count").read_text()) if code >= 0 else 0
    return code, told.with_suffix(".1").read_text(), told.with_suffix(".2").read_text(), count


def contents(line: str, out: str) -> dict[str, Any]:
    """What a command gives: the files that it wrote, of a run its weights, and what it prints where it writes none."""
    files = sorted(path for path in Path("out").rglob("*") if path.is_file())
    if line.startswith("train"):
        files = [path for path in files if path.name in ("model.safetensors", "result.json")]
        return {path.name: path.read_bytes() if path.suffix == ".safetensors" else "" for path in files}
    found: dict[str, Any] = {str(path): path.read_bytes() for path in files}
    return found | ({} if files and not line.startswith("verify") else {"stdout": out})


def prepare_out(line: str) -> None:
    reset()
    if "--write-manifest" in line:
        shutil.copy("x.beton", "out/y.beton")


def judge(line: str, failure: tuple[int, int, int], outcome: tuple[int, str, str, int], whole: dict[str, Any]) -> str:
    """What a trial came to, and the start after it."""
    code, out, err, _ = outcome
    lines = [one for one in err.splitlines() if "error:" in one]
    if line.startswith("verify") and not lines and code == 1:
        lines = [" ".join(json.loads(out)["problems"])]  # which are what it prints
    left = [
        str(path)
        for path in Path("out").rglob("*")
        if path.is_file() and (".partial" in path.name or ".lock" in path.name)
    ]
    if code == 0:
        if contents(line, out) != whole:
            return "wrong: other bytes"
        return f"wrong: leaves {left}" if left else "done"
    cause = os.strerror(failure[1])
    if code != 1 or len(lines) != 1 or "Traceback" in err or "internal error" in err:
        return f"wrong: exit code {code}: {err.strip()[-300:]}"
    if failure[2]:
        return f"wrong: not done: {lines[0]}"
    if cause not in lines[0]:
        return f"wrong: does not say {cause}: {lines[0]}"
    names = ("images", "out/", "run", "x.beton", "v.npy", ".h5", "stopped", "t/")
    if not any(name in lines[0] for name in names):
        return f"wrong: names no file: {lines[0]}"
    is_gone_on_with = line.startswith(("train", "cache-logits", "build-beton"))
    if any(not is_gone_on_with or os.path.getsize(path) == 0 for path in left):
        return f"wrong: leaves {left}"
    final = [
        name for name in whole if name != "stdout" and Path(name).exists() and Path(name).read_bytes() != whole[name]
    ]
    if final and not line.startswith(("cache-logits", "train")):
        return f"wrong: {final} of other bytes after {lines[0]}"
    code, out, err, _ = trial(line, (0, 0, 0), -1)
    if code or contents(line, out) != whole:
        return f"wrong: the next start gives {code}, {err.strip()[-200:] or 'other bytes'}, after {lines[0]}"
    return "told"


def places(num_calls: int, most: int) -> list[int]:
    """Which calls are to fail."""
    return sorted({int(at) for at in np.linspace(0, num_calls - 1, min(num_calls, most))}) if num_calls else []


def campaign(
    line: str, most: int, wanted: Callable[[str], bool] = lambda failure: True
) -> tuple[dict[str, Counter], list]:
    """Outcomes by failure of a command's line, and what went wrong. wanted: which failures."""
    for _ in range(2):  # the first loads and compiles
        prepare_out(line)
        code, out, err, _ = trial(line, (0, 0, 0), -1)
        assert code == 0, (line, err)
    whole = contents(line, out)
    outcomes: dict[str, Counter] = {}
    wrong = []
    for name, failure in FAILURES.items():
        if not wanted(name):
            continue
        prepare_out(line)
        *_, num_calls = trial(line, failure, -1)
        for at in [0] if failure[2] else places(num_calls, most):
            prepare_out(line)
            result = judge(line, failure, trial(line, failure, at), whole)
            outcomes.setdefault(name, Counter())[result.split(":")[0]] += 1
            if result.startswith("wrong"):
                wrong.append([line, name, at, result])
                print(wrong[-1], file=sys.stderr, flush=True)
    return outcomes, wrong


def serve(folder: Path, commands: list[str], most: int, wanted: str, light: bool) -> dict[str, Any]:
    """The campaign in this process, which has the library."""
    from fastkd.cli import cli

    assert set(COMMANDS) == set(cli.commands), "a command that is not tried, or is no more"
    (folder / "lab").mkdir()
    os.chdir(folder / "lab")
    prepare(Path(), DATA if light else LAB)
    np.save("v.npy", np.arange(60.0))
    found: dict[str, Any] = {"commands": {}, "wrong": []}
    for command in commands:
        for line in COMMANDS[command][: 1 if light else None]:
            outcomes, wrong = campaign(line, most, lambda name: wanted in name)
            found["commands"][line] = {name: dict(counts) for name, counts in outcomes.items()}
            found["wrong"] += wrong
            print(line, sum(outcomes.values(), Counter()), file=sys.stderr, flush=True)
    return found


def run(commands: list[str], most: int, wanted: str = "", *, light: bool = False) -> dict[str, Any]:
    """What came of failing calls. wanted: what the failures' names have in them. light: the first lines of OF_DATA alone."""
    with tempfile.TemporaryDirectory() as name:
        command = measure.script(__spec__.name, "--server", name, ",".join(commands), most, wanted, int(light))
        environment = os.environ | {"LD_PRELOAD": str(shim(Path(name))), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    if sys.argv[1:2] == ["--server"]:
        folder, commands, most, wanted, light = sys.argv[2:]
        print(json.dumps(serve(Path(folder), commands.split(","), int(most), wanted, light == "1")))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=40, help="calls of a command that fail, of each kind")
    parser.add_argument("--commands", default=",".join(COMMANDS), help="those to try, joined by commas")
    parser.add_argument("--light", action="store_true", help="the first lines of commands that need no network alone")
    parser.add_argument("--failures", default="", help="those whose names have this in them")
    parser.add_argument("--print", action="store_true", help="Print the outcomes instead of recording them.")
    args = parser.parse_args()
    commands = list(OF_DATA) if args.light else args.commands.split(",")
    found = run(commands, args.most, args.failures, light=args.light)
    totals = sum((Counter(of) for line in found["commands"].values() for of in line.values()), Counter())
    result = {"most_calls_of_a_kind": args.most, "trials": sum(totals.values()), "totals": dict(totals), **found}
    if args.print:
        print(json.dumps(result, indent=1))
    else:
        measure.save("failing_calls", result)
    sys.exit(bool(found["wrong"]))


if __name__ == "__main__":
    main()
