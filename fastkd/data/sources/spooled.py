"""Images that a program hands over one by one: they lie in an unnamed temporary file while a beton is written of them."""

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from os import getpid
from pathlib import Path

import numpy as np
from PIL import Image

from fastkd.arguments import as_whole
from fastkd.errors import NotFoundError, OptionError

Picture = Image.Image | np.ndarray | bytes
"""An image from Python: Pillow's, pixels as uint8 (H, W) or (H, W, 3), or the bytes of an image file."""
Sample = tuple[Picture, int] | tuple[Picture, int, str]
"""An image, its label, and its name where it has one."""


class SpooledImages:
    """Reads the images of a temporary file by number, in any process while the one that wrote it has it open.

    Args:
        path: of the file. starts: int64 (N + 1,), where each image begins, and the end. sides: int64 (N, 2), height and
            width of pixels; 0, 0 of an image file.
    """

    def __init__(self, path: str, starts: np.ndarray, sides: np.ndarray) -> None:
        self.path, self.starts, self.sides = path, starts, sides

    def read(self, i: int) -> bytes | np.ndarray:
        """The bytes of image file i, or its pixels: uint8 (H, W, 3)."""
        with open(self.path, "rb") as file:
            file.seek(int(self.starts[i]))
            content = file.read(int(self.starts[i + 1] - self.starts[i]))
        height, width = self.sides[i].tolist()
        return np.frombuffer(content, np.uint8).reshape(height, width, 3) if height else content


@contextmanager
def spooled(
    samples: Iterable[Sample], class_names: Sequence[str], folder: Path
) -> Iterator[tuple[str, np.ndarray, list[str], SpooledImages]]:
    """Goes through the samples once, and gives what a source consists of: its digest, labels, names and reader.

    The file takes the bytes of all images in `folder`, pixels as three bytes each. It has no name, so that nothing is left of it
    however the process ends.

    Raises:
        OptionError: what is no image or no sample, a label that no class has, class names that are none.
        NotFoundError: no such folder.
    """
    _require_names(class_names)
    if not folder.is_dir():
        raise NotFoundError(f"{folder}: found no such folder, expected one for the beton; make it")
    labels: list[int] = []
    names: list[str] = []
    starts, sides, digest = [0], [], blake2b(digest_size=16)
    with tempfile.TemporaryFile(dir=folder) as file:
        for i, sample in enumerate(samples):
            if not isinstance(sample, tuple | list) or len(sample) not in (2, 3):
                raise OptionError(
                    f"sample {i} is a {type(sample).__name__}, expected (image, label) or (image, label, name)"
                )
            name = sample[2] if len(sample) == 3 else str(i)
            if not isinstance(name, str):
                raise OptionError(f"sample {i}: its name is a {type(name).__name__}, expected text")
            label = as_whole(sample[1], f"the label of sample {i}", 0, len(class_names) - 1)
            content, size = _content(sample[0], f"sample {i}")
            file.write(content)
            digest.update(f"{len(name)} {name} {label} {size} {len(content)} ".encode("utf-8", "surrogateescape"))
            digest.update(content)
            labels.append(label)
            names.append(name)
            starts.append(starts[-1] + len(content))
            sides.append(size)
        file.flush()
        reader = SpooledImages(
            f"/proc/{getpid()}/fd/{file.fileno()}", np.array(starts, np.int64), np.array(sides, np.int64).reshape(-1, 2)
        )
        yield digest.hexdigest(), np.array(labels, np.int64), names, reader


def _require_names(class_names: Sequence[str]) -> None:
    if isinstance(class_names, str) or not class_names or not all(isinstance(one, str) for one in class_names):
        raise OptionError("class_names are no list of texts, expected one for each label from 0 on")
    name, count = Counter(class_names).most_common(1)[0]
    if count > 1:
        raise OptionError(f"class_names have {name!r} {count} times, expected each class once")


def _content(image: object, where: str) -> tuple[bytes, tuple[int, int]]:
    """What is written of an image, and height and width where that is pixels."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image), (0, 0)
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":
            raise OptionError(
                f"{where}: found Pillow's mode {image.mode}, expected 8 bits a channel; give the bytes of its file"
            )
        image = np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray):
        found = type(image).__name__
        raise OptionError(
            f"{where}: found a {found}, expected Pillow's image, a uint8 array, or the bytes of an image file"
        )
    is_grey = image.ndim == 2
    if image.dtype != np.uint8 or not image.size or not (is_grey or image.shape[2:] == (3,)):
        raise OptionError(f"{where}: found {image.dtype} of shape {image.shape}, expected uint8 (H, W) or (H, W, 3)")
    pixels = np.repeat(image[:, :, None], 3, axis=2) if is_grey else image
    return pixels.tobytes(), (image.shape[0], image.shape[1])
