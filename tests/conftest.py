"""Data sets that many tests share; made once a session, so a test that changes one works on a copy."""

from pathlib import Path

import numpy as np
import pytest
from synthetic import coloured_noise, encoded, photo, write_files

from fastkd.data.build import WriteOptions, build_beton
from fastkd.data.sources import open_source


@pytest.fixture(scope="session")
def raw_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """ImageFolder of 600 PNGs of 32×32 in 10 classes; each class has a colour of its own, under noise."""
    files = {
        f"class{label}/{i:02}.png": encoded(coloured_noise(i, label, 10, 32), "PNG", compress_level=1)
        for label in range(10)
        for i in range(60)
    }
    return write_files(tmp_path_factory.mktemp("raw") / "images", files)


@pytest.fixture(scope="session")
def raw_beton(raw_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `raw_folder` as a raw beton with its manifest."""
    path = tmp_path_factory.mktemp("raw") / "raw.beton"
    build_beton(open_source(raw_folder), path, WriteOptions(mode="raw"))
    return path


@pytest.fixture(scope="session")
def jpg_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """ImageFolder of 24 smooth photos in 3 classes, their sides odd numbers of 41 … 199 pixels."""
    sides = np.random.default_rng(7).integers(20, 100, (24, 2)) * 2 + 1
    files = {
        f"{'abc'[i % 3]}/{i:02}.jpg": encoded(photo(i, int(h), int(w)), "JPEG", quality=95)
        for i, (h, w) in enumerate(sides)
    }
    return write_files(tmp_path_factory.mktemp("jpg") / "images", files)


@pytest.fixture(scope="session")
def jpg_beton(jpg_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `jpg_folder` as a jpg beton with its manifest."""
    path = tmp_path_factory.mktemp("jpg") / "jpg.beton"
    build_beton(open_source(jpg_folder), path, WriteOptions(mode="jpg"), num_workers=1)
    return path


@pytest.fixture(scope="session")
def raw_mask(raw_beton: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random, class-balanced mask that keeps 200 of the samples of `raw_beton`."""
    from fastkd.data.beton import identify, open_beton
    from fastkd.prune.mask import random_order, save_mask

    beton = open_beton(raw_beton)
    path = tmp_path_factory.mktemp("raw") / "mask.h5"
    save_mask(
        path,
        random_order(beton.labels, 0)[:200],
        num_samples=beton.num_samples,
        beton_fingerprint=identify(beton)[0],
        params={"method": "random", "seed": 0},
    )
    return path
