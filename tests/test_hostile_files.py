"""HDF5 files that lead elsewhere or claim more than they have: one line, in time and memory of a whole file's."""

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.hostile import HOSTILE, HOSTILE_HEADERS, ending
from helpers.stores import make_store, random_logits

from fastkd.artefact import read_artefact, write_artefact
from fastkd.prune.masks.mask import Mask, save_mask
from fastkd.prune.scores.features import load_features, save_features
from fastkd.prune.scores.score_file import load_scores, save_scores
from fastkd.report.describe import DESCRIBE, describe
from fastkd.store.logit_store import LogitStore
from fastkd.train.memorization import FORMAT_VERSION as TRIAL_VERSION
from fastkd.train.memorization import KIND as TRIAL

NUM_SAMPLES = 64
BETON = "b" * 32


def _mask(path: Path) -> None:
    ids = np.arange(NUM_SAMPLES)
    weights = np.ones(NUM_SAMPLES)
    save_mask(path, ids, num_samples=NUM_SAMPLES, beton_fingerprint=BETON, params={}, weights=weights)


def _scores(path: Path) -> None:
    described = {"el2n": {"direction": "", "policies": {}}}
    values = np.arange(NUM_SAMPLES, dtype=np.float32)
    save_scores(path, {"el2n": values}, described, beton_fingerprint=BETON, extras={"target_prob_mean": values})


def _features(path: Path) -> None:
    features = np.ones((NUM_SAMPLES, 4), np.float32)
    save_features(path, features, beton_fingerprint=BETON, inputs={}, params={})


def _trial(path: Path) -> None:
    arrays = {name: np.ones(NUM_SAMPLES // 8, np.uint8) for name in ("member", "correct")}
    write_artefact(path, kind=TRIAL, format_version=TRIAL_VERSION, inputs={}, params={}, arrays=arrays)


def _store(path: Path) -> None:
    make_store(path, random_logits(2, 37, 10), embeddings=random_logits(2, 37, 6))


def _read_trial(path: Path) -> None:
    arrays = dict.fromkeys(("member", "correct"), ("u1", 1))
    read_artefact(path, kind=TRIAL, format_version=TRIAL_VERSION, arrays=arrays)


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], object], tuple[str, ...]]] = {
    "mask": (_mask, Mask.load, ("sample_ids", "weights")),
    "scores": (_scores, load_scores, ("scores/el2n", "target_prob_mean")),
    "features": (_features, lambda path: load_features(path, BETON, "x.beton", NUM_SAMPLES), ("features",)),
    TRIAL: (_trial, _read_trial, ("member", "correct")),
    "logit-store": (
        _store,
        LogitStore,
        ("sample_ids", "done", "top1", "probes", "probe_crc32c", "logits", "embeddings"),
    ),
}
"""Kind of HDF5 file → what writes one, what reads it, its datasets."""
DATASETS = [(kind, name) for kind, (_, _, names) in KINDS.items() for name in names]


def changed(kind: str, tmp_path: Path, change: Callable[[h5py.File], None]) -> Path:
    """A whole file of a kind with something else in the place of a part of it."""
    path = tmp_path / "x.h5"
    KINDS[kind][0](path)
    with h5py.File(path, "a", libver=("v110", "v110")) as file:
        change(file)
    return path


def assert_refused(kind: str, path: Path, tmp_path: Path) -> None:
    """By its reader and, where it is of a kind that `inspect` knows, by that."""
    for read in (KINDS[kind][1], *([describe] if kind in DESCRIBE else [])):
        told = ending(lambda read=read: read(path), tmp_path)
        assert told.startswith(f"{path}: "), told


def test_all_kinds_that_inspect_reads_as_hdf5_are_tried():
    assert set(DESCRIBE) - {"beton", "checkpoint", "run"} <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_dataset_of_a_kind_is_tried(kind, tmp_path):
    found: set[str] = set()
    path = changed(
        kind,
        tmp_path,
        lambda file: file.visititems(lambda name, one: found.add(name) if hasattr(one, "shape") else None),
    )
    assert found == set(KINDS[kind][2])
    assert ending(lambda: KINDS[kind][1](path), tmp_path) == "read"


@pytest.mark.parametrize("form", HOSTILE)
@pytest.mark.parametrize(("kind", "name"), DATASETS)
def test_a_dataset_that_does_not_lie_in_the_file_is_refused(kind, name, form, tmp_path):
    assert_refused(kind, changed(kind, tmp_path, lambda file: HOSTILE[form](file, name, tmp_path)), tmp_path)


@pytest.mark.parametrize("form", HOSTILE_HEADERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_header_of_other_texts_is_refused(kind, form, tmp_path):
    assert_refused(kind, changed(kind, tmp_path, HOSTILE_HEADERS[form]), tmp_path)


def test_a_group_behind_a_link_is_not_gone_into(tmp_path):
    def change(file: h5py.File) -> None:
        file.move("scores", "hidden")
        file["scores"] = h5py.SoftLink("/hidden")

    assert_refused("scores", changed("scores", tmp_path, change), tmp_path)


def test_plain_chunks_are_read(tmp_path):
    def change(file: h5py.File) -> None:
        values = file["sample_ids"][...]
        del file["sample_ids"]
        file.create_dataset("sample_ids", data=values, chunks=(10,))

    path = changed("mask", tmp_path, change)
    assert Mask.load(path).sample_ids.tolist() == list(range(NUM_SAMPLES))


def test_a_dataset_that_is_there_under_many_names_is_not_read_for_each(tmp_path):
    path = tmp_path / "x.h5"
    names = [f"m{i}" for i in range(1000)]
    values = np.zeros(2**19, np.float32)
    save_scores(path, {"m0": values}, {"m0": {}}, beton_fingerprint=BETON)
    with h5py.File(path, "a", libver=("v110", "v110")) as file:
        for name in names[1:]:
            file[f"scores/{name}"] = file["scores/m0"]
        methods = ", ".join(f'"{name}": {{}}' for name in names)
        file.attrs["params"] = np.bytes_(f'{{"methods": {{{methods}}}, "extras": []}}'.encode())
    assert "they overlap" in ending(lambda: load_scores(path), tmp_path)


@pytest.mark.parametrize("num_bytes", [2**31, 2**40])
def test_values_beyond_the_end_of_the_file_are_refused(num_bytes, tmp_path):
    """In the tables of 1.8, which have no checksums: the sizes of dataset, storage and file are changed alike."""
    path, marked = tmp_path / "x.h5", 123_456 * 8
    with h5py.File(path, "w", libver="earliest") as file:
        for name, text in {"fastkd_kind": "mask", "fingerprint": "f", "inputs": "{}", "params": "{}"}.items():
            file.attrs[name] = np.bytes_(text)
        file.attrs["format_version"] = 1
        file["sample_ids"] = np.zeros(123_456, np.int64)
    content = path.read_bytes()
    for old, new in ((marked, num_bytes), (123_456, num_bytes // 8)):
        assert old.to_bytes(8, "little") in content
        content = content.replace(old.to_bytes(8, "little"), new.to_bytes(8, "little"))
    path.write_bytes(content)
    told = ending(lambda: Mask.load(path), tmp_path)
    assert told.startswith(f"{path}: dataset 'sample_ids' "), told


def test_a_mask_of_more_samples_than_memory_has_bits_is_refused(tmp_path):
    path = tmp_path / "x.h5"
    save_mask(path, np.arange(10), num_samples=2**39, beton_fingerprint=BETON, params={})
    assert "are not distinct numbers below" in ending(lambda: Mask.load(path), tmp_path)


def test_hostile_files_of_the_folder_are_left_as_they_are(tmp_path):
    path = changed("mask", tmp_path, lambda file: HOSTILE["to another file"](file, "sample_ids", tmp_path))
    before = (tmp_path / "other.h5").read_bytes()
    shutil.copy(path, tmp_path / "copy.h5")
    assert_refused("mask", path, tmp_path)
    assert (tmp_path / "other.h5").read_bytes() == before
    assert path.read_bytes() == (tmp_path / "copy.h5").read_bytes()
