"""`fastkd sweep`."""

import json
from pathlib import Path
from typing import Any

import click

from fastkd.cli.command import command
from fastkd.cli.sweep_gc import unnamed
from fastkd.cli.sweep_plan import dry_run_of
from fastkd.cli.sweep_run import collected, run_here, submitted, theorem_of
from fastkd.cli.sweep_suite import digest_of, known_commands, read_shipped_or_file

_SECTIONS = {
    "Suite": "data scale sets",
    "Instead of running": "dry-run collect gc",
    "Running": "jobs jobs-per-gpu executor slurm shard",
    "Output": "out",
}
"""The headings of the help, and the options below each."""


@command("sweep", sections=_SECTIONS)
@click.argument("suite")
@click.option(
    "--data", metavar="SOURCE|BETON", help="The suite's data: what build-beton takes, or a beton to train on."
)
@click.option("--scale", metavar="smoke|short|full", help="Which of the suite's [scale.NAME] tables is laid over it.")
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Over what the suite says, such as train.epochs=30."
)
@click.option("--dry-run", is_flag=True, help="Say the commands, what is owed and what it takes; run nothing.")
@click.option("--collect", is_flag=True, help="Write table and page of what is done; run nothing.")
@click.option("--gc", is_flag=True, help="List the outputs in --out that no suite run there names any more.")
@click.option(
    "--jobs",
    type=click.IntRange(1, 1024),
    help="Commands at once.  [default: one a GPU; CPUs over the suite's threads]",
)
@click.option("--jobs-per-gpu", type=click.IntRange(1, 64), help="Commands at once on each GPU.  [default: 1]")
@click.option(
    "--executor",
    type=click.Choice(["local", "slurm"]),
    default="local",
    show_default=True,
    help="Run here, or hand to Slurm.",
)
@click.option(
    "--slurm", metavar="OPTIONS", help='For sbatch, such as "--partition=gpu --gpus-per-task=1 --time=4:00:00".'
)
@click.option("--shard", metavar="I/N", help="The I-th of N processes that share --out, on any machines.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of all outputs, shared by suites.")
def sweep(
    suite: str,
    data: str | None,
    scale: str | None,
    sets: tuple[str, ...],
    dry_run: bool,
    collect: bool,
    gc: bool,
    jobs: int | None,
    jobs_per_gpu: int | None,
    executor: str,
    slurm: str | None,
    shard: str | None,
    out: Path,
) -> tuple[dict[str, Any], str]:
    """Run all commands that the grid of SUITE needs, each once, and compare the runs.

    SUITE is a TOML file, or one that comes with fastkd: paper:fig3, paper:fig5, … (an unknown name lists them). What is done
    already is not done again; teachers, scores, masks and stores are shared. Stopped at any moment, the same command goes on.

    \b
    fastkd sweep paper:fig3 --scale smoke --data digits: --out sweep/
    fastkd sweep grid.toml --dry-run --out sweep/
    fastkd sweep grid.toml --executor slurm --slurm "--partition=gpu --gpus-per-task=1" --out sweep/
    """
    from fastkd.sweep.folder import remember
    from fastkd.sweep.graph import make_plan
    from fastkd.sweep.local import Outcome
    from fastkd.sweep.suite.read import read_suite

    if sum((dry_run, collect, gc)) > 1:
        raise click.UsageError("--dry-run, --collect and --gc exclude each other")
    if slurm is not None and executor != "slurm":
        raise click.UsageError("--slurm is for --executor slurm")
    if executor == "slurm" and (shard or jobs or jobs_per_gpu):
        raise click.UsageError(
            "--executor slurm decides itself how many commands run at once: no --jobs, --jobs-per-gpu, --shard"
        )
    index, count = _parse_shard(shard)
    commands = known_commands(click.get_current_context().find_root().command)
    if gc:
        return unnamed(out, commands)
    text, name, where = read_shipped_or_file(suite)
    asked_sets = sets
    if data is not None:
        key = "data.train" if data.endswith(".beton") else "data.source"
        sets = (f"{key}={_quoted(data)}", *sets)
    read = read_suite(text, where, commands, name=name, scale=scale, sets=sets)
    if read.theorem is not None:
        return theorem_of(read, out, dry_run)
    plan = make_plan(read, out, commands, digest_of)
    if dry_run:
        return dry_run_of(plan)
    out.mkdir(parents=True, exist_ok=True)
    remember(plan, {"text": text, "where": where, "scale": scale, "sets": list(sets)})
    if collect:
        return collected(plan, Outcome())
    if executor == "slurm":
        given = [("--data", data), ("--scale", scale)]
        words = [word for option, value in given if value is not None for word in (option, value)]
        words += [word for one in asked_sets for word in ("--set", one)]
        return submitted(plan, slurm, ["sweep", suite, *words, "--collect", "--out", str(out)])
    return run_here(plan, jobs, jobs_per_gpu, (index, count))


def _quoted(text: str) -> str:
    """Text as TOML has it."""
    return json.dumps(text, ensure_ascii=False)


def _parse_shard(text: str | None) -> tuple[int, int]:
    index, slash, count = (text or "1/1").partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise click.BadParameter(f"{text!r}, expected I/N with I from 1 to N", param_hint="--shard")
    return int(index), int(count)
