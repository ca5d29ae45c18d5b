"""Claim: which scores say the same about a sample when only the seed of the network changes.

Two networks of one recipe and two seeds are trained on the images of SOURCE, recording forgetting, EL2N, AUM and DUAL;
each then scores all of them by EL2N, GraNd, Moderate, margin and entropy. For each method: Spearman's correlation between
the seeds over all samples, and the Jaccard index of the hardest tenths. Asserted in the same run: the hardest tenth is the
mask that `fastkd prune --level hard --keep 0.1` writes, of exactly a tenth of the samples.

    python benchmarks/score_stability.py cifar.zip --root cifar10/test --epochs 8 --gallery hard.png
"""

import argparse
import tempfile
import time
from pathlib import Path

import measure
import numpy as np

from fastkd.data.build import WriteOptions, build_beton
from fastkd.data.dataset import Dataset, open_dataset
from fastkd.data.sources import open_source
from fastkd.data.views import Views
from fastkd.feed import Loader
from fastkd.prune.recorder import RECORDABLE
from fastkd.prune.score_file import load_scores, save_scores
from fastkd.prune.select import select_level
from fastkd.report.gallery import gallery_rows, write_gallery
from fastkd.report.selection import compare_scores
from fastkd.train.norm import parse_norm
from fastkd.train.recording import Record
from fastkd.train.scoring import score_networks
from fastkd.train.student import Recipe, train
from fastkd.train.teacher import load_teacher

BY_NETWORK = ("el2n", "grand", "moderate", "margin", "entropy")


def scores_of_seed(dataset: Dataset, seed: int, folder: Path, args: argparse.Namespace) -> Path:
    """Trains a network and writes what it recorded and what it says afterwards as one score file."""
    recipe = Recipe(model=args.model, epochs=args.epochs, batch_size=64, alpha=0, seed=seed)
    views = Views("crop-flip", int(dataset.beton.heights[0]), 162)
    loader = Loader(dataset, views, batch_size=64, shuffle=True, seed=seed, num_workers=1)
    record = Record(methods=RECORDABLE, window=min(10, max(2, args.epochs // 2)))
    run = folder / f"run{seed}"
    inputs = {"beton": dataset.fingerprint}
    train(recipe, loader, run, norm=parse_norm("cifar"), record=record, inputs=inputs, params={})
    center = Loader(dataset, Views("center", views.size), batch_size=250, num_workers=1)
    network = load_teacher(str(run / "model.safetensors"))
    values, _ = score_networks([network], center, BY_NETWORK)
    recorded = load_scores(run / "scores.h5").values
    found = {f"{name}, trained network": value for name, value in values.items()}
    found |= {f"{name}, recorded": value for name, value in recorded.items()}
    described = {name: {"direction": "high = hard", "policies": {}} for name in found}
    path = folder / f"{seed}.h5"
    save_scores(path, found, described, beton_fingerprint=dataset.fingerprint)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--root")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--gallery", type=Path)
    args = parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_beton(open_source(args.source, root=args.root), folder / "bench.beton", WriteOptions(mode="raw"))
        dataset = open_dataset(folder / "bench.beton")
        one, other = (load_scores(scores_of_seed(dataset, seed, folder, args)) for seed in (0, 1))
        labels, tenth = dataset.beton.labels, round(0.1 * dataset.beton.num_samples)
        for values in one.values.values():
            hard = select_level(labels, tenth, scores=values, balance="none")
            assert len(np.unique(hard)) == tenth
            assert values[hard].min() >= np.sort(values)[-tenth]
        if args.gallery:
            values = one.values["el2n, recorded"]
            write_gallery(args.gallery, dataset, gallery_rows(values, 30), values)
        agreement = compare_scores(one, other, None)
    measure.save(
        "score_stability",
        {
            "between_two_seeds": agreement,
            "model": args.model,
            "epochs": args.epochs,
            "images": dataset.beton.num_samples,
            "seconds": time.perf_counter() - begin,
        },
    )


if __name__ == "__main__":
    main()
