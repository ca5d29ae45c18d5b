"""The ways in which `damaged_artefacts` damages what HDF5 holds: attributes, datasets, links, and all of it sealed again."""

import json
from pathlib import Path

import h5py
import numpy as np

from benchmarks.cli.json_damages import change_json
from fastkd.artefact import content_fingerprint
from fastkd.fingerprint import fingerprint


def datasets(file: h5py.File) -> dict[str, np.ndarray]:
    """All of them."""
    found: dict[str, np.ndarray] = {}
    file.visititems(lambda name, one: found.update({name: one[...]}) if isinstance(one, h5py.Dataset) else None)
    return found


def put(file: h5py.File, name: str, values: np.ndarray) -> None:
    del file[name]
    file.create_dataset(name, data=values, track_times=False)


def another_array(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Of another type, shape or content."""
    what = int(rng.integers(9))
    if what == 0:
        return values.astype(str(rng.choice(["f8", ">i8", "u1", "i4", "f2", "S4", "?"])))
    if what == 1:
        return values[:-1] if len(values) > 1 else np.concatenate([values, values])
    if what == 2:
        return np.concatenate([values, values[:1]])
    if what == 3:
        return values.reshape(1, *values.shape) if rng.random() < 0.5 else values.reshape(-1, 1)
    if what == 4:
        return values[:0]
    if what == 5:
        return values[::-1].copy()
    flat = values.copy().reshape(-1)
    worst = [np.nan, np.inf, -np.inf, 1e38, -1.0] if values.dtype.kind == "f" else [0, -1, 2**62, -(2**62), 255]
    at, worth = rng.integers(len(flat), size=int(rng.integers(1, 4))), np.array(rng.choice(worst))
    with np.errstate(all="ignore"):
        flat[at] = worth.astype(values.dtype)
    return flat.reshape(values.shape)


def attribute(path: Path, other: Path, rng: np.random.Generator) -> bool:
    """Of the root or a dataset: gone, of another type, changed, the other's, or huge."""
    with h5py.File(path, "r+", libver=("v110", "v110")) as file, h5py.File(other) as source:
        names = ["fastkd_kind", "format_version", "fingerprint", "inputs", "params"]
        name, what = str(rng.choice(names)), int(rng.integers(9))
        if what == 0:
            del file.attrs[name]
        elif what == 1:
            file.attrs[name] = rng.integers(0, 9, 3)
        elif what == 2:
            file.attrs[name] = source.attrs[name] if name not in names[:2] else 7
        elif what == 3:
            file.attrs[name] = "x"  # of any length, in the heap
        elif what == 4:
            file.attrs[name] = np.bytes_(b"[" * 100_000)
        elif what == 5:
            file.attrs[name] = h5py.Empty("S8")
        elif what == 6:
            file.attrs["more"] = np.zeros(60_000_000 // 8 if rng.random() < 0.1 else 100_000)
        elif what == 7 and name in ("inputs", "params"):
            value = json.loads(bytes(file.attrs[name]))
            change_json(value, rng)
            file.attrs[name] = np.bytes_(json.dumps(value).encode())
            return False
        else:
            file.attrs[name] = np.float64("nan")
    return False


def dataset(path: Path, other: Path, rng: np.random.Generator) -> bool:
    """Of another type, shape or content; gone; or the other's."""
    with h5py.File(path, "r+", libver=("v110", "v110")) as file, h5py.File(other) as source:
        found, its = datasets(file), datasets(source)
        name, what = str(rng.choice(sorted(found))), rng.random()
        if what < 0.1:
            del file[name]
        elif what < 0.25 and name in its:
            put(file, name, its[name])
        else:
            put(file, name, another_array(found[name], rng))
    return False


def structure(path: Path, other: Path, rng: np.random.Generator) -> bool:
    """Links in loops, groups in groups, types that have names, and much of everything, beside what is read."""
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        name, what = str(rng.choice(sorted(datasets(file)))), int(rng.integers(7))
        if what == 0:
            file["loop"] = file["/"]
        elif what == 1:
            del file[name]
            file[name] = h5py.SoftLink(f"/{name}")
        elif what == 2:
            place = file
            for _ in range(300):
                place = place.create_group("g")
        elif what == 3:
            for number in range(3000):
                file.attrs[f"a{number}"] = number
        elif what == 4:
            del file[name]
            file[name] = np.dtype([("a", "i8"), ("b", "f4")])
        elif what == 5:
            values = file[name][...]
            del file[name]
            file[name] = file.create_dataset("again", data=values)
        else:
            del file[name]
            file[name] = file["/"]
    return False


def hostile(path: Path, other: Path, rng: np.random.Generator) -> bool:
    """A dataset or a text of the header in a form that the tests know."""
    from helpers.hostile import HOSTILE, HOSTILE_HEADERS

    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        if rng.random() < 0.1:
            list(HOSTILE_HEADERS.values())[int(rng.integers(len(HOSTILE_HEADERS)))](file)
            return False
        name = str(rng.choice(sorted(datasets(file))))
        list(HOSTILE.values())[int(rng.integers(len(HOSTILE)))](file, name, path.parent)
    return False


def resealed(path: Path, other: Path, rng: np.random.Generator) -> bool:
    """A dataset or an entry of the header, with a fingerprint that is right again."""
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        inputs, params = (json.loads(bytes(file.attrs[name])) for name in ("inputs", "params"))
        arrays = datasets(file)
        if rng.random() < 0.5:
            change_json(params if rng.random() < 0.8 else inputs, rng)
        else:
            name = str(rng.choice(sorted(arrays)))
            arrays[name] = another_array(arrays[name], rng)
            put(file, name, arrays[name])
        kind = bytes(file.attrs["fastkd_kind"]).decode()
        if kind == "logit-store":
            arrays = {name: arrays[name] for name in ("sample_ids", "probes", "probe_crc32c")}
        for name, value in (("inputs", inputs), ("params", params)):
            file.attrs[name] = np.bytes_(json.dumps(value, sort_keys=True).encode())
        digest = content_fingerprint(kind, inputs, params, arrays)
        file.attrs["fingerprint"] = np.bytes_(digest.encode())
        if "about" in file.attrs:
            about = bytes(file.attrs["about"]).decode()
            file.attrs["about_digest"] = np.bytes_(fingerprint([digest, about]).encode())
    return True
