"""The files of a run's folder belong together: what is lost, cut, changed or another run's is found, and refused or mended."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.runs import as_version_1, interrupt_after, records, run, validation, weights

from fastkd.errors import CorruptError, FastKDError, FormatError, MismatchError
from fastkd.report.compare import collect_runs
from fastkd.report.describe import describe, verify
from fastkd.scoring.recording import Record
from fastkd.train import metrics
from fastkd.train.resume import load_resume, save_resume
from fastkd.train.run_folder import read_result, read_run, write_json

WRITTEN = ("run.json", "result.json", "model.safetensors", "scores.h5", "metrics.jsonl", "metrics.csv")
"""What a finished run consists of; its states are needed no more."""
STATES = ("resume.pt", "resume-previous.pt")


@pytest.fixture(scope="module")
def options(dataset) -> dict:
    return {
        "record": Record(methods=("el2n",)),
        "val": validation(dataset),
        "val_every": 2,
        "inputs": {"beton": dataset.fingerprint},
        "params": {"num_kept": 200, "fraction": 1 / 3},
    }


@pytest.fixture(scope="module")
def finished(dataset, mask, teacher_store, options, tmp_path_factory) -> Path:
    """A finished run that recorded scores."""
    out = tmp_path_factory.mktemp("files") / "finished"
    run(out, dataset, mask, logits=teacher_store, options=options)
    return out


@pytest.fixture(scope="module")
def other(dataset, mask, teacher_store, options, tmp_path_factory) -> Path:
    """The same with another seed."""
    out = tmp_path_factory.mktemp("files") / "other"
    run(out, dataset, mask, logits=teacher_store, options=options, seed=1)
    return out


@pytest.fixture(scope="module")
def stopped(dataset, mask, teacher_store, options, tmp_path_factory) -> Path:
    """The first run, interrupted in its second epoch."""
    out = tmp_path_factory.mktemp("files") / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run(out, dataset, mask, logits=teacher_store, options=options | {"progress": interrupt_after(7)})
    return out


@pytest.fixture
def again(dataset, mask, teacher_store, options) -> Callable[..., dict]:
    """Tells the run of a folder again."""

    def tell(out: Path, log: Callable[[str], None] = lambda line: None, **recipe) -> dict:
        return run(out, dataset, mask, logits=teacher_store, options=options | {"log": log}, **recipe)

    return tell


def cut(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def changed(path: Path, _: Path) -> None:
    """Another digit in the middle of a text, or another byte where there is none."""
    content = bytearray(path.read_bytes())
    digits = [at for at in range(len(content) // 2, len(content)) if content[at : at + 1].isdigit()]
    at = digits[0] if path.suffix in (".json", ".jsonl", ".csv") else len(content) // 2
    content[at] ^= 1
    path.write_bytes(content)


def lost(path: Path, _: Path) -> None:
    path.unlink()


def of_another_run(path: Path, other: Path) -> None:
    shutil.copy(other / path.name, path)


DAMAGES = (lost, cut, changed, of_another_run)


def listing(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's bytes and time of change, and the folder's time."""
    files = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    return files | {"": (b"", folder.stat().st_mtime_ns)}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_of_a_finished_run_that_is_not_its_own_is_found_and_refused(
    finished, other, again, tmp_path, name, damage
):
    out = shutil.copytree(finished, tmp_path / "run")
    damage(out / name, other)
    problems = verify(out)
    assert problems
    assert "run.json" in problems[0] if name == "run.json" else f"run/{name}: " in problems[0]
    if (name, damage) == ("result.json", lost):
        again(out)  # the run is not finished then, and ends anew
        assert verify(out) == []
        return
    before = listing(out)
    told = "another run is there" if (name, damage) == ("run.json", of_another_run) else name
    with pytest.raises(FastKDError, match=told) as refused:
        again(out)
    assert "\n" not in str(refused.value)
    assert listing(out) == before
    with pytest.raises(FastKDError) as refused:
        collect_runs(tmp_path)
    assert "\n" not in str(refused.value)
    assert (name, damage) == ("run.json", of_another_run) or name in str(refused.value)


@pytest.mark.parametrize("name", [name for name in WRITTEN if name not in ("run.json", "result.json")])
def test_the_way_out_of_a_changed_file_leads_back_to_the_run(finished, again, tmp_path, name):
    out = shutil.copytree(finished, tmp_path / "run")
    changed(out / name, out)
    (problem,) = verify(out)
    assert problem.endswith(f"remove {out}/result.json and run the same `fastkd train` again, which writes it anew")
    (out / "result.json").unlink()
    again(out)
    assert verify(out) == []
    assert weights(out) == weights(finished)
    assert records(out) == records(finished)
    assert (out / "scores.h5").read_bytes() == (finished / "scores.h5").read_bytes()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", STATES)
def test_states_of_a_finished_run_may_go_but_not_be_others(finished, other, tmp_path, name, damage):
    out = shutil.copytree(finished, tmp_path / "run")
    damage(out / name, other)
    problems = verify(out)
    assert [name in problem for problem in problems] == ([] if damage is lost else [True])


def test_a_result_without_its_checksum_is_not_taken_for_one_of_before(finished, again, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    result = json.loads((out / "result.json").read_text())
    write_json(out / "result.json", {name: result[name] for name in result if name not in ("checksum", "run", "files")})
    with pytest.raises(CorruptError, match=r"result\.json: has no checksum"):
        again(out)
    assert "result.json: has no checksum" in verify(out)[0]


def test_an_edited_accuracy_is_refused(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    result = json.loads((out / "result.json").read_text())
    write_json(out / "result.json", result | {"val_top1": 99.9})
    with pytest.raises(CorruptError, match=r"result\.json: does not match its checksum, it was changed: remove it"):
        collect_runs(tmp_path)


def test_a_result_of_another_run_is_refused_by_name(finished, other, again, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    of_another_run(out / "result.json", other)
    with pytest.raises(MismatchError, match=r"result\.json: of another run \(.* than run\.json is"):
        again(out)


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.csv"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_lines_that_are_lost_before_a_resume_are_written_anew(stopped, finished, other, again, tmp_path, name, damage):
    out = shutil.copytree(stopped, tmp_path / "run")
    whole = (out / name).read_bytes()
    damage(out / name, other)
    (problem,) = verify(out)
    assert f"{name}: lost or changed since the last state" in problem
    told = []
    again(out, told.append)
    assert f"{out / name}: lost or changed since the last state; written anew from the copy in it" in told
    assert (out / name).read_bytes().startswith(whole)
    assert records(out) == records(finished)
    assert weights(out) == weights(finished)
    assert verify(out) == []


def test_lines_too_long_for_a_copy_are_refused_where_they_are_lost(
    dataset, mask, teacher_store, options, again, tmp_path, monkeypatch
):
    monkeypatch.setattr(metrics, "MOST_COPIED_BYTES", 300)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(out, dataset, mask, logits=teacher_store, options=options | {"progress": interrupt_after(7)})
    assert load_resume(out / "resume.pt")["jsonl"]["copy"] is None
    assert len(load_resume(out / "resume.pt")["csv"]["copy"]) == 2
    (out / "metrics.jsonl").unlink()
    (problem,) = verify(out)
    assert "metrics.jsonl: 0 bytes, the last state has seen" in problem
    with pytest.raises(
        CorruptError, match=r"metrics\.jsonl: 0 bytes, the last state has seen .*: put the file back, or"
    ):
        again(out)
    assert not (out / "metrics.jsonl").exists()


def test_the_state_of_another_seed_is_refused_and_the_one_before_gone_on_from(
    stopped, finished, other, again, tmp_path
):
    out = shutil.copytree(stopped, tmp_path / "run")
    of_another_run(out / "resume.pt", other)
    (problem,) = verify(out)
    assert "resume.pt: the state of another run" in problem
    before = listing(out)
    with pytest.raises(
        MismatchError, match=r"resume\.pt: the state of another run .*: put the run's own back, or remove"
    ):
        again(out)
    assert listing(out) == before
    (out / "resume.pt").unlink()
    again(out)
    assert weights(out) == weights(finished)


@pytest.mark.parametrize("damage", [cut, changed])
def test_a_damaged_state_that_is_the_only_one_is_found_and_refused(stopped, again, tmp_path, damage):
    out = shutil.copytree(stopped, tmp_path / "run")
    damage(out / "resume.pt", out)
    (problem,) = verify(out)
    assert "resume.pt: " in problem
    before = listing(out)
    with pytest.raises(FastKDError, match=r"resume\.pt: "):
        again(out)
    assert listing(out) == before


def test_a_run_that_lost_its_states_is_trained_anew(stopped, finished, again, tmp_path):
    out = shutil.copytree(stopped, tmp_path / "run")
    (out / "resume.pt").unlink()
    again(out)
    assert weights(out) == weights(finished)
    assert records(out) == records(finished)
    assert verify(out) == []


def test_a_state_that_names_no_run_is_not_taken(stopped, again, tmp_path):
    out = shutil.copytree(stopped, tmp_path / "run")
    state = load_resume(out / "resume.pt")
    save_resume(out / "resume.pt", {name: state[name] for name in state if name != "run"})
    with pytest.raises(MismatchError, match=r"resume\.pt: the state of a run that it does not name"):
        again(out)


def test_a_run_that_stopped_is_whole_and_says_where_it_stands(stopped):
    notes = []
    assert verify(stopped, note=notes.append) == []
    assert f"{stopped}: not finished, stands after epoch 1 by resume.pt" in notes


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


def test_numbers_that_json_does_not_know_are_not_written(tmp_path):
    for value in (float("nan"), float("inf")):
        with pytest.raises(FormatError, match=r"x\.json: would hold a number that JSON does not know"):
            write_json(tmp_path / "x.json", {"a": value})
        with pytest.raises(ValueError, match="not JSON compliant"):
            metrics.JsonLines(tmp_path / "x.jsonl").write([{"loss": value}])
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]
