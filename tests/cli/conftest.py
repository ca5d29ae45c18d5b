"""Betons whose classes relate in every way to those of a network, and the network; made once a session."""

from pathlib import Path

import pytest
from helpers.class_names import NAMES, called, make
from helpers.commands import fastkd
from helpers.lab import CPU


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Betons of the same images by how their classes lie to NAMES."""
    folder = tmp_path_factory.mktemp("classes")
    own = {name: name for name in NAMES}
    without = {name: name for name in NAMES if name not in ("bee", "fox")}
    found = {
        "same": make(folder / "same.beton", own),
        "fewer": make(folder / "fewer.beton", without),
        "first": make(folder / "first.beton", {name: name for name in NAMES[:5]}),
        "turned": make(folder / "turned.beton", own, sorted(NAMES, reverse=True)),
        "renamed": make(folder / "renamed.beton", own | {"cow": "cub", "eel": "elk"}),
        "moved": make(folder / "moved.beton", own | {"cow": "zebu"}),
        "more": make(folder / "more.beton", own, [*NAMES, "hen"]),
    }
    for name, source in (("nameless", "same"), ("nameless fewer", "first")):
        found[name] = folder / f"{name.replace(' ', '-')}.beton"
        found[name].write_bytes(found[source].read_bytes())
    found["invented"] = called(found["same"], folder / "invented.beton", [str(i) for i in range(7)])
    found["repeats"] = called(found["same"], folder / "repeats.beton", ["ant", "crane", "crane", *NAMES[3:]])
    return found


@pytest.fixture(scope="session")
def network(data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learned the classes of `data["same"]`, as a run leaves it."""
    out = tmp_path_factory.mktemp("network") / "run"
    options = [
        "--alpha",
        0,
        "--model",
        "resnet8",
        "--epochs",
        12,
        "--lr",
        0.1,
        "--batch-size",
        16,
        "--val",
        data["same"],
    ]
    done = fastkd("train", data["same"], *options, "--out", out, *CPU, "--json")
    assert done.result["val_top1"] > 90
    return out / "model.safetensors"
