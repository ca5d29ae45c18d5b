"""--config and --dump-config: every option of every command, in every type that TOML has."""

import json
import tomllib
from pathlib import Path

import click
import pytest
from helpers.commands import Outcome, assert_one_clear_line, fastkd

from fastkd.cli import cli
from fastkd.cli.config import NumberText

TYPES = {
    "text": '"7"',
    "empty text": '""',
    "integer": "7",
    "float": "1.9",
    "boolean": "true",
    "date": "1979-05-27",
    "time": "07:32:00",
    "list": "[7]",
    "list of text": '["7"]',
    "list of lists": "[[7]]",
    "list of booleans": "[true]",
    "table": "{ a = 7 }",
}
OWN = ("--config", "--dump-config")
OPTIONS = [(name, param) for name, one in cli.commands.items() for param in one.params if param.opts[0] not in OWN]
IDS = [f"{name} {param.opts[0]}" for name, param in OPTIONS]


def key_of(param: click.Parameter) -> str:
    return param.opts[0].lstrip("-")


def good(param: click.Parameter) -> str:
    """A value that a parameter takes, as it is typed."""
    if isinstance(param.type, click.Choice):
        return str(param.type.choices[-1])
    if param.name == "codec":
        return "fp16"
    if param.name == "shard":
        return "1/2"
    if isinstance(param.type, click.types.FloatParamType):
        least = getattr(param.type, "min", None) or 0
        return str(least + 0.5)
    if isinstance(param.type, click.types.IntParamType | NumberText):
        return str(getattr(param.type, "min", None) or 7)
    return 'a "text" \\ of ü'


def typed(param: click.Parameter) -> list[str]:
    if isinstance(param, click.Argument):
        return [good(param)]
    return [param.opts[0]] if param.is_flag else [param.opts[0], good(param)]


def required(name: str, *more: click.Parameter) -> list[str]:
    """What a command cannot do without and these parameters, as they are typed."""
    return [word for param in cli.commands[name].params if param.required or param in more for word in typed(param)]


def dumped(name: str, *words: object) -> dict:
    outcome = fastkd(name, *words, "--dump-config")
    assert outcome.code == 0, outcome.err
    content = tomllib.loads(outcome.out)
    assert list(content) == [name]
    return content[name]


def with_file(name: str, param: click.Parameter, text: str, folder: Path) -> Outcome:
    """What a command comes to with a file that says all that it cannot do without, and a text of this parameter."""
    others = [one for one in cli.commands[name].params if one.required and one is not param]
    lines = [f"{key_of(one)} = {json.dumps(good(one))}" for one in others]
    (folder / "c.toml").write_text("\n".join([*lines, f"{key_of(param)} = {text}"]))
    return fastkd(name, "--config", folder / "c.toml", "--dump-config")


def fits(param: click.Parameter, kind: str) -> bool:
    """Whether a value of this type could have been typed, apart from its range and its words."""
    if kind.startswith("list"):
        is_list = param.multiple or param.nargs == -1
        return is_list and kind == "list of text" and not isinstance(param.type, click.Choice)
    if isinstance(param.type, click.types.BoolParamType):
        return kind == "boolean"
    if isinstance(param.type, click.types.IntParamType):
        return kind == "integer"
    if isinstance(param.type, click.types.FloatParamType):
        return kind in ("integer", "float")
    if isinstance(param.type, NumberText):
        return kind in ("integer", "float", "text") or (kind == "empty text" and param.callback is None)
    if isinstance(param.type, click.Choice) or param.name == "codec":
        return False  # none of these is one of its words
    return kind in ("text", "empty text")


@pytest.mark.parametrize(("name", "param"), OPTIONS, ids=IDS)
def test_a_value_in_a_file_is_taken_where_its_type_is_the_parameters_and_refused_elsewhere(name, param, tmp_path):
    for kind, text in TYPES.items():
        outcome = with_file(name, param, f"{text}", tmp_path)
        is_out_of_range = "is not in the range" in outcome.err and kind in ("integer", "float")
        assert (outcome.code == 0 or is_out_of_range) == fits(param, kind), (kind, outcome.err)
        if outcome.code != 0:
            assert outcome.code == 2
            assert_one_clear_line(outcome, key_of(param))
            assert f"{tmp_path}/c.toml: " in outcome.err or param.callback is not None


@pytest.mark.parametrize(("name", "param"), OPTIONS, ids=IDS)
def test_what_is_typed_and_what_stands_in_a_file_are_the_same(name, param, tmp_path):
    typed_out = fastkd(name, *required(name, param), "--dump-config").out
    given = tomllib.loads(typed_out)[name]
    assert key_of(param) in given
    (tmp_path / "c.toml").write_text(typed_out)
    assert dumped(name, "--config", tmp_path / "c.toml") == given
    is_number = isinstance(param.type, click.types.IntParamType | click.types.FloatParamType)
    is_flag = isinstance(param, click.Option) and param.is_flag
    value = "true" if is_flag else good(param) if is_number else json.dumps(good(param))
    assert tomllib.loads(with_file(name, param, value, tmp_path).out)[name] == given


@pytest.mark.parametrize(
    ("name", "param"), [(name, param) for name, param in OPTIONS if param.secondary_opts], ids=lambda one: str(one)
)
def test_the_no_of_an_option_is_a_key_as_well(name, param, tmp_path):
    no = param.secondary_opts[0]
    (tmp_path / "c.toml").write_text(f"{no[2:]} = true")
    given = dumped(name, *required(name), "--config", tmp_path / "c.toml")
    assert given == dumped(name, *required(name), no)
    assert given[key_of(param)] is False
    (tmp_path / "c.toml").write_text(f"{no[2:]} = true\n{key_of(param)} = true")
    outcome = fastkd(name, *required(name), "--config", tmp_path / "c.toml")
    assert_one_clear_line(outcome, "is given twice")


def test_what_is_typed_overrides_a_file_and_a_table_what_stands_before_it(tmp_path):
    (tmp_path / "c.toml").write_text('seed = 1\nkeep = 0.1\n[prune]\nseed = 2\nmask = ["a", "b"]\n[train]\nlr = 1\n')
    words = ("x", "--out", "m", "--config", tmp_path / "c.toml")
    assert {"seed": 2, "keep": "0.1", "mask": ["a", "b"]}.items() <= dumped("prune", *words).items()
    assert dumped("prune", *words, "--seed", 3, "--mask", "c").items() >= {"seed": 3, "mask": ["c"]}.items()


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("[trian]\nlr = 1", "[trian] is no command"),
        ("sede = 1\n[prune]\nseed = 1", "prune has no option 'sede'"),
        ("[train]\nlearning-rate = 1", "train has no option 'learning-rate'"),
        ("[train]\nlr = true", "lr is true, expected a number"),
        ("[prune.seed]\na = 1", "seed is a table, expected an integer"),
        ("seed = 1.0", "seed is 1.0, expected an integer"),
        ("seed = -1", "seed: -1 is not in the range"),
        ("seed = 1\nseed = 2", "c.toml"),
        ("num-workers = 1", "prune has no option 'num-workers'"),
        ('config = "other.toml"', "prune has no option 'config'"),
        ("dump-config = true", "prune has no option 'dump-config'"),
        ("as-json = true", "prune has no option 'as-json'"),
    ],
)
def test_what_a_file_says_to_nobody_is_refused(tmp_path, text, culprit):
    (tmp_path / "c.toml").write_text(text)
    outcome = fastkd("prune", "x", "--out", tmp_path / "m", "--config", tmp_path / "c.toml")
    assert outcome.code == 2
    assert_one_clear_line(outcome, str(tmp_path / "c.toml"))
    assert culprit in " ".join(outcome.err.split())
    assert not (tmp_path / "m").exists()


def test_a_dumped_command_does_what_the_command_did(raw_beton, tmp_path):
    first, second = tmp_path / "first.h5", tmp_path / "second.h5"
    words = (raw_beton, "--keep", 0.2, "--seed", 3, "--json")
    (tmp_path / "c.toml").write_text(fastkd("prune", *words, "--out", first, "--dump-config").out)
    assert not first.exists()
    told = fastkd("prune", *words, "--out", first).result
    found = fastkd("prune", "--config", tmp_path / "c.toml", "--out", second).result
    assert found == told | {"path": str(second)}


def test_what_toml_cannot_hold_is_refused(tmp_path):
    outcome = fastkd("prune", "x\udce9", "--out", tmp_path / "m", "--dump-config")
    assert_one_clear_line(outcome, "is no UTF-8")
