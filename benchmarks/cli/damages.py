"""The ways in which `damaged_artefacts` damages a file: its bytes here, what HDF5 or JSON holds beside; and which suit a file.

A way changes a file in place, by a generator of random numbers and another file of its kind, and returns whether the changed
content was sealed again with right fingerprints: what then reads as something else is not damage that anybody could see.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.cli.hdf5_damages import attribute, dataset, hostile, resealed, structure
from benchmarks.cli.json_damages import entry, resealed_run, resealed_state, safetensors, text

Way = Callable[[Path, Path, np.random.Generator], bool]
EXTREMES = (bytes(8), b"\xff" * 8, (2**63).to_bytes(8, "little"), (2**63 - 1).to_bytes(8, "little"), b"\x01" + bytes(7))


def flip(path: Path, other: Path, rng: np.random.Generator) -> bool:
    """Bits, mostly not those of padding."""
    data = np.fromfile(path, np.uint8)
    used = np.flatnonzero(np.convolve(data > 0, np.ones(17), "same") > 0.5)
    for _ in range(rng.integers(1, 4)):
        at = rng.choice(used) if len(used) and rng.random() < 0.9 else rng.integers(len(data))
        data[at] ^= 1 << rng.integers(8)
    data.tofile(path)
    return False


def extreme(path: Path, other: Path, rng: np.random.Generator) -> bool:
    """A number of 1 to 8 bytes, near the head as a rule."""
    data = bytearray(path.read_bytes())
    size = int(rng.choice([1, 2, 4, 8]))
    at = int(rng.integers(min(len(data), 4096 if rng.random() < 0.6 else len(data))))
    data[at : at + size] = EXTREMES[int(rng.integers(len(EXTREMES)))][-size:]
    path.write_bytes(data)
    return False


def cut(path: Path, other: Path, rng: np.random.Generator) -> bool:
    size = path.stat().st_size
    os.truncate(path, int(rng.choice([rng.integers(size), max(0, size - rng.integers(1, 100)), 0])))
    return False


def lengthen(path: Path, other: Path, rng: np.random.Generator) -> bool:
    with path.open("ab") as file:
        file.write(bytes(int(rng.integers(1, 9000))) if rng.random() < 0.3 else rng.bytes(int(rng.integers(1, 9000))))
    return False


def exchange(path: Path, other: Path, rng: np.random.Generator) -> bool:
    """Two blocks of one size."""
    data = bytearray(path.read_bytes())
    size = int(rng.choice([1, 8, 64, 512, 4096]))
    a, b = (int(x) * size for x in rng.integers(0, max(1, len(data) // size), 2))
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    path.write_bytes(data)
    return False


def splice(path: Path, other: Path, rng: np.random.Generator) -> bool:
    """A part of it, the rest of the other."""
    mine, its = path.read_bytes(), other.read_bytes()
    at = int(rng.integers(1, max(2, min(len(mine), len(its)))))
    path.write_bytes(mine[:at] + its[at:] if rng.random() < 0.5 else its[:at] + mine[at:])
    return False


def patch(path: Path, other: Path, rng: np.random.Generator) -> bool:
    """A piece of the other in the same place."""
    data, its = bytearray(path.read_bytes()), other.read_bytes()
    at, size = int(rng.integers(len(data))), int(rng.integers(1, 2000))
    data[at : at + size] = its[at : at + size]
    path.write_bytes(data)
    return False


BYTES: tuple[Way, ...] = (flip, flip, extreme, cut, lengthen, exchange, splice, patch)
HDF5: tuple[Way, ...] = (
    *BYTES,
    attribute,
    attribute,
    dataset,
    dataset,
    structure,
    hostile,
    hostile,
    resealed,
    resealed,
)


def ways_of(path: Path) -> tuple[Way, ...]:
    """Those that suit a file."""
    if path.suffix == ".h5":
        return HDF5
    if path.suffix == ".pt":
        return (*BYTES, resealed_state, resealed_state)
    if path.suffix == ".safetensors":
        return (*BYTES, safetensors, safetensors)
    if path.suffix == ".csv":
        return (*BYTES, text)
    return (
        *BYTES,
        entry,
        entry,
        entry,
        text,
        *((resealed_run,) * 3 if path.name in ("run.json", "result.json") else ()),
    )
