"""Reads a file again and again, each time with another bit flipped; in a process of its own, which may hang or crash.

`python damage.py FILE COUNT SEED` prints how many copies were refused, read the same, or went wrong.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from fastkd.errors import FastKDError
from fastkd.prune.masks.mask import Mask
from fastkd.prune.scores.score_file import load_scores
from fastkd.store.logit_store import LogitStore

_HANGS_AFTER_S = 30


def read_all(path: Path, kind: str) -> list:
    """Everything that a user gets out of a mask, a score file or a store."""
    if kind == "mask":
        mask = Mask.load(path)
        weights = None if mask.weights is None else mask.weights.tolist()
        return [mask.header, mask.num_samples, mask.sample_ids.tolist(), weights]
    if kind == "scores":
        scores = load_scores(path)
        arrays = {**scores.values, **scores.extras}
        return [scores.header, scores.methods, {name: value.tolist() for name, value in arrays.items()}]
    store = LogitStore(path)
    rows = [store.read(store.sample_ids, seed).tolist() for seed in range(store.num_seeds)]
    return [store.tables.header, store.sample_ids.tolist(), rows]


def flip_bits(path: Path, kind: str, count: int, seed: int) -> dict[str, list[str]]:
    """Outcomes of `count` flips, all of them by name except those that are as they should be."""
    whole, expected = path.read_bytes(), read_all(path, kind)
    rng = np.random.default_rng(seed)
    outcomes: dict[str, list[str]] = {"refused": [], "same": [], "wrong": []}
    copy = path.with_name(path.name + ".damaged")
    used = np.convolve(np.frombuffer(whole, np.uint8) > 0, np.ones(17), "same") > 0.5  # not the middle of padding
    for at in rng.choice(np.flatnonzero(used), count).tolist():
        bit = int(rng.integers(8))
        damaged = bytearray(whole)
        damaged[at] ^= 1 << bit
        copy.write_bytes(damaged)
        where = f"byte {at}, bit {bit}"
        print(where, file=sys.stderr, flush=True)
        signal.alarm(_HANGS_AFTER_S)
        try:
            outcomes["same" if read_all(copy, kind) == expected else "wrong"].append(where)
        except FastKDError as error:
            outcomes["refused" if "\n" not in str(error) else "wrong"].append(where)
        except Exception as error:
            outcomes["wrong"].append(f"{where}: {type(error).__name__}: {error}")
    return outcomes


def flip_bits_apart(path: Path, kind: str, count: int, seed: int = 0) -> dict[str, list[str]]:
    """The same in a process of its own; a crash or a hang is among what went wrong."""
    command = [sys.executable, __file__, str(path), kind, str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        return {"refused": [], "same": [], "wrong": [f"the interpreter ended with {done.returncode} after {last}"]}
    return json.loads(done.stdout)


if __name__ == "__main__":
    file, kind, count, seed = sys.argv[1:]
    print(json.dumps(flip_bits(Path(file), kind, int(count), int(seed))))


def flipped(content: bytes, i: int, bit: int) -> bytes:
    return content[:i] + bytes([content[i] ^ 1 << bit]) + content[i + 1 :]
