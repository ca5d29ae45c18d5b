"""Claim: a batch of random rows comes out of a store at the speed of memory.

1,024 random rows of an int8+top4 store with 1,000 classes (1,024 B each), page cache warm, one thread, eight batches a turn: `LogitStore.gather`
against a copy of as many bytes from one place in the same mapping (the ceiling), numpy's fancy indexing of the mapping,
h5py's fancy indexing with sorted rows, and a seek and a read for
each row (a Python file with its usual buffer, as TinyViT reads). Beside it, what a loader does: gather,
checksum and decoding to float32 in Numba, and the same decoding by torch operations after the gather. Asserted in the same run: all of them read the same bytes.

    python -m benchmarks.store.store_gather [--rows 100000]
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch

from benchmarks import measure
from fastkd.store.codec import decode_rows, make_codec
from fastkd.store.filling import StoreFiller, create_store
from fastkd.store.gather import gather_rows
from fastkd.store.logit_store import LogitStore
from fastkd.store.tables import read_tables

NUM_CLASSES, BATCH, BATCHES_A_TURN = 1000, 1024, 8


def make_store(path: Path, num_rows: int) -> LogitStore:
    """A store of one plane of random logits."""
    create_store(
        path,
        sample_ids=np.random.default_rng(0).permutation(num_rows),
        num_seeds=1,
        codec=make_codec("int8+top4", NUM_CLASSES),
        block_rows=4096,
        inputs={},
        params={},
        probes=np.zeros((0, 2), np.int64),
        probe_crc32c=np.zeros(0, np.uint32),
    )
    tables, rng = read_tables(path), np.random.default_rng(1)
    filler = StoreFiller(tables)
    for block in range(tables.num_blocks):
        shape = (len(filler.block_ids(block)), NUM_CLASSES)
        filler.write(0, block, rng.normal(scale=4, size=shape).astype(np.float32))
    filler.close()
    return LogitStore(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.h5"
        store = make_store(path, args.rows)
        codec, offset = store.tables.codec, store.tables.logits_offset
        flat, words = store.records[0], store.records.reshape(-1).view(np.uint64)
        rng = np.random.default_rng(2)
        batches = [rng.choice(args.rows, BATCH, replace=False) for _ in range(512)]
        starts = rng.integers(0, args.rows - BATCH, 512)
        turn = iter(range(10**9))
        out = np.empty((BATCH, codec.row_bytes), np.uint8)
        dataset = h5py.File(path, "r")["logits"]
        file = path.open("rb")

        def gather(rows: np.ndarray) -> np.ndarray:
            gather_rows(words, rows, out.view(np.uint64))
            return out

        def take(rows: np.ndarray) -> np.ndarray:
            return np.take(flat, rows, axis=0, out=out)

        def h5py_sorted(rows: np.ndarray) -> np.ndarray:
            order = np.argsort(rows)
            out[order] = dataset[0, rows[order]]
            return out

        def seek_and_read(rows: np.ndarray) -> np.ndarray:
            found = []
            for row in rows.tolist():
                file.seek(offset + row * codec.row_bytes)
                found.append(np.frombuffer(file.read(codec.row_bytes), np.uint8))
            return np.stack(found)

        def copy(_: np.ndarray) -> np.ndarray:
            start = starts[next(turn) % 512]
            np.copyto(out, flat[start : start + BATCH])
            return out

        readers = {"gather": gather, "take": take, "h5py": h5py_sorted, "seek": seek_and_read}
        for rows in batches[:4]:
            for name, reader in readers.items():
                assert np.array_equal(reader(rows), flat[rows]), name
            ids = store.sample_ids[rows]
            assert np.array_equal(store.gather(ids, 0), flat[rows])
            assert np.array_equal(store.read(ids, 0), decode_rows(codec, store.records, rows, store.tables.salt)[0])
        num = NUM_CLASSES
        floats = torch.empty(BATCH, num)

        def by_torch(rows: np.ndarray) -> torch.Tensor:
            """What a training device would do with gathered records, here on the CPU; without the checksums."""
            records = torch.from_numpy(gather(rows))
            tail = records[:, num : num + 20].contiguous().view(torch.float16).float()
            torch.add(tail[:, 1:2], records[:, :num] * tail[:, :1], out=floats)
            top = records[:, num + 4 : num + 20].contiguous().view(torch.int16)[:, ::2].long() & 0xFFFF
            return floats.scatter_(1, top, tail[:, 3::2])

        for rows in batches[:4]:
            expected, good = decode_rows(codec, store.records, rows, store.tables.salt)
            assert good.all()
            assert np.array_equal(by_torch(rows).numpy(), expected)
        readers |= {
            "memcpy": copy,
            "by_torch": by_torch,
            "decoded": lambda rows: decode_rows(codec, store.records, rows, store.tables.salt)[0],
        }

        def run(reader) -> None:
            for _ in range(BATCHES_A_TURN):
                reader(batches[next(turn) % 512])

        seconds = measure.interleave(
            {name: (lambda reader=reader: run(reader)) for name, reader in readers.items()},
            rounds=args.rounds,
            warmup=4,
        )
        file.close()
    measure.save(
        "store_gather",
        {
            "gather_time_over_memcpy": measure.ratios(seconds, "memcpy", "gather"),
            "gather_speed_over_h5py": measure.ratios(seconds, "gather", "h5py"),
            "gather_speed_over_seek_and_read": measure.ratios(seconds, "gather", "seek"),
            "gather_speed_over_numpy_take": measure.ratios(seconds, "gather", "take"),
            "decoded_time_over_memcpy": measure.ratios(seconds, "memcpy", "decoded"),
            "decoded_speed_over_torch": measure.ratios(seconds, "decoded", "by_torch"),
            "us_a_batch": {name: 1e6 * statistics.median(times) / BATCHES_A_TURN for name, times in seconds.items()},
            "rows_a_batch": BATCH,
            "row_bytes": codec.row_bytes,
            "rows": args.rows,
            "rounds": args.rounds,
        },
    )


if __name__ == "__main__":
    main()
