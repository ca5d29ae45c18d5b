"""The decoder built otherwise, and called directly: to compare with, and to race against."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np

from benchmarks import measure
from fastkd.data.views.pixels import load_library

LIBJPEG, PLAIN = "-DFASTKD_LIBJPEG", "-DFASTKD_PLAIN"
"""Builds that leave every JPEG to libjpeg, as all was before; and without code for AVX2."""
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
Box = tuple[int, int, int, int]  # top, left, height, width


def build(path: Path, *flags: str, instead: dict[str, Path] | None = None) -> Path:
    """Compiles the decoder's sources, as setup.py does, with more flags. instead: other files for some of them, by name."""
    sources = [
        (instead or {}).get(source.name, source)
        for source in sorted((measure.ROOT / "fastkd" / "data" / "views").rglob("*.cpp"))
    ]
    options = ["-std=c++17", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", *flags]
    subprocess.run([str(COMPILER), *options, *map(str, sources), "-ljpeg", "-o", str(path)], check=True)
    return path


def load(path: Path) -> ctypes.CDLL:
    """A build of `build`."""
    return load_library(path)


def view(
    library: ctypes.CDLL,
    payload: np.ndarray,
    image: tuple[int, int],
    box: Box,
    out: tuple[int, int],
    flip: int = 0,
    entry: bytes = b"",
) -> tuple[int, np.ndarray]:
    """Status and pixels of a view of a JPEG, uint8 (*out, 3); image: its height and width; entry: of the row index."""
    pixels, rows = np.zeros((*out, 3), np.uint8), np.frombuffer(entry or b"\0", np.uint8)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (payload, pixels, rows)]
    sizes = [ctypes.c_uint64(len(payload)), ctypes.c_int64(3 * out[1]), ctypes.c_uint64(len(entry))]
    status = library.fastkd_indexed_view(
        pointers[0], sizes[0], 0, *image, *box, flip, pointers[1], sizes[1], *out, pointers[2], sizes[2]
    )
    return status, pixels
