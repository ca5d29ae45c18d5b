"""Claim: bfloat16 on a CPU that multiplies it costs no accuracy that seeds can tell, in the teacher's store or the student, and is faster.

CIFAR-10: a random part of the training images a seed, a store by a teacher in float32 and one by it in bfloat16, over the same
views; a student from each in float32, and one in bfloat16 (`--amp bf16`) from either: the same weights to start from and the same
order. What is told of a way is its top-1 on the test images less that of float32 throughout, seed by seed, and its mean with the standard error.
A way loses nothing where the mean is not below zero by more than two of these. Time is the CPU's, of filling and of training alone.

    python -m benchmarks.train.bf16_accuracy train.beton test.beton --teacher resnet56.th --teacher-model resnet56 \\
        --teacher-norm imagenet
"""

import argparse
import statistics
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import torch

from benchmarks import measure
from fastkd.data.beton.dataset import open_dataset
from fastkd.data.identity import center_views
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.feed.loader import Loader
from fastkd.models.norm import PRESETS, Norm
from fastkd.prune.masks.mask import Mask, random_order, save_mask
from fastkd.teacher.fill import fill_store
from fastkd.teacher.network import load_teacher
from fastkd.teacher.precision import PRECISIONS, auto_precision
from fastkd.teacher.recipe import StoreRecipe
from fastkd.train.metrics import evaluate
from fastkd.train.recipe import Recipe
from fastkd.train.student import train

NORM = Norm(*PRESETS["cifar"])
KINDS = ("fp32", "bf16")
PLAIN = "teacher fp32, student fp32"


def against(values: list[float], plain: list[float]) -> dict:
    """Differences seed by seed, their mean and its standard error, and whether it is a loss."""
    found = [value - base for value, base in zip(values, plain, strict=True)]
    mean = statistics.mean(found)
    error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else float("inf")
    told_error = error if len(found) > 1 else None
    return {"points": found, "mean": mean, "standard_error": told_error, "is_loss": mean < -2 * error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--teacher-model")
    parser.add_argument("--teacher-norm", help="where the checkpoint does not say")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-seeds", type=int, default=2, help="views in the store")
    parser.add_argument("--name", default="bf16_accuracy")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset, test = open_dataset(args.train), open_dataset(args.test)
    size = int(dataset.beton.heights[0])
    views = Views("crop-flip", size, args.num_seeds)
    val = Loader(test, center_views(test.beton, size), batch_size=250, num_workers=1)
    top1: dict[str, list[float]] = {}
    fill_s: dict[str, list[float]] = {kind: [] for kind in KINDS}
    train_s: dict[str, list[float]] = {kind: [] for kind in KINDS}
    teachers = {
        kind: load_teacher(
            args.teacher,
            model_name=args.teacher_model,
            norm=args.teacher_norm,
            precision=kind,
            num_classes=dataset.num_classes,
        )
        for kind in KINDS
    }
    of_teacher = {
        kind: evaluate(one.model, one.norm, val.epoch(0), World(), precision=PRECISIONS[kind])["top1"]
        for kind, one in teachers.items()
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(args.seeds):
            mask = folder / f"m{seed}.h5"
            told = {"num_samples": dataset.beton.num_samples, "beton_fingerprint": dataset.fingerprint}
            ids = random_order(dataset.beton.labels, seed)[: args.images]
            save_mask(mask, ids, params={"method": "random", "seed": seed}, **told)
            for kind, teacher in teachers.items():
                begin = time.process_time()
                recipe = StoreRecipe(dataset=dataset, teacher=teacher, views=views, mask=Mask.load(mask))
                fill_store(folder / f"{kind}{seed}.h5", recipe, num_workers=1)
                fill_s[kind].append(time.process_time() - begin)
            for of_store, kind in product(KINDS, KINDS):
                way = f"teacher {of_store}, student {kind}"
                common = {"batch_size": args.batch_size, "shuffle": True, "seed": seed, "num_workers": 1}
                loader = Loader(dataset, views, mask=mask, logits=folder / f"{of_store}{seed}.h5", **common)
                own = {"model": args.model, "epochs": args.epochs, "batch_size": args.batch_size, "seed": seed}
                recipe_of = Recipe(**own, amp="off" if kind == "fp32" else kind)
                out = folder / f"{way} {seed}"
                begin = time.process_time()
                train(recipe_of, loader, out, norm=NORM, inputs={}, params={})
                train_s[kind].append(time.process_time() - begin)
                learnt = load_teacher(str(out), norm="cifar")
                found = evaluate(learnt.model, NORM, val.epoch(0), World(), precision=PRECISIONS[kind])["top1"]
                top1.setdefault(way, []).append(found)
                print(f"seed {seed}, {way}: {found:.2f} %, {train_s[kind][-1]:.0f} s", file=sys.stderr, flush=True)
    settings = ("model", "images", "epochs", "batch_size", "seeds", "num_seeds")
    measure.save(
        args.name,
        {
            "top1_percent": top1,
            "against_float32": {way: against(values, top1[PLAIN]) for way, values in top1.items() if way != PLAIN},
            "teachers_top1_percent": of_teacher,
            "teacher": teachers["fp32"].name,
            "bf16_speed_in_filling": measure.ratios(fill_s, "bf16", "fp32"),
            "bf16_speed_in_training": measure.ratios(train_s, "bf16", "fp32"),
            "auto": list(auto_precision("cpu")),
            **{setting: getattr(args, setting) for setting in settings},
        },
    )


if __name__ == "__main__":
    main()
