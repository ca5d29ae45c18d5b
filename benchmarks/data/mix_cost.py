"""Claim: a mixed view costs one more decode and next to nothing besides.

The loader with CutMix and with mixup (alpha 0.8) against the loader without, interleaved in one process, on the images of
SOURCE. The bound is two epochs of the loader without: each mixed view is made of two. Asserted in the same run: the mixed
images are the formula of the loader's own plain views, and shares and labels belong to them.

    python -m benchmarks.data.mix_cost cifar.zip --root cifar10/train
    python -m benchmarks.data.mix_cost imagenet-500.zip --root imagenet --mode keep --views rrc --size 224
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import measure
from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.beton.dataset import open_dataset
from fastkd.data.sources.open import open_source
from fastkd.data.views.draw import Views
from fastkd.data.views.mix import CUTMIX, Mix
from fastkd.feed.loader import Loader

NUM_SEEDS = 4
MIXES = {"cutmix": Mix("cutmix"), "mixup": Mix("mixup", 0.8)}


def check(plain: Loader, mixed: Loader, num_batches: int = 3) -> None:
    """Asserts that batches of the mixed loader are made of the plain one's views."""
    assert mixed.views.mix is not None
    labels = plain.beton.labels
    for _, batch in zip(range(num_batches), mixed.epoch(1), strict=False):
        ids = batch.sample_ids.numpy()
        mixes = mixed.mixes(ids, 1)
        assert mixes is not None
        own, other = (one.images.numpy().astype(np.int64) for one in plain.run([(ids, 1), (mixes.partners, 1)]))
        y, x = np.ogrid[: mixed.views.size, : mixed.views.size]
        for b, (first, left, bottom, right) in enumerate(mixes.regions.tolist()):
            if mixed.views.mix.code == CUTMIX:
                box = (y >= first) & (y < bottom) & (x >= left) & (x < right)
                expected, share = np.where(box, other[b], own[b]), 1 - box.mean()
            else:
                expected, share = (first * own[b] + (256 - first) * other[b] + 128) // 256, first / 256
            assert np.array_equal(batch.images[b].numpy(), expected)
            assert abs(float(batch.lam[b]) - share) < 1e-6
        assert np.array_equal(batch.partner_labels.numpy(), labels[mixes.partners])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--root")
    parser.add_argument("--mode", default="raw")
    parser.add_argument("--views", default="crop-flip")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.beton"
        build_beton(open_source(args.source, root=args.root), path, WriteOptions(mode=args.mode))
        dataset = open_dataset(path)
        loaders = {
            name: Loader(
                dataset,
                Views(args.views, args.size, NUM_SEEDS, mix=mix),
                batch_size=args.batch_size,
                shuffle=True,
                num_workers=args.num_workers,
            )
            for name, mix in {"plain": None, **MIXES}.items()
        }
        for name in MIXES:
            check(loaders["plain"], loaders[name])

        def run(name: str, epochs: int = 1) -> None:
            for epoch in range(epochs):
                for _ in loaders[name].epoch(epoch):
                    pass

        contenders = {name: lambda name=name: run(name) for name in loaders}
        contenders["two epochs of plain"] = lambda: run("plain", 2)
        seconds = measure.interleave(contenders, rounds=args.rounds)
    images = dataset.beton.num_samples
    measure.save(
        f"mix_cost_{args.views}_{args.mode}",
        {
            "time_over_plain": {name: measure.ratios(seconds, "plain", name) for name in MIXES},
            "rate_over_bound": {name: measure.ratios(seconds, name, "two epochs of plain") for name in MIXES},
            "images_per_s": {name: images / statistics.median(seconds[name]) for name in loaders},
            "images": images,
            "views": args.views,
            "size": args.size,
            "mode": args.mode,
            "batch_size": args.batch_size,
            "num_workers": args.num_workers,
            "rounds": args.rounds,
        },
    )


if __name__ == "__main__":
    main()
