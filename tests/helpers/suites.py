"""Suites for tests: read and planned without a command line."""

from pathlib import Path

from fastkd.cli import cli
from fastkd.cli.sweep_suite import digest_of, known_commands
from fastkd.sweep.graph import Plan, make_plan
from fastkd.sweep.suite.read import Suite, read_suite

COMMANDS = known_commands(cli)
GRID = """
[data]
source = "digits:"

[teacher.big]
model = "resnet14"

[train]
model = "resnet8"
epochs = 5

[matrix]
prune.keep = [0.1, 0.3]
train.alpha = [0, 0.5]
seed = [0, 1]
"""


def read(text: str = GRID, *sets: str, scale: str | None = None) -> Suite:
    return read_suite(text, "s.toml", COMMANDS, name="s", sets=sets, scale=scale)


def planned(text: str = GRID, *sets: str, folder: Path = Path("out")) -> Plan:
    return make_plan(read(text, *sets), folder, COMMANDS, digest_of)


def kinds(plan: Plan) -> dict[str, int]:
    """How many jobs of each kind a plan has."""
    found: dict[str, int] = {}
    for job in plan.jobs.values():
        found[job.kind] = found.get(job.kind, 0) + 1
    return found
