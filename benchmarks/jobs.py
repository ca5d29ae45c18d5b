"""What a job of several processes takes: time of the CPU, time of a clock, memory."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Used(NamedTuple):
    """What a job took."""

    cpu_s: float
    wall_s: float
    peak_bytes: int
    peak_anonymous_bytes: int


def processes(pid: int) -> Iterator[int]:
    """A process and all that it has started, and those have."""
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from processes(int(child))


def resident(pid: int) -> tuple[int, int]:
    """Bytes of a process and its children that are in memory, and of them those of no file."""
    total = anonymous = 0
    for one in processes(pid):
        with suppress(OSError):
            lines = dict(line.split(":", 1) for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()[1:])
            total += 1024 * int(lines["Pss"].split()[0])
            anonymous += 1024 * int(lines["Pss_Anon"].split()[0])
    return total, anonymous


def run(command: list[str], folder: Path, cores: int) -> Used:
    """Runs a command on some cores, without a GPU, to its end; ends this process with what it said where it fails."""
    own = sorted(os.sched_getaffinity(0))[:cores]
    log = folder / "log.txt"
    env = os.environ | {"OMP_NUM_THREADS": str(cores), "CUDA_VISIBLE_DEVICES": ""}
    begin = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdout=file,
            stderr=file,
            preexec_fn=lambda: os.sched_setaffinity(0, own),
        )
    peak, ended = [0, 0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            peak[:] = map(max, peak, resident(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - begin
    ended.set()
    watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)}:\n{log.read_text()[-3000:]}")
    return Used(usage.ru_utime + usage.ru_stime, wall_s, *peak)
