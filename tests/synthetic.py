"""Images made for the tests: seeded, small, and the same wherever the tests run."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def photo(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth picture, as JPEGs and resizing like them: uint8 (height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def coloured_noise(seed: int, label: int, num_classes: int, size: int) -> np.ndarray:
    """Noise around a colour that tells the class: uint8 (size, size, 3)."""
    colour = np.random.default_rng(label).permutation(np.linspace(60, 200, num_classes))[:3]
    noise = np.random.default_rng([seed, label]).normal(0, 25, (size, size, 3))
    return np.clip(colour + noise, 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    """The pixels as the bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def write_files(folder: Path, files: dict[str, bytes]) -> str:
    """Writes files below a folder, which is made; returns it as a source."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return str(folder)
