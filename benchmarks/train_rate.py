"""Claim: training from the store runs at the rate of training with no teacher, and the live teacher is what it saves.

For each pair (student <- teacher) the same loop three times: labels alone, logits from the store, live teacher; interleaved
in one process. The ceiling is labels alone. The bound on the speed-up is computed from the two networks' times measured
by themselves in the same rounds: (step of the student + forward of the teacher) / step of the student. Asserted in the same
run: the first losses from the store and from the live teacher agree, and the store's logits are the teacher's.

    python benchmarks/train_rate.py train.beton --pairs resnet20:resnet56 --size 32
    python benchmarks/train_rate.py photos.beton --pairs resnet18:resnet50 --size 224 --device cuda
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import measure
import numpy as np
import torch
import torch.nn.functional as F

from fastkd.data.views import Views
from fastkd.feed import Dataset, Loader, choose_views, open_dataset
from fastkd.models.registry import create_model
from fastkd.prune.mask import Mask, save_mask
from fastkd.train.caching import fill_store
from fastkd.train.checkpoint import save_weights
from fastkd.train.norm import PRESETS, Norm
from fastkd.train.recipe import Recipe
from fastkd.train.store_recipe import StoreRecipe
from fastkd.train.student import train
from fastkd.train.teacher import Teacher, load_teacher

NORM = Norm(*PRESETS["cifar"])


def teacher_of(folder: Path, name: str, dataset: Dataset, device: str) -> Teacher:
    torch.manual_seed(1)
    path = folder / f"{name}.safetensors"
    meta = {"model": name, "num_classes": dataset.num_classes, "norm": NORM.describe()}
    save_weights(path, create_model(name, dataset.num_classes), meta)
    return load_teacher(str(path), device=device)


def measure_pair(args: argparse.Namespace, dataset: Dataset, views: Views, pair: str, folder: Path) -> dict:
    student, teacher_name = pair.split(":")
    teacher = teacher_of(folder, teacher_name, dataset, args.device)
    ids = np.random.default_rng(0).permutation(dataset.beton.num_samples)[: args.images]
    common = {"mask": ids, "batch_size": args.batch_size, "shuffle": True, "drop_last": True, "device": args.device}
    common["num_workers"] = args.num_workers
    whole = Loader(dataset, views, **common)
    store = folder / f"{teacher_name}.h5"
    _fill(store, dataset, teacher, views, ids)
    stored = Loader(dataset, views, logits=store, **common)
    runs = 0

    def once(loader: Loader, alpha: float, live: Teacher | None = None) -> list[float]:
        nonlocal runs
        runs += 1
        out = folder / f"run-{runs}"
        recipe = Recipe(model=student, epochs=1, batch_size=args.batch_size, alpha=alpha, drop_last=True)
        train(recipe, loader, out, norm=NORM, teacher=live, inputs={}, params={})
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if line["kind"] == "step"]

    np.testing.assert_allclose(once(stored, 0.5)[0], once(whole, 0.5, teacher)[0], rtol=1e-4)
    network = create_model(student, dataset.num_classes).to(args.device).to(memory_format=torch.channels_last)
    batch = next(iter(whole.epoch(0)))

    def student_steps() -> None:
        for _ in range(len(whole)):
            network.zero_grad(set_to_none=True)
            F.cross_entropy(network(NORM(batch.images)), batch.labels).backward()
        _wait(args.device)

    def teacher_passes() -> None:
        for _ in range(len(whole)):
            teacher(batch.images)
        _wait(args.device)

    seconds = measure.interleave(
        {
            "labels": lambda: once(whole, 0.0),
            "store": lambda: once(stored, 0.5),
            "live": lambda: once(whole, 0.5, teacher),
            "student alone": student_steps,
            "teacher alone": teacher_passes,
        },
        rounds=args.rounds,
    )
    alone = zip(seconds["student alone"], seconds["teacher alone"], strict=True)
    return {
        "store_over_labels": measure.ratios(seconds, "store", "labels"),
        "store_over_live": measure.ratios(seconds, "store", "live"),
        "bound_of_store_over_live": statistics.median((s + t) / s for s, t in alone),
        "images_per_s": {
            name: len(whole) * args.batch_size / statistics.median(times) for name, times in seconds.items()
        },
    }


def _fill(store: Path, dataset: Dataset, teacher: Teacher, views: Views, ids: np.ndarray) -> None:
    """A store of one seed over the ids alone, by a mask of them."""
    path = store.with_suffix(".mask.h5")
    save_mask(
        path,
        ids,
        num_samples=dataset.beton.num_samples,
        beton_fingerprint=dataset.fingerprint,
        params={"method": "random", "seed": 0},
    )
    fill_store(store, StoreRecipe(dataset=dataset, teacher=teacher, views=views, mask=Mask.load(path)))


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("beton", type=Path)
    parser.add_argument("--pairs", nargs="+", default=["resnet20:resnet56"])
    parser.add_argument("--size", type=int)
    parser.add_argument("--views", choices=["crop-flip", "rrc"])
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="train_rate", help="of the file in results/")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset = open_dataset(args.beton)
    views = choose_views(dataset, args.views, args.size, 1)
    with tempfile.TemporaryDirectory() as folder:
        pairs = {}
        for pair in args.pairs:
            own = Path(folder) / pair.replace(":", "-")
            own.mkdir()
            pairs[pair] = measure_pair(args, dataset, views, pair, own)
    measure.save(
        args.name,
        {
            "pairs": pairs,
            "size": views.size,
            "views": views.kind,
            "images": args.images,
            "batch_size": args.batch_size,
            "device": args.device,
            "rounds": args.rounds,
        },
    )


if __name__ == "__main__":
    main()
