"""The blocks of the README and of the rooms' pages: commands, Python and jobs are run as they stand, on small data and with smaller
numbers of views, epochs and layers; what sets an environment up is left out. Options named in the text are there."""

import os
import re
import shlex
import shutil
import subprocess
import textwrap
import tomllib
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import torch
from helpers import ROOT
from helpers.commands import fastkd
from helpers.suites import COMMANDS
from helpers.synthetic import coloured_noise, encoded, write_zip

from fastkd.cli import cli
from fastkd.cli.aliases import ALIASES, ARGUMENT
from fastkd.sweep.suite.read import read_suite

PAGES = {"README": ROOT / "README.md"} | {
    path.parent.name: path for path in sorted((ROOT / "fastkd").glob("*/README.md"))
}
OPEN = "[train]\nepochs = 2\nbatch-size = 4\nlr = 0.001\n"
"""Options for what a command does not say itself."""
SIZES = {"--num-seeds 162": "--num-seeds 2", "--epochs 30": "--epochs 2", "--model resnet20": "--model resnet8"}
SIZES |= {"--model resnet56": "--model resnet14"}
"""What stands there as a size, and the smaller one that is taken."""


class Block(NamedTuple):
    """A fenced block of a page. kind: `python`, `commands`, `job`, `toml` or `setup`."""

    page: str
    kind: str
    text: str


def kind_of(language: str, text: str) -> str:
    """What has to be done with a block."""
    lines = [line for line in commands_in(text) if line]
    if language or text.startswith("#!"):
        return {"": "job"}.get(language, language)
    if all(line.startswith("fastkd ") for line in lines):
        return "commands"
    if all(re.match(r"(sudo |#|pip |tools/|conda |docker )", line) for line in text.splitlines()):
        return "setup"
    tomllib.loads(text)
    return "toml"


def commands_in(text: str) -> list[str]:
    """The lines of a shell, those that go on joined."""
    return text.replace("\\\n", " ").splitlines()


def blocks_of(page: str) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", PAGES[page].read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(page, kind_of(language, text), text) for language, text in found]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def run_commands(block: Block, folder: Path) -> None:
    """Runs the commands of a block in a folder."""
    (folder / "small.toml").write_text(OPEN)
    with chdir(folder):
        for line in commands_in(block.text):
            for size, smaller in SIZES.items():
                line = line.replace(size, smaller)
            _, name, *words = shlex.split(line, comments=True)
            outcome = fastkd(name, "--config", "small.toml", *words)
            assert outcome.code == 0, f"{line}\n{outcome.err}"


@pytest.fixture(scope="module")
def main_job(tmp_path_factory) -> Path:
    """The folder in which the README's main job was done: 40 images to train on and 8 to measure by, in four classes."""
    folder = tmp_path_factory.mktemp("main")
    names = [
        f"{split}/{label}/{i}"
        for split, count in (("train", 10), ("test", 2))
        for label in range(4)
        for i in range(count)
    ]
    files = {
        f"cifar10/{name}.png": encoded(coloured_noise(number, int(name.split("/")[1]), 4, 32), "PNG")
        for number, name in enumerate(names)
    }
    write_zip(folder / "cifar.zip", files)
    (block,) = (block for block in BLOCKS if (block.page, block.kind) == ("README", "commands"))
    run_commands(block, folder)
    return folder


def test_the_main_job_ends_with_a_page_of_both_runs(main_job):
    page = (main_job / "report.html").read_text(encoding="utf-8")
    assert "runs/kd" in page
    assert "runs/no-kd" in page


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.kind == "commands"][1:], ids=lambda block: block.page
)
def test_the_commands_of_a_page_run(block, main_job, tmp_path):
    for path in main_job.glob("t*.beton*"):
        shutil.copy(path, tmp_path)
    run_commands(block, tmp_path)


@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in BLOCKS if block.kind == "python"))
def test_the_python_of_a_page_runs(page, main_job):
    batch = {"images": torch.rand(4, 3, 8, 8), "labels": torch.arange(4), "logits": torch.rand(4, 10)}
    names = {"student": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10)), **batch}
    with chdir(main_job):
        for block in BLOCKS:
            if (block.page, block.kind) == (page, "python"):
                exec(block.text, names)


STUB = '#!/bin/bash\necho "$(basename "$0") $WORLD_SIZE $RANK $*" >>"$TOLD"\n'
STUBS = {
    "fastkd": f"{STUB}exit $CODE\n",
    "scontrol": f"{STUB}echo node1\n",
    "srun": '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nSLURM_PROCID=3 SLURM_LOCALID=3 exec "$@"\n',
}


@pytest.mark.parametrize("code", [0, 75, 1])
@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "job"], ids=lambda block: block.page)
def test_a_job_for_slurm_runs_a_rank_and_is_queued_again_where_it_was_stopped(block, code, tmp_path):
    for name, text in STUBS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": "8", "CODE": str(code)}
    told = tmp_path / "told"
    environment = {**os.environ, **slurm, "TOLD": str(told), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", block.text], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    lines = told.read_text().splitlines()
    assert any(line.startswith("fastkd 8 3 train ") for line in lines)
    assert any("requeue 7" in line for line in lines) == (code == 75)


def test_the_suite_on_the_page_of_sweep_is_one():
    text = PAGES["sweep"].read_text(encoding="utf-8")
    (suite,) = re.findall(r"## A suite\n\n((?:    .*\n)+)", text)
    read = read_suite(textwrap.dedent(suite), "README.md", COMMANDS, name="grid")
    assert len(read.cells) == 3 * 3 * 2 * 3


FOREIGN = {"--partition", "--gpus-per-task"}
"""Options of Slurm that stand in the text."""


def options_of(command: click.Command) -> set[str]:
    """All that a command takes for an option."""
    return {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_that_a_page_names_are_there(page):
    text = re.sub(r"^```.*?^```", "", PAGES[page].read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    every = {name for command in cli.commands.values() for name in options_of(command)} | {
        *ALIASES,
        *ARGUMENT,
        *FOREIGN,
    }
    for span in re.findall(r"`([^`]+)`", text):
        words = span.split()
        named = [name.replace("_", "-") for name in re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*", span)]
        if re.match(r"fastkd\s+[a-z]", span):
            assert words[1] in cli.commands, span
            assert set(named) <= options_of(cli.commands[words[1]]), span
        elif span.startswith("--"):
            assert set(named) <= every, span
