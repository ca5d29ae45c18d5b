"""Something happens at a certain moment of a command, whatever thread has come so far and however fast the machine is."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import fastkd

PACKAGE = str(Path(fastkd.__file__).parent)


def at_call(functions: str, happen: Callable[[], object]) -> Callable[[], None]:
    """For a process of its own, a function that makes something happen there when functions of these names in the package
    have been called, one after the other."""
    awaited = functions.split()

    def watch(frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event == "call" and awaited[:1] == [code.co_name] and code.co_filename.startswith(PACKAGE):
            awaited.pop(0)
            if not awaited:
                happen()

    def begin() -> None:
        threading.setprofile(watch)
        sys.setprofile(watch)

    return begin


def die() -> None:
    """Ends this process as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def stall() -> None:
    """Never returns: what comes after waits for whoever ends this process."""
    while True:
        time.sleep(60)


def stalling(num_calls: int) -> Callable[..., None]:
    """A progress that stops the process at its num_calls-th call."""
    left = iter(range(num_calls - 1))

    def progress(*_: object) -> None:
        if next(left, None) is None:
            stall()

    return progress
