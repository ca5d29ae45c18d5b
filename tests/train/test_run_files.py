"""The files of a run's folder belong together: what is lost, cut, changed or another run's is found, and refused or mended."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.run_folders import listing, of_another_run
from helpers.runs import interrupt_after, records, run, weights

from fastkd.errors import CorruptError, FastKDError, FormatError, MismatchError
from fastkd.report.compare import collect_runs
from fastkd.report.describe import verify
from fastkd.train import metrics
from fastkd.train.resume import load_resume, save_resume
from fastkd.train.run_folder import write_json

WRITTEN = ("run.json", "result.json", "model.safetensors", "scores.h5", "metrics.jsonl", "metrics.csv")
"""What a finished run consists of; its states are needed no more."""
STATES = ("resume.pt", "resume-previous.pt")


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


DAMAGES = (lost, cut, changed, of_another_run)


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


def test_numbers_that_json_does_not_know_are_not_written(tmp_path):
    for value in (float("nan"), float("inf")):
        with pytest.raises(FormatError, match=r"x\.json: would hold a number that JSON does not know"):
            write_json(tmp_path / "x.json", {"a": value})
        with pytest.raises(ValueError, match="not JSON compliant"):
            metrics.JsonLines(tmp_path / "x.jsonl").write([{"loss": value}])
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]
