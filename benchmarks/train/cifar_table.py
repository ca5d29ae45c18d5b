"""Claim: on a random tenth of CIFAR-10, distillation beats labels alone, and by how much.

A teacher trained by fastkd on all training images; students on f of them: labels alone, KD at alpha 0.5, KD at alpha auto
and VID (appendix E: CE + KD + VID, live teacher), some seeds each, of which each has a mask, an order and initial weights
of its own. Every run is a `fastkd train` in FOLDER, so that a run that was stopped goes on, and finished ones are reused.
The table has mean and standard deviation over the seeds; a difference counts where it is above twice its standard error.

    python -m benchmarks.train.cifar_table train.beton test.beton FOLDER                                # a GPU: the paper's length
    python -m benchmarks.train.cifar_table train.beton test.beton FOLDER --student resnet8 --epochs 30  # two CPU cores
"""

import argparse
import math
import statistics
import sys
from pathlib import Path

from benchmarks import measure


def difference(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Of two means over seeds: with its standard error, and the ratio of both."""
    error = math.sqrt(sum(statistics.variance(x) / len(x) for x in (ours, theirs)))
    points = statistics.mean(ours) - statistics.mean(theirs)
    return {"points": points, "standard_error": error, "ratio": points / error if error else math.inf}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--teacher", type=Path, help="a checkpoint that fastkd trained, in place of training one")
    parser.add_argument("--teacher-model", default="resnet32")
    parser.add_argument("--teacher-epochs", type=int, default=240)
    parser.add_argument("--student", default="resnet20")
    parser.add_argument("--epochs", type=int, default=240)
    parser.add_argument("--num-seeds", type=int, help="views in the store; the epochs or 162 where left out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    common = ["--device", args.device]
    weights = args.teacher or args.folder / "teacher" / "model.safetensors"
    if args.teacher is None:
        measure.fastkd(
            *("train", args.train, "--alpha", 0, "--model", args.teacher_model, "--epochs", args.teacher_epochs),
            *("--schedule", "cosine", "--batch-size", 128, "--lr", 0.1, "--out", weights.parent, *common),
        )
    taught = measure.fastkd("evaluate", args.test, "--model", weights, *common)
    num_seeds = args.num_seeds or min(args.epochs, 162)
    top1: dict[str, list[float]] = {name: [] for name in ("labels", "kd 0.5", "kd auto", "vid")}
    for seed in range(args.seeds):
        mask, store = args.folder / f"m{seed}.h5", args.folder / f"l{seed}.h5"
        if not mask.exists():
            measure.fastkd(
                "prune", args.train, "--keep", args.fraction, "--method", "random", "--seed", seed, "--out", mask
            )
        views = ["--num-seeds", num_seeds, "--views", "crop-flip"]
        if not store.exists():
            part = args.folder / f"l{seed}-part.h5"
            measure.fastkd(
                "cache-logits", args.train, "--mask", mask, "--teacher", weights, *views, "--out", part, *common
            )
            part.rename(store)
        contenders = {
            "labels": ["--alpha", 0],
            "kd 0.5": ["--alpha", 0.5, "--logits", store],
            "kd auto": ["--alpha", "auto", "--logits", store],
            "vid": ["--kd", "vid", "--teacher", weights],
        }
        for name, options in contenders.items():
            result = measure.fastkd(
                *("train", args.train, "--mask", mask, "--model", args.student, "--epochs", args.epochs),
                *("--seed", seed, "--val", args.test, "--val-every", args.epochs, *views, *options, *common),
                *("--out", args.folder / f"{name.replace(' ', '-')}-{seed}"),
            )
            top1[name].append(result["val_top1"])
            print(f"seed {seed}, {name}: {result['val_top1']:.2f} %", file=sys.stderr)
        if seed:
            save(args, taught["top1"], num_seeds, top1)


def teacher_of(args: argparse.Namespace, top1: float) -> dict:
    """What the teacher is: its own record where it was given."""
    if args.teacher is None:
        return {"model": args.teacher_model, "epochs": args.teacher_epochs, "top1_percent": top1}
    recipe = measure.fastkd("inspect", args.teacher)["params"]["recipe"]
    return {"model": recipe["model"], "epochs": recipe["epochs"], "top1_percent": top1}


def save(args: argparse.Namespace, teacher_top1: float, num_seeds: int, top1: dict[str, list[float]]) -> None:
    """The table of the seeds so far."""
    spread = {name: {"mean": statistics.mean(x), "std": statistics.stdev(x), "seeds": x} for name, x in top1.items()}
    measure.save(
        "cifar_table",
        {
            "top1_percent": spread,
            "teacher": teacher_of(args, teacher_top1),
            "student": args.student,
            "epochs": args.epochs,
            "fraction": args.fraction,
            "num_seeds": num_seeds,
            "kd_0.5_over_labels": difference(top1["kd 0.5"], top1["labels"]),
            "kd_auto_over_kd_0.5": difference(top1["kd auto"], top1["kd 0.5"]),
            "vid_over_kd_0.5": difference(top1["vid"], top1["kd 0.5"]),
        },
    )


if __name__ == "__main__":
    main()
