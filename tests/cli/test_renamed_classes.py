"""What was made from data is not taken for data whose classes have other names since."""

import re
from pathlib import Path

import pytest
from helpers.class_names import COUNT, NAMES, called
from helpers.commands import fastkd
from helpers.lab import CPU

from fastkd.models.checkpoint import save_weights


@pytest.fixture(scope="module")
def made(data, network, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What is made from `data["same"]`, and the same beton with two classes' names exchanged."""
    folder = tmp_path_factory.mktemp("made")
    files = {name: folder / f"{name}.h5" for name in ("STORE", "SCORES", "FEATURES")}
    same, more = data["same"], ["--method", "moderate", "--features-out", files["FEATURES"]]
    for arguments in (
        ["cache-logits", same, "--teacher", network, "--num-seeds", 2, "--out", files["STORE"]],
        ["score", same, "--model", network, "--method", "el2n", *more, "--out", files["SCORES"]],
    ):
        assert fastkd(*arguments, *CPU).code == 0
    swapped = called(same, folder / "swapped.beton", ["bee", "ant", *NAMES[2:]])
    return files | {"SWAPPED": swapped, "NETWORK": renamed_network(network, folder / "t.safetensors")}


def renamed_network(network: Path, path: Path) -> Path:
    """The same network with the class names of `swapped`."""
    from fastkd.models.checkpoint import load_model

    model, meta = load_model(network)
    save_weights(path, model, meta | {"class_names": ["bee", "ant", *NAMES[2:]]})
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "X", "--logits", "STORE", "--model", "resnet8", "--epochs", 1, "--out", "O", *CPU),
        ("score", "X", "--logits", "STORE", "--method", "el2n", "--out", "O", *CPU),
        ("cache-logits", "X", "--teacher", "NETWORK", "--num-seeds", 3, "--reuse", "STORE", "--out", "O", *CPU),
        ("cache-logits", "X", "--teacher", "NETWORK", "--num-seeds", 2, "--out", "STORE", *CPU),
        ("prune", "X", "--keep", 0.5, "--method", "scores", "--scores", "SCORES", "--score", "el2n", "--out", "O"),
        ("prune", "X", "--keep", 0.5, "--method", "moderate", "--features", "FEATURES", "--out", "O"),
        ("prune", "X", "--keep", 0.5, "--method", "random", "--weights", "ONE", "--out", "O"),
    ],
)
def test_names_that_changed_since_are_noticed(arguments, data, network, made, tmp_path):
    one = tmp_path / "one.h5"
    assert fastkd("score", data["same"], "--model", network, "--method", "el2n", "--out", one, *CPU).code == 0
    files = made | {"X": made["SWAPPED"], "O": tmp_path / "out", "ONE": one}
    outcome = fastkd(*[files.get(str(a), a) for a in arguments])
    assert outcome.code == 1
    assert re.search("had other names, or another order|class_names_fingerprint", outcome.err), outcome.err
    if arguments[0] != "prune":
        again = fastkd(*[files.get(str(a), a) for a in arguments], "--class-map", "same-order")
        assert again.code == 0 or "this store is finished" in again.err


def test_what_was_made_without_names_is_still_taken(data, network, made, tmp_path):
    old, nameless = tmp_path / "old.h5", tmp_path / "nameless.beton"
    nameless.write_bytes(data["same"].read_bytes())
    assert fastkd("cache-logits", nameless, "--teacher", network, "--num-seeds", 2, "--out", old, *CPU).code == 0
    student = ["--model", "resnet8", "--epochs", 1, *CPU]
    assert fastkd("train", data["same"], "--logits", old, *student, "--out", tmp_path / "run").code == 0
    assert fastkd("train", nameless, "--logits", made["STORE"], *student, "--out", tmp_path / "run2").code == 0
    filled = ["--teacher", network, "--num-seeds", 3, *CPU, "--json"]
    for beton, store in ((data["same"], old), (nameless, made["STORE"])):
        out = tmp_path / f"{beton.stem}.h5"
        done = fastkd("cache-logits", beton, *filled, "--reuse", store, "--out", out)
        assert done.result["rows_reused"] == 2 * 7 * COUNT
    again = fastkd("cache-logits", data["same"], "--teacher", network, "--num-seeds", 2, "--out", old, *CPU)
    assert "this store is finished" in again.err
