"""Writing betons: source images into FFCV's file format, atomically and the same bytes every time.

Samples are encoded by worker processes and laid into pages by this one, in sample order: a worker's exception (or death)
reaches the caller, nothing is left in shared memory, and the file does not depend on the number of workers.
"""

import json
import multiprocessing
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from fastkd.data.beton.encode import Encoded, WriteOptions, encode, stored
from fastkd.data.beton.pages import PageWriter
from fastkd.data.beton.read import Beton, manifest_path, open_beton, read_manifest, write_manifest
from fastkd.data.sources.open import Source
from fastkd.errors import FastKDError, OptionError, SourceError
from fastkd.fingerprint import fingerprint
from fastkd.writing import require_folder, sync_file

_CHUNK = 64  # samples a job: small enough that the pages in flight stay a few megabytes
_PROBES = 32  # samples at most, one in 64, encoded beforehand to estimate the time and the space that all of them take
_MIN_PARALLEL_S = 10.0  # work of less than this is over before worker processes are there


def _encode_chunk(source: Source, ids: range, options: WriteOptions) -> list[Encoded | FastKDError]:
    results: list[Encoded | FastKDError] = []
    for i in ids:
        try:
            results.append(encode(source.read(i), source.names[i], options))
        except FastKDError as error:
            results.append(error)
    return results


_worker: tuple[Source, WriteOptions] | None = None  # what this worker process encodes; sent once, not with every job


def _start_worker(source: Source, options: WriteOptions) -> None:
    global _worker
    _worker = source, options


def _encode_job(ids: range) -> list[Encoded | FastKDError]:
    assert _worker is not None
    return _encode_chunk(_worker[0], ids, _worker[1])


def _encode_all(source: Source, options: WriteOptions, num_workers: int, first: int) -> Iterator[Encoded | FastKDError]:
    """Every sample from `first` on, encoded, in order; errors take the place of the samples that caused them."""
    chunks = [range(start, min(start + _CHUNK, len(source))) for start in range(first, len(source), _CHUNK)]
    if num_workers <= 1 or len(chunks) <= 1:
        for chunk in chunks:
            yield from _encode_chunk(source, chunk, options)
        return
    context = multiprocessing.get_context("forkserver")  # fork is unsafe once Numba or OpenCV run threads
    context.set_forkserver_preload(["fastkd.data.beton.encode", "ffcv.fields"])
    with ProcessPoolExecutor(num_workers, context, _start_worker, (source, options)) as pool:
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
        finally:
            pool.shutdown(cancel_futures=True)


def _probe(source: Source, options: WriteOptions, path: Path) -> float:
    """Seconds that one process needs for all samples, estimated from some of them.

    Raises:
        OptionError: the disk is too small for them.
    """
    ids = np.unique(np.linspace(0, len(source) - 1, min(_PROBES, 1 + len(source) // _CHUNK)).astype(int)).tolist()
    sizes, seconds = [], []
    for i in ids:
        begin = time.perf_counter()
        for item in _encode_chunk(source, range(i, i + 1), options):
            if isinstance(item, Encoded):
                sizes.append(len(item.payload))
        seconds.append(time.perf_counter() - begin)
    if sizes:
        _check_space(path, sum(sizes) / len(sizes) * len(source))
    later = seconds[1:] or seconds  # the first one loads compiled code and the zip's directory
    return sum(later) / len(later) * len(source)


def _check_space(path: Path, needed: float) -> None:
    """Refuses what cannot fit: an estimate of sizes is taken for a tenth too large, and a part that stands is counted."""
    partial = path.with_name(path.name + ".partial")
    free = shutil.disk_usage(path.parent).free + (partial.stat().st_size if partial.exists() else 0)
    if free < 0.9 * needed:
        raise OptionError(
            f"{path}: needs about {needed / 2**30:,.1f} GiB, {path.parent} has {free / 2**30:,.1f} GiB free; free some, or give a "
            f"smaller --max-size or --mode"
        )


def build_beton(
    source: Source,
    path: str | Path,
    options: WriteOptions,
    *,
    num_workers: int = 0,
    skip_bad: bool = False,
    on_skip: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Writes a beton and its manifest; both appear whole or not at all.

    Killed or stopped after its first 256 MiB, the same build goes on where it was.

    Args:
        num_workers: encoding processes; 0 for one for each CPU that this process may use.
        skip_bad: leave out images that cannot be decoded (told through `on_skip`) instead of stopping at the first.
        progress: called with samples done and in all.

    Returns:
        The manifest.

    Raises:
        NotFoundError: the folder of `path` does not exist.
        SourceError: an image that cannot be decoded, or none left.
        OptionError: an image larger than a page, or a disk too small.
        BusyError: another process builds the same file.
    """
    if not len(source):
        raise SourceError(f"{source.spec}: no images")
    path = Path(path)
    require_folder(path)
    import fastkd.data.views.decode  # noqa: F401  (imports ffcv, which sets torch to one thread, and puts the number back)

    workers = num_workers or len(os.sched_getaffinity(0))
    if _probe(source, options, path) < _MIN_PARALLEL_S:
        workers = 1
    versions = {name: version(name) for name in ("fastkd", "ffcv", "numpy", "pillow", "opencv-python")}
    status = os.stat(source.spec) if os.path.isfile(source.spec) else None
    stamp = [status.st_size, status.st_mtime_ns] if status else []  # a zip that was made again is another source
    job = fingerprint([source.spec, json.dumps([source.names, stamp, asdict(options), versions]), source.labels])
    return _write(
        path,
        source.spec,
        job,
        source.labels,
        source.names,
        options.page_size,
        lambda first: _encode_all(source, options, workers, first),
        skip_bad=skip_bad,
        on_skip=on_skip,
        progress=progress,
        source=source.spec,
        class_names=source.class_names,
        options={"mode": options.mode, "max_size": options.max_size, "jpeg_quality": options.jpeg_quality},
        versions=versions,
    )


def build_part(
    beton: Beton,
    sample_ids: np.ndarray,
    path: str | Path,
    *,
    full_fingerprint: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Copies some samples of a beton, byte by byte, into one of their own, whose field `sample_id` keeps their numbers.

    Args:
        beton: the full beton.
        sample_ids: int64 (n,), the samples to copy; they come to lie in this order.
        full_fingerprint: that of the full beton, which the part will be taken for.

    Returns:
        The part's manifest; its `part_of` has the full beton's fingerprint and num_samples.

    Raises:
        NotFoundError, OptionError, BusyError: as `build_beton`.
    """
    path = Path(path)
    require_folder(path)
    _check_space(path, float(beton.sizes[sample_ids].sum()))
    manifest = read_manifest(beton, columns=True) or {}
    names = manifest.get("names") or [str(i) for i in range(beton.num_samples)]

    def copies(first: int) -> Iterator[Encoded]:
        for i in sample_ids[first:].tolist():
            size = int(beton.heights[i]), int(beton.widths[i])
            yield stored(int(beton.modes[i]), *size, beton.payload(i))

    return _write(
        path,
        str(beton.path),
        fingerprint(["part", full_fingerprint, sample_ids]),
        beton.labels[sample_ids],
        [names[i] for i in sample_ids.tolist()],
        beton.page_size,
        copies,
        sample_ids=sample_ids,
        progress=progress,
        part_of={"fingerprint": full_fingerprint, "num_samples": beton.num_samples},
        **{name: manifest[name] for name in ("source", "class_names", "options", "versions") if name in manifest},
    )


def _write(
    path: Path,
    what: str,
    job: str,
    labels: np.ndarray,
    names: list[str],
    page_size: int,
    items_from: Callable[[int], Iterable[Encoded | FastKDError]],
    *,
    sample_ids: np.ndarray | None = None,
    skip_bad: bool = False,
    on_skip: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **fields: Any,
) -> dict[str, Any]:
    """Lays encoded samples into pages and puts beton and manifest in place; returns the manifest.

    Args:
        what: the source, for messages. job: fingerprint of all that decides the result.
        items_from: gives the samples from a number on, in order.
        fields: what the manifest says besides.
    """
    writer = PageWriter(path, job, labels, page_size, sample_ids)
    try:
        for i, item in enumerate(items_from(writer.next_item), writer.next_item):
            if isinstance(item, FastKDError):
                if not (skip_bad and isinstance(item, SourceError)):
                    raise item
                on_skip(str(item))
            else:
                writer.add(i, item, names[i])
            progress(i + 1, len(labels))
        if not writer.num_samples:
            raise SourceError(f"{what}: none of its {len(labels)} images can be decoded")
        writer.finish()
        beton, entries = open_beton(writer.partial), writer.entries[: writer.num_samples]
        sync_file(writer.partial)
        manifest_path(path).unlink(missing_ok=True)  # an older beton's: it would contradict the new file
        manifest = write_manifest(
            beton,
            path,
            zip((digest.tobytes() for digest in entries["digest"]), entries["crc32"].tolist(), strict=True),
            names=[names[i] for i in entries["item"]],
            **fields,
        )
        os.replace(writer.partial, path)
        sync_file(path.parent)
    except BaseException:
        writer.close(keep=writer.num_commits > 0)
        raise
    writer.close(keep=False)
    return manifest
