"""Folders of runs of version 1 are read and gone on with; other folders are told and not touched."""

import re
import shutil
from pathlib import Path

import pytest
from helpers.run_folders import listing, of_another_run
from helpers.runs import as_version_1, records, weights

from fastkd.errors import CorruptError, FastKDError, FormatError, MismatchError
from fastkd.report.compare import collect_runs
from fastkd.report.describe import describe, verify
from fastkd.train.run_folder import read_result, read_run


@pytest.fixture
def of_before(finished, tmp_path) -> Path:
    """A finished run of version 1."""
    return as_version_1(shutil.copytree(finished, tmp_path / "run"))


def test_a_finished_run_of_version_1_is_read_and_says_what_is_not_recorded(of_before, finished, again):
    before, notes = listing(of_before), []
    assert again(of_before)["fingerprint"] == read_result(finished, read_run(finished))["fingerprint"]
    assert verify(of_before, note=notes.append) == []
    assert listing(of_before) == before
    assert describe(of_before)["about"] == describe(of_before)["made"] == "not recorded"
    assert [note.split(": ", 1)[1] for note in notes] == [
        "what its mask and teacher were is not recorded",
        "which run it is of is not recorded",
        "which run it is of is not recorded",
        "checksums of it and of metrics.jsonl, metrics.csv are not recorded",
    ]


@pytest.mark.parametrize("value", ['"99"', "NaN", "1e999", "[]"])
def test_an_accuracy_of_version_1_that_is_no_number_is_refused(of_before, again, tmp_path, value):
    path = of_before / "result.json"
    path.write_text(re.sub(r'"val_top1": [\d.]+', f'"val_top1": {value}', path.read_text()))
    assert "result.json: damaged: epochs, images_per_s and val_top1 are not all numbers" in verify(of_before)[0]
    for refuse in (lambda: again(of_before), lambda: collect_runs(tmp_path)):
        with pytest.raises(FormatError, match=r"result\.json: damaged"):
            refuse()


@pytest.mark.parametrize("name", ["model.safetensors", "scores.h5"])
def test_weights_and_scores_of_another_run_are_found_in_version_1_too(of_before, other, again, name):
    of_another_run(of_before / name, other)
    (problem,) = verify(of_before)
    assert f"{name}: of another run" in problem
    with pytest.raises(CorruptError, match=rf"{name}: of another run"):
        again(of_before)


def test_a_run_of_version_1_is_gone_on_with_to_the_same_bytes(stopped, finished, again, tmp_path):
    out = as_version_1(shutil.copytree(stopped, tmp_path / "run"))
    described = (out / "run.json").read_bytes()
    again(out)
    assert weights(out) == weights(finished)
    assert records(out) == records(finished)
    assert (out / "run.json").read_bytes() == described
    assert verify(out) == []


def test_lost_lines_of_version_1_are_refused(stopped, again, tmp_path):
    out = as_version_1(shutil.copytree(stopped, tmp_path / "run"))
    (out / "metrics.jsonl").unlink()
    with pytest.raises(CorruptError, match=r"metrics\.jsonl: 0 bytes, the last state has seen"):
        again(out)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"notes.txt": "mine"}, r"holds notes\.txt but no run\.json"),
        ({"run.json": '{"format_version": 0}'}, r"run\.json: run of version 0, this fastkd reads version 1 and 2"),
        ({"run.json": '{"format_version": 3}'}, r"run\.json: run of version 3, this fastkd reads version 1 and 2"),
        ({"run.json": '{"format_version": 1}'}, r"run\.json: damaged: it does not say what the run was"),
    ],
)
def test_a_folder_of_foreign_files_or_of_another_version_is_told_and_not_touched(again, tmp_path, content, words):
    out = tmp_path / "run"
    out.mkdir()
    for name, text in content.items():
        (out / name).write_text(text)
    before = listing(out)
    with pytest.raises(FastKDError, match=words):
        again(out)
    assert listing(out) == before


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("which", ["finished", "stopped"])
def test_the_folder_of_another_job_is_told_and_not_touched(request, again, tmp_path, which, version):
    out = shutil.copytree(request.getfixturevalue(which), tmp_path / "run")
    if version == 1:
        as_version_1(out)
    before = listing(out)
    with pytest.raises(
        MismatchError, match=r"another run is there; it differs in params.recipe.lr 0\.05 \(asked for 0\.1\)"
    ):
        again(out, lr=0.1)
    assert listing(out) == before
