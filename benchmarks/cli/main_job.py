"""CPU time of the main job in the README, step by step, on CIFAR-10 with K = 162 views.

Betons and mask are made in full. Of what networks do, a short and a longer piece is run by the same commands, and the difference is
the time of an image; the README's numbers of images are counted by `counts`. CPU time of one core, by one thread, so that other work on
the machine matters little.

    python -m benchmarks.cli.main_job cifar10.zip [--root cifar10]
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import measure

IMAGES, TESTED, KEPT, VIEWS, EPOCHS, BATCH = 50_000, 10_000, 5_000, 162, 240, 64


def cpu_of(*words: object) -> float:
    """Seconds of the CPU that a command takes."""
    before = os.times()
    measure.fastkd(*words)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def counts() -> dict[str, tuple[int, int]]:
    """Step → images that its network is trained on, and images that pass through it forward: each epoch ends with a measurement."""
    tested = EPOCHS * TESTED
    return {"teacher": (EPOCHS * IMAGES, tested), "store": (0, KEPT * VIEWS), "student": (EPOCHS * KEPT, tested)}


def rates(folder: Path, model: str, short: int, long: int) -> dict[str, float]:
    """CPU seconds of an image in training and forward. short, long: steps of both pieces."""
    train = ("train", folder / "train.beton", "--alpha", 0, "--model", model, "--num-workers", 1)
    seconds = [cpu_of(*train, "--steps", steps, "--out", folder / f"{model}-{steps}") for steps in (short, long)]
    fill = (
        "cache-logits",
        folder / "train.beton",
        "--teacher",
        folder / f"{model}-{long}",
        "--num-seeds",
        1,
        "--num-workers",
        1,
    )
    forward = []
    for steps in (short, long):
        mask = folder / f"{model}-{steps}.h5"
        measure.fastkd("prune", folder / "train.beton", "--keep", BATCH * steps, "--out", mask)
        forward.append(cpu_of(*fill, "--batch-size", BATCH, "--mask", mask, "--out", folder / f"{model}-{steps}-l.h5"))
    images = BATCH * (long - short)
    return {"train": (seconds[1] - seconds[0]) / images, "forward": (forward[1] - forward[0]) / images}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--root", default="cifar10")
    parser.add_argument("--name", default="main_job")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    steps: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        betons = [
            ("build-beton", args.source, "--root", f"{args.root}/{part}", "--out", folder / f"{part}.beton")
            for part in ("train", "test")
        ]
        steps["betons"] = {"cpu_seconds": sum(cpu_of(*words) for words in betons)}
        steps["betons"]["size_bytes"] = sum((folder / f"{part}.beton").stat().st_size for part in ("train", "test"))
        mask = folder / "m.h5"
        steps["mask"] = {
            "cpu_seconds": cpu_of("prune", folder / "train.beton", "--keep", 0.1, "--method", "random", "--out", mask)
        }
        steps["mask"]["size_bytes"] = mask.stat().st_size
        plan = measure.fastkd("plan", folder / "train.beton", "--mask", mask, "--num-seeds", VIEWS)
        found = {"resnet56": rates(folder, "resnet56", 2, 10), "resnet20": rates(folder, "resnet20", 4, 24)}
    for step, (trained, passed) in counts().items():
        of = found["resnet20" if step == "student" else "resnet56"]
        seconds = trained * of["train"] + passed * of["forward"]
        steps[step] = {"images_trained": trained, "images_forward": passed, "cpu_seconds": seconds}
    steps["store"]["size_bytes"] = plan["size_bytes"]
    measure.save(args.name, {"steps": steps, "cpu_seconds_an_image": found, "load_average": os.getloadavg()[1]})


if __name__ == "__main__":
    main()
