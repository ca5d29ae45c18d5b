"""Claim: reading the store costs the training loop nothing that can be seen.

The loader with logits against the same loader without, interleaved in one process, on the images of SOURCE stored raw,
views crop-flip, fp16 rows. The ceiling is the loader without logits. Where a loader's memory lies moves its rate by 1 or
2 %, so several pairs are made, and the median is over the rounds of all. Asserted in the same run: both give the same
pixels, and the logits are those of the store.

    python -m benchmarks.store.loader_with_logits cifar.zip --root cifar10/train
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import measure
from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.beton.dataset import open_dataset
from fastkd.data.identity import view_identity
from fastkd.data.sources.open import open_source
from fastkd.data.views.draw import Views
from fastkd.feed.loader import Loader
from fastkd.store.codec import make_codec
from fastkd.store.filling import StoreFiller, create_store
from fastkd.store.logit_store import LogitStore
from fastkd.store.tables import read_tables

NUM_SEEDS = 4


def fill_with_noise(path: Path, dataset, views: Views, codec_name: str, ids: np.ndarray | None = None) -> None:
    """A store over some samples, or all, whose logits are random: for speed the numbers do not matter."""
    codec = make_codec(codec_name, dataset.num_classes)
    ids = np.random.default_rng(0).permutation(dataset.beton.num_samples) if ids is None else ids
    create_store(
        path,
        sample_ids=ids,
        num_seeds=views.num_seeds,
        codec=codec,
        block_rows=4096,
        inputs={"beton": dataset.fingerprint},
        params=view_identity(views, ids),
        probes=np.zeros((0, 2), np.int64),
        probe_crc32c=np.zeros(0, np.uint32),
    )
    tables = read_tables(path)
    filler = StoreFiller(tables)
    rng = np.random.default_rng(1)
    for seed in range(views.num_seeds):
        for block in range(tables.num_blocks):
            shape = (len(filler.block_ids(block)), dataset.num_classes)
            filler.write(seed, block, rng.normal(scale=4, size=shape).astype(np.float32))
    filler.close()


def epoch_of(loader: Loader) -> Callable[[], None]:
    """Goes through an epoch of the loader."""

    def run() -> None:
        for _ in loader.epoch(2):
            pass

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--root")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--codec", default="fp16")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.beton"
        build_beton(open_source(args.source, root=args.root), path, WriteOptions(mode="raw"))
        dataset = open_dataset(path)
        views = Views("crop-flip", int(dataset.beton.heights[0]), NUM_SEEDS)
        fill_with_noise(Path(folder) / "bench.h5", dataset, views, args.codec)
        store = LogitStore(Path(folder) / "bench.h5")
        common = {"views": views, "batch_size": args.batch_size, "shuffle": True, "num_workers": args.num_workers}
        contenders = {}
        for pair in range(args.pairs):
            plain, with_logits = Loader(dataset, **common), Loader(dataset, logits=store, **common)
            for a, b in zip(plain.epoch(1), with_logits.epoch(1), strict=True):
                assert np.array_equal(a.images, b.images)
                assert np.array_equal(a.sample_ids, b.sample_ids)
                assert np.array_equal(b.logits, store.read(b.sample_ids.numpy(), 1))
            contenders |= {f"without {pair}": epoch_of(plain), f"with {pair}": epoch_of(with_logits)}
        seconds = measure.interleave(contenders, rounds=args.rounds)
    ratios = [
        without / with_logits
        for pair in range(args.pairs)
        for without, with_logits in zip(seconds[f"without {pair}"], seconds[f"with {pair}"], strict=True)
    ]
    images = dataset.beton.num_samples
    measure.save(
        "loader_with_logits",
        {
            "rate_with_over_without": measure.summary(ratios),
            "images_per_s": {
                name: images / median(t for pair in range(args.pairs) for t in seconds[f"{name} {pair}"])
                for name in ("without", "with")
            },
            "images": images,
            "classes": dataset.num_classes,
            "codec": args.codec,
            "batch_size": args.batch_size,
            "num_workers": args.num_workers,
            "pairs": args.pairs,
            "rounds": args.rounds,
        },
    )


if __name__ == "__main__":
    main()
