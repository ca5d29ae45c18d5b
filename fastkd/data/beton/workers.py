"""Encoding the samples of a source in worker processes.

A worker's exception (or death) reaches the caller, and nothing is left in shared memory. Workers die with the process that
started them, whatever ended that: each reads from a pipe whose other end nobody else has.
"""

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from fastkd.data.beton.encode import Encoded, WriteOptions, encode
from fastkd.data.sources.open import Source
from fastkd.errors import FastKDError, OptionError

_PROBES = 32  # samples at most, one in 64, encoded beforehand to estimate the time and the space that all of them take
CHUNK = 64  # samples a job: small enough that the pages in flight stay a few megabytes
Item = tuple[Encoded | FastKDError, tuple[int, int]]
"""An encoded sample, or the error that took its place, with the stamp of what it was made of (`Source.stamp`)."""


def encode_chunk(source: Source, ids: range, options: WriteOptions) -> list[Item]:
    """These samples, encoded, in order, by this process; errors take the place of the samples that caused them."""
    results: list[Item] = []
    for i in ids:
        stamp = source.stamp(i)  # before it is read: a change in between shows as one
        try:
            results.append((encode(source.read(i), source.names[i], options), stamp))
        except FastKDError as error:
            results.append((error, stamp))
    return results


def probe(source: Source, options: WriteOptions, path: Path) -> float:
    """Seconds that one process needs for all samples, estimated from some of them.

    Raises:
        OptionError: the disk is too small for them.
    """
    ids = np.unique(np.linspace(0, len(source) - 1, min(_PROBES, 1 + len(source) // CHUNK)).astype(int)).tolist()
    sizes, seconds = [], []
    for i in ids:
        begin = time.perf_counter()
        for item, _ in encode_chunk(source, range(i, i + 1), options):
            if isinstance(item, Encoded):
                sizes.append(len(item.payload))
        seconds.append(time.perf_counter() - begin)
    if sizes:
        require_room(path, sum(sizes) / len(sizes) * len(source))
    later = seconds[1:] or seconds  # the first one loads compiled code and the zip's directory
    return sum(later) / len(later) * len(source)


def require_room(path: Path, needed: float) -> None:
    """Refuses what cannot fit: an estimate of sizes is taken for a tenth too large, and a part that stands is counted."""
    partial = path.with_name(path.name + ".partial")
    free = shutil.disk_usage(path.parent).free + (partial.stat().st_size if partial.exists() else 0)
    if free < 0.9 * needed:
        raise OptionError(
            f"{path}: needs about {needed / 2**30:,.1f} GiB, {path.parent} has {free / 2**30:,.1f} GiB free; free some, or give a "
            f"smaller --max-size or --mode"
        )


_worker: tuple[Source, WriteOptions] | None = None  # what this worker process encodes; sent once, not with every job


def _start_worker(source: Source, options: WriteOptions, lifeline: Connection) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the first one decides
    threading.Thread(target=_die_with, args=(lifeline,), daemon=True).start()
    _worker = source, options


def _die_with(lifeline: Connection) -> None:
    """Ends this process when the other end of the pipe is closed."""
    with suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)


def _encode_job(ids: range) -> list[Item]:
    assert _worker is not None
    return encode_chunk(_worker[0], ids, _worker[1])


def encode_all(source: Source, options: WriteOptions, num_workers: int, first: int) -> Iterator[Item]:
    """Every sample from `first` on, encoded, in order.

    Raises:
        FastKDError: a worker process was killed.
    """
    chunks = [range(start, min(start + CHUNK, len(source))) for start in range(first, len(source), CHUNK)]
    if num_workers <= 1 or len(chunks) <= 1:
        for chunk in chunks:
            yield from encode_chunk(source, chunk, options)
        return
    context = multiprocessing.get_context("forkserver")  # fork is unsafe once Numba or OpenCV run threads
    context.set_forkserver_preload(["fastkd.data.beton.encode", "ffcv.fields"])
    reader, writer = context.Pipe(duplex=False)
    with reader, writer, ProcessPoolExecutor(num_workers, context, _start_worker, (source, options, reader)) as pool:
        waiting: deque = deque()
        try:
            for chunk in chunks:
                waiting.append(pool.submit(_encode_job, chunk))
                if len(waiting) > 4 * num_workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool:
            raise FastKDError(
                "a worker process of build-beton was killed (out of memory?); try fewer --num-workers"
            ) from None
        except BaseException:
            writer.close()  # the workers end at once: nobody waits for what they are at
            raise
        finally:
            pool.shutdown(cancel_futures=True)
