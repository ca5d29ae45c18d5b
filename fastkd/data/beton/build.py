"""Writing betons: source images into FFCV's file format, atomically and the same bytes every time.

Samples are encoded by worker processes and laid into pages by this one, in sample order: the file does not depend on the
number of workers.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from fastkd.data.beton.encode import WriteOptions, stored
from fastkd.data.beton.manifest import require_manifest
from fastkd.data.beton.pages import PageWriter
from fastkd.data.beton.part import require_rows
from fastkd.data.beton.read import Beton, manifest_path, open_beton, read_manifest, write_manifest
from fastkd.data.beton.row_index import require_row_index, row_index_path
from fastkd.data.beton.workers import Item, encode_all, probe, require_room
from fastkd.data.sources.files import shown, stamp_of
from fastkd.data.sources.open import Source
from fastkd.errors import FastKDError, SourceError
from fastkd.fingerprint import fingerprint
from fastkd.writing import another_is_there, claim, naming, sync_file

_MIN_PARALLEL_S = 10.0  # work of less than this is over before worker processes are there


def build_beton(
    source: Source,
    path: str | Path,
    options: WriteOptions,
    *,
    num_workers: int = 0,
    skip_bad: bool = False,
    force: bool = False,
    on_skip: Callable[[str], None] = lambda line: None,
    log: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Writes a beton, its manifest and its row index; they appear whole or not at all. The beton of the same build stays as it is.

    Killed or stopped after its first 256 MiB, the same build goes on where it was, or where a file of the source changed.

    Args:
        num_workers: encoding processes; 0 for one for each CPU that this process may use.
        skip_bad: leave out images that cannot be decoded, or are larger than a page (told through `on_skip`), instead of
            stopping at the first.
        force: replace what is there.
        log: takes a line about what of a build that was stopped is not gone on from.
        progress: called with samples done and in all.

    Returns:
        The manifest.

    Raises:
        NotFoundError: the folder of `path` does not exist.
        SourceError: an image that cannot be decoded or is larger than a page, or none left; a zip or a data set's file that changed meanwhile.
        OptionError: a disk too small; a file beside it that is no manifest.
        MismatchError: something else is there.
        BusyError: another process builds the same file.
    """
    if not len(source):
        raise SourceError(f"{source.spec}: no images")
    import fastkd.data.views.decode  # noqa: F401  (imports ffcv, which sets torch to one thread, and puts the number back)

    versions = {name: version(name) for name in ("fastkd", "ffcv", "numpy", "pillow", "opencv-python")}
    # A zip that was made again, or files of a data set, are another source.
    job = fingerprint(
        [source.spec, json.dumps([source.names, source.stamps, asdict(options), versions]), source.labels]
    )

    def is_unchanged(items: range, stamps: np.ndarray) -> bool:
        changed = source.first_changed(items, stamps)
        if changed is not None:
            log(
                f"{source.names[changed]}: changed since it was read; images from number {items.start + 1:,} on are encoded anew"
            )
        return changed is None

    def begin() -> Callable[[int], Iterator[Item]]:
        workers = num_workers or len(os.sched_getaffinity(0))
        if probe(source, options, Path(path)) < _MIN_PARALLEL_S:
            workers = 1

        def items_from(first: int) -> Iterator[Item]:
            yield from encode_all(source, options, workers, first)
            source.require_unchanged()

        return items_from

    return _write(
        path,
        [source.spec],
        job,
        source.labels,
        source.names,
        options.page_size,
        begin,
        stamps=lambda: np.array([source.stamp(i) for i in range(len(source))], np.int64),
        skip_bad=skip_bad,
        force=force,
        on_skip=on_skip,
        is_unchanged=is_unchanged,
        log=log,
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
    force: bool = False,
    log: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Copies some samples of a beton, byte by byte, into one of their own, whose field `sample_id` keeps their numbers.

    Args:
        beton: the full beton.
        sample_ids: int64 (n,), the samples to copy; they come to lie in this order.
        full_fingerprint: that of the full beton, which the part will be taken for.
        force, log: as `build_beton`.

    Returns:
        The part's manifest; its `part_of` has the full beton's fingerprint and num_samples.

    Raises:
        NotFoundError, OptionError, MismatchError, BusyError: as `build_beton`.
    """
    require_rows(path, len(sample_ids), beton.num_samples)
    manifest = read_manifest(beton, columns=True) or {}
    names = manifest.get("names") or [str(i) for i in range(beton.num_samples)]

    def copies(first: int) -> Iterator[Item]:
        for i in sample_ids[first:].tolist():
            size = int(beton.heights[i]), int(beton.widths[i])
            yield stored(int(beton.modes[i]), *size, beton.payload(i)), (0, 0)

    def begin() -> Callable[[int], Iterator[Item]]:
        require_room(Path(path), float(beton.sizes[sample_ids].sum()))
        return copies

    return _write(
        path,
        [str(beton.path), str(manifest_path(beton.path))],
        fingerprint(["part", full_fingerprint, json.dumps(stamp_of(str(beton.path))), sample_ids]),
        beton.labels[sample_ids],
        [names[i] for i in sample_ids.tolist()],
        beton.page_size,
        begin,
        stamps=lambda: np.zeros((len(sample_ids), 2), np.int64),
        sample_ids=sample_ids,
        force=force,
        log=log,
        progress=progress,
        part_of={"fingerprint": full_fingerprint, "num_samples": beton.num_samples},
        **{name: manifest[name] for name in ("source", "class_names", "options", "versions") if name in manifest},
    )


def _write(
    path: str | Path,
    inputs: list[str],
    job: str,
    labels: np.ndarray,
    names: list[str],
    page_size: int,
    begin: Callable[[], Callable[[int], Iterable[Item]]],
    *,
    stamps: Callable[[], np.ndarray],
    force: bool,
    log: Callable[[str], None],
    progress: Callable[[int, int], None],
    sample_ids: np.ndarray | None = None,
    skip_bad: bool = False,
    on_skip: Callable[[str], None] = lambda line: None,
    is_unchanged: Callable[[range, np.ndarray], bool] = lambda items, stamps: True,
    **fields: Any,
) -> dict[str, Any]:
    """Lays encoded samples into pages and puts beton and manifest in place; returns the manifest.

    Args:
        inputs: the source, first, and what else must not be written over. job: fingerprint of all that decides the result
            but the samples' own files, whose stamps, int64 (num_items, 2), `stamps` gives.
        begin: looks whether there is room, and gives what gives the samples from a number on, in order.
        fields: what the manifest says besides.
    """
    files = [name for name in inputs if os.path.exists(name)]
    with claim(path, inputs=files, log=log) as real, claim(manifest_path(real), inputs=files):
        require_manifest(manifest_path(real))
        require_row_index(row_index_path(real))
        found = None if force else _find_beton(Path(path), real, job, stamps)
        if found is not None:
            log(f"{path}: this beton is there already, it is told again")
            return found
        items_from = begin()
        with naming(path):
            writer = PageWriter(real, job, labels, page_size, sample_ids, is_unchanged=is_unchanged, log=log)
        try:
            for i, (item, stamp) in enumerate(items_from(writer.next_item), writer.next_item):
                writer.stamps[i] = stamp
                if isinstance(item, FastKDError):
                    if not (skip_bad and isinstance(item, SourceError)):
                        raise item
                    on_skip(str(item))
                else:
                    with naming(path):
                        writer.add(i, item)
                progress(i + 1, len(labels))
            if not writer.num_samples:
                raise SourceError(f"{inputs[0]}: none of its {len(labels)} images can be decoded")
            lost = np.setdiff1d(labels, labels[writer.entries["item"][: writer.num_samples]]).tolist()
            if lost:
                log(f"{path}: no image is left of {shown([fields['class_names'][label] for label in lost])}")
            job_of_all = fingerprint([job, writer.stamps])
            with naming(path):
                manifest = _put_in_place(writer, real, names, job=job_of_all, **fields)
        except BaseException:
            writer.close(keep=writer.num_commits > 0)
            raise
        writer.close(keep=False)
        return manifest


def _find_beton(path: Path, real: Path, job: str, stamps: Callable[[], np.ndarray]) -> dict[str, Any] | None:
    """The manifest of the beton that is there, if it is that of this very build; None where there is none.

    Raises:
        MismatchError: something else is there.
    """
    if not real.exists():
        return None
    try:
        manifest = read_manifest(open_beton(real), columns=True) or {}
    except FastKDError:
        raise another_is_there(path, "is there, and no whole beton with its manifest") from None
    if manifest.get("job") == fingerprint([job, stamps()]):
        return manifest
    what = "of other files, options or versions" if "job" in manifest else "which does not say from what it was built"
    raise another_is_there(path, f"another beton is there, {what}")


def _put_in_place(writer: PageWriter, path: Path, names: list[str], **fields: Any) -> dict[str, Any]:
    """Gives a beton, its manifest and its row index their names, the beton last: a beton never stands beside that of another."""
    writer.finish()
    beton, entries = open_beton(writer.partial), writer.entries[: writer.num_samples]
    sync_file(writer.partial)
    for older in (manifest_path(path), row_index_path(path)):
        older.unlink(missing_ok=True)  # it would contradict the new file
    writer.rows.finish(beton)
    manifest = write_manifest(
        beton,
        path,
        zip((digest.tobytes() for digest in entries["digest"]), entries["crc32"].tolist(), strict=True),
        names=[names[i] for i in entries["item"]],
        **fields,
    )
    os.replace(writer.partial, path)
    sync_file(path.parent)
    return manifest
