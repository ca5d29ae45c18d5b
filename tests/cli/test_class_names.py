"""Labels mean the same class wherever two files meet: every command, with data of every relation to a network's classes."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import Outcome, fastkd
from helpers.stores import save_teacher
from helpers.synthetic import encoded, write_files

from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.beton.manifest import manifest_text
from fastkd.data.beton.read import manifest_path
from fastkd.data.sources.open import open_source
from fastkd.models.checkpoint import read_checkpoint, save_weights
from fastkd.models.classes import imagenet_wnids
from fastkd.models.registry import create_model
from fastkd.prune.scores.score_file import load_scores

CPU = ("--device", "cpu", "--num-workers", 1)
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


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
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


WORDS = {
    "same": None,
    "fewer": "5 of the 7 classes",
    "first": "the first 5 of the 7 classes",
    "turned": "the 7 classes of .* in another order",
    "renamed": "'cub', 'elk' of its 7 classes are not among the 7 .*'cow', 'eel' there but not here",
    "moved": "'zebu' of its 7 classes is not among the 7 .*'cow' there but not here",
    "more": "'hen' of its 8 classes is not among the 7 of",
    "nameless": "class names are not known of .*nameless.beton: only the numbers of classes are compared",
    "nameless fewer": "has 5 classes, .* has 7, and class names are not known of .*nameless-fewer.beton",
    "invented": "class names are not known of .*invented.beton: only the numbers",
    "repeats": "class names are not known of .*repeats.beton: only the numbers",
}
TAKEN_BY_ALL = ("same", "nameless", "invented", "repeats")
MAPPED = ("fewer", "first", "turned")


@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_labels_meet_outputs_by_name_or_not_at_all(command, kind, data, network, tmp_path):
    outcome = run(command, data[kind], network, data, tmp_path / "out")
    taken = kind in TAKEN_BY_ALL or (kind in MAPPED and command in ANY_ORDER)
    assert outcome.code == (0 if taken else 1), outcome.err
    if WORDS[kind] is None:
        assert told(outcome) == ""
        return
    assert len(told(outcome).splitlines()) == 1
    if command == "train --init" and kind in ("fewer", "first", "more", "nameless fewer"):
        assert "--reset-head" in outcome.err
        return
    assert re.search(WORDS[kind], outcome.err)
    if kind in MAPPED:
        assert ("labels are mapped by name" in outcome.err) == taken
    if not taken:
        way_out = {"train --init": "--reset-head"}.get(command, "build-beton --classes")
        assert (way_out if kind in MAPPED else "--class-map FILE") in outcome.err
        assert not (tmp_path / "out").exists()
    if command in ("evaluate", "train --val") and taken:
        assert accuracy(outcome) > 90


@pytest.mark.parametrize("kind", MAPPED)
@pytest.mark.parametrize("method", ["el2n", "grand", "moderate", "margin", "entropy", "confidence"])
def test_a_sample_has_the_same_score_whatever_number_its_class_has(method, kind, data, network, tmp_path):
    found = {}
    for name in ("same", kind):
        done = fastkd(
            "score", data[name], "--model", network, "--method", method, "--out", tmp_path / name, *CPU, "--json"
        )
        assert done.code == 0, done.err
        names = json.loads(manifest_path(data[name]).read_text())["names"]
        found[name] = dict(zip(names, load_scores(tmp_path / name).values[method], strict=True))
    np.testing.assert_allclose([found["same"][name] for name in found[kind]], list(found[kind].values()), atol=1e-4)


def test_exact_gradients_are_of_the_mapped_labels(data, network, tmp_path):
    options = ("--model", network, "--method", "grand", "--grand-params", "all", *CPU, "--json")
    for name in ("same", "turned"):
        assert fastkd("score", data[name], *options, "--out", tmp_path / name).code == 0
    same, turned = (load_scores(tmp_path / name).values["grand"] for name in ("same", "turned"))
    np.testing.assert_allclose(same.reshape(7, -1), turned.reshape(7, -1)[::-1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_says_which_class_is_which(command, data, network, tmp_path):
    (tmp_path / "map.toml").write_text('cub = "cow"\n"elk" = 4  # its number\n')
    outcome = run(command, data["renamed"], network, data, tmp_path / "out", "--class-map", tmp_path / "map.toml")
    assert outcome.code == 0, outcome.err
    assert "map.toml (2 of 7 classes, 5 by name)" in told(outcome)
    if command in ("evaluate", "train --val"):
        assert accuracy(outcome) > 90


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_of_another_order_is_followed_where_labels_can_be_mapped(command, data, network, tmp_path):
    (tmp_path / "map.toml").write_text('zebu = "cow"')
    outcome = run(command, data["moved"], network, data, tmp_path / "out", "--class-map", tmp_path / "map.toml")
    assert outcome.code == (0 if command in ANY_ORDER else 1), outcome.err
    assert "in another order" in outcome.err
    if command in ("evaluate", "train --val"):
        assert accuracy(outcome) > 90


@pytest.mark.parametrize("kind", ["same", "turned", "renamed", "moved", "nameless", "repeats", "more"])
@pytest.mark.parametrize("command", COMMANDS)
def test_same_order_takes_the_numbers_whatever_the_names(command, kind, data, network, tmp_path):
    outcome = run(command, data[kind], network, data, tmp_path / "out", "--class-map", "same-order")
    if kind == "more":
        assert outcome.code == 1
        assert "8" in outcome.err
        assert "7" in outcome.err
        return
    assert outcome.code == 0, outcome.err
    assert ("whatever their names" in outcome.err) == (kind != "same")
    if command == "evaluate" and kind == "turned":
        assert accuracy(outcome) < 30


def test_numbers_say_which_classes_data_without_names_have(data, network, tmp_path):
    (tmp_path / "map.toml").write_text("".join(f"{label} = {label}\n" for label in range(5)))
    outcome = run("evaluate", data["nameless fewer"], network, data, tmp_path, "--class-map", tmp_path / "map.toml")
    assert accuracy(outcome) > 90


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cub cow", "Expected '='"),
        ('cub = "cow"\ncub = "dog"\nelk = "eel"', "Cannot overwrite a value"),
        ('cub = ["cow"]', "'cub' is a list"),
        ("cub = 2.0", "'cub' is a float"),
        ("cub = true", "'cub' is a bool"),
        ('c.ub = "cow"', "'c' is a dict"),
        ("# nothing", "names no class"),
        ('cub = "cow"\nelk = "whale"', "'elk' goes to 'whale', which is no class of"),
        ('cub = "cow"\nelk = 7', "'elk' goes to 7, which is not 0 … 6"),
        ('cub = "cow"\nelk = -1', "'elk' goes to -1, which is not 0 … 6"),
        ('cub = "cow"', "does not say what 'elk'"),
        ('cub = "cow"\nelk = "cow"', "'cub' and 'elk' of .* are both 'cow'"),
        ('cub = "cow"\nelk = "dog"', "'dog' and 'elk' of .* are both 'dog'"),
        (b"\xff\xfe", "decode"),
        (None, "cannot be read"),
    ],
)
def test_a_map_that_does_not_fit_is_refused_in_one_line(text, words, data, network, tmp_path):
    path = tmp_path / "map.toml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    outcome = run("evaluate", data["renamed"], network, data, tmp_path, "--class-map", path)
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1
    assert f"--class-map {path}: " in outcome.err
    assert re.search(words, outcome.err)


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "X", "--model", "resnet8", "--alpha", 0, "--out", "O"),
        ("train", "X", "--model", "resnet8", "--alpha", 0, "--init", "N", "--reset-head", "--out", "O"),
        ("score", "X", "--method", "memorization", "--num-models", 3, "--out", "O"),
    ],
)
def test_a_map_that_does_nothing_is_refused(arguments, data, network, tmp_path):
    files = {"X": data["same"], "N": network, "O": tmp_path / "out"}
    outcome = fastkd(*[files.get(str(a), a) for a in arguments], "--class-map", "same-order", *CPU)
    assert outcome.code == 1
    assert "--class-map does nothing" in outcome.err


def test_the_last_layer_anew_compares_nothing(data, network, tmp_path):
    outcome = run("train --init", data["moved"], network, data, tmp_path / "out", "--reset-head")
    assert outcome.code == 0, outcome.err
    assert told(outcome) == ""
    assert read_checkpoint(tmp_path / "out/model.safetensors").meta["class_names"] == sorted({*NAMES, "zebu"} - {"cow"})


@pytest.mark.parametrize(
    "meta", [{}, {"class_names": [str(i) for i in range(7)]}, {"class_names": ["a", "b"]}, {"class_names": 3}]
)
@pytest.mark.parametrize("command", COMMANDS)
def test_of_a_network_without_names_the_numbers_are_compared(command, meta, data, tmp_path):
    nameless = save_teacher(tmp_path / "t.safetensors", num_classes=7, **meta)
    outcome = run(command, data["same"], nameless, data, tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "class names are not known of " in told(outcome)
    assert run(command, data["fewer"], nameless, data, tmp_path / "out2").code == (0 if command == "train --val" else 1)


@pytest.mark.parametrize("names", [None, [f"class {i}" for i in range(100)]])
def test_a_network_of_100_outputs_is_not_evaluated_on_7_classes(names, data, tmp_path):
    wide = save_teacher(tmp_path / "t.safetensors", num_classes=100, class_names=names)
    outcome = run("evaluate", data["same"], wide, data, tmp_path)
    assert outcome.code == 1
    assert "--class-map" in outcome.err


WNIDS = imagenet_wnids()


@pytest.fixture
def published(monkeypatch) -> None:
    """torchvision's resnet18, with fresh weights in the place of those that it downloads."""
    state = create_model("resnet18", 1000).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **kwargs: state)


def imagenet_data(data: dict[str, Path], path: Path, names: list[str]) -> Path:
    return called(data["same"], path, names)


@pytest.mark.parametrize("command", ["evaluate", "score", "cache-logits", "train --teacher"])
@pytest.mark.parametrize("names", ["wnids", "words", "some", "turned", "wrong"])
def test_imagenet_folders_meet_torchvisions_networks_without_an_option(command, names, data, published, tmp_path):
    from torchvision.models import ResNet18_Weights

    lists = {
        "wnids": list(WNIDS),
        "words": ResNet18_Weights.DEFAULT.meta["categories"],
        "some": list(WNIDS[3:900:100]),
        "turned": list(WNIDS[::-1]),
        "wrong": [*WNIDS[:-1], "n99999999"],
    }
    beton = imagenet_data(data, tmp_path / "x.beton", lists[names])
    outcome = run(command, beton, "resnet18", data, tmp_path / "out")
    taken = names in ("wnids", "words") or (names in ("some", "turned") and command in ANY_ORDER)
    assert outcome.code == (0 if taken else 1), outcome.err
    if names in ("wnids", "words"):
        assert told(outcome) == ""
    if names == "wrong":
        assert "'n99999999' of its 1000 classes is not among the 1000 of resnet18" in outcome.err


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
