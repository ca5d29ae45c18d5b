"""Writing betons: source images through FFCV's fields into FFCV's file, atomically and the same bytes every time.

Samples are encoded by worker processes and laid into pages by this one, in sample order: a worker's exception (or death)
reaches the caller, nothing is left in shared memory, and the file does not depend on the number of workers.
"""

import io
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from fastkd.artefact import atomic_path
from fastkd.data.beton import FIELD_BYTES, HEADER_BYTES, MODE_JPG, MODE_RAW, manifest_path, open_beton, write_manifest
from fastkd.data.sources import Source
from fastkd.errors import FastKDError, OptionError, SourceError

MODES = ("raw", "jpg", "keep")
_CHUNK = 64  # samples a job: small enough that the pages in flight stay a few megabytes
_MIN_PARALLEL = 100_000  # raw samples below which starting workers costs more than it saves


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteOptions:
    """How images are stored.

    mode: `raw` (pixels), `jpg` (encoded anew) or `keep` (a source's own JPEG bytes where they can stand).
    max_size: larger images are shrunk until their longer side has so many pixels; None keeps every size.
    jpeg_quality: 1 … 100, for what is encoded.
    page_size: bytes of a page, a power of two from 2 MiB; no image can be larger.
    """

    mode: str
    max_size: int | None = None
    jpeg_quality: int = 90
    page_size: int = 8 * 2**20

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise OptionError(f"mode {self.mode!r}, expected one of {', '.join(MODES)}")
        if self.max_size is not None and not 1 <= self.max_size <= 65_535:
            raise OptionError(f"max size {self.max_size}, expected 1 … 65535 pixels")
        if not 1 <= self.jpeg_quality <= 100:
            raise OptionError(f"JPEG quality {self.jpeg_quality}, expected 1 … 100")
        if not (2**21 <= self.page_size < 2**32 and self.page_size & (self.page_size - 1) == 0):
            raise OptionError(f"page size {self.page_size}, expected a power of two from 2 MiB to 2 GiB")


@dataclass(frozen=True, slots=True)
class Encoded:
    """One image as the beton stores it."""

    mode: int
    height: int
    width: int
    payload: np.ndarray


def default_mode(source: Source) -> str:
    """`raw` where the first image has fewer than 64 pixels a side, else `jpg`."""
    return "raw" if max(_decode(source.read(0), source.names[0]).shape[:2]) < 64 else "jpg"


def _decode(data: bytes | np.ndarray, name: str) -> np.ndarray:
    """The pixels of a source image as Pillow decodes them: uint8 (H, W, 3)."""
    if isinstance(data, np.ndarray):
        return data
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith("I;16"):  # which convert() would clip at 255, to a white picture
                return np.asarray(Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB"))
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = "no image format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise SourceError(f"{name}: cannot be decoded ({reason}); mend it, or leave it out with --skip-bad") from None


def _keepable(data: bytes, max_size: int | None) -> tuple[int, int] | None:
    """Height and width of a JPEG whose bytes can stand as they are; None where it has to be encoded anew.

    It can stand when it is an RGB (YCbCr) JPEG within `max_size` that fastkd's decoder reads to its end without a warning:
    what is written must never be refused later.
    """
    from fastkd.data.pixels import OK, check_image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format != "JPEG" or image.mode != "RGB":
                return None
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    if max_size is not None and max(height, width) > max_size:
        return None
    status = check_image(np.frombuffer(data, np.uint8), MODE_JPG, height, width)
    return (height, width) if status == OK else None


def encode(data: bytes | np.ndarray, name: str, options: WriteOptions) -> Encoded:
    """Encodes one source image through FFCV's image field.

    Raises:
        SourceError: the image cannot be decoded, or is larger than the format can say.
    """
    import cv2
    from ffcv.fields import RGBImageField

    if options.mode == "keep" and isinstance(data, bytes) and (size := _keepable(data, options.max_size)) is not None:
        return Encoded(MODE_JPG, size[0], size[1], np.frombuffer(data, np.uint8))
    pixels = _decode(data, name)
    if max(pixels.shape[:2]) > 65_535 and options.max_size is None:
        raise SourceError(
            f"{name}: {pixels.shape[1]}×{pixels.shape[0]} pixels, a beton holds sides up to 65535; give --max-size"
        )
    field = RGBImageField(
        write_mode="raw" if options.mode == "raw" else "jpg",
        max_resolution=options.max_size,
        jpeg_quality=options.jpeg_quality,
    )
    row = np.zeros(1, field.metadata_type)
    stored: list[np.ndarray] = []

    def malloc(size: int) -> tuple[int, np.ndarray]:
        stored.append(np.empty(size, np.uint8))
        return 0, stored[0]

    try:
        field.encode(row, pixels, malloc)
    except (cv2.error, ValueError):
        raise SourceError(
            f"{name}: {pixels.shape[1]}×{pixels.shape[0]} pixels cannot be stored as {options.mode} with a max size of "
            f"{options.max_size}; leave it out with --skip-bad"
        ) from None
    mode = MODE_RAW if options.mode == "raw" else MODE_JPG
    return Encoded(mode, int(row["height"][0]), int(row["width"][0]), stored[0])


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


def _encode_all(source: Source, options: WriteOptions, num_workers: int) -> Iterator[Encoded | FastKDError]:
    """Every sample encoded, in order; errors take the place of the samples that caused them."""
    chunks = [range(start, min(start + _CHUNK, len(source))) for start in range(0, len(source), _CHUNK)]
    if num_workers <= 1 or len(chunks) == 1 or (options.mode == "raw" and len(source) < _MIN_PARALLEL):
        for chunk in chunks:
            yield from _encode_chunk(source, chunk, options)
        return
    context = multiprocessing.get_context("forkserver")  # fork is unsafe once Numba or OpenCV run threads
    context.set_forkserver_preload(["fastkd.data.build", "fastkd.data.pixels", "ffcv.fields"])
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

    Args:
        num_workers: encoding processes; 0 for one for each CPU that this process may use.
        skip_bad: leave out images that cannot be decoded (told through `on_skip`) instead of stopping at the first.
        progress: called with samples done and in all.

    Returns:
        The manifest.

    Raises:
        SourceError: an image that cannot be decoded, or none left.
        OptionError: an image larger than a page.
    """
    if not len(source):
        raise SourceError(f"{source.spec}: no images")
    import fastkd.data.decode  # noqa: F401  (imports ffcv, which sets torch to one thread, and puts the number back)

    workers = num_workers or len(os.sched_getaffinity(0))
    path = Path(path)
    kept: list[int] = []
    with atomic_path(path) as partial:
        with partial.open("wb") as file:
            writer = _PageWriter(file, len(source), options.page_size)
            for i, item in enumerate(_encode_all(source, options, workers)):
                if isinstance(item, FastKDError):
                    if not (skip_bad and isinstance(item, SourceError)):
                        raise item
                    on_skip(str(item))
                else:
                    writer.add(item, int(source.labels[i]), source.names[i])
                    kept.append(i)
                progress(i + 1, len(source))
            if not kept:
                raise SourceError(f"{source.spec}: none of its {len(source)} images can be decoded")
            writer.finish()
        beton = open_beton(partial)
        manifest_path(path).unlink(missing_ok=True)  # an older beton's: it would contradict the new file
        manifest = write_manifest(
            beton,
            path,
            source=source.spec,
            class_names=source.class_names,
            names=[source.names[i] for i in kept],
            options={"mode": options.mode, "max_size": options.max_size, "jpeg_quality": options.jpeg_quality},
            versions={name: version(name) for name in ("fastkd", "ffcv", "numpy", "pillow", "opencv-python")},
        )
    return manifest


class _PageWriter:
    """Lays samples into pages and writes FFCV's tables around them.

    Space for the tables is kept in front; they are written last, the header very last.
    """

    def __init__(self, file: BinaryIO, max_samples: int, page_size: int) -> None:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.types import get_metadata_type

        self.file, self.page_size = file, page_size
        self.fields = {"image": RGBImageField(), "label": IntField()}
        self.rows = np.zeros(max_samples, get_metadata_type(list(self.fields.values())))
        self.num_samples = 0
        self.table: list[tuple[int, int, int]] = []
        tables = HEADER_BYTES + FIELD_BYTES * len(self.fields) + self.rows.nbytes
        self.page_start = -(-tables // page_size) * page_size
        self.page = bytearray()
        file.seek(self.page_start)

    def add(self, item: Encoded, label: int, name: str) -> None:
        size = len(item.payload)
        if size > self.page_size:
            raise OptionError(
                f"{name}: {size:,} bytes, more than a page of {self.page_size:,}; give a larger --page-size or a --max-size"
            )
        if len(self.page) + size > self.page_size:
            self._flush()
        ptr = self.page_start + len(self.page)
        self.page += item.payload.tobytes()
        self.rows[self.num_samples] = ((item.mode, item.width, item.height, ptr), label)
        self.table.append((self.num_samples, ptr, size))
        self.num_samples += 1

    def _flush(self) -> None:
        self.file.write(self.page.ljust(self.page_size, b"\0"))
        self.page_start += self.page_size
        self.page = bytearray()

    def finish(self) -> None:
        from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, TYPE_ID_HANDLER, FieldDescType, HeaderType

        self._flush()
        self.file.write(np.array(self.table, ALLOC_TABLE_TYPE).tobytes())
        types = {handler: type_id for type_id, handler in TYPE_ID_HANDLER.items()}
        descriptions = np.zeros(len(self.fields), FieldDescType)
        for row, (name, field) in zip(descriptions, self.fields.items(), strict=True):
            row["type_id"] = types[type(field)]
            row["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
            row["arguments"] = field.to_binary()[0]
        header = np.zeros(1, HeaderType)
        header["version"], header["num_fields"] = CURRENT_VERSION, len(self.fields)
        header["page_size"], header["num_samples"] = self.page_size, self.num_samples
        header["alloc_table_ptr"] = self.page_start
        self.file.seek(0)
        self.file.write(header.tobytes() + descriptions.tobytes() + self.rows[: self.num_samples].tobytes())
