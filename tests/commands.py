"""Running the commands of fastkd: in this process, in another, or in two ranks under torchrun."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastkd.cli import main


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict:
        """The one JSON object on stdout."""
        return json.loads(self.out)


class CommandLine:
    """`fastkd ARGUMENTS` in this process, through the same entry point."""

    def __init__(self, capture: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capture, self.monkeypatch = capture, monkeypatch

    def __call__(self, *arguments: object) -> Outcome:
        self.monkeypatch.setattr(sys, "argv", ["fastkd", *map(str, arguments)])
        self.capture.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return Outcome(code, *self.capture.readouterr())


def command(*arguments: object, ranks: int = 1) -> list[str]:
    """The command line of another process."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"] if ranks > 1 else []
    return [sys.executable, "-m", *torchrun, "fastkd", *map(str, arguments)]


def start(*arguments: object, ranks: int = 1) -> subprocess.Popen:
    """Starts another process, of one thread a rank, so that its sums do not depend on the machine."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    here = Path(__file__).parent  # not the folder of the package: what is installed is tested
    return subprocess.Popen(
        command(*arguments, ranks=ranks),
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> Outcome:
    """Waits for a process."""
    out, err = process.communicate()
    return Outcome(process.returncode, out, err)


def kill_when(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """kill -9 as soon as the condition holds."""
    while process.poll() is None and not condition():
        time.sleep(0.005)
    process.kill()
    process.communicate()


def exists_and(path: Path, condition: Callable[[], bool]) -> Callable[[], bool]:
    """A condition on a file that may not be there yet."""
    return lambda: path.exists() and condition()
