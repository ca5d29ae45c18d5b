"""Labels mean the same class wherever two files meet: every command, with data of every relation to a network's classes."""

import json
import re

import numpy as np
import pytest
from helpers.class_names import ANY_ORDER, COMMANDS, NAMES, accuracy, run, told
from helpers.commands import fastkd
from helpers.lab import CPU
from helpers.stores import save_teacher

from fastkd.data.beton.read import manifest_path
from fastkd.models.checkpoint import read_checkpoint
from fastkd.prune.scores.score_file import load_scores

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
