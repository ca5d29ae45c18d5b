"""Claim: a damaged logit store is never taken for a whole one.

Copies of a small store are damaged, each in a way of its own drawn by seed: bits and bytes changed, ranges zeroed, cut,
lengthened, rows, blocks, planes and pages exchanged, attributes and datasets changed or taken away, files of other kinds.
Every copy is verified and read in a process that may hang or crash. Asserted: verify finds whatever changes a byte that
matters, no read gives other logits, every refusal is one line, nothing hangs or crashes.

    python -m benchmarks.store.store_damage --count 5000 [--embeddings]
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from benchmarks import measure
from fastkd.errors import FastKDError
from fastkd.prune.masks.mask import save_mask
from fastkd.store.codec import make_codec
from fastkd.store.filling import StoreFiller, create_store
from fastkd.store.logit_store import LogitStore
from fastkd.store.tables import read_tables
from fastkd.store.verify import verify_store

NUM_SEEDS, NUM_ROWS, NUM_CLASSES, BLOCK_ROWS = 3, 50, 70, 8
EMBEDDING_DIM = 40  # records of 128 B, as those of the logits, so that one may stand in the place of the other
HANGS_AFTER_S = 60


def make_store(path: Path, seed: int, codec: str = "int8+top4", *, embeddings: bool = False) -> None:
    """A small store of random logits, and embeddings; other seeds make other inputs, too."""
    rng = np.random.default_rng(seed)
    more = {"embedding": {"layer": "fc:input", "dim": EMBEDDING_DIM}} if embeddings else {}
    probes = np.stack([rng.permutation(NUM_ROWS)[:20], np.arange(20) % NUM_SEEDS], 1)
    create_store(
        path,
        sample_ids=rng.permutation(NUM_ROWS),
        num_seeds=NUM_SEEDS,
        codec=make_codec(codec, NUM_CLASSES),
        block_rows=BLOCK_ROWS,
        inputs={"beton": f"{seed:032x}", "teacher": f"{seed + 7:032x}"},
        params={"views": {"kind": "crop-flip", "size": 32}, "pixels": f"decoder/{seed}"} | more,
        probes=probes,
        probe_crc32c=rng.integers(0, 2**32, 20),
    )
    tables = read_tables(path)
    filler = StoreFiller(tables)
    for aug_seed in range(NUM_SEEDS):
        for block in range(tables.num_blocks):
            shape = (len(filler.block_ids(block)), NUM_CLASSES)
            logits, num_correct = rng.normal(0, 4, shape).astype(np.float32), int(rng.integers(shape[0] + 1))
            inside = rng.normal(0, 1, (shape[0], EMBEDDING_DIM)).astype(np.float32) if embeddings else None
            filler.write(aug_seed, block, logits, num_correct, embeddings_BD=inside)
    filler.close()


def flip_bit(path: Path, other: Path, rng: np.random.Generator) -> None:
    data = np.fromfile(path, np.uint8)
    used = np.flatnonzero(np.convolve(data > 0, np.ones(17), "same") > 0.5)  # not the middle of padding
    at = rng.choice(used) if rng.random() < 0.9 else rng.integers(len(data))
    data[at] ^= 1 << rng.integers(8)
    data.tofile(path)


def change_bytes(path: Path, other: Path, rng: np.random.Generator) -> None:
    data, length = np.fromfile(path, np.uint8), rng.integers(1, 64)
    at = rng.integers(len(data) - length)
    data[at : at + length] = rng.integers(0, 256, length) if rng.random() < 0.7 else 0
    data.tofile(path)


def cut(path: Path, other: Path, rng: np.random.Generator) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.integers(len(data))])


def lengthen(path: Path, other: Path, rng: np.random.Generator) -> None:
    with path.open("ab") as file:
        file.write(rng.bytes(int(rng.integers(1, 9000))))


def exchange(path: Path, other: Path, rng: np.random.Generator) -> None:
    """Two rows, blocks or planes of any output, or pages of the file."""
    tables, data = read_tables(path), np.fromfile(path, np.uint8)
    unit = int(rng.choice([1, BLOCK_ROWS, NUM_ROWS])) * tables.codec.row_bytes
    places = np.arange(len(data) // 4096) * 4096
    if rng.random() < 0.7:
        count = NUM_SEEDS * NUM_ROWS * tables.codec.row_bytes // unit
        places = np.concatenate([output.offset + np.arange(count) * unit for output in tables.outputs])
    else:
        unit = 4096
    a, b = rng.choice(places, 2, replace=False)
    data[a : a + unit], data[b : b + unit] = data[b : b + unit].copy(), data[a : a + unit].copy()
    data.tofile(path)


def change_attribute(path: Path, other: Path, rng: np.random.Generator) -> None:
    """From another store, away, or of another type."""
    with h5py.File(path, "r+") as file, h5py.File(other) as source:
        name = str(rng.choice(["fastkd_kind", "format_version", "fingerprint", "inputs", "params"]))
        kind = rng.integers(4)
        if kind == 0:
            del file.attrs[name]
        elif kind == 1:
            file.attrs[name] = rng.integers(0, 9, 3)
        elif kind == 2 and name != "format_version":
            text = bytearray(bytes(file.attrs[name]))
            text[rng.integers(len(text))] ^= 1 << rng.integers(7)
            file.attrs[name] = np.bytes_(bytes(text))
        else:
            file.attrs[name] = source.attrs[name] if name not in ("fastkd_kind", "format_version") else 2


def change_dataset(path: Path, other: Path, rng: np.random.Generator) -> None:
    """From another store, away, of another type, or with two entries exchanged."""
    with h5py.File(path, "r+") as file, h5py.File(other) as source:
        name = str(rng.choice(sorted(file)))
        kind = rng.integers(4)
        if kind == 0:
            del file[name]
        elif kind == 1:
            content = file[name][...]
            del file[name]
            file[name] = content.astype("f4") if rng.random() < 0.5 else content[:-1]
        elif kind == 2:
            content = file[name][...].reshape(-1)
            a, b = rng.choice(len(content), 2, replace=False)
            content[[a, b]] = content[[b, a]]
            file[name][...] = content.reshape(file[name].shape)
        else:
            file[name][...] = source[name][...]


def another_kind(path: Path, other: Path, rng: np.random.Generator) -> None:
    contents: list[Callable[[], bytes]] = [
        lambda: b"",
        lambda: b"just text\n",
        lambda: bytes(int(rng.integers(1, 99_999))),
        lambda: rng.bytes(int(rng.integers(1, 99_999))),
        lambda: b"\x89HDF\r\n\x1a\n" + rng.bytes(int(rng.integers(0, 9999))),
        lambda: path.read_bytes()[:48] + rng.bytes(9999),
        lambda: b"PK\3\4" + rng.bytes(500),
    ]
    choice = int(rng.integers(len(contents) + 2))
    if choice < len(contents):
        path.write_bytes(contents[choice]())
    elif choice == len(contents):
        save_mask(path, np.arange(9), num_samples=50, beton_fingerprint="b" * 32, params={}, force=True)
    else:
        with h5py.File(path, "w") as file:
            file["logits"] = np.zeros((NUM_SEEDS, NUM_ROWS, 128), np.uint8)


WAYS = (
    flip_bit,
    flip_bit,
    flip_bit,
    change_bytes,
    cut,
    lengthen,
    exchange,
    change_attribute,
    change_dataset,
    another_kind,
)


def content_of(path: Path) -> list:
    """All of a store that means something."""
    t = read_tables(path)
    arrays = (t.sample_ids, t.done, t.top1, t.probes, t.probe_crc32c)
    records = [t.map_records(output).tobytes() for output in t.outputs]
    return [t.header, *(array.tolist() for array in arrays), records, path.stat().st_size]


def readers(store: LogitStore) -> list[Callable[[np.ndarray, int], np.ndarray]]:
    """What reads each of its outputs."""
    return [store.read] if store.embedding_dim is None else [store.read, store.read_embeddings]


def judge(path: Path, whole: list, values: list[np.ndarray], ids: np.ndarray) -> str:
    """What becomes of a damaged copy: found, harmless, or how it went wrong."""
    try:
        problems = verify_store(path)
    except FastKDError as error:
        problems = [str(error)]
    if any("\n" in line for line in problems):
        return "wrong: more than one line"
    if not problems and content_of(path) != whole:
        return "wrong: verify found nothing"
    try:
        store = LogitStore(path)
    except FastKDError:
        return "found" if problems else "wrong: verify found nothing, opening did"
    for aug_seed in range(min(NUM_SEEDS, store.num_seeds)):
        for rows in (slice(None), *(slice(i, i + 1) for i in range(0, NUM_ROWS, 7))):
            for read, expected in zip(readers(store), values, strict=False):
                try:
                    found = read(ids[rows], aug_seed)
                except FastKDError:
                    continue
                if not np.array_equal(found, expected[aug_seed, rows]):
                    return "wrong: other values were read"
    return "found" if problems else "harmless"


def damage(folder: Path, first: int, end: int, seed: int) -> None:
    """Judges the copies first … end-1 and prints a line for each; what the parent reads."""
    whole, other, copy = folder / "whole.h5", folder / "other.h5", folder / "copy.h5"
    content, store = content_of(whole), LogitStore(whole)
    ids = store.sample_ids
    values = [np.stack([read(ids, aug_seed) for aug_seed in range(NUM_SEEDS)]) for read in readers(store)]
    data = whole.read_bytes()
    for number in range(first, end):
        rng = np.random.default_rng([seed, number])
        way = WAYS[number % len(WAYS)]
        copy.unlink(missing_ok=True)  # a mapping of the copy before it stays what it was
        copy.write_bytes(data)
        way(copy, other, rng)
        signal.alarm(HANGS_AFTER_S)
        try:
            outcome = judge(copy, content, values, ids)
        except Exception as error:
            outcome = f"wrong: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        signal.alarm(0)
        print(json.dumps([number, way.__name__, outcome]), flush=True)


def damage_many(folder: Path, count: int, seed: int = 0, *, embeddings: bool = False) -> dict:
    """Outcomes of `count` damaged copies by way; processes that die are started again behind the copy that killed them."""
    make_store(folder / "whole.h5", 0, embeddings=embeddings)
    make_store(folder / "other.h5", 1, embeddings=embeddings)
    outcomes: dict[str, Counter] = {way.__name__: Counter() for way in WAYS}
    wrong, at = [], 0
    while at < count:
        end = min(at + 500, count)
        command = measure.script(__spec__.name, "--worker", folder, at, end, seed)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            number, way, outcome = json.loads(line)
            outcomes[way][outcome.split(":")[0]] += 1
            if outcome.startswith("wrong"):
                wrong.append([number, way, outcome])
            at = number + 1
        if at < end:
            way = WAYS[at % len(WAYS)].__name__
            outcomes[way]["wrong"] += 1
            wrong.append([at, way, f"the process ended with {done.returncode}: {done.stderr.strip()[-200:]}"])
            at += 1
    return {"copies": count, "outcomes": {way: dict(found) for way, found in outcomes.items()}, "wrong": wrong}


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        folder, first, end, seed = sys.argv[2:]
        damage(Path(folder), int(first), int(end), int(seed))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--embeddings", action="store_true", help="of a store that holds embeddings, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = damage_many(Path(folder), args.count, args.seed, embeddings=args.embeddings)
    measure.save("store_damage_embeddings" if args.embeddings else "store_damage", result)
    assert not result["wrong"]


if __name__ == "__main__":
    main()
