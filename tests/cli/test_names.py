"""Options by the names that people know, hints at what was meant, and what a terminal shows."""

import io
import subprocess
import sys
from pathlib import Path

import click
import pytest
from helpers.commands import fastkd

from fastkd.cli import SUMMARIES, cli
from fastkd.cli.aliases import ALIASES, ARGUMENT, as_declared
from fastkd.cli.common import progress_bar

TRAIN = cli.commands["train"]


@pytest.mark.parametrize("alias", ALIASES)
def test_every_alias_is_an_option_of_some_command_and_no_help_shows_it(alias):
    having = [one for one in cli.commands.values() if any(ALIASES[alias] in param.opts for param in one.params)]
    assert having
    for one in having:
        assert as_declared(one, [alias, "8"]) == [ALIASES[alias], "8"]
        text = one.get_help(click.Context(one))
        assert f"{alias} " not in text
        assert f"{alias}," not in text


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("-b 64 -j8 --wd=1e-4", "--batch-size 64 --num-workers=8 --weight-decay=1e-4"),
        ("--batch_size 64 --label_smoothing=0.1", "--batch-size 64 --label-smoothing=0.1"),
        ("--data-path x.beton --sched cosine", "x.beton --schedule cosine"),
        ("--data=x.beton", "x.beton"),
        ("--lr 0.1 -- -b", "--lr 0.1 -- -b"),
        ("--unknown 3 -x", "--unknown 3 -x"),
    ],
)
def test_what_is_typed_by_other_names_is_what_is_meant(typed, meant):
    assert as_declared(TRAIN, typed.split()) == meant.split()


def test_an_alias_is_none_where_the_command_has_no_such_option():
    assert as_declared(cli.commands["verify"], ["--wd", "1"]) == ["--wd", "1"]


def test_what_a_command_itself_declares_is_its_own():
    for one in cli.commands.values():
        for flag in {flag for param in one.params for flag in param.opts} & {*ALIASES, *ARGUMENT}:
            assert as_declared(one, [flag, "8"]) == [flag, "8"]


def test_a_job_in_the_names_of_others_is_the_same_job():
    words = ["--data-path", "x.beton", "--arch", "resnet8", "-b", "16", "--workers", "1", "-o", "run"]
    plain = ["x.beton", "--model", "resnet8", "--batch-size", "16", "--num-workers", "1", "--out", "run"]
    assert fastkd("train", *words, "--dump-config").out == fastkd("train", *plain, "--dump-config").out


@pytest.mark.parametrize("name", ["train", "cache-logits"])
def test_resume_is_explained(name):
    outcome = fastkd(name, "x.beton", "--resume", "--out", "run")
    assert outcome.code == 2
    assert "the same command, started again, goes on" in outcome.err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("train x --model m --out r --schedule cosin", "Did you mean cosine?"),
        ("train x --model m --out r --views crop", "Did you mean crop-flip?"),
        ("cache-logits x --teacher t --out l --codec int8", "Did you mean int8+top4?"),
        ("build-beton x --out y --mode JPEG", "Did you mean jpg?"),
    ],
)
def test_a_value_that_is_nearly_another_is_told_so(words, hint):
    outcome = fastkd(*words.split())
    assert outcome.code == 2
    assert outcome.err.rstrip().endswith(hint)


def test_a_value_that_is_like_none_has_no_hint():
    assert "Did you mean" not in fastkd("train", "x", "--model", "m", "--out", "r", "--schedule", "7").err


# What a terminal shows


def test_the_summary_of_each_command_fits_its_line_of_80_columns():
    assert SUMMARIES.keys() == cli.commands.keys()
    text = cli.get_help(click.Context(cli, terminal_width=80))
    assert [line for line in SUMMARIES.values() if f"  {line}\n" not in text + "\n"] == []


def test_the_networks_are_listed_by_name():
    names = fastkd("models", "--json").result["names"]
    assert {"resnet8x4", "wrn_40_2", "resnet50", "vit_b_16"} <= set(names)
    assert fastkd("models", "resnet8").out.splitlines() == ["resnet8", "resnet8x4"]
    assert fastkd("models", "vit_*_16").out.splitlines() == ["vit_b_16", "vit_l_16"]
    assert fastkd("models", "nothing").out == "no network has 'nothing' in its name\n"


def test_a_bar_has_units_that_can_be_read(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    with progress_bar("cache-logits", "rows") as show:
        show(0, 90_000)
        show(45_000, 90_000, "half")
    assert "krows" not in terminal.getvalue()
    assert " rows/s" in terminal.getvalue()
    assert "\x1b[3" not in terminal.getvalue()


def test_nothing_has_colours_so_that_no_color_holds():
    done = subprocess.run([sys.executable, "-m", "fastkd", "--help"], capture_output=True, timeout=120, check=True)
    assert b"\x1b" not in done.stdout + done.stderr
    sources = Path(sys.modules["fastkd.cli"].__file__).parent.glob("*.py")
    assert [path.name for path in sources if "click.style" in path.read_text() or "colour=" in path.read_text()] == []
