"""Being asked to stop: SIGTERM, which Slurm sends before a job's time is up, and torchrun to the ranks that are left."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from fastkd.errors import StoppedError


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
    with _on_sigterm(flag.ask):
        yield flag


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """For the length of the block SIGTERM ends the process at once, as it does by itself, but with StoppedError's exit code.

    Also while the main thread waits outside of Python, for other ranks for instance, where no handler gets its turn.
    """

    def leave_to_watch(_signal: int, _frame: FrameType | None) -> None:
        """The main thread does no more. No exception: a library that is just being imported may swallow it."""
        while True:
            signal.pause()

    def watch(reader: int) -> None:
        while number := os.read(reader, 1):
            if number[0] == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is leave_to_watch:
                os.write(2, b"fastkd: error: stopped by SIGTERM; the same command goes on\n")
                os._exit(StoppedError.exit_code)
        os.close(reader)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(target=watch, args=(reader,), daemon=True).start()
    before = signal.set_wakeup_fd(writer)
    try:
        with _on_sigterm(leave_to_watch):
            yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)


@contextmanager
def _on_sigterm(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
