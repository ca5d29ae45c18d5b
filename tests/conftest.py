"""Data sets that many tests share; made once a session, so a test that changes one works on a copy. Workers of xdist."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.synthetic import build, coloured_noise, encoded, overwrite, photo, write_files
from hypothesis import settings

from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.beton.read import manifest_path
from fastkd.data.sources.open import open_source
from fastkd.prune import scale

if TYPE_CHECKING:
    from helpers.commands import Outcome
    from torch import nn

    from fastkd.data.beton.dataset import Dataset
    from fastkd.prune.masks.mask import Mask
    from fastkd.teacher.network import Teacher

settings.register_profile("fastkd", deadline=None)  # the first call of a compiled function takes as long as it takes
settings.load_profile("fastkd")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: a worker for each CPU of this process, of which each takes up to a gigabyte of memory."""
    return min(8, len(os.sched_getaffinity(0)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """One thread for each worker and for what it starts, which have a CPU for each worker."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module", params=["numpy", "compiled"])
def selection_by(request: pytest.FixtureRequest) -> Iterator[str]:
    """How samples are selected, which goes by their number otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scale, "COMPILED_FROM", 0 if request.param == "compiled" else 2**60)
        yield request.param


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
    from fastkd.data.beton.read import identify, open_beton
    from fastkd.prune.masks.mask import random_order, save_mask

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


@pytest.fixture(scope="session")
def dataset(raw_beton: Path) -> "Dataset":
    """`raw_beton`, opened."""
    from fastkd.data.beton.dataset import open_dataset

    return open_dataset(raw_beton)


@pytest.fixture(scope="session")
def mask(raw_mask: Path) -> "Mask":
    """`raw_mask`, loaded."""
    from fastkd.prune.masks.mask import Mask

    return Mask.load(raw_mask)


@pytest.fixture(scope="session")
def ids(mask: "Mask") -> np.ndarray:
    """The sample_ids of `raw_mask` in their order."""
    return mask.sample_ids


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a resnet8 of the ten classes of `raw_beton`, with seeded weights."""
    from helpers.stores import save_teacher

    return save_teacher(tmp_path_factory.mktemp("teacher") / "t.safetensors")


@pytest.fixture(scope="module")
def teacher(teacher_file: Path) -> "Teacher":
    """`teacher_file` as a teacher, one for each module."""
    from fastkd.teacher.network import load_teacher

    return load_teacher(str(teacher_file))


@pytest.fixture(scope="session")
def teacher_store(
    dataset: "Dataset", mask: "Mask", teacher_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The teacher's logits of three crop-flip views of the samples of `raw_mask`."""
    from helpers.stores import VIEWS, cache

    from fastkd.teacher.network import load_teacher

    path = tmp_path_factory.mktemp("student") / "l.h5"
    cache(path, dataset, load_teacher(str(teacher_file)), VIEWS, mask=mask)
    return path


@pytest.fixture(scope="session")
def trained(dataset: "Dataset", mask: "Mask", teacher_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run from `teacher_store`."""
    from helpers.runs import run

    out = tmp_path_factory.mktemp("student") / "run"
    run(out, dataset, mask, logits=teacher_store)
    return out


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `done`."""
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def done(lab: Path, raw_folder: str) -> "dict[str, Outcome]":
    """What each command of the main job came to, by its name."""
    from helpers.lab import run_all

    return run_all(lab, raw_folder)


@pytest.fixture
def model() -> "nn.Module":
    """A small network of ten classes."""
    from fastkd.models.registry import create_model

    return create_model("resnet8", 10)


@pytest.fixture
def saved(model: "nn.Module", tmp_path: Path) -> Path:
    """`model` as a checkpoint with a few entries of its own."""
    from fastkd.models.checkpoint import save_weights

    save_weights(tmp_path / "a.safetensors", model, {"model": "resnet8", "mean": [0.5, 0.5, 0.5], "note": "é"})
    return tmp_path / "a.safetensors"


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """ImageFolder of 12 JPEG photos of 40×56 (height by width), four in each of the classes a, b and c."""
    files = {f"{'abc'[i // 4]}/{i:02}.jpg": encoded(photo(i, 40, 56), "JPEG", quality=92) for i in range(12)}
    return write_files(tmp_path_factory.mktemp("photos") / "images", files)


@pytest.fixture(scope="session")
def photo_raw(photo_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos of `photo_folder` as a raw beton with its manifest."""
    return build(photo_folder, tmp_path_factory.mktemp("photos") / "raw.beton").path


@pytest.fixture(scope="session")
def photo_jpg(photo_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos of `photo_folder` as a jpg beton with its manifest."""
    return build(photo_folder, tmp_path_factory.mktemp("photos") / "jpg.beton", "jpg").path


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[..., Path]:
    """A function that copies a beton, with its manifest where that is asked for, and overwrites bytes of the copy."""

    def copy(path: Path, changes: dict[int, bytes] | None = None, *, manifest: bool = False) -> Path:
        target = tmp_path / path.name
        shutil.copy(path, target)
        if manifest:
            shutil.copy(manifest_path(path), manifest_path(target))
        overwrite(target, changes or {})
        return target

    return copy


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a beton of FFCV's own writer of each of the forms in `helpers.foreign`."""
    from helpers.foreign import write_foreign

    folder = tmp_path_factory.mktemp("foreign")
    write_foreign(folder)
    return folder
