"""Being asked to stop: by SIGTERM, which Slurm sends before a job's time is up, and torchrun to the ranks that are left; or by
a person's Ctrl-C."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from fastkd.errors import StoppedError

INTERRUPTED = 130
"""The exit code of what Ctrl-C ended: 128 and the number of SIGINT."""


class StopFlag:
    """Whether a signal asked this process to stop, and which."""

    def __init__(self) -> None:
        self.number = 0

    @property
    def asked(self) -> bool:
        return self.number != 0

    def ask(self, number: int = signal.SIGTERM, _frame: FrameType | None = None) -> None:
        """Asks; the signature is that of a signal handler. A second Ctrl-C waits for nothing any more."""
        if number == signal.SIGINT and self.number == signal.SIGINT:
            os.write(2, b"fastkd: interrupted\n")
            os._exit(INTERRUPTED)
        self.number = number

    def error(self, where: str) -> StoppedError:
        """What to end with, the state being written. where: how far the work is."""
        by, code = ("Ctrl-C", INTERRUPTED) if self.number == signal.SIGINT else ("SIGTERM", StoppedError.exit_code)
        return StoppedError(f"stopped by {by} {where}; the same command goes on", code)


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """A flag that SIGTERM and Ctrl-C raise for the length of the block; outside of the main thread nothing raises it."""
    flag = StopFlag()
    with _on_signal(signal.SIGTERM, flag.ask), _on_signal(signal.SIGINT, flag.ask):
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
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a child's signals are its own
    try:
        with _on_signal(signal.SIGTERM, leave_to_watch):
            yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)


@contextmanager
def _on_signal(number: int, handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, before)
