"""The ways in which `damaged_artefacts` damages a file: its bytes, what HDF5 or JSON holds, and what they can be made to say.

A way changes a file in place, by a generator of random numbers and another file of its kind, and returns whether the changed
content was sealed again with right fingerprints: what then reads as something else is not damage that anybody could see.
"""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastkd.artefact import content_fingerprint
from fastkd.fingerprint import fingerprint
from fastkd.train.resume import load_resume, save_resume
from fastkd.train.run_folder import with_checksum

Way = Callable[[Path, Path, np.random.Generator], bool]
EXTREMES = (bytes(8), b"\xff" * 8, (2**63).to_bytes(8, "little"), (2**63 - 1).to_bytes(8, "little"), b"\x01" + bytes(7))
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        2**31,
        2**63,
        -(2**63),
        10**30,
        0.5,
        -0.5,
        1e308,
        1e-320,
        float("nan"),
        float("inf"),
    ),
    *(
        "",
        "x",
        "0" * 32,
        "\0",
        "\x1b[2J",
        "é" * 3,
        "../x",
        "a" * 100_000,
        [],
        {},
        [[]],
        [1, 2, 3],
        {"a": 1},
        [None] * 1000,
    ),
)
"""What stands in JSON in the place of something else."""
TEXTS = (
    b"",
    b"\xef\xbb\xbf{}",
    b"null",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"9" * 10_000,
    b"\xff\xfe",
    b"{}",
    b"{",
    b"NaN",
)


# Bytes


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


# JSON


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every entry of a JSON value: what it is in, and under which key."""
    entries = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [place for key, one in entries for place in [(value, key), *places(one)]]


def change_json(value: Any, rng: np.random.Generator) -> None:
    """One entry becomes another value, the value of another entry, or none."""
    found = places(value)
    holder, key = found[int(rng.integers(len(found)))]
    what = rng.random()
    if what < 0.15:
        del holder[key]
    elif what < 0.3:
        of, name = found[int(rng.integers(len(found)))]
        holder[key] = copy.deepcopy(of[name])
    elif what < 0.4 and isinstance(holder[key], int | float):
        holder[key] = holder[key] * -1 if rng.random() < 0.5 else holder[key] + 1
    else:
        holder[key] = VALUES[int(rng.integers(len(VALUES)))]


def entry(path: Path, other: Path, rng: np.random.Generator) -> bool:
    """An entry of a JSON file, or of a line of it."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    at = int(rng.integers(len(lines)))
    value = json.loads(lines[at])
    change_json(value, rng)
    lines[at] = json.dumps(value)
    path.write_text("\n".join(lines) + "\n")
    return False


def text(path: Path, other: Path, rng: np.random.Generator) -> bool:
    """Another text, or with its lines in disorder."""
    if rng.random() < 0.5:
        path.write_bytes(TEXTS[int(rng.integers(len(TEXTS)))])
        return False
    lines = path.read_bytes().splitlines(keepends=True)
    a, b = (int(x) for x in rng.integers(len(lines), size=2))
    what = int(rng.integers(3))
    lines = [
        lines[:a] + lines[a + 1 :],
        [*lines[:a], lines[b], *lines[a:]],
        [*lines[:a], b"9" * 5000 + b"\n", *lines[a:]],
    ][what]
    path.write_bytes(b"".join(lines))
    return False


def resealed_run(path: Path, other: Path, rng: np.random.Generator) -> bool:
    """An entry of run.json or result.json, with checksums that are right again."""
    contents = {
        name: json.loads((path.parent / name).read_text())
        for name in ("run.json", "result.json")
        if (path.parent / name).exists()
    }
    change_json(contents.get(path.name, contents["run.json"]), rng)
    head, result = contents["run.json"], contents.get("result.json")
    head["fingerprint"] = fingerprint(
        [json.dumps({name: head.get(name) for name in ("inputs", "params")}, sort_keys=True)]
    )
    if result is not None and path.name == "run.json":
        result["run"] = head["fingerprint"]
    for name, content in contents.items():
        whole = with_checksum({key: value for key, value in content.items() if key != "checksum"})
        (path.parent / name).write_text(json.dumps(whole))
    return True


def resealed_state(path: Path, other: Path, rng: np.random.Generator) -> bool:
    """An entry of a resume state."""
    state = load_resume(path)
    change_json(state, rng)
    save_resume(path, state)
    return True


def safetensors(path: Path, other: Path, rng: np.random.Generator) -> bool:
    """An entry of the header; its metadata are JSON in JSON."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])
    if rng.random() < 0.5:
        name = str(rng.choice(sorted(head["__metadata__"])))
        head["__metadata__"][name] = str(VALUES[int(rng.integers(len(VALUES)))])
    else:
        change_json(head, rng)
    text = json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    return True


# HDF5


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
