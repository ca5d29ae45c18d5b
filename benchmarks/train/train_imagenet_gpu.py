"""Claim: the loader keeps a GPU busy that trains ResNet-50 at 224 pixels, or runs at its decode limit.

The photos of SOURCE, repeated up to --num-samples, in a beton of some gigabytes in FOLDER (made once); labels alone, rrc
views, one epoch after a short warm-up in the same process. Told: how much of the time the GPU had nothing to do, and the
rates of training, of the loader by itself and of the ceiling, a C loop on every core that only decodes and resizes
(rrc_decode_loop.cpp); the last two interleaved. Asserted in the same run: the loop's views are the loader's, to the byte.

    python -m benchmarks.train.train_imagenet_gpu imagenet-500.zip FOLDER --device cuda --amp bf16 --compile
    python -m benchmarks.train.train_imagenet_gpu imagenet-500.zip FOLDER --num-samples 500 --steps 4 --model resnet18 --size 64
"""

import argparse
import ctypes
import os
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks import measure
from benchmarks.data.photos import some
from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.beton.dataset import Dataset, open_dataset
from fastkd.data.beton.read import Beton
from fastkd.data.beton.row_index import open_row_index
from fastkd.data.sources.open import open_source
from fastkd.data.views.draw import Views, boxes
from fastkd.data.views.pixels import load_library
from fastkd.feed.loader import Loader
from fastkd.models.norm import PRESETS, Norm
from fastkd.train.recipe import Recipe
from fastkd.train.student import train

NORM = Norm(*PRESETS["imagenet"])


def build_photos(source: str, path: Path, num_samples: int) -> Dataset:
    """A beton of the photos over and over, their longer side at most 500 pixels; one that is there is taken."""
    if not path.exists():
        photos = open_source(source)
        many = some(photos, (i % len(photos) for i in range(num_samples)))
        build_beton(many, path, WriteOptions(mode="keep", max_size=500))
    return open_dataset(path)


class DecodeLoop:
    """The C loop: views of a beton's samples, decoded and resized into one batch for each thread, which is overwritten."""

    def __init__(self, folder: Path, beton: Beton, views: Views, num_threads: int) -> None:
        self.beton, self.views, self.num_threads = beton, views, num_threads
        compiler, source = os.environ.get("CXX", "c++"), measure.ROOT / "benchmarks" / "data" / "rrc_decode_loop.cpp"
        command = [compiler, "-std=c++17", "-O2", "-shared", "-fPIC", source, "-o", folder / "loop.so"]
        subprocess.run(command, check=True)
        self._index, self._entries = open_row_index(beton)
        self._loop = ctypes.CDLL(str(folder / "loop.so")).loop
        self._loop.restype = ctypes.c_int64
        self._view = ctypes.cast(load_library().fastkd_indexed_view, ctypes.c_void_p)

    def decode(self, ids: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Views of some samples by their boxes, int64 (B, 5): uint8 (B, size, size, 3); without the GIL."""
        beton, size = self.beton, self.views.size
        starts = beton.ptrs[ids]
        stored = np.stack([beton.sizes, beton.modes, beton.heights, beton.widths], 1)[ids].astype(np.int64)
        out = np.empty((len(ids), size, size, 3), np.uint8)
        rows = self._entries[ids].astype(np.int64)
        arrays = beton.data, starts, stored, drawn, rows, self._index, out
        *stored_at, index, batch = (ctypes.c_void_p(array.ctypes.data) for array in arrays)
        count, index_bytes = ctypes.c_int64(len(ids)), ctypes.c_int64(len(self._index))
        assert self._loop(self._view, *stored_at, count, index, index_bytes, batch, count, size) == 0
        return out

    def epoch(self, batches: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """All batches, shared out among the threads one by one."""
        with ThreadPoolExecutor(self.num_threads) as pool:
            for _ in pool.map(lambda batch: len(self.decode(*batch)), batches):
                pass


def check_loop(loop: DecodeLoop, loader: Loader) -> None:
    """Asserts that the loop's views of the first batch are the loader's."""
    batch = next(iter(loader.epoch(0)))
    ids = batch.sample_ids.cpu().numpy()
    found = loop.decode(ids, drawn(loop, ids, 0))
    assert np.array_equal(found, batch.images.permute(0, 2, 3, 1).cpu().numpy())


def drawn(loop: DecodeLoop, ids: np.ndarray, aug_seed: int) -> np.ndarray:
    """The boxes of some views: int64 (B, 5)."""
    return np.ascontiguousarray(boxes(loop.views, ids, aug_seed, loop.beton.heights[ids], loop.beton.widths[ids]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("folder", type=Path, help="for the beton, 4 GB with 50,000 samples")
    parser.add_argument("--num-samples", type=int, default=50_000)
    parser.add_argument("--steps", type=int, help="of the measured epoch; all where left out")
    parser.add_argument("--warmup-steps", type=int, default=4)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3, help="of loader and decode loop, each a --loader-batches long")
    parser.add_argument("--loader-batches", type=int, default=80)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", choices=["off", "bf16", "fp16"], default="off")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--name", default="train_imagenet_gpu", help="of the file in results/")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    dataset = build_photos(args.source, args.folder / f"photos-{args.num_samples}.beton", args.num_samples)
    views = Views("rrc", args.size, 4)
    order = np.random.default_rng(0).permutation(dataset.beton.num_samples)
    batch = args.batch_size

    def loader_of(ids: np.ndarray, device: str) -> Loader:
        common = {"batch_size": batch, "shuffle": True, "drop_last": True, "num_workers": args.num_workers}
        return Loader(dataset, views, mask=ids, device=device, **common)

    alone = loader_of(order[: args.loader_batches * batch], "cpu")
    with tempfile.TemporaryDirectory() as folder:
        loop = DecodeLoop(Path(folder), dataset.beton, views, alone.num_workers)
        check_loop(loop, alone)
        prepared = [(ids, drawn(loop, ids, aug_seed)) for ids, aug_seed in alone.jobs(0)]
        contenders = {"loader": lambda: sum(len(b) for b in alone.epoch(0)), "loop": lambda: loop.epoch(prepared)}
        seconds = measure.interleave(contenders, rounds=args.rounds)
        recipe = Recipe(model=args.model, epochs=1, batch_size=batch, lr=0.01, alpha=0, amp=args.amp, drop_last=True)
        for name, steps in (("warm-up", args.warmup_steps), ("measured", args.steps)):
            loader = loader_of(order[: steps * batch] if steps else order, args.device)
            begin = time.perf_counter()
            out = Path(folder) / name
            result = train(recipe, loader, out, norm=NORM, compiled=args.compile, inputs={}, params={})
            wall_s = time.perf_counter() - begin
    rates = {name: [len(alone) * batch / s for s in seconds[name]] for name in seconds}
    limit = measure.summary(rates["loop"])
    measure.save(
        args.name,
        {
            "train": {name: result[name] for name in ("images_per_s", "data_wait_percent", "step_percent")}
            | {"steps": len(loader), "wall_s": wall_s},
            "loader_images_per_s": measure.summary(rates["loader"]),
            "decode_limit_images_per_s": limit,
            "loader_over_decode_limit": measure.ratios(seconds, "loader", "loop"),
            "train_over_decode_limit": result["images_per_s"] / limit["median"],
            "decoding_threads": alone.num_workers,
            "num_samples": dataset.beton.num_samples,
            "model": args.model,
            "size": args.size,
            "batch_size": batch,
            "amp": args.amp,
            "compiled": args.compile,
            "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
            "rounds": args.rounds,
        },
    )


if __name__ == "__main__":
    main()
