"""How a command is declared: --json, --config, --dump-config and --force, what it writes claimed, its ranks agreed."""

import functools
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from fastkd import __version__
from fastkd.agree import agree, share, telling_failures
from fastkd.cli.common import choose_device, keep_freed_memory, say
from fastkd.cli.config import dump_config, load_config
from fastkd.cli.sections import SectionedCommand
from fastkd.dist import World, process_group, read_world
from fastkd.errors import DiskError, OptionError, printable
from fastkd.writing import claim


class Output(click.Path):
    """What a command writes: locked before the command looks at it, and never one of its inputs."""

    def __init__(self, *, is_folder: bool = False) -> None:
        super().__init__(path_type=Path)
        self.is_folder = is_folder


def command(
    name: str, *, on_ranks: bool = False, sections: Mapping[str, str] | None = None
) -> Callable[[Callable], SectionedCommand]:
    """Declares a command: adds --config, --dump-config, --json, and --force where it writes; prints the dict that it returns, on rank 0.

    The function gets the options and returns (result for --json, text for people). What it writes is claimed for it. Work
    that is shared, `on_ranks`, begins when all ranks have joined and agreed; the function gets `world`, and `device` is the
    one of this rank. Other work is done by the first rank alone. `sections`: as SectionedCommand's.
    """

    def declare(function: Callable[..., tuple[dict[str, Any], str]]) -> SectionedCommand:
        def perform(options: dict[str, Any]) -> tuple[dict[str, Any], str]:
            if not on_ranks:
                with claimed(made.params, options):
                    return function(**options)
            world = read_world()
            options["device"] = choose_device(options["device"], world)
            with process_group(world, options["device"]) as world, telling_failures(world):
                agree(world, bearing(name, made.params, options))
                with claimed_for_all(made.params, options, world):
                    return function(world=world, **options)

        @functools.wraps(function)
        def run(*, as_json: bool, dump: bool, **options: Any) -> None:
            world = read_world()
            if dump:
                if world.is_main:
                    click.echo(dump_config(click.get_current_context()))
                return
            if not on_ranks and not world.is_main:
                return
            if on_ranks:
                keep_freed_memory()
            result, text = perform(options)
            if world.is_main:
                _print(json.dumps(_without_nan(result), allow_nan=False) if as_json else printable(text))
            if result.get("ok") is False:
                sys.exit(1)

        config = click.option(
            "--config",
            type=click.Path(path_type=Path),
            callback=load_config,
            is_eager=True,
            expose_value=False,
            help="TOML file with defaults for these options, named as here without dashes; flags override it.",
        )
        dump = click.option(
            "--dump-config",
            "dump",
            is_flag=True,
            help="Print, as such a file, what the command would run with, and end.",
        )
        as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
        made = click.command(name, cls=SectionedCommand)(config(dump(as_json(run))))
        if any(isinstance(param.type, Output) for param in made.params):
            force = click.Option(["--force"], is_flag=True, help="Replace what is there, should it be of another job.")
            made.params.insert(-2, force)
        made.sections, made.perform = sections or {}, perform
        return made

    return declare


def _print(text: str) -> None:
    """The result, on stdout.

    Raises:
        DiskError: stdout cannot be written; what the command does is done all the same.
    """
    try:
        click.echo(text)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # so that the interpreter's end does not try again
        raise DiskError(
            f"standard output: cannot be written ({error.strerror}); the command itself is done, and what it writes is written"
        ) from None


def _without_nan(value: Any) -> Any:
    """A result as JSON knows it, which has no NaN and no infinities: null stands for them."""
    if isinstance(value, Mapping):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _outputs(params: Sequence[click.Parameter], options: Mapping[str, Any]) -> Iterator[tuple[Path, Output]]:
    for param in params:
        if isinstance(param.type, Output) and param.name and options.get(param.name) is not None:
            yield options[param.name], param.type


def _inputs(params: Sequence[click.Parameter], options: Mapping[str, Any]) -> Iterator[str | Path]:
    """What is read: the files that options name which are no outputs, and the folders that are named as such."""
    for param in params:
        if param.name in options and not isinstance(param.type, Output):
            value = options[param.name]
            for one in value if isinstance(value, tuple) else (value,):
                is_folder = isinstance(param.type, click.Path) and isinstance(one, str | Path) and os.path.isdir(one)
                if is_folder or (isinstance(one, str | Path) and os.path.isfile(one)):
                    yield one


@contextmanager
def claimed(params: Sequence[click.Parameter], options: Mapping[str, Any]) -> Iterator[None]:
    """This process's claim to all that a command writes, see `claim`."""
    outputs = list(_outputs(params, options))
    for (one, _), (other, _) in itertools.combinations(outputs, 2):
        if os.path.realpath(one) == os.path.realpath(other):
            raise OptionError(f"{one}: is given for two outputs; choose another for one of them")
    with ExitStack() as stack:
        for path, kind in outputs:
            stack.enter_context(claim(path, inputs=_inputs(params, options), is_folder=kind.is_folder, log=say))
        yield


@contextmanager
def claimed_for_all(params: Sequence[click.Parameter], options: Mapping[str, Any], world: World) -> Iterator[None]:
    """Rank 0's claim, which all ranks rest on, or fail with."""
    with ExitStack() as stack:

        def find() -> None:
            stack.enter_context(claimed(params, options))

        share(world, find)
        yield


LOCAL = {"num_workers", "prefetch", "device"}
"""Options that may differ from rank to rank: no result depends on them."""


def bearing(name: str, params: Sequence[click.Parameter], options: Mapping[str, Any]) -> dict[str, Any]:
    """What of a command's start bears on its result, for `agree`: the version, the command, and its options.

    Files count as files, whatever their paths, since each node may have its own copy: what is in them is compared once they
    are open. So do outputs.
    """

    def seen(value: Any) -> Any:
        if isinstance(value, tuple):
            return [seen(one) for one in value]
        if isinstance(value, Path) or (isinstance(value, str) and os.path.exists(value)):
            return "a folder" if os.path.isdir(value) else "a file" if os.path.exists(value) else "no such file"
        return value

    found = {"fastkd's version": __version__, "the command": name}
    for param in params:
        if param.name in options and param.name not in LOCAL:
            value = options[param.name]
            if isinstance(param.type, Output):
                value = None if value is None else "given"
            found[max(param.opts, key=len) if param.opts else param.name] = seen(value)
    return found
