"""A warm worker of `fastkd sweep`: `python -m fastkd.cli.worker` runs commands one after the other, each as if it were typed.

A line on stdin is a job, `{"words": […], "log": PATH}`: what the command says goes to the end of the log. Lines on stdout say how
far it is, `{"done": N, "total": N}`, once a second at most, and that it has ended, `{"code": N}`. With its input, the worker ends:
at once, as a command may be killed at any moment.
"""

import gc
import json
import os
import queue
import sys
import threading
import time

from fastkd.cli import main
from fastkd.cli.common import progress_listeners
from fastkd.stopping import INTERRUPTED

STOPPED = (75, INTERRUPTED)
_INTERVAL_S = 1.0
_num_modules = 0


def serve() -> None:
    """Runs the commands that stdin names."""
    asked, told = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nothing, fd)
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    last = 0.0

    def tell(**words: int) -> None:
        told.write(json.dumps(words) + "\n")
        told.flush()

    def moved(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _INTERVAL_S:
            last = time.monotonic()
            tell(done=done, total=total)

    def read() -> None:
        for line in asked:
            jobs.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    progress_listeners.append(moved)
    while True:
        job = json.loads(jobs.get())
        code = _run(job["words"], job["log"])
        tell(code=code)
        if code in STOPPED:  # it was asked to end
            os._exit(code)


def _run(words: list[str], log: str) -> int:
    """A command; its exit code."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for fd in (1, 2):
        os.dup2(file, fd)
    os.close(file)
    sys.argv = ["fastkd", *words]
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    gc.collect()
    _leave_modules_out_of_collections()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return code


def _leave_modules_out_of_collections() -> None:
    """What stays after a command that has loaded modules is theirs: 432,000 objects after a `train`. To look through them after each
    command takes 0.3 s of the CPU, and all else of a small run beyond its training 0.1 s."""
    global _num_modules
    if len(sys.modules) != _num_modules:
        _num_modules = len(sys.modules)
        gc.freeze()


if __name__ == "__main__":
    serve()
