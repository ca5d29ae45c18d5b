"""Claim: an epoch from a store takes less than half of what it takes the training scripts of others, which run the teacher along.

The whole job as a user starts it, in processes of its own: RepDistiller's `train_student.py --distill kd` (its networks at 32
pixels) and timm's `train.py --kd-model-name` (photos at `--size`), each from the path of a checkout, beside `fastkd cache-logits`
and `fastkd train`. The same images, batches, epochs and kinds of views, float32, one loader worker and as many compute threads as
cores; accuracy is measured on a few images after each epoch. Teachers have random weights, which cost what trained ones do. timm's
script runs twice: as it comes, with its colour jitter, and tuned, without that and in channels_last. What is changed in their
scripts is in `peer_scripts.py`.

Rounds take turns. Time is of the CPU, of all processes of a job, since the machine may be shared; the seconds of a clock are
told, too. An epoch's is what a job of `--epochs` takes beyond one of a single epoch; the store is filled once, for as many views
as epochs, and told by itself. Memory is the largest sum over a job's processes of what is resident, shared pages by their parts,
and of it what is no file's.

    python -m benchmarks.train.peers --repdistiller CHECKOUT --images cifar.zip --root cifar10/train --pair resnet20:resnet56
    python -m benchmarks.train.peers --timm CHECKOUT --python PYTHON --images photos.zip --pair resnet18:resnet50 --size 128
"""

import argparse
import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import fastkd
from benchmarks import measure
from benchmarks.jobs import Used, run
from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.sources.open import Source, open_source
from fastkd.models.checkpoint import save_weights
from fastkd.models.norm import PRESETS, Norm
from fastkd.models.registry import create_model
from fastkd.prune.masks.mask import random_order

NUM_OUTPUTS = 100
"""RepDistiller's number of classes, which all of its networks have; the images are of the first few."""
TEST_IMAGES = 64
"""Measured on after each epoch by all alike."""
NORM = Norm(*PRESETS["cifar"])
Jobs = dict[str, Callable[[int], list[str]]]
"""The command of each contender, by the number of epochs."""


def contents(source: Source, count: int) -> list[tuple[bytes, int]]:
    """Image files and labels of so many random samples."""
    numbers = random_order(source.labels, 0)[:count]
    assert len(numbers) == count, f"{source.spec}: has {len(numbers)} images, {count} are asked for"
    return [(bytes(source.read(int(i))), int(source.labels[i])) for i in numbers]


def ours(args: argparse.Namespace, train: Path, val: Path, teacher: Path, student: str, views: list[str]) -> Jobs:
    """Filling a store for all epochs of `args`, and training from it."""
    program = [sys.executable, "-m", "fastkd"]
    common = ["--num-workers", "1", "--device", "cpu"]
    options = [*common, "--batch-size", str(args.batch_size)]
    fill = [*program, "cache-logits", str(train), "--teacher", str(teacher), *views, "--num-seeds", str(args.epochs)]
    learn = [
        *program,
        "train",
        str(train),
        "--logits",
        "l.h5",
        "--model",
        student,
        "--norm",
        "cifar",
        "--val",
        str(val),
        *options,
    ]
    return {
        "fastkd fill": lambda epochs: [*fill, *options, "--out", "l.h5"],
        "fastkd": lambda epochs: [*learn, "--epochs", str(epochs), "--out", "run"],
    }


def beside_repdistiller(args: argparse.Namespace, folder: Path) -> Jobs:
    """The contenders at 32 pixels, CIFAR's images through both."""
    student, teacher = args.pair.split(":")
    found = contents(open_source(str(args.images), root=args.root), args.num_images + TEST_IMAGES)
    images = np.stack([np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content, _ in found])
    labels = np.array([label for _, label in found])
    parts = {"train": slice(args.num_images), "test": slice(args.num_images, None)}
    arrays = {f"{name}_images": images[part] for name, part in parts.items()}
    np.savez(folder / "data.npz", **arrays, **{f"{name}_labels": labels[part] for name, part in parts.items()})
    for name, part in parts.items():
        samples = zip(images[part], labels[part].tolist(), strict=True)
        fastkd.build_beton(samples, [f"class {i}" for i in range(NUM_OUTPUTS)], folder / f"{name}.beton", mode="raw")
    network = create_model(teacher, NUM_OUTPUTS)
    save_weights(
        folder / "t.safetensors", network, {"model": teacher, "num_classes": NUM_OUTPUTS, "norm": NORM.describe()}
    )
    theirs = folder / f"{teacher}_cifar100" / "t.pth"  # the folder's name tells the network
    theirs.parent.mkdir()
    torch.save({"model": network.state_dict()}, theirs)
    script = [
        *measure.script("benchmarks.train.peer_scripts", python=args.python),
        "repdistiller",
        str(args.repdistiller),
    ]
    options = ["--path_t", str(theirs), "--model_s", student, "--distill", "kd", "-a", "0.5", "-r", "0.5", "-b", "0"]
    options += ["--batch_size", str(args.batch_size), "--num_workers", "1"]
    return {
        **ours(args, folder / "train.beton", folder / "test.beton", folder / "t.safetensors", student, []),
        "repdistiller": lambda epochs: [*script, str(folder / "data.npz"), *options, "--epochs", str(epochs)],
    }


def beside_timm(args: argparse.Namespace, folder: Path) -> Jobs:
    """The contenders on photos, files in folders by class."""
    student, teacher = args.pair.split(":")
    source = open_source(str(args.images), root=args.root)
    found = contents(source, args.num_images)
    for name, part in (("train", found), ("val", found[:TEST_IMAGES])):
        for i, (content, label) in enumerate(part):
            path = folder / name / source.class_names[label] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        build_beton(open_source(str(folder / name)), folder / f"{name}.beton", WriteOptions(mode="keep"))
    num_classes = len(list((folder / "train").iterdir()))
    meta = {"model": teacher, "num_classes": num_classes, "norm": NORM.describe()}
    meta["class_names"] = sorted(path.name for path in (folder / "train").iterdir())
    save_weights(folder / "t.safetensors", create_model(teacher, num_classes), meta)
    script = [*measure.script("benchmarks.train.peer_scripts", python=args.python), "timm", str(args.timm)]
    script += ["--data-dir", str(folder), "--val-split", "val", "--model", student, "--kd-model-name", teacher]
    script += [
        "--num-classes",
        str(num_classes),
        "--input-size",
        "3",
        *[str(args.size)] * 2,
        "--batch-size",
        str(args.batch_size),
    ]
    script += [
        "--device",
        "cpu",
        "--workers",
        "1",
        "--lr",
        "0.01",
        "--warmup-epochs",
        "0",
        "--smoothing",
        "0",
        "--output",
        "out",
    ]
    script += ["--task-loss-weight", "0.5", "--distill-loss-weight", "0.5"]
    tuned = ["--channels-last", "--color-jitter", "0"]
    views = ["--views", "rrc", "--size", str(args.size)]
    own = ours(args, folder / "train.beton", folder / "val.beton", folder / "t.safetensors", student, views)
    return {
        "fastkd fill": own["fastkd fill"],
        "fastkd": lambda epochs: [*own["fastkd"](epochs), "--drop-last", "--lr", "0.01"],  # as theirs
        "timm": lambda epochs: [*script, "--epochs", str(epochs)],
        "timm tuned": lambda epochs: [*script, *tuned, "--epochs", str(epochs)],
    }


def measured(args: argparse.Namespace, jobs: Jobs, folder: Path, cores: int) -> dict:
    """What all contenders take on so many cores, and theirs over ours, round by round."""
    taken: dict[str, list[tuple[Used, Used]]] = {name: [] for name in jobs}

    def anew(epochs: int, name: str) -> Used:
        shutil.rmtree(folder / "run", ignore_errors=True)
        if name == "fastkd fill":
            (folder / "l.h5").unlink(missing_ok=True)
        return run(jobs[name](epochs), folder, cores)

    def take(name: str) -> None:
        whole = anew(args.epochs, name)
        one = whole if name == "fastkd fill" else anew(1, name)
        taken[name].append((whole, one))
        print(
            f"{cores} cores, {name}: {whole.cpu_s:.1f} s of the CPU, {whole.peak_bytes / 1e6:.0f} MB",
            file=sys.stderr,
            flush=True,
        )

    anew(args.epochs, "fastkd fill")  # what training reads, and compiled code
    measure.interleave({name: lambda name=name: take(name) for name in jobs}, rounds=args.rounds, warmup=0)
    epoch = {
        name: [(whole.cpu_s - one.cpu_s) / (args.epochs - 1) for whole, one in found] for name, found in taken.items()
    }
    whole = {name: [one.cpu_s for one, _ in found] for name, found in taken.items()}
    peaks = {name: [one.peak_bytes for one, _ in found] for name, found in taken.items()}
    found: dict = {
        "cpu_s": {name: measure.summary(values) for name, values in whole.items()},
        "wall_s": {name: measure.summary([one.wall_s for one, _ in values]) for name, values in taken.items()},
        "cpu_s_an_epoch": {name: measure.summary(values) for name, values in epoch.items() if name != "fastkd fill"},
        "peak_bytes": {name: measure.summary(values) for name, values in peaks.items()},
        "peak_anonymous_bytes": {
            name: measure.summary([one.peak_anonymous_bytes for one, _ in values]) for name, values in taken.items()
        },
    }
    for name in jobs.keys() - {"fastkd", "fastkd fill"}:
        found[f"{name} over fastkd"] = {
            "epoch": measure.ratios(epoch, "fastkd", name),
            "whole_job": measure.ratios(whole, "fastkd", name),
            "fastkds_peak_over_its": measure.ratios(peaks, name, "fastkd"),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peer = parser.add_mutually_exclusive_group(required=True)
    peer.add_argument("--repdistiller", type=Path, help="the checkout")
    peer.add_argument("--timm", type=Path, help="the checkout")
    parser.add_argument("--images", type=Path, required=True, help="a folder or zip of images, a folder a class")
    parser.add_argument("--root", help="the folder in it that holds the classes' folders")
    parser.add_argument("--pair", required=True, metavar="STUDENT:TEACHER")
    parser.add_argument("--size", type=int, default=128, help="of the photos' views")
    parser.add_argument("--num-images", type=int, default=1920, help="of an epoch, a multiple of the batch")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs="+", default=[1])
    parser.add_argument("--python", default=sys.executable, help="that has what the other's script imports")
    parser.add_argument("--name", help="of the file in results/")
    args = parser.parse_args()
    assert args.num_images % args.batch_size == 0, "--num-images: expected a multiple of --batch-size"
    assert args.epochs > 1, "--epochs: expected more than one"
    torch.manual_seed(0)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs = beside_repdistiller(args, folder) if args.repdistiller else beside_timm(args, folder)
        for cores in args.cores:
            found[str(cores)] = measured(args, jobs, folder, cores)
    told = {name: getattr(args, name) for name in ("pair", "num_images", "batch_size", "epochs", "rounds")}
    told |= {"size": args.size if args.timm else 32}
    measure.save(args.name or f"peers_{'timm' if args.timm else 'repdistiller'}", {"by_cores": found, **told})


if __name__ == "__main__":
    main()
