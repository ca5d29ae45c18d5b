"""The ways in which `damaged_artefacts` damages what JSON says: in files of it, of a run and its state, and in the head of safetensors."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

from fastkd.fingerprint import fingerprint
from fastkd.train.resume import load_resume, save_resume
from fastkd.train.run_folder import with_checksum

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
