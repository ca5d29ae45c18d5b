"""What all commands share: one line for an error, the progress bar, the device."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from fastkd.dist import World, find_device, read_world
from fastkd.errors import FastKDError, OptionError, printable
from fastkd.stopping import INTERRUPTED, exit_on_sigterm

_LINE_INTERVAL_S, _STAYS_INTERVAL_S = 10.0, 1.0
_LINE_SHARE = 0.02
"""Of the time since the start, between two lines of progress, once that is more: some 300 lines in a day."""

progress_listeners: list[Callable[[int, int], None]] = []
"""Who is told of (done, total) besides people: in a warm worker, the sweep."""


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Turns exceptions into one line on stderr and exit code 1, SIGTERM into 75, Ctrl-C into 130; FASTKD_DEBUG=1 lets exceptions through."""
    try:
        with exit_on_sigterm():
            yield
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (FastKDError, OSError, KeyboardInterrupt, click.Abort, MemoryError) as error:
        if os.environ.get("FASTKD_DEBUG") == "1":
            raise
        if isinstance(error, KeyboardInterrupt | click.Abort):
            click.echo("fastkd: interrupted; the same command goes on", err=True)
            sys.exit(INTERRUPTED)
        click.echo(printable(f"fastkd: error: {error if str(error) else type(error).__name__}"), err=True)
        sys.exit(error.exit_code if isinstance(error, FastKDError) else 1)
    except Exception as error:
        if os.environ.get("FASTKD_DEBUG") == "1":
            raise
        line = " ".join(str(error).split())[:300]
        told = f"fastkd: internal error: {type(error).__name__}: {line} (FASTKD_DEBUG=1 shows where)"
        click.echo(printable(told), err=True)
        sys.exit(1)


def say(line: str) -> None:
    """A line for people, on stderr, from rank 0; above a bar that is shown there."""
    if not read_world().is_main:
        return
    if sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(printable(line), file=sys.stderr)
    else:
        click.echo(printable(line), err=True)


@contextmanager
def progress_bar(what: str, unit: str, *, unit_bytes: int = 0) -> Iterator[Callable[..., None]]:
    """A callback (done, total, note="", stays=False) that shows a bar with rate and time left on a terminal, and plain lines
    elsewhere; nothing on ranks other than 0. With the bytes of a unit it shows those as well.

    Elsewhere there is a line at intervals, which grow with time, and one for each note that stays (what an epoch came to), but one a second at most.

    The rate is of what was done after the first call: a run that goes on has not done now what it begins with. A call with
    less done begins anew."""

    def size(done: int, total: int) -> str:
        if not unit_bytes:
            return ""
        scale, name = (1e9, "GB") if total * unit_bytes >= 1e9 else (1e6, "MB")
        return f"{done * unit_bytes / scale:,.2f} of {total * unit_bytes / scale:,.2f} {name}"

    if not read_world().is_main:
        yield lambda done, total, note="", stays=False: None
        return
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=what, unit=f" {unit}", unit_scale=True, dynamic_ncols=True) as bar:
            shown = ""

            def show(done: int, total: int, note: str = "", stays: bool = False) -> None:
                nonlocal shown
                if bar.total is None or done < bar.n:
                    bar.reset(total)
                    bar.initial = bar.n = bar.last_print_n = done  # from there on it takes the rate
                bar.total = total
                bar.set_postfix_str(note or size(done, total), refresh=False)
                bar.update(done - bar.n)
                if note != shown:  # drawn at once: the last one would not be, as nothing comes after it
                    shown = note
                    bar.refresh()

            yield _heard(show)
        return
    begin = last = stayed = 0.0
    first, latest = 0, math.inf

    def tell(done: int, total: int, note: str = "", stays: bool = False) -> None:
        nonlocal begin, last, stayed, first, latest
        now = time.monotonic()
        if done < latest:
            begin, last, first = now, now, done
        latest = done
        interval = max(_LINE_INTERVAL_S, _LINE_SHARE * (now - begin))
        is_due = now - stayed >= _STAYS_INTERVAL_S if stays else now - last >= interval
        if is_due:
            last = now
            stayed = now if stays else stayed
            rate = (done - first) / (now - begin) if now > begin else 0.0
            left = f", {(total - done) / rate:,.0f} s left" if rate else ""
            parts = [f"{done:,} of {total:,} {unit}", size(done, total), f"{rate:,.0f} {unit}/s{left}", note]
            click.echo(f"{what}: {', '.join(part for part in parts if part)}", err=True)

    yield _heard(tell)


def _heard(tell: Callable[..., None]) -> Callable[..., None]:
    """What tells people, and then the listeners."""

    def both(done: int, total: int, note: str = "", stays: bool = False) -> None:
        tell(done, total, note, stays)
        for listen in progress_listeners:
            listen(done, total)

    return both


def choose_device(name: str, world: World) -> str:
    """`auto`: this process's GPU where there is one, else the CPU.

    A GPU without a number is the one of the process's number on its node, or the only one that it sees, as Slurm's
    --gpus-per-task=1 has it.

    Raises:
        OptionError: an unknown device, a GPU that is not there, or more processes on the node than GPUs.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = find_device(name)
    if device.type == "cuda":
        num_gpus = torch.cuda.device_count()
        index = device.index if device.index is not None else world.local_rank if num_gpus > 1 else 0
        if index >= num_gpus:
            raise OptionError(
                f"device {name}: this is process {index + 1} on its node, and torch sees {num_gpus} GPUs here: start as many processes "
                f"on a node as it has GPUs (torchrun --nproc-per-node {num_gpus}), or take --device cpu"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return str(device)
