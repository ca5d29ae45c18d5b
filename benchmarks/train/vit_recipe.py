"""Claim: a vision transformer learns from a store by the recipe of its kind, and better than by the paper's SGD in as many epochs.

A small ViT of this script's, or a `--model` of torchvision's or timm's that is built for 32 pixels, on a random part of the images,
from a store that a teacher filled; by AdamW as the recipe `deit-s` has it (cosine, label smoothing, no decay of norms and
biases; rates, epochs, batch and a warm-up of a tenth are this script's), and by SGD as the default recipe has it; of the rates of
each the best counts. In as many epochs, from the same weights, over the same views, some seeds
each. Asserted: the mean top-1 of AdamW at its best rate is above that of SGD at its best.

    python -m benchmarks.train.vit_recipe train.beton test.beton --teacher resnet56.th --teacher-model resnet56 \\
        --teacher-norm imagenet --model timm:vit_tiny_patch16_224 --images 4000 --epochs 15 --seeds 2 --num-seeds 8 \\
        --lr 3e-4 --sgd-lr 0.002 0.005 --jobs 2 --name vit_recipe_tiny
"""

import argparse
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torchvision.models._api import BUILTIN_MODELS, register_model
from torchvision.models.vision_transformer import VisionTransformer

from benchmarks import measure
from fastkd.data.beton.dataset import open_dataset
from fastkd.data.views.draw import Views
from fastkd.feed.loader import Loader
from fastkd.models.libraries import sized_name
from fastkd.models.norm import PRESETS, Norm
from fastkd.prune.masks.mask import Mask, save_mask
from fastkd.teacher.fill import fill_store
from fastkd.teacher.network import load_teacher
from fastkd.teacher.recipe import StoreRecipe
from fastkd.train.recipe import Recipe, choose_recipe
from fastkd.train.recipes.named import read_named
from fastkd.train.student import train

NORM = Norm(*PRESETS["cifar"])


def small_vit(*, num_classes: int, dropout: float = 0.0, weights: None = None) -> nn.Module:
    """A vision transformer for 32 pixels: 64 tokens, four blocks of width 96, 0.5 million parameters."""
    shape = {"image_size": 32, "patch_size": 4, "num_layers": 4, "num_heads": 3, "hidden_dim": 96, "mlp_dim": 192}
    made = VisionTransformer(**shape, dropout=dropout, num_classes=num_classes)
    nn.init.trunc_normal_(made.heads.head.weight, std=0.02)  # torchvision begins at 0, where nothing before it learns
    return made


if small_vit.__name__ not in BUILTIN_MODELS:
    small_vit.__module__ = "torchvision.models.small"
    register_model()(small_vit)


def recipes(args: argparse.Namespace, num_classes: int) -> dict[str, Recipe]:
    """The contenders of one seed."""
    common = {
        "model": sized_name(args.model, 32),
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "alpha": args.alpha,
    }
    values = {key.replace("-", "_"): value for key, value in read_named("deit-s")[0].items()}
    taken = ("opt", "weight_decay", "schedule", "per_step", "min_lr", "label_smoothing")
    own: dict[str, Any] = {name: values[name] for name in taken} | {"no_decay": tuple(values["no_decay"].split(","))}
    own["warmup_epochs"] = args.epochs / 10
    found = {f"adamw {rate:g}": choose_recipe("crop-flip", num_classes, **common, **own, lr=rate) for rate in args.lr}
    for rate in args.sgd_lr:
        found[f"sgd {rate:g}"] = choose_recipe("crop-flip", num_classes, **common, lr=rate)
    return found


class Task(NamedTuple):
    """A run: its seed, its contender, and the folder with the seed's mask and store."""

    seed: int
    contender: str
    folder: Path


def prepare(args: argparse.Namespace, folder: Path) -> list[Task]:
    """Masks and stores of all seeds, and the runs on them."""
    dataset = open_dataset(args.train)
    teacher = load_teacher(args.teacher, model_name=args.teacher_model, norm=args.teacher_norm, device=args.device)
    views, told = views_of(args), {"num_samples": dataset.beton.num_samples, "beton_fingerprint": dataset.fingerprint}
    tasks = []
    for seed in range(args.seeds):
        mask = folder / f"m{seed}.h5"
        if not mask.exists():
            ids = np.random.default_rng(seed).permutation(dataset.beton.num_samples)[: args.images]
            save_mask(mask, ids, params={"method": "random", "seed": seed}, **told)
        kept = Mask.load(mask)
        assert len(kept.sample_ids) == args.images, f"{mask}: of {len(kept.sample_ids)} images, take another --folder"
        recipe = StoreRecipe(dataset=dataset, teacher=teacher, views=views, mask=kept)
        fill_store(folder / f"l{seed}.h5", recipe)
        tasks += [Task(seed, contender, folder) for contender in recipes(args, dataset.num_classes)]
    return tasks


def learned(args: argparse.Namespace, task: Task) -> float:
    """A student's top-1 after its last epoch, in percent; in a process of its own, on one thread."""
    torch.set_num_threads(1)
    common = {"num_workers": args.num_workers, "device": args.device}
    dataset, own = open_dataset(args.train), task.folder / f"{task.contender} {task.seed}"
    loader = Loader(
        dataset,
        views_of(args),
        mask=task.folder / f"m{task.seed}.h5",
        logits=task.folder / f"l{task.seed}.h5",
        batch_size=args.batch_size,
        shuffle=True,
        seed=task.seed,
        **common,
    )
    val = Loader(open_dataset(args.test), Views("center", 32), batch_size=250, **common)
    recipe = recipes(args, dataset.num_classes)[task.contender]
    told = train(recipe, loader, own, norm=NORM, val=val, val_every=args.epochs, inputs={}, params={})
    return float(told["val_top1"])


def views_of(args: argparse.Namespace) -> Views:
    """What store and students see."""
    return Views("crop-flip", 32, args.num_seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--teacher-model")
    parser.add_argument("--teacher-norm", help="where the checkpoint does not say")
    parser.add_argument("--model", default="small_vit", help="the student")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3], help="of AdamW")
    parser.add_argument("--sgd-lr", type=float, nargs="+", default=[0.005, 0.02, 0.05])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--num-seeds", type=int, default=4, help="views in the store")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where masks, stores and runs stay, to be gone on with")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, of a thread each")
    parser.add_argument("--name", default="vit_recipe")
    args = parser.parse_args()
    torch.set_num_threads(1)
    top1: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        folder.mkdir(exist_ok=True)
        tasks = prepare(args, folder)
        with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
            for task, value in zip(tasks, pool.map(learned, repeat(args), tasks), strict=True):
                print(f"seed {task.seed}, {task.contender}: {value:.2f} %", file=sys.stderr, flush=True)
                top1.setdefault(task.contender, []).append(value)
    means = {contender: statistics.mean(values) for contender, values in top1.items()}
    best, other = (max((means[name], name) for name in means if name.startswith(kind)) for kind in ("adamw", "sgd"))
    settings = ("model", "images", "epochs", "batch_size", "alpha", "lr", "seeds", "num_seeds", "device")
    measure.save(
        args.name,
        {
            "top1_percent": top1,
            "mean_top1_percent": means,
            "adamw_over_sgd_points": best[0] - other[0],
            "best": [best[1], other[1]],
            "teacher": args.teacher_model or args.teacher,
            **{setting: getattr(args, setting) for setting in settings},
        },
    )
    assert best > other, means


if __name__ == "__main__":
    main()
