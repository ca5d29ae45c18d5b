"""Running the commands of fastkd: in this process, in another, in forked ranks, or in ranks under torchrun."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from fastkd.agree import telling_failures
from fastkd.cli import main
from fastkd.dist import PATIENCE_S, World, process_group
from fastkd.errors import FastKDError
from helpers.ranks import forked, wait_for


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict:
        """The one JSON object on stdout."""
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1
        return json.loads(self.out)


def fastkd(*arguments: object) -> Outcome:
    """`fastkd ARGUMENTS` in this process, through its entry point; with all that libraries print, too."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        saved = [(os.dup(fd), fd) for fd in (1, 2)]
        for file, fd in ((out, 1), (err, 2)):
            os.dup2(file.fileno(), fd)
        try:
            with redirect_stdout(out), redirect_stderr(err), mock.patch("sys.argv", ["fastkd", *map(str, arguments)]):
                main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            for copy, fd in saved:
                os.dup2(copy, fd)
                os.close(copy)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    return Outcome(code, *texts)


@contextmanager
def own_port() -> Iterator[int]:
    """A port that nobody else is given who asks for any, and that a server can still be bound to by its number."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def as_ranks(
    size: int, folder: Path, function: Callable[[World], object], *, device: str = "cpu", patience_s: float = PATIENCE_S
) -> tuple[list[str], float]:
    """What `function(world)` returned or raised on each of `size` ranks that meet as commands do; and seconds."""

    def run(rank: int, port: int) -> None:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
        world = World(rank=rank, local_rank=rank, size=size)
        try:
            with process_group(world, device, patience_s=patience_s) as world, telling_failures(world):
                found = str(function(world))
        except FastKDError as error:
            found = f"{type(error).__name__}: {error}"
        (folder / str(rank)).write_text(found)

    for rank in range(size):
        (folder / str(rank)).write_text("ended without a word")

    begin = time.monotonic()
    with own_port() as port:
        wait_for([forked(lambda rank=rank: run(rank, port)) for rank in range(size)])
    return [(folder / str(rank)).read_text() for rank in range(size)], time.monotonic() - begin


def fastkd_in_ranks(size: int, *arguments: object, **options: Any) -> list[Outcome]:
    """`fastkd ARGUMENTS` on forked ranks, see `fastkd_as_ranks`."""
    return fastkd_as_ranks(*[arguments] * size, **options)


def fastkd_as_ranks(
    *each: Sequence[object],
    first: Callable[[int], object] = lambda rank: None,
    until: Callable[[], bool] = lambda: False,
) -> list[Outcome]:
    """A command for each rank, in forked processes that find what torchrun tells its ranks; what each of them came to.

    first: called with each rank, in its process, before the command begins. until: kill -9 to all of them as soon as it
    holds; `first` may have them stall, so that none can be at its end by then.
    """
    size = len(each)
    with own_port() as port, tempfile.TemporaryDirectory() as folder:

        def run(rank: int) -> None:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in names.items()})
            first(rank)
            Path(folder, str(rank)).write_text(json.dumps(astuple(fastkd(*each[rank]))))

        pids = [forked(lambda rank=rank: run(rank)) for rank in range(size)]
        written = [Path(folder, str(rank)) for rank in range(size)]
        while not (holds := until()) and not all(map(has_ended, pids)):
            time.sleep(0.005)
        if holds:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        codes = wait_for(pids)
        return [
            Outcome(*json.loads(path.read_text())) if code == 0 else Outcome(code, "", "")
            for path, code in zip(written, codes, strict=True)
        ]


def has_ended(pid: int) -> bool:
    """Whether a process that nobody has waited for yet is at its end."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def start(*arguments: object, ranks: int = 1, env: dict[str, str] | None = None) -> subprocess.Popen:
    """Starts `fastkd ARGUMENTS` in other processes, each of one thread, so that its sums do not depend on the machine.

    ranks: processes under torchrun. env: variables besides those of this process.
    """
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"] if ranks > 1 else []
    return subprocess.Popen(
        [sys.executable, "-m", *torchrun, "fastkd", *map(str, arguments)],
        cwd=Path(__file__).parent,  # not the folder of the package: what is installed is tested
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> Outcome:
    """Waits for a process."""
    out, err = process.communicate()
    return Outcome(process.returncode, out, err)


def assert_one_clear_line(outcome: Outcome, culprit: str) -> None:
    assert outcome.code in (1, 2)
    printed = outcome.out + outcome.err
    assert "Traceback" not in printed
    assert "internal error" not in printed
    assert len([line for line in outcome.err.splitlines() if line.strip()]) <= 3, outcome.err
    assert culprit in printed


def fastkd_forked(*arguments: object, first: Callable[[], object] = lambda: None) -> Callable[[], Outcome]:
    """Starts `fastkd ARGUMENTS` in a forked process, which may end in any way; returns a function that waits for it.

    first: called there before the command begins.
    """
    files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115

    def run() -> None:
        for file, fd in zip(files, (1, 2), strict=True):
            os.dup2(file.fileno(), fd)
        sys.stdout, sys.stderr = (os.fdopen(fd, "w") for fd in (1, 2))
        sys.argv = ["fastkd", *map(str, arguments)]
        first()
        try:
            main()
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))

    pid = forked(run)

    def wait() -> Outcome:
        (code,) = wait_for([pid])
        texts = []
        for file in files:
            with file:
                file.seek(0)
                texts.append(file.read())
        return Outcome(code, *texts)

    return wait
