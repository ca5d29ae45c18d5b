"""What the benchmarks share: interleaved rounds, medians with spread, and the record of where they ran."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("fastkd", "ffcv", "numba", "numpy", "torch", "h5py")


def fastkd(*arguments: object) -> dict[str, Any]:
    """Runs a command; returns its result."""
    command = [sys.executable, "-m", "fastkd", *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def script(name: str, *arguments: object, python: str = sys.executable) -> list[str]:
    """The command that runs a benchmark in a process of its own, from any folder.

    Args:
        name: of its module, `__spec__.name` for the one that asks.
    """
    run = f"import runpy, sys; sys.path.append({str(ROOT)!r}); runpy.run_module({name!r}, run_name='__main__')"
    return [python, "-c", run, *map(str, arguments)]


def interleave(contenders: dict[str, Callable[[], Any]], *, rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of every contender in every round; each round runs all of them, the order turning by one."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(-warmup, rounds):
        turn = round_number % len(names)
        for name in names[turn:] + names[:turn]:
            begin = time.perf_counter()
            contenders[name]()
            if round_number >= 0:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratios(seconds: dict[str, list[float]], name: str, baseline: str) -> dict[str, float]:
    """Speed of `name` over that of `baseline`, round by round: median, lowest and highest."""
    found = [b / a for a, b in zip(seconds[name], seconds[baseline], strict=True)]
    return summary(found)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def peak_bytes() -> int:
    """The most memory that this process ever held; getrusage would count its parent's, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def machine() -> dict[str, Any]:
    """Hardware and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def save(name: str, result: dict[str, Any]) -> None:
    """Writes results/NAME.json and prints it."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"benchmark": name, **result, "machine": machine()}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)
