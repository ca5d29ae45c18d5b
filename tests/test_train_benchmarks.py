"""The long scripts on training, shortened: what they assert holds, and they write what they claim."""

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A function that runs a script with arguments and returns its result."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    measure = importlib.import_module("measure")
    monkeypatch.setattr(measure, "RESULTS", tmp_path)

    def run_script(name: str, *arguments: object) -> dict:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments), "--name", "found"])
        importlib.import_module(name).main()
        return json.loads((tmp_path / "found.json").read_text())

    return run_script


def test_resident_data_against_the_loader(run, raw_beton):
    few = ["--images", 64, "--batch-size", 16, "--num-seeds", 2, "--steps", 2, "--rounds", 1, "--num-workers", 1]
    found = run("train_resident", raw_beton, "--model", "resnet8", *few)
    assert found["equal"] == {"batches_byte_equal": 8, "losses_equal": 8}
    assert found["extrapolated_from_steps"] == 2
    seconds = 64 * 240 / found["images_per_s"]["resident"]["median"]
    assert found["extrapolated_s"] == pytest.approx(seconds)
    assert "measured_s" not in found
