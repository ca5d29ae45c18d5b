"""Claim: build-beton --mode keep writes photos out of a zip three times as fast as FFCV's DatasetWriter, on one core, and decodes
all that it keeps; with --no-check it writes them eight times as fast.

One process each, interleaved: `build_beton` in keep mode, checked and not, and FFCV's `DatasetWriter` (jpg, longer side 500, quality 90)
over the same images decoded by Pillow, each COPIES times, for a build of some length. Twice: on the photos of ZIP that
can be kept as they are, and on all of them with a max size of 500, where the larger ones have to be encoded anew. The
ceiling is reading the zip. Rates are by the clock, and by CPU time (of FFCV's worker, too), which other work on the
machine disturbs less. Asserted in the same
run: the kept payloads are the bytes in the zip, every image decodes, and both files hold the same labels.

    taskset -c 0 python -m benchmarks.data.build_keep imagenet-500.zip
"""

import argparse
import io
import os
import resource
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter
from PIL import Image

from benchmarks import measure
from benchmarks.data.photos import some
from fastkd.data.beton.build import build_beton
from fastkd.data.beton.encode import WriteOptions, keepable
from fastkd.data.beton.read import open_beton
from fastkd.data.beton.verify import verify_beton
from fastkd.data.sources.open import Source, open_source

MAX_SIZE = 500


class Decoded:
    """The images of a source as FFCV's writer takes them."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        with Image.open(io.BytesIO(self.source.read(i))) as image:
            return np.asarray(image.convert("RGB")), int(self.source.labels[i])


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for: FFCV's writer has a worker process."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def race(source: Source, folder: Path, max_size: int | None, rounds: int) -> dict:
    ours, theirs = folder / "ours.beton", folder / "theirs.beton"
    fields = {"image": RGBImageField("jpg", MAX_SIZE, jpeg_quality=90), "label": IntField()}

    def ffcv() -> None:
        DatasetWriter(str(theirs), fields, num_workers=1).from_indexed_dataset(Decoded(source), chunksize=64)

    def fastkd(check: bool) -> None:
        build_beton(source, ours, WriteOptions(mode="keep", max_size=max_size, check=check), num_workers=1, force=True)

    cpu: dict[str, list[float]] = {"fastkd": [], "unchecked": [], "ffcv": [], "read": []}

    def counted(name: str, function: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            begin = cpu_seconds()
            function()
            cpu[name].append(cpu_seconds() - begin)

        return call

    seconds = measure.interleave(
        {
            "fastkd": counted("fastkd", lambda: fastkd(True)),
            "unchecked": counted("unchecked", lambda: fastkd(False)),
            "ffcv": counted("ffcv", ffcv),
            "read": counted("read", lambda: [source.read(i) for i in range(len(source))]),
        },
        rounds=rounds,
    )
    cpu = {name: values[1:] for name, values in cpu.items()}  # the first one warms up
    beton, other = open_beton(ours), open_beton(theirs)
    assert verify_beton(beton) == []
    assert np.array_equal(beton.labels, other.labels)
    kept = [i for i in range(len(source)) if beton.payload(i).tobytes() == source.read(i)]
    return {
        "rate_over_ffcv": measure.ratios(seconds, "fastkd", "ffcv"),
        "rate_over_ffcv_cpu": measure.ratios(cpu, "fastkd", "ffcv"),
        "unchecked_over_ffcv": measure.ratios(seconds, "unchecked", "ffcv"),
        "unchecked_over_ffcv_cpu": measure.ratios(cpu, "unchecked", "ffcv"),
        "images_per_cpu_s": {name: len(source) / statistics.median(times) for name, times in cpu.items()},
        "images_per_s": {name: len(source) / statistics.median(times) for name, times in seconds.items()},
        "images": len(source),
        "kept": len(kept),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--copies", type=int, default=4)
    args = parser.parse_args()
    source = open_source(args.source)
    everything = list(range(len(source)))
    fitting = [i for i in everything if keepable(source.read(i), WriteOptions(mode="keep"))]
    with tempfile.TemporaryDirectory() as folder:
        all_kept = race(some(source, args.copies * fitting), Path(folder), None, args.rounds)
        as_they_come = race(some(source, args.copies * everything), Path(folder), MAX_SIZE, args.rounds)
    assert all_kept["kept"] == all_kept["images"]
    measure.save("build_keep", {"all_kept": all_kept, "as_they_come": as_they_come, "rounds": args.rounds})
    os._exit(0)  # what FFCV's writer leaves behind keeps the interpreter from ending


if __name__ == "__main__":
    main()
