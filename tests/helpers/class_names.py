"""Betons whose classes have a network's names, fewer, others or another order, and the commands where the two meet."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.beton.manifest import manifest_text
from fastkd.data.beton.read import manifest_path
from fastkd.data.sources.open import open_source
from helpers.commands import Outcome, fastkd
from helpers.lab import CPU
from helpers.synthetic import encoded, write_files

NAMES = ("ant", "bee", "cow", "dog", "eel", "fox", "gnu")
COUNT = 16  # images of a class


def picture(label: int, seed: int) -> np.ndarray:
    """Noise around a colour that no other class has: uint8 (32, 32, 3)."""
    colour = [60 + 140 * (label >> bit & 1) for bit in range(3)]
    noise = np.random.default_rng([seed, label]).normal(0, 25, (32, 32, 3))
    return np.clip(colour + noise, 0, 255).astype(np.uint8)


def make(path: Path, names: dict[str, str], order: list[str] | None = None) -> Path:
    """A beton of classes of NAMES under other names; labels by name, or in an order of their own."""
    files = {
        f"{name}/{i:02}.png": encoded(picture(NAMES.index(true), i), "PNG")
        for true, name in names.items()
        for i in range(COUNT)
    }
    folder = path.with_suffix(".images")
    listed = None
    if order is not None:
        listed = path.with_suffix(".txt")
        listed.write_text("\n".join(order))
    build_beton(open_source(write_files(folder, files), classes=listed), path, WriteOptions(mode="raw"), num_workers=1)
    return path


def called(path: Path, copy: Path, names: list[str]) -> Path:
    """The same beton with other class names in its manifest."""
    copy.write_bytes(path.read_bytes())
    manifest = json.loads(manifest_path(path).read_text()) | {"class_names": names}
    manifest_path(copy).write_text(manifest_text(manifest))
    return copy


COMMANDS: dict[str, Callable[[Path, Path, Path, Path], list]] = {
    "evaluate": lambda beton, network, same, out: ["evaluate", beton, "--model", network],
    "score": lambda beton, network, same, out: ["score", beton, "--model", network, "--method", "el2n", "--out", out],
    "train --val": lambda beton, network, same, out: [
        *("train", same, "--val", beton, "--alpha", 0, "--init", network, "--lr", 1e-6, "--out", out)
    ],
    "cache-logits": lambda beton, network, same, out: [
        *("cache-logits", beton, "--teacher", network, "--num-seeds", 1, "--out", out)
    ],
    "train --teacher": lambda beton, network, same, out: ["train", beton, "--teacher", network, "--out", out],
    "train --init": lambda beton, network, same, out: ["train", beton, "--init", network, "--alpha", 0, "--out", out],
}
ANY_ORDER = ("evaluate", "score", "train --val")
"""Where labels can be mapped; the others take a network's outputs in their own order."""


def run(command: str, beton: Path, network: Path, data: dict[str, Path], out: Path, *more: object) -> Outcome:
    arguments = COMMANDS[command](beton, network, data["same"], out)
    student = ["--model", "resnet8", "--epochs", 1] if arguments[0] == "train" else []
    return fastkd(*arguments, *student, *more, *CPU, "--json")


def told(outcome: Outcome) -> str:
    """What a command says besides what it trains and who loads."""
    lines = [line for line in outcome.err.splitlines() if not line.startswith("train: ")]
    return "\n".join(line for line in lines if "loader thread" not in line)


def accuracy(outcome: Outcome) -> float | None:
    found = outcome.result
    return found.get("top1", found.get("val_top1"))
