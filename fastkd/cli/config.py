"""--config and --dump-config: the options of commands as TOML, read as strictly as they are typed, and written."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from datetime import date, time
from pathlib import Path
from typing import Any

import click

from fastkd.errors import OptionError

_OWN = {"config", "dump"}
"""Parameters that a file cannot hold."""


class NumberText(click.types.StringParamType):
    """Text that mostly is a number, such as the 0.1 of --keep: it needs no quotes in a file."""


def load_config(context: click.Context, option: click.Parameter, path: Path | None) -> None:
    """--config: the file's keys become the defaults of the command's parameters.

    A key is an option as it is typed, without its dashes (`tau-squared`, `no-tau-squared`), or the name of an argument. What
    stands in a table is for the command of its name, what stands before all tables for every command that reads the file.

    Raises:
        click.BadParameter: what is no TOML, names no parameter or command, or has a value that could not be typed so.
    """
    if path is None:
        return
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise click.BadParameter(f"{path}: {error}", context, option) from None
    group = context.parent.command if context.parent is not None else None
    commands = group.commands if isinstance(group, click.Group) else {context.info_name: context.command}
    shared = {key: value for key, value in content.items() if not isinstance(value, dict)}
    try:
        found = _defaults(context.command, context, shared)
        for name, table in content.items():
            if isinstance(table, dict):
                if name not in commands:
                    raise OptionError(
                        f"[{name}] is no command of fastkd, expected one of {', '.join(map(str, commands))}"
                    )
                values = _defaults(commands[name], context, table)
                found |= values if name == context.info_name else {}
    except OptionError as error:
        raise click.BadParameter(f"{path}: {error}", context, option) from None
    context.default_map = {**(context.default_map or {}), **found}


def suggest(context: click.Context, values: Mapping[str, Any]) -> None:
    """Makes values defaults of the command's parameters, by their keys in a file of --config, whose own go before them.

    Raises:
        OptionError: as a file's would be refused.
    """
    context.default_map = {**_defaults(context.command, context, values), **(context.default_map or {})}


def _keys(command: click.Command) -> Iterator[tuple[str, click.Parameter, bool]]:
    """What can be said of a command in a file: key, parameter, and whether the key says no to it."""
    for param in command.params:
        if param.name in _OWN:
            continue
        if isinstance(param, click.Argument):
            yield str(param.name), param, False
        yield from ((flag.lstrip("-"), param, False) for flag in param.opts if isinstance(param, click.Option))
        yield from ((flag.lstrip("-"), param, True) for flag in param.secondary_opts)


def option_keys(command: click.Command) -> frozenset[str]:
    """What can be said of a command in a file."""
    return frozenset(key for key, _, _ in _keys(command))


def check_option(command: click.Command, key: str, value: Any) -> None:
    """Refuses what a file cannot say of a command.

    Raises:
        OptionError: no such option, or a value that could not be typed so.
    """
    context = click.Context(command, info_name=command.name)
    for name, given in _defaults(command, context, {key: value}).items():
        param = next(one for one in command.params if one.name == name)
        if param.callback is not None:
            try:
                param.callback(context, param, given)
            except click.BadParameter as error:
                raise OptionError(f"{key}: {error.message}") from None


def words_of(command: click.Command, values: Mapping[str, Any]) -> list[str]:
    """A command as it is typed, from what a file says of it: arguments first, options in the order in which they are declared.

    Raises:
        OptionError: as `check_option`; or the command refuses them together, or lacks one.
    """
    context = click.Context(command, info_name=command.name)
    given = _defaults(command, context, values)
    arguments: list[str] = []
    options: list[str] = []
    for param in command.params:
        value = given.get(param.name or "")
        if value is None:
            continue
        listed = value if isinstance(value, list) else [value]
        if isinstance(param, click.Argument):
            arguments += map(str, listed)
        elif isinstance(value, bool):
            flags = param.opts if value else param.secondary_opts
            options += [max(flags, key=len)] if flags else []
        else:
            options += [word for one in listed for word in (max(param.opts, key=len), str(one))]
    words = [*arguments, *options]
    try:
        command.make_context(command.name, list(words))
    except click.ClickException as error:
        raise OptionError(f"{command.name}: {error.format_message()}") from None
    return [str(command.name), *words]


def _defaults(command: click.Command, context: click.Context, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a table by the names of a command's parameters."""
    known = {key: (param, is_no) for key, param, is_no in _keys(command)}
    found: dict[str, Any] = {}
    for key, value in values.items():
        param, is_no = known.get(key.replace("_", "-"), (None, False))
        if param is None or param.name is None:
            raise OptionError(f"{command.name} has no option {key!r}")
        if param.name in found:
            raise OptionError(f"{key} is given twice to {command.name}")
        found[param.name] = _checked(key, value, param, context)
        if is_no:
            found[param.name] = not found[param.name]
    return found


def _checked(key: str, value: Any, param: click.Parameter, context: click.Context) -> Any:
    """A value as it would be typed, or a list of them where the parameter repeats."""
    repeats = param.multiple or param.nargs == -1
    if isinstance(value, list):
        if not repeats:
            raise OptionError(f"{key} is a list, expected one value")
        return [_checked_one(key, one, param, context) for one in value]
    one = _checked_one(key, value, param, context)
    return [one] if repeats else one


def _checked_one(key: str, value: Any, param: click.Parameter, context: click.Context) -> Any:
    kinds, expected = _expected(param)
    if isinstance(value, bool) != (kinds == (bool,)) or not isinstance(value, kinds):
        raise OptionError(f"{key} is {_told(value)}, expected {expected}")
    text = value if isinstance(value, bool | str) else repr(value)
    try:
        param.type.convert(text, param, context)
    except click.BadParameter as error:
        raise OptionError(f"{key}: {error.message}") from None
    return text


def _expected(param: click.Parameter) -> tuple[tuple[type, ...], str]:
    """The types of TOML that a value may have, and what they are called."""
    if isinstance(param.type, click.types.BoolParamType):
        return (bool,), "true or false"
    if isinstance(param.type, click.types.IntParamType):
        return (int,), "an integer"
    if isinstance(param.type, click.types.FloatParamType):
        return (int, float), "a number"
    if isinstance(param.type, NumberText):
        return (str, int, float), "text or a number"
    return (str,), "text"


def _told(value: Any) -> str:
    """A value of TOML in a message."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    return (
        json.dumps(value)
        if isinstance(value, str)
        else f"{value!s}{' (a date)' if isinstance(value, date | time) else ''}"
    )


def dump_config(context: click.Context) -> str:
    """--dump-config: a table with all that a command was given or has a default for; what it would choose itself is left out.

    Raises:
        OptionError: text that is no UTF-8, which TOML cannot hold.
    """
    lines = [f"[{context.info_name}]"]
    for param in context.command.params:
        value = context.params.get(param.name or "")
        if param.name in _OWN or value is None or value == ():
            continue
        key = str(param.name) if isinstance(param, click.Argument) else max(param.opts, key=len).lstrip("-")
        try:
            lines.append(f"{key} = {_toml(value)}")
        except UnicodeEncodeError:
            raise OptionError(f"{key} {value!r}: is no UTF-8, which TOML cannot hold: give it another name") from None
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    text = str(value)
    text.encode()
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
