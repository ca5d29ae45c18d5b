"""Data sets that come as arrays: CIFAR, SVHN, MNIST and Fashion-MNIST in the files that torchvision keeps, and digits.

Each reader takes a folder and a split and returns all images of it. None of them unpickles.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastkd.data.sources.files import Stamp, stamp_of
from fastkd.data.sources.idx import read_idx
from fastkd.data.sources.mat import read_mat
from fastkd.data.sources.pickled import read_plain_pickle, uint8_array
from fastkd.errors import FormatError, MissingDependencyError, NotFoundError, OptionError, SourceError

DEBIAN_FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
FASHION_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
DIGIT_NAMES = tuple("0123456789")
SPLITS = ("train", "test")

_MAX_FILE_BYTES = 1 << 30  # the largest file known, SVHN's train split, has 182 MB


class ArraySet(NamedTuple):
    """All images of one split, grey or colour, with their labels."""

    images: np.ndarray
    """uint8, (N, H, W) or (N, H, W, 3), not necessarily contiguous."""
    labels: np.ndarray
    """int64, (N,), in [0, len(class_names))."""
    class_names: list[str]
    stamps: list[Stamp]
    """Of its files, before they were read."""


class ArrayImages:
    """Reads the images of an array source by number; pickled it is its arguments, and reads its files anew.

    Args:
        scheme: a key of `READERS`.
        directory: the folder after the scheme, absolute, or "".
        split: "train" or "test".
        images: the images where they are already read.
    """

    def __init__(self, scheme: str, directory: str, split: str, images: np.ndarray | None = None) -> None:
        self.scheme = scheme
        self.directory = directory
        self.split = split
        self._images = images

    def __reduce__(self) -> tuple:
        return ArrayImages, (self.scheme, self.directory, self.split)

    def read(self, i: int) -> np.ndarray:
        """Image i as a new uint8 array of shape (H, W, 3); grey ones have three equal channels."""
        if self._images is None:
            self._images = READERS[self.scheme](self.directory, self.split).images
        image = self._images[i]
        return np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else np.array(image, order="C")


def open_arrays(
    scheme: str, directory: str, split: str
) -> tuple[list[str], np.ndarray, list[str], ArrayImages, list[Stamp]]:
    """Reads one split of an array source.

    Args:
        scheme: a key of `READERS`.
        directory: the folder after the scheme's colon, "" where there is none.
        split: "train" or "test".

    Returns:
        class_names, labels (int64, shape (N,)), names ("train/17": split and row), the reader of the images, and
        the stamps of the files.

    Raises:
        OptionError: another split, or a folder missing or given where there is none to give.
        NotFoundError: no such folder or files.
        FormatError: files of another kind, cut ones, or ones that do not belong together.
        SourceError: a file that cannot be read.
        MissingDependencyError: the package that reads this source is not installed.
    """
    if split not in SPLITS:
        raise OptionError(f"--split {split}: expected one of {', '.join(SPLITS)}")
    found = READERS[scheme](directory, split)
    names = [f"{split}/{i}" for i in range(len(found.labels))]
    absolute = os.path.abspath(directory) if directory else ""
    return found.class_names, found.labels, names, ArrayImages(scheme, absolute, split, found.images), found.stamps


def read_cifar10(directory: str, split: str) -> ArraySet:
    """CIFAR-10's Python version: `cifar-10-batches-py/`, 3,072 bytes an image in (channel, row, column) order."""
    batches = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    return _read_cifar("cifar10", directory, "cifar-10-batches-py", batches, "labels", "batches.meta", "label_names")


def read_cifar100(directory: str, split: str) -> ArraySet:
    """CIFAR-100's Python version: `cifar-100-python/`, with the 100 fine labels."""
    return _read_cifar("cifar100", directory, "cifar-100-python", [split], "fine_labels", "meta", "fine_label_names")


def read_svhn(directory: str, split: str) -> ArraySet:
    """SVHN's cropped digits, `train_32x32.mat` and `test_32x32.mat`, where the digit 0 has the label 10."""
    path = _find("svhn", directory, ["", "svhn", "SVHN"], [f"{split}_32x32.mat"])
    stamps = [stamp_of(str(path))]
    images, labels = read_mat(_read_file(path), ["X", "y"], str(path))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != 3:
        raise FormatError(
            f"{path}: found X of {images.dtype} and shape {images.shape}, expected uint8 and shape (32, 32, 3, N)"
        )
    if not np.isin(labels, np.arange(1, 11)).all():
        raise FormatError(
            f"{path}: found values of y outside 1 ... 10, expected SVHN's labels, where 10 is the digit 0"
        )
    labels = labels.ravel().astype(np.int64) % 10
    return _checked(str(path), images.transpose(3, 0, 1, 2), labels, list(DIGIT_NAMES), stamps)


def read_mnist(directory: str, split: str) -> ArraySet:
    """MNIST's four IDX files, gzipped or not."""
    return _read_idx_pair("mnist", directory, split, "MNIST", DIGIT_NAMES)


def read_fashion_mnist(directory: str, split: str) -> ArraySet:
    """Fashion-MNIST's four IDX files, gzipped or not; without a folder, those of Debian's package."""
    if not directory and not os.path.isdir(DEBIAN_FASHION_MNIST):
        raise NotFoundError(
            f"fashion-mnist: found no {DEBIAN_FASHION_MNIST}; install the Debian package dataset-fashion-mnist, or "
            "give the folder of the IDX files as fashion-mnist:DIR"
        )
    return _read_idx_pair("fashion-mnist", directory or DEBIAN_FASHION_MNIST, split, "FashionMNIST", FASHION_NAMES)


def read_digits(directory: str, split: str) -> ArraySet:
    """scikit-learn's 1,797 digits of 8x8, shipped with it: every fifth (4, 9, 14 ...) is the test split."""
    if directory:
        raise OptionError(f"digits:{directory}: found a folder, expected digits: alone; scikit-learn ships the images")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingDependencyError(
            "digits: needs scikit-learn, which is not installed; pip install 'fastkd[digits]'"
        ) from None
    content = load_digits()
    chosen = (np.arange(len(content.target)) % 5 == 4) == (split == "test")
    images = np.rint(content.images[chosen] * (255 / 16)).astype(np.uint8)
    return _checked("digits:", images, content.target[chosen].astype(np.int64), list(DIGIT_NAMES), [])


READERS: dict[str, Callable[[str, str], ArraySet]] = {
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "svhn": read_svhn,
    "mnist": read_mnist,
    "fashion-mnist": read_fashion_mnist,
    "digits": read_digits,
}


def _read_cifar(
    scheme: str, directory: str, folder: str, batches: list[str], label_key: str, meta: str, names_key: str
) -> ArraySet:
    home = _find(scheme, directory, ["", folder], [meta]).parent
    stamps = [stamp_of(str(home / name)) for name in (meta, *batches)]
    class_names = _list_of(str, read_plain_pickle(_read_file(home / meta), str(home / meta)), names_key, home / meta)
    if not class_names or len(set(class_names)) < len(class_names):
        raise FormatError(
            f"{home / meta}: found {len(class_names)} class names or a name twice, expected distinct names"
        )
    images, labels = [], []
    for path in (home / batch for batch in batches):
        batch = read_plain_pickle(_read_file(path), str(path))
        rows = uint8_array(batch.get("data"), f"{path}, data")
        if rows.ndim != 2 or rows.shape[1] != 3072:
            raise FormatError(f"{path}: found data of shape {rows.shape}, expected (N, 3072)")
        batch_labels = _list_of(int, batch, label_key, path)
        if len(batch_labels) != len(rows):
            raise FormatError(f"{path}: found {len(rows)} images but {len(batch_labels)} labels, expected one an image")
        if not all(0 <= label < len(class_names) for label in batch_labels):
            raise FormatError(f"{path}: found labels outside 0 ... {len(class_names) - 1}, the classes of {meta}")
        images.append(rows)
        labels += batch_labels
    joined = np.concatenate(images).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return _checked(str(home), joined, np.array(labels, np.int64), class_names, stamps)


def _read_idx_pair(scheme: str, directory: str, split: str, folder: str, class_names: tuple[str, ...]) -> ArraySet:
    stem = "train" if split == "train" else "t10k"
    places = ["", "raw", f"{folder}/raw"]
    path = _find(scheme, directory, places, _idx_names(f"{stem}-images", "idx3-ubyte"))
    label_path = _find(scheme, str(path.parent), [""], _idx_names(f"{stem}-labels", "idx1-ubyte"))
    stamps = [stamp_of(str(path)), stamp_of(str(label_path))]
    images, labels = read_idx(path, 3), read_idx(label_path, 1).astype(np.int64)
    return _checked(str(path), images, labels, list(class_names), stamps)


def _idx_names(stem: str, kind: str) -> list[str]:
    """The names that an IDX file goes by: torchvision's, and that of some archives."""
    return [f"{stem}{mark}{kind}{suffix}" for mark in "-." for suffix in ("", ".gz")]


def _find(scheme: str, directory: str, places: list[str], names: list[str]) -> Path:
    if not directory:
        raise OptionError(
            f"{scheme}: found no folder after the colon, expected {scheme}:DIR, where DIR holds {names[0]}"
        )
    if not os.path.isdir(directory):
        found = "a file" if os.path.exists(directory) else "nothing there"
        raise NotFoundError(f"{scheme}:{directory}: found {found}, expected a folder that holds {names[0]}")
    for place in places:
        for name in names:
            path = Path(directory, place, name)
            if path.is_file():
                return path
    looked_in = ", ".join(place or "the folder itself" for place in places)
    raise NotFoundError(
        f"{scheme}:{directory}: found no {' or '.join(names)}, looked in {looked_in}; download the files"
    )


def _read_file(path: Path) -> bytes:
    if not path.is_file():
        raise NotFoundError(
            f"{path}: found no such file, expected it beside the others of its folder; unpack them again"
        )
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise FormatError(f"{path}: found {path.stat().st_size} bytes, expected at most {_MAX_FILE_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from None


def _list_of(kind: type, content: dict, key: str, path: Path) -> list:
    values = content.get(key)
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise FormatError(f"{path}: found no list of {kind.__name__} named {key!r}, expected CIFAR's own file")
    return values


def _checked(
    what: str, images: np.ndarray, labels: np.ndarray, class_names: list[str], stamps: list[Stamp]
) -> ArraySet:
    if len(images) != len(labels):
        raise FormatError(f"{what}: found {len(images)} images but {len(labels)} labels, expected one an image")
    if images.size == 0:
        raise FormatError(f"{what}: found no pixels (shape {images.shape}), expected images")
    if labels.max() >= len(class_names):
        raise FormatError(f"{what}: found the label {labels.max()}, expected 0 ... {len(class_names) - 1}")
    return ArraySet(images, labels, class_names, stamps)
