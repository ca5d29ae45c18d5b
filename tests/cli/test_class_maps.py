"""--class-map says which class is which where names do not, and a map that does not fit is refused."""

import re

import pytest
from helpers.class_names import ANY_ORDER, COMMANDS, accuracy, run, told
from helpers.commands import fastkd
from helpers.lab import CPU


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
