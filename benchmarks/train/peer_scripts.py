"""Runs a training script of another project, from the path of its checkout, in a process of its own.

    python -m benchmarks.train.peer_scripts repdistiller CHECKOUT IMAGES.npz ARGUMENTS …
    python -m benchmarks.train.peer_scripts timm CHECKOUT ARGUMENTS …

The scripts are run as they are. What is put in the place of what they would fetch:

- RepDistiller's `train_student.py` reads CIFAR-100 by torchvision: here a data set of the same form over arrays in a file. The
  module `tensorboard_logger` is one that writes nothing.
- timm's `train.py` would fetch published weights for the teacher of `--kd-model-name`: it keeps those that it was made with.
"""

import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image


def repdistiller(checkout: Path, data: Path, arguments: list[str]) -> None:
    """`train_student.py`; data: of `train_images` uint8 (N, 32, 32, 3), `train_labels` int64 (N,), `test_images`, `test_labels`."""
    import torchvision

    arrays = dict(np.load(data))

    class Images:
        """As torchvision's CIFAR100, which gives an image through Pillow and the transform."""

        def __init__(self, root: str, train: bool = True, transform: Any = None, download: bool = False) -> None:
            part = "train" if train else "test"
            self.images, self.labels = arrays[f"{part}_images"], arrays[f"{part}_labels"].tolist()
            self.transform = transform

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return self.transform(Image.fromarray(self.images[index])), self.labels[index]

    class Logger:
        def __init__(self, **settings: Any) -> None:
            pass

        def log_value(self, name: str, value: float, step: int) -> None:
            pass

    silent: Any = ModuleType("tensorboard_logger")
    silent.Logger = Logger
    sys.modules["tensorboard_logger"] = silent
    torchvision.datasets.CIFAR100 = Images  # type: ignore[misc]
    _run(checkout / "train_student.py", arguments)


def timm(checkout: Path, arguments: list[str]) -> None:
    """`train.py`."""
    sys.path.insert(0, str(checkout))
    from timm.models import _builder

    _builder.load_pretrained = lambda *arguments, **settings: None
    _run(checkout / "train.py", arguments)


def _run(path: Path, arguments: list[str]) -> None:
    sys.path.insert(0, str(path.parent))
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")


if __name__ == "__main__":
    name, checkout, *rest = sys.argv[1:]
    if name == "repdistiller":
        repdistiller(Path(checkout).resolve(), Path(rest[0]).resolve(), rest[1:])
    else:
        timm(Path(checkout).resolve(), rest)
