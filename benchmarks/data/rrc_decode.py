"""Claim: on one core the loader makes rrc views of 224 pixels at ≥ 3.5 × FFCV's rate from JPEGs, ≥ 1.3 × from raw pixels.

Contenders, each in a process of its own, pinned to one core and waiting while another has its turn: fastkd's loader; the same
with a decoder that leaves all JPEGs to libjpeg, as it was before fastkd decoded itself; the stock FFCV loader on the same file, read through the page cache; the ceiling, a C loop over fastkd's decoder that writes
one batch again and again (rrc_decode_loop.cpp); torchvision's ImageFolder, Pillow and DataLoader; DALI's CPU pipeline
with the crop inside its decoder, its fast DCT and no antialiasing; and, with --limits, the C loop where all coefficients lie in
memory (rrc_coefficients.cpp), which no storage of them can pass. The peers that read files get those of the beton.
Where other programs share the machine, the ratios of CPU time, which are given too, are the ones to look at.
Asserted in the same run: the loader's views are Pillow's (whole decode, crop, antialiased resize) to 40 dB in
the median and 30 dB at least.

    python -m benchmarks.data.rrc_decode imagenet-500.zip --dali-python dali-venv/bin/python
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.data.rrc_contenders import BATCH, CONTENDERS, SEEDS, SIZE

PEERS = ("torchvision", "pillow", "nvidia-dali")


def serve(contender: str, folder: Path, name: str, cores: list[int]) -> None:
    """Makes an epoch for each line on stdin and answers with the number of images and the CPU time of this process."""
    os.sched_setaffinity(0, cores)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the peers print
    epoch = CONTENDERS[contender](folder, name, len(cores))
    epoch(0)
    found = {dist.name: dist.version for dist in distributions() if dist.name.startswith(PEERS)}
    print(json.dumps(found), file=out, flush=True)
    for number, _ in enumerate(sys.stdin, start=1):
        begin = time.process_time()
        print(epoch(number), time.process_time() - begin, file=out, flush=True)


class Contender:
    """A process that waits for its turn."""

    def __init__(self, contender: str, folder: Path, name: str, cores: list[int], python: str = sys.executable) -> None:
        command = measure.script(
            __spec__.name, "--serve", contender, "--folder", folder, "--name", name, "--cores", *cores, python=python
        )
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(list(map(str, command)), text=True, **(pipes | {"stderr": subprocess.DEVNULL}))
        self.images = 0
        self.cpu_s: list[float] = []
        answer = self.process.stdout.readline()
        self.is_ready = answer != ""
        self.versions: dict[str, str] = json.loads(answer or "{}")

    def __call__(self) -> None:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        images, cpu_s = self.process.stdout.readline().split()
        self.images = int(images)
        self.cpu_s.append(float(cpu_s))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def prepare(source: str, folder: Path, copies: int) -> dict[str, float]:
    """The betons, ids of all and a tenth of their samples, files of the jpg beton, and the compiled loop.

    Returns:
        What `check` found.
    """
    import numpy as np

    from benchmarks.data.decoders import LIBJPEG, build
    from benchmarks.data.photos import some
    from fastkd.data.beton.build import WriteOptions, build_beton
    from fastkd.data.sources.open import open_source

    photos = open_source(source)
    for mode, times in (("jpg", copies), ("raw", min(copies, 4)), ("keep", copies)):
        many = some(photos, [*range(len(photos))] * times)
        build_beton(many, folder / f"{mode}.beton", WriteOptions(mode=mode, max_size=None if mode == "keep" else 500))
        num_samples = len(many)
        ids = np.random.default_rng(0).permutation(num_samples)
        np.save(folder / f"{mode}@1.0.npy", ids)
        np.save(folder / f"{mode}@0.1.npy", ids[: num_samples // 10])
    unpack(folder)
    build(folder / "libjpeg.so", LIBJPEG, "-O3")
    here = Path(__file__).parent
    build(folder / "coefficients.so", "-O3", instead={"scan.cpp": here / "rrc_coefficients.cpp"})
    loop = here / "rrc_decode_loop.cpp"
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, "-std=c++17", "-O2", "-shared", "-fPIC", loop, "-o", folder / "loop.so"], check=True)
    return check(folder, len(photos))


def unpack(folder: Path) -> None:
    """Writes the JPEGs of the beton as files."""
    from fastkd.data.beton.read import open_beton

    beton = open_beton(folder / "jpg.beton")
    for i in range(beton.num_samples):
        file = folder / "files" / f"{beton.labels[i]:04}" / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(beton.payload(i).tobytes())


def check(folder: Path, num_photos: int) -> dict[str, float]:
    """PSNR in dB of a view of each photo against Pillow's: whole decode, crop, antialiased resize, flip."""
    import numpy as np
    from PIL import Image

    from fastkd.data.beton.read import open_beton
    from fastkd.data.loader import ViewLoader
    from fastkd.data.views.draw import Views, boxes

    beton, views = open_beton(folder / "jpg.beton"), Views("rrc", SIZE, SEEDS)
    ids, decibels = np.arange(num_photos), []
    drawn = boxes(views, ids, 3, beton.heights[ids], beton.widths[ids])
    images = np.concatenate([b.images.permute(0, 2, 3, 1) for b in ViewLoader(beton, views, ids=ids).epoch(3)])
    for i, (top, left, h, w, flip) in enumerate(drawn.tolist()):
        photo = Image.open(io.BytesIO(beton.payload(i).tobytes())).crop((left, top, left + w, top + h))
        wanted = np.asarray(photo.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        error = np.square(images[i].astype(float) - (wanted[:, ::-1] if flip else wanted)).mean()
        decibels.append(10 * np.log10(255**2 / max(error, 1e-3)))
    found = {"median": float(np.median(decibels)), "min": float(min(decibels))}
    assert found["median"] >= 40, found
    assert found["min"] >= 30, found
    return found


def race(
    folder: Path, name: str, racers: dict[str, tuple[str, list[int]]], pythons: dict[str, str], rounds: int
) -> dict:
    """Rates of contenders and fastkd's ratio to each; a contender that does not start is told and left out."""
    ready = {}
    for label, (contender, cores) in racers.items():
        one = Contender(contender, folder, name, cores, pythons.get(contender, sys.executable))
        if one.is_ready:
            ready[label] = one
        else:
            print(f"{contender} does not start here; left out", file=sys.stderr)
            one.close()
    seconds = measure.interleave(ready, rounds=rounds)
    result: dict[str, Any] = {}
    for clock, times in (("", seconds), ("_of_cpu_time", {label: one.cpu_s[-rounds:] for label, one in ready.items()})):
        per_image = {label: [s / ready[label].images for s in times[label]] for label in ready}
        result[f"images_per_s{clock}"] = {label: 1 / statistics.median(s) for label, s in per_image.items()}
        for label in (label for label in ready if label != "fastkd"):
            result[f"fastkd_over_{label}{clock}"] = measure.ratios(per_image, "fastkd", label)
    for one in ready.values():
        one.close()
    result["versions"] = {name: version for one in ready.values() for name, version in one.versions.items()}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?")
    parser.add_argument(
        "--copies", type=int, default=10, help="of the photos in the beton, so that a tenth is an epoch"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limits", action="store_true", help="race the limits alone, what coefficients in memory give")
    parser.add_argument("--dali-python", default=sys.executable, help="interpreter of an environment with nvidia-dali")
    parser.add_argument("--serve", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.folder, args.name, args.cores)
        return
    cores = sorted(os.sched_getaffinity(0))
    pythons, one = {"dali": args.dali_python}, cores[:1]
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result["psnr_db_against_pillow"] = prepare(args.source, folder, args.copies)
        if args.limits:
            some = {c: (c, one) for c in ("fastkd", "before", "loop", "coefficients", "ffcv")}
            for data in ("jpg@1.0", "keep@1.0"):
                result[data] = race(folder, data, some, pythons, args.rounds)
            measure.save("rrc_limits", {**result, "batch_size": BATCH, "size": SIZE, "rounds": args.rounds})
            return
        result["jpg@1.0"] = race(
            folder, "jpg@1.0", {c: (c, one) for c in CONTENDERS if c != "coefficients"}, pythons, args.rounds
        )
        few = {c: (c, one) for c in ("fastkd", "before", "loop", "ffcv")}
        for data in ("jpg@0.1", "keep@1.0", "keep@0.1", "raw@1.0", "raw@0.1"):
            result[data] = race(folder, data, few, pythons, args.rounds)
        if len(cores) > 1:
            both = {"fastkd": ("fastkd", cores[:2]), "one_core": ("fastkd", one)}
            result["jpg@1.0 on two cores"] = race(folder, "jpg@1.0", both, pythons, args.rounds)
    measure.save(
        "rrc_decode", {**result, "batch_size": BATCH, "size": SIZE, "copies": args.copies, "rounds": args.rounds}
    )


if __name__ == "__main__":
    main()
