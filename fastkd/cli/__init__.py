"""The command line: each command parses, calls the library and prints. Nothing here imports torch, ffcv or numba."""

import sys

import click

from fastkd import __version__
from fastkd.cli.build_beton import build_beton
from fastkd.cli.cache_logits import cache_logits
from fastkd.cli.common import reporting_errors
from fastkd.cli.evaluate import evaluate
from fastkd.cli.import_scores import import_scores
from fastkd.cli.inspect import inspect
from fastkd.cli.merge import merge
from fastkd.cli.models import models
from fastkd.cli.page_errors import telling_page_errors
from fastkd.cli.plan import plan
from fastkd.cli.prune import prune
from fastkd.cli.report import report
from fastkd.cli.score import score
from fastkd.cli.sweep import sweep
from fastkd.cli.train import train
from fastkd.cli.verify import verify

SUMMARIES = {
    "build-beton": "Images from a folder, zip or data set into a beton.",
    "score": "Score every sample: EL2N, GraNd, forgetting and more.",
    "import-scores": "Published scores, joined to a beton by file name.",
    "prune": "Choose the samples to keep; writes a mask.",
    "plan": "What a store takes, and when it pays.",
    "cache-logits": "A teacher's logits of K views a sample into a store.",
    "merge": "One store of the shards that several nodes filled.",
    "train": "Train a student from a store, live, or on labels.",
    "evaluate": "Top-1 and top-5 of a checkpoint or a run.",
    "sweep": "All runs of a grid, or of a figure of the paper.",
    "report": "Finished runs side by side: a table and a page.",
    "inspect": "What files are, in words or as JSON.",
    "verify": "Read files whole and check all that is in them.",
    "models": "List the networks by name.",
}
"""The commands in a line of 80 columns each."""


class Commands(click.Group):
    """The commands in the order in which a job uses them."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of a name, with its summary."""
        found = super().get_command(context, name)
        if found is not None:
            found.short_help = SUMMARIES[name]
        return found


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    commands=[
        build_beton,
        score,
        import_scores,
        prune,
        plan,
        cache_logits,
        merge,
        train,
        evaluate,
        sweep,
        report,
        inspect,
        verify,
        models,
    ],
)
@click.version_option(__version__, prog_name="fastkd")
def cli() -> None:
    """Knowledge distillation on pruned data, at the price of training without a teacher.

    \b
    fastkd build-beton photos/ --out train.beton
    fastkd prune train.beton --keep 0.1 --method random --out m.h5
    fastkd cache-logits train.beton --mask m.h5 --teacher t.safetensors --num-seeds 8 --out l.h5
    fastkd train train.beton --mask m.h5 --logits l.h5 --model resnet20 --val test.beton --out run/
    """
    import os

    # Threads that spin while they wait make training on a busy CPU several times slower; read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Of a rank that has gone torch prints the stack in C++; what a person needs is in the one line that fastkd prints.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def main() -> None:
    """Entry point: exit 0 done, 1 failed (one line on stderr), 2 usage, 75 stopped by SIGTERM, 130 by Ctrl-C."""
    with reporting_errors(), telling_page_errors():
        code = cli.main(prog_name="fastkd", standalone_mode=False)  # click's own way would end Ctrl-C with exit code 1
    sys.exit(code if isinstance(code, int) else 0)
