"""What all commands share: --json and --config, one line for an error, the progress bar, the device."""

import functools
import json
import math
import os
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from fastkd.cli.sections import SectionedCommand
from fastkd.dist import World, find_device, process_group, read_world
from fastkd.errors import FastKDError
from fastkd.stopping import exit_on_sigterm

_LINE_INTERVAL_S = 10.0


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Turns exceptions into one line on stderr and exit code 1, SIGTERM into 75; FASTKD_DEBUG=1 lets exceptions through."""
    try:
        with exit_on_sigterm():
            yield
    except (FastKDError, OSError, KeyboardInterrupt, MemoryError) as error:
        if os.environ.get("FASTKD_DEBUG") == "1":
            raise
        if isinstance(error, KeyboardInterrupt):
            click.echo("fastkd: interrupted", err=True)
            sys.exit(130)
        click.echo(f"fastkd: error: {error if str(error) else type(error).__name__}", err=True)
        sys.exit(error.exit_code if isinstance(error, FastKDError) else 1)
    except Exception as error:
        if os.environ.get("FASTKD_DEBUG") == "1":
            raise
        line = " ".join(str(error).split())[:300]
        click.echo(f"fastkd: internal error: {type(error).__name__}: {line} (FASTKD_DEBUG=1 shows where)", err=True)
        sys.exit(1)


def _load_config(context: click.Context, option: click.Parameter, path: Path | None) -> None:
    """--config: the file's keys become the defaults of the command's options."""
    if path is None:
        return
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise click.BadParameter(f"{path}: {error}", context, option) from None
    values = values.get(context.info_name or "", values)  # one file may serve several commands, a table each
    if not isinstance(values, dict):
        raise click.BadParameter(f"{path}: {context.info_name} is no table", context, option)
    for name, value in values.items():
        if isinstance(value, list):
            raise click.BadParameter(f"{path}: {name} is a list, expected one value", context, option)
    known = {param.name for param in context.command.params if isinstance(param, click.Option)}
    names = {key.replace("-", "_"): value for key, value in values.items() if not isinstance(value, dict)}
    unknown = sorted(set(names) - known)
    if unknown:
        raise click.BadParameter(f"{path}: {context.info_name} has no option {unknown[0]!r}", context, option)
    context.default_map = {**(context.default_map or {}), **names}


def command(
    name: str, *, first_rank_alone: bool = False, sections: Mapping[str, str] | None = None
) -> Callable[[Callable], click.Command]:
    """Declares a command: adds --config and --json; prints the dict that it returns, on rank 0.

    The function gets the options and returns (result for --json, text for people). Work that is not shared is done by the
    `first_rank_alone`: the other processes that torchrun started have nothing to do. `sections`: as SectionedCommand's.
    """

    def declare(function: Callable[..., tuple[dict[str, Any], str]]) -> click.Command:
        @functools.wraps(function)
        def run(*, as_json: bool, **options: Any) -> None:
            world = read_world()
            if first_rank_alone and not world.is_main:
                return
            result, text = function(**options)
            if world.is_main:
                click.echo(json.dumps(result) if as_json else text)
            if result.get("ok") is False:
                sys.exit(1)

        config = click.option(
            "--config",
            type=click.Path(path_type=Path),
            callback=_load_config,
            is_eager=True,
            expose_value=False,
            help="TOML file with defaults for these options; flags override it.",
        )
        as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
        made = click.command(name, cls=SectionedCommand)(config(as_json(run)))
        made.sections = sections or {}
        return made

    return declare


def say(line: str) -> None:
    """A line for people, on stderr, from rank 0."""
    if read_world().is_main:
        click.echo(line, err=True)


@contextmanager
def progress_bar(what: str, unit: str, *, unit_bytes: int = 0) -> Iterator[Callable[..., None]]:
    """A callback (done, total, note="") that shows a bar with rate and time left on a terminal, and a plain line at
    intervals elsewhere; nothing on ranks other than 0. With the bytes of a unit it shows those as well.

    The rate is of what was done after the first call: a run that goes on has not done now what it begins with. A call with
    less done begins anew."""

    def size(done: int, total: int) -> str:
        if not unit_bytes:
            return ""
        scale, name = (1e9, "GB") if total * unit_bytes >= 1e9 else (1e6, "MB")
        return f"{done * unit_bytes / scale:,.2f} of {total * unit_bytes / scale:,.2f} {name}"

    if not read_world().is_main:
        yield lambda done, total, note="": None
        return
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=what, unit=unit, unit_scale=True, dynamic_ncols=True) as bar:

            def show(done: int, total: int, note: str = "") -> None:
                if bar.total is None or done < bar.n:
                    bar.reset(total)
                    bar.initial = bar.n = done
                bar.total = total
                bar.set_postfix_str(note or size(done, total), refresh=False)
                bar.update(done - bar.n)

            yield show
        return
    begin = last = 0.0
    first, latest = 0, math.inf

    def tell(done: int, total: int, note: str = "") -> None:
        nonlocal begin, last, first, latest
        now = time.monotonic()
        if done < latest:
            begin, last, first = now, now, done
        latest = done
        if now - last >= _LINE_INTERVAL_S:
            last = now
            rate = (done - first) / (now - begin)
            left = (total - done) / rate if rate else 0.0
            parts = [
                f"{done:,} of {total:,} {unit}",
                size(done, total),
                f"{rate:,.0f} {unit}/s, {left:,.0f} s left",
                note,
            ]
            click.echo(f"{what}: {', '.join(part for part in parts if part)}", err=True)

    yield tell


def choose_device(name: str, world: World) -> str:
    """`auto`: this process's GPU where there is one, else the CPU.

    Raises:
        OptionError: an unknown device, or a GPU that is not there.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = find_device(name)
    if device.type == "cuda":
        device = torch.device("cuda", world.local_rank if device.index is None else device.index)
        torch.cuda.set_device(device)
    return str(device)


@contextmanager
def compute(device_name: str) -> Iterator[tuple[World, str]]:
    """This process's World and device, with the process group joined for the length of the block."""
    world = read_world()
    device = choose_device(device_name, world)
    with process_group(world, device.split(":")[0]):
        yield world, device
