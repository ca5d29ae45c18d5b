"""The forms of the check: how much of what it does, on which kind of device; and the data that it makes for itself."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import measure
from benchmarks.train.train_imagenet_gpu import build_photos
from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.beton.dataset import Dataset, open_dataset
from fastkd.data.sources.open import open_source

sys.path.insert(0, str(measure.ROOT / "tests"))
from helpers.synthetic import coloured_noise, encoded, photo, write_files


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """Sizes. small_images: of 32 pixels, in ten classes. num_photos: of up to 500 pixels. photo_size: of their views."""

    device: str
    small_images: int
    small_student: str
    small_teacher: str
    num_photos: int
    photo_size: int
    photo_student: str
    photo_teacher: str
    batch_size: int
    steps: int
    rounds: int
    resident_images: int
    resident_epochs: int


_TINY = {
    "small_student": "resnet8",
    "small_teacher": "resnet14",
    "photo_size": 64,
    "photo_student": "resnet8",
    "photo_teacher": "resnet14",
}
FORMS = {
    "cuda": Form(
        device="cuda",
        small_images=10_000,
        small_student="resnet32",
        small_teacher="resnet110",
        num_photos=8192,
        photo_size=224,
        photo_student="resnet50",
        photo_teacher="resnet50",
        batch_size=128,
        steps=50,
        rounds=1,
        resident_images=5000,
        resident_epochs=240,
    ),
    "cpu": Form(
        device="cpu",
        small_images=600,
        num_photos=64,
        batch_size=16,
        steps=3,
        rounds=1,
        resident_images=64,
        resident_epochs=2,
        **_TINY,
    ),
    "smallest": Form(
        device="cpu",
        small_images=96,
        num_photos=16,
        batch_size=8,
        steps=2,
        rounds=1,
        resident_images=32,
        resident_epochs=1,
        **_TINY,
    ),
}


def small_images(num_images: int, folder: Path) -> Dataset:
    """Images of 32 pixels in ten classes, raw; made once a folder."""
    path = folder / f"small-{num_images}.beton"
    if not path.exists():
        files = {
            f"{i % 10}/{i}.png": encoded(coloured_noise(i, i % 10, 10, 32), "PNG", compress_level=1)
            for i in range(num_images)
        }
        source = write_files(folder / f"small-{num_images}", files)
        build_beton(open_source(source), path, WriteOptions(mode="raw"))
    return open_dataset(path)


def real_photos() -> str | None:
    """Where real photos are: the source that FASTKD_PHOTOS names, else those of the tests' data."""
    given = os.environ.get("FASTKD_PHOTOS")
    known = Path(os.environ.get("FASTKD_TEST_DATA", "/nowhere"), "imagenet-500.zip")
    return given or (str(known) if known.exists() else None)


def photos(form: Form, folder: Path) -> Dataset:
    """Photos over and over, as JPEGs; drawn ones, with the detail of a photo's bytes, where there are no real ones."""
    source = real_photos()
    if source is None:
        rng = np.random.default_rng(0)
        drawn = [photo(i, 375, 500) + rng.integers(-12, 13, (375, 500, 3)) for i in range(32)]
        files = {
            f"{'ab'[i % 2]}/{i}.jpg": encoded(np.clip(one, 0, 255).astype(np.uint8), quality=90)
            for i, one in enumerate(drawn)
        }
        source = write_files(folder / "photos", files)
    return build_photos(source, folder / "photos.beton", form.num_photos)
