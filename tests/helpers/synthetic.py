"""Images made for the tests, seeded and small, and betons of them."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.beton.read import Beton, open_beton
from fastkd.data.modes import MODE_JPG
from fastkd.data.sources.open import open_source

PAGE = 2**21  # bytes
FIELDS, METADATA, ROW = 24, 24 + 2 * 1041, 24  # where the tables of (image, label) begin; bytes of a sample's row


def photo(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth picture, as JPEGs and resizing like them: uint8 (height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def coloured_noise(seed: int, label: int, num_classes: int, size: int) -> np.ndarray:
    """Noise around a colour that tells the class: uint8 (size, size, 3)."""
    colour = np.random.default_rng(label).permutation(np.linspace(60, 200, num_classes))[:3]
    noise = np.random.default_rng([seed, label]).normal(0, 25, (size, size, 3))
    return np.clip(colour + noise, 0, 255).astype(np.uint8)


def encoded(image: np.ndarray | Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """An image, or the pixels of one, as the bytes of an image file."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def write_files(folder: Path, files: dict[str, bytes]) -> str:
    """Writes files below a folder, which is made; returns it as a source."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return str(folder)


def write_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> str:
    """Writes files into a zip; returns it as a source."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


def files_of(folder: str) -> list[Path]:
    """The images of a source folder, in the order of its samples."""
    return sorted(Path(folder).glob("*/*"))


def pillow(content: bytes) -> np.ndarray:
    """An image file as Pillow decodes it: uint8 (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def build(folder: str, path: Path, mode: str = "raw", *, force: bool = False, **options: Any) -> Beton:
    """A beton of a source folder, with the smallest pages that FFCV allows."""
    options = WriteOptions(mode=mode, page_size=PAGE, **options)
    build_beton(open_source(folder), path, options, num_workers=1, force=force)
    return open_beton(path)


def stored(beton: Beton, sample_id: int) -> np.ndarray:
    """A stored image, decoded by Pillow where it is a JPEG: uint8 (height, width, 3)."""
    payload = beton.payload(sample_id)
    if beton.modes[sample_id] == MODE_JPG:
        return pillow(payload.tobytes())
    return payload.reshape(beton.heights[sample_id], beton.widths[sample_id], 3)


def nearest(image: np.ndarray, others: list[np.ndarray]) -> int:
    """Which of the others an image is most like."""
    return int(np.argmin([np.abs(image.astype(int) - other).mean() for other in others]))


def overwrite(path: Path, changes: dict[int, bytes]) -> None:
    """Changes bytes of a file: offset → what stands there from now on."""
    with path.open("r+b") as file:
        for offset, content in changes.items():
            file.seek(offset)
            file.write(content)
