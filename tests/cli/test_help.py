import re

import click
import pytest

from fastkd.cli import cli
from fastkd.distil.methods import NAMES
from fastkd.store.codec import CODECS


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_help_has_each_option_once_under_a_heading(name):
    context = click.Context(cli.commands[name], info_name=name)
    text = cli.commands[name].get_help(context)
    headed = text[re.search(r"^\S.*:$", text, re.MULTILINE).start() :]
    written = re.findall(r"^  (?:-h, )?(--[a-z0-9-]+)", headed, re.MULTILINE)
    options = [param for param in cli.commands[name].get_params(context) if isinstance(param, click.Option)]
    known = [next(text for text in param.opts if text.startswith("--")) for param in options]
    assert sorted(written) == sorted(known)


@pytest.mark.parametrize(
    ("name", "headings"),
    [
        (
            "train",
            [
                *("Data", "Views", "Teacher", "Student", "Loss", "Schedule", "Optimizer", "Speed", "Scores on the way"),
                "Output",
            ],
        ),
        ("prune", ["Selection", "Inputs", "Of single methods", "Output"]),
        ("cache-logits", ["Data", "Views", "Teacher", "Speed", "Output"]),
    ],
)
def test_help_of_commands_with_many_options_is_in_sections(name, headings):
    text = cli.commands[name].get_help(click.Context(cli.commands[name], info_name=name))
    assert re.findall(r"^(\S.*):$", text, re.MULTILINE) == [*headings, "General"]


@pytest.mark.parametrize(("option", "names"), [("--codec", tuple(CODECS)), ("--kd", NAMES)])
def test_the_help_of_an_option_names_all_that_its_table_has(option, names):
    """Written out, since the tables import what the help must not."""
    for made in cli.commands.values():
        for param in made.params:
            if isinstance(param, click.Option) and option in param.opts:
                assert [
                    name for name in names if not re.search(rf"(?<![\w+]){re.escape(name)}(?![\w+])", param.help)
                ] == []
