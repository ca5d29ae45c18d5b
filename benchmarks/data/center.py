"""Claims: `center` views are torchvision's Resize and CenterCrop of PIL images to one level, at the speed of the box of before.

Each photo of SOURCE (an ImageFolder in a zip) is decoded by Pillow and cut by torchvision's transforms, and cut by fastkd from
the stored JPEG: what differs is counted, for several sizes and ratios. Then the views of all photos are made by version 1 (the
central box in whole pixels, resized) and version 2 in turns, on one core, by CPU time; a round is both, the order alternates.

    python -m benchmarks.data.center imagenet-500.zip
"""

import argparse
import io
import math
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Resize

from benchmarks import measure
from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.beton.read import open_beton
from fastkd.data.loader import ViewLoader
from fastkd.data.modes import MODE_JPG, MODE_RAW
from fastkd.data.sources.open import open_source
from fastkd.data.views.draw import Views, center_window
from fastkd.data.views.pixels import NO_ENTRY, OK, cut_window

CROPS = ((224, 0.875), (224, 224 / 232), (64, 0.875), (160, 1.0), (288, 0.9))


def differences(photos: dict[str, bytes], size: int, crop_ratio: float) -> dict[str, float]:
    """How far views of photos are from torchvision's: most levels, percent of the values that differ, PSNR in dB."""
    transform = torch.nn.Sequential(Resize(math.floor(round(size / crop_ratio, 9))), CenterCrop(size))
    most, shares, errors = 0, [], []
    for content in photos.values():
        image = Image.open(io.BytesIO(content))
        window = center_window(image.height, image.width, size, crop_ratio)
        wanted = np.asarray(transform(image.convert("RGB")))
        out = np.empty((size, size, 3), np.uint8)
        data = np.frombuffer(content, np.uint8)
        if (
            cut_window(data, MODE_JPG, image.height, image.width, *window, out, NO_ENTRY) != OK
        ):  # which build-beton encodes anew
            raw = np.frombuffer(image.convert("RGB").tobytes(), np.uint8)
            assert cut_window(raw, MODE_RAW, image.height, image.width, *window, out, NO_ENTRY) == OK
        apart = np.abs(out.astype(int) - wanted)
        most = max(most, int(apart.max()))
        shares.append(100 * (apart > 0).mean())
        errors.append((apart**2).mean())
    psnr = -10 * np.log10(np.maximum(errors, 1e-9) / 255**2)
    return {"most_levels": most, "percent_off": float(np.mean(shares)), "psnr_median": float(np.median(psnr)), "psnr_min": float(psnr.min())}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--photos", type=int, help="of the source, the first  [default: all]")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--name", default="center", help="of the result")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with zipfile.ZipFile(args.source) as archive:
        names = [name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg"))][: args.photos]
        photos = {name: archive.read(name) for name in names}
    found = {f"{size} at {ratio:.4g}": differences(photos, size, ratio) for size, ratio in CROPS}
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.beton"
        build_beton(open_source(args.source), path, WriteOptions(mode="keep"))
        beton = open_beton(path)
        ids = beton.sample_ids[: args.photos]
        loaders = {
            v: ViewLoader(beton, Views("center", 224, version=v), ids=ids, batch_size=32, num_workers=1)
            for v in seconds
        }
        for number in range(-1, args.rounds):
            for version in (1, 2) if number % 2 else (2, 1):
                begin = time.process_time()
                for _ in loaders[version].epoch(0):
                    pass
                if number >= 0:
                    seconds[version].append(time.process_time() - begin)
    measure.save(
        args.name,
        {
            "of_torchvision": found,
            "all_within_one_level": all(one["most_levels"] <= 1 for one in found.values()),
            "photos": len(photos),
            "speed_over_version_1": measure.ratios({"2": seconds[2], "1": seconds[1]}, "2", "1"),
            "views_per_cpu_s": measure.summary([len(ids) / one for one in seconds[2]]),
            "rounds": args.rounds,
        },
    )


if __name__ == "__main__":
    main()
