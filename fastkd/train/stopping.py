"""Being asked to stop: SIGTERM, which Slurm sends before a job's time is up, and torchrun to the ranks that are left."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopFlag:
    """Whether a signal asked this process to stop."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Asks; the signature is that of a signal handler."""
        self.asked = True


@contextmanager
def stop_on_sigterm() -> Iterator[StopFlag]:
    """A flag that SIGTERM raises for the length of the block; outside of the main thread nothing raises it."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = signal.signal(signal.SIGTERM, flag.ask)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGTERM, before)
