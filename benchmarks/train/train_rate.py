"""Claim: training from the store runs at the rate of training with no teacher, and the live teacher is what it saves.

For each pair (student <- teacher) the same loop three times: labels alone, logits from the store, live teacher; interleaved
in one process, their rates those that `train` reports. The ceiling is labels alone. The bound on the speed-up is computed
from the two networks' times by themselves in the same rounds, over and over the same batch: (step of the student with its
update + forward of the teacher) / step of the student. One thread computes (`--num-threads`), one more loads
(`--num-workers`): on two cores neither waits for the other's. Asserted in the same run: the logits that the student reads are
the teacher's, and the first losses from the store and from the live teacher agree.

    python -m benchmarks.train.train_rate --pair resnet20:resnet56@32 cifar.beton 640 64 \\
        --pair resnet18:resnet50@224 photos.beton 32 16
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import measure
from fastkd.data.batch import Batch
from fastkd.data.beton.dataset import Dataset, open_dataset
from fastkd.data.views.draw import Views
from fastkd.feed.loader import Loader, choose_views
from fastkd.models.checkpoint import save_weights
from fastkd.models.norm import PRESETS, Norm
from fastkd.models.registry import create_model
from fastkd.prune.masks.mask import Mask, save_mask
from fastkd.teacher.fill import fill_store
from fastkd.teacher.network import Teacher, load_teacher
from fastkd.teacher.recipe import StoreRecipe
from fastkd.train.recipe import Recipe
from fastkd.train.student import train

NORM = Norm(*PRESETS["imagenet"])


class Pair(NamedTuple):
    """Who learns from whom, on views of which size, of how many images of a beton, in batches of how many."""

    student: str
    teacher: str
    size: int
    beton: Path
    num_images: int
    batch_size: int


def parse_pair(words: list[str]) -> Pair:
    """`student:teacher@size`, beton, images, samples of a batch."""
    names, size = words[0].split("@")
    student, teacher = names.split(":")
    return Pair(student, teacher, int(size), Path(words[1]), int(words[2]), int(words[3]))


def make_teacher(folder: Path, name: str, num_classes: int, device: str) -> Teacher:
    """A teacher with random weights, which cost what trained ones do."""
    torch.manual_seed(1)
    path = folder / f"{name}.safetensors"
    meta = {"model": name, "num_classes": num_classes, "norm": NORM.describe()}
    save_weights(path, create_model(name, num_classes), meta)
    return load_teacher(str(path), device=device)


def fill(store: Path, dataset: Dataset, teacher: Teacher, views: Views, ids: np.ndarray, batch_size: int) -> None:
    """A store of one seed over the ids alone, by a mask of them."""
    path = store.with_suffix(".mask.h5")
    save_mask(
        path,
        ids,
        num_samples=dataset.beton.num_samples,
        beton_fingerprint=dataset.fingerprint,
        params={"method": "random", "seed": 0},
    )
    recipe = StoreRecipe(dataset=dataset, teacher=teacher, views=views, mask=Mask.load(path), block_rows=batch_size)
    fill_store(store, recipe)


def check(stored: Loader, teacher: Teacher) -> None:
    """Asserts that the logits of the first batch are the teacher's, up to what rounding and codec may change."""
    batch = next(iter(stored.epoch(0)))
    expected = teacher(batch.images)
    code = (expected.amax(1) - expected.amin(1)) / 255  # of int8+top4, whose error is at most a half of it
    rounding = 2e-3 * expected.abs().amax(1)  # of float16, where batches of other rows gave other last bits
    assert ((batch.logits - expected).abs().amax(1) <= 0.6 * code + rounding).all()


def student_alone(pair: Pair, num_classes: int, batch: Batch, device: str) -> Callable[[int], None]:
    """A function that takes so many steps on a batch, each with its update, and nothing else."""
    recipe = Recipe(model=pair.student)
    torch.manual_seed(0)
    network = create_model(pair.student, num_classes).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=1e-4,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        fused=device.startswith("cuda"),
    )

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            loss = F.cross_entropy(network(NORM(batch.images)), batch.labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return run


def measure_pair(args: argparse.Namespace, pair: Pair, folder: Path) -> dict:
    """Rates of a pair in all ways, and what follows from them."""
    dataset, device = open_dataset(pair.beton), args.device
    views = choose_views(dataset, size=pair.size, num_seeds=1)
    teacher = make_teacher(folder, pair.teacher, dataset.num_classes, device)
    ids = np.random.default_rng(0).permutation(dataset.beton.num_samples)[: pair.num_images]
    common = {"mask": ids, "batch_size": pair.batch_size, "shuffle": True, "drop_last": True, "device": device}
    common["num_workers"] = args.num_workers
    fill(folder / "l.h5", dataset, teacher, views, ids, pair.batch_size)
    whole, stored = Loader(dataset, views, **common), Loader(dataset, views, logits=folder / "l.h5", **common)
    check(stored, teacher)
    batch = next(iter(whole.epoch(0)))
    steps = student_alone(pair, dataset.num_classes, batch, device)

    def trained(loader: Loader, alpha: float, live: Teacher | None = None) -> tuple[float, float]:
        """Images/s of an epoch and its first loss."""
        out = folder / "run"
        recipe = Recipe(model=pair.student, epochs=1, batch_size=pair.batch_size, alpha=alpha, drop_last=True)
        result = train(recipe, loader, out, norm=NORM, teacher=live, inputs={}, params={})
        first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
        shutil.rmtree(out)
        return result["images_per_s"], first["loss"]

    def alone(run: Callable[[int], None]) -> float:
        begin = time.perf_counter()
        run(len(whole))
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return len(whole) * pair.batch_size / (time.perf_counter() - begin)

    def passes(count: int) -> None:
        for _ in range(count):
            teacher(batch.images)

    np.testing.assert_allclose(trained(stored, 0.5)[1], trained(whole, 0.5, teacher)[1], rtol=1e-3)
    ways: dict[str, Callable[[], float]] = {
        "labels": lambda: trained(whole, 0.0)[0],
        "store": lambda: trained(stored, 0.5)[0],
        "live": lambda: trained(whole, 0.5, teacher)[0],
        "student_alone": lambda: alone(steps),
        "teacher_alone": lambda: alone(passes),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    measure.interleave({name: lambda name=name: rates[name].append(ways[name]()) for name in ways}, rounds=args.rounds)
    rates = {name: found[1:] for name, found in rates.items()}  # the first round is the warm-up
    bounds = [1 + s / t for s, t in zip(rates["student_alone"], rates["teacher_alone"], strict=True)]
    speed_ups = ratios(rates["store"], rates["live"])
    return {
        "store_over_labels": measure.summary(ratios(rates["store"], rates["labels"])),
        "store_over_live": measure.summary(speed_ups),
        "bound_of_store_over_live": measure.summary(bounds),
        "store_over_live_of_bound": measure.summary(ratios(speed_ups, bounds)),
        "images_per_s": {name: measure.summary(found) for name, found in rates.items()},
        "size": views.size,
        "views": views.kind,
        "classes": dataset.num_classes,
        "images": len(whole) * pair.batch_size,
        "batch_size": pair.batch_size,
    }


def ratios(values: list[float], baseline: list[float]) -> list[float]:
    """Round by round."""
    return [value / base for value, base in zip(values, baseline, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pair",
        nargs=4,
        action="append",
        required=True,
        metavar=("STUDENT:TEACHER@SIZE", "BETON", "IMAGES", "BATCH"),
        help="the networks, the views' size in pixels, images of an epoch, samples of a batch; as often as there are pairs",
    )
    parser.add_argument("--num-threads", type=int, default=1, help="that compute")
    parser.add_argument("--num-workers", type=int, default=1, help="threads that load")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="train_rate", help="of the file in results/")
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    pairs = {}
    for words in args.pair:
        with tempfile.TemporaryDirectory() as folder:
            pairs[words[0]] = measure_pair(args, parse_pair(words), Path(folder))
    measure.save(
        args.name,
        {
            "pairs": pairs,
            "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
            "num_threads": args.num_threads,
            "num_workers": args.num_workers,
            "rounds": args.rounds,
        },
    )


if __name__ == "__main__":
    main()
