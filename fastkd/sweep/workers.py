"""Warm workers: processes that run one command after the other, so that imports and compilation are paid once."""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple


class Ended(NamedTuple):
    """How a command ended: its exit code (below 0: the signal that killed it), and the last line that it said."""

    code: int
    line: str


class Worker:
    """A process that runs commands, one at a time; a new one is started where it has died.

    Args:
        command: of the process. It reads a line of JSON a job, `{"words": […], "log": PATH}`, writes lines on how far it is,
            `{"done": N, "total": N}`, and one when it has ended, `{"code": N}`, and ends itself as soon as its input does.
        env: over this process's own.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._command, self._env = list(command), {**os.environ, **env}
        self._process: subprocess.Popen[bytes] | None = None
        self._log = Path()
        self._said_to = 0  # bytes of the log before this job
        self.is_busy = False
        self.share = 0.0
        """How much of the command is done, 0 … 1, as far as it has told; of several parts the furthest."""

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        return None if self._process is None else self._process.pid

    def start(self, words: Sequence[str], log: Path) -> None:
        """Begins a command; what it says goes to the end of `log`."""
        if self._process is None:
            # In a session of its own: Ctrl-C is this process's to hand on, and a worker ends with its input.
            self._process = subprocess.Popen(
                self._command,
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        self._log, self._said_to = log, log.stat().st_size if log.exists() else 0
        self.is_busy, self.share = True, 0.0
        with suppress(BrokenPipeError):  # it has died: `poll` tells
            self._pipe("stdin").write(json.dumps({"words": list(words), "log": str(log)}).encode() + b"\n")

    def poll(self) -> Ended | None:
        """How the command ended, once it has."""
        process = self._process
        if not self.is_busy or process is None:
            return None
        while select.select([self._pipe("stdout")], [], [], 0)[0]:
            line = self._pipe("stdout").readline()
            told = json.loads(line) if line.endswith(b"\n") else {}
            if "done" in told:
                self.share = max(self.share, min(1.0, told["done"] / max(1, told["total"])))
                continue
            self.is_busy = False
            if "code" in told:
                code = int(told["code"])
            else:
                code, self._process = process.wait(), None
            return Ended(code, self._last_line(code))
        return None

    def ask_to_stop(self) -> None:
        """SIGTERM, by which a command writes its state."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def close(self, seconds: float = 10.0) -> None:
        """Ends the process; a command that it is at ends at once."""
        if self._process is None:
            return
        self._pipe("stdin").close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pipe("stdout").close()
        self._process = None

    def _pipe(self, name: str) -> Any:
        return getattr(self._process, name)

    def _last_line(self, code: int) -> str:
        """The last line of the command's own in the log."""
        try:
            with self._log.open("rb") as file:
                file.seek(self._said_to)
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return lines[-1].removeprefix("fastkd: error: ") if lines else f"exit code {code}, no line"


def wait_for_any(workers: Sequence[Worker], seconds: float) -> None:
    """Waits until a busy worker has something to tell, or for so long."""
    pipes = [worker._pipe("stdout") for worker in workers if worker.is_busy]
    if pipes:
        select.select(pipes, [], [], seconds)
    else:
        time.sleep(seconds)
