"""Claim: no distillation method diverges in its first steps at the default learning rate, from either kind of beta.

Each method trains a fresh student for `--steps` steps on images of SOURCE (CIFAR) with a live teacher: at its default beta and
at `--beta native`, losses on logits also on standardised logits where they may be. A run that diverges is one whose loss is
not finite, or in the last quarter of the steps on average more than twice that of the first step. Nothing is timed.

    python -m benchmarks.train.first_steps cifar.zip --root cifar10/train --teacher resnet56.th \\
        --teacher-model resnet56 --teacher-norm imagenet
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.beton.dataset import open_dataset
from fastkd.data.sources.open import open_source
from fastkd.data.views.draw import Views
from fastkd.distil.methods import LOGIT_LOSSES, METHODS
from fastkd.errors import CorruptError
from fastkd.feed.loader import Loader
from fastkd.models.norm import parse_norm
from fastkd.prune.masks.mask import random_order
from fastkd.teacher.network import Teacher, load_teacher
from fastkd.train.recipe import Recipe, choose_recipe
from fastkd.train.student import train


def recipes(model: str, num_classes: int, batch_size: int) -> Iterator[tuple[str, Recipe]]:
    """What is trained, by what it is called: every method from both kinds of beta, everything else the default."""
    common: dict[str, Any] = {"model": model, "epochs": 1, "batch_size": batch_size}

    def made(kd: str, beta: str | None = None, **options: Any) -> Recipe:
        alpha = 1.0 if kd in METHODS else 0.5
        return choose_recipe("crop-flip", num_classes, beta=beta, kd=kd, alpha=alpha, **common, **options)

    for kd, loss in LOGIT_LOSSES.items():
        yield kd, made(kd)
        if loss.standardises:
            yield f"{kd} standardised", made(kd, standardise_logits=True)
    for kd, method in METHODS.items():
        yield kd, made(kd)
        if method.native not in (None, 1.0):
            yield f"{kd} native", made(kd, "native")


def first_steps(recipe: Recipe, loader: Loader, teacher: Teacher, out: Path) -> dict[str, Any]:
    """The loss of the first step, the mean of the last quarter of an epoch's steps, and whether the run diverged."""
    try:
        train(recipe, loader, out, norm=parse_norm("cifar"), teacher=teacher, inputs={}, params={})
    except CorruptError as error:
        return {"diverged": True, "told": str(error)}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "step"]
    last = statistics.mean(losses[-max(1, len(losses) // 4) :])
    return {"first": losses[0], "last": last, "diverged": not last <= 2 * losses[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--root")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--teacher-model")
    parser.add_argument("--teacher-norm")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--name", default="first_steps", help="of the result")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.beton"
        build_beton(open_source(args.source, root=args.root), path, WriteOptions(mode="raw"))
        dataset = open_dataset(path)
        ids = random_order(dataset.beton.labels, 0)[: args.steps * args.batch_size]
        views = Views("crop-flip", int(dataset.beton.heights[0]), 162)
        loader = Loader(dataset, views, mask=ids, batch_size=args.batch_size, shuffle=True, num_workers=1)
        teacher = load_teacher(
            args.teacher, model_name=args.teacher_model, norm=args.teacher_norm, num_classes=dataset.num_classes
        )
        for name, recipe in recipes(args.model, dataset.num_classes, args.batch_size):
            found[name] = first_steps(recipe, loader, teacher, Path(folder) / name)
            print(name, found[name], flush=True)
    measure.save(
        args.name,
        {
            "diverged": sorted(name for name, one in found.items() if one["diverged"]),
            "losses": found,
            "lr": Recipe(model=args.model).lr,
            "model": args.model,
            "teacher": teacher.name,
            "batch_size": args.batch_size,
            "steps": args.steps,
        },
    )


if __name__ == "__main__":
    main()
