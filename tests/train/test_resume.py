"""Runs that are stopped, killed or damaged, and go on."""

import contextlib
import json
import os
import re
import shutil
import signal
import time

import pytest
from helpers.commands import fastkd_forked, finish, start
from helpers.moments import at_call, die
from helpers.runs import interrupt_after, records, run, weights

from fastkd.errors import CorruptError, FastKDError, FormatError, MismatchError, NotFoundError, StoppedError
from fastkd.models.norm import Norm
from fastkd.models.registry import create_model
from fastkd.train.learner import Learner
from fastkd.train.resume import load_resume, save_resume
from fastkd.train.run_folder import plain_result


def test_a_finished_run_gives_its_result_without_training(trained, dataset, mask, teacher_store, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "run")
    (copy / "resume.pt").unlink()  # it could not train on
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    told = []
    result = run(copy, dataset, mask, logits=teacher_store, options={"log": told.append})
    assert result == plain_result(json.loads((trained / "result.json").read_text()))
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert "finished" in told[0]


@pytest.mark.parametrize("num_steps", [2, 7])
def test_an_interrupted_run_goes_on_to_the_same_bits(trained, dataset, mask, teacher_store, tmp_path, num_steps):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", dataset, mask, logits=teacher_store, options={"progress": interrupt_after(num_steps)})
    assert not (tmp_path / "run" / "result.json").exists()
    run(tmp_path / "run", dataset, mask, logits=teacher_store)
    assert weights(tmp_path / "run") == weights(trained)
    assert records(tmp_path / "run") == records(trained)


@pytest.mark.parametrize("every", [1, 3])
def test_states_within_epochs_change_nothing_and_are_gone_on_from(
    trained, dataset, mask, teacher_store, tmp_path, every
):
    options = {"checkpoint_every": every}
    stop = interrupt_after(9)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", dataset, mask, logits=teacher_store, options=options | {"progress": stop})
    told = []
    run(tmp_path / "run", dataset, mask, logits=teacher_store, options=options | {"log": told.append})
    assert told[0].endswith("going on after step 3 of epoch 2")
    assert weights(tmp_path / "run") == weights(trained)
    assert records(tmp_path / "run") == records(trained)


@pytest.mark.parametrize(("number", "words", "code"), [(signal.SIGTERM, "SIGTERM", 75), (signal.SIGINT, "Ctrl-C", 130)])
def test_a_signal_writes_a_state_that_is_gone_on_from(
    number, words, code, trained, dataset, mask, teacher_store, tmp_path
):
    def ask(done: int, total: int) -> None:
        if done == 7:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(
        StoppedError, match=f"stopped by {words} after step 2 of epoch 2; the same command goes on"
    ) as stop:
        run(tmp_path / "run", dataset, mask, logits=teacher_store, options={"progress": ask})
    assert signal.getsignal(number) == before
    assert stop.value.exit_code == code
    state = load_resume(tmp_path / "run" / "resume.pt")
    assert (state["epoch"], state["step"]) == (1, 2)
    run(tmp_path / "run", dataset, mask, logits=teacher_store)
    assert weights(tmp_path / "run") == weights(trained)
    assert records(tmp_path / "run") == records(trained)


def test_lines_written_after_the_last_checkpoint_are_written_anew(trained, dataset, mask, teacher_store, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", dataset, mask, logits=teacher_store, options={"progress": interrupt_after(7)})
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "epoch": 1, "st')
    run(tmp_path / "run", dataset, mask, logits=teacher_store)
    assert records(tmp_path / "run") == records(trained)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 0.1}, "params.recipe.lr 0.05 .asked for 0.1"),
        ({"epochs": 3}, "params.recipe.epochs 2 .asked for 3"),
        ({"tau": 2.0, "seed": 4}, "params.recipe.seed 0 .asked for 4.; params.recipe.tau 4.0 .asked for 2.0"),
        (
            {"options": {"inputs": {"beton": "x", "mask": "y"}}},
            "inputs.beton .* .asked for x.; inputs.mask none .asked for y",
        ),
        ({"options": {"norm": Norm((0, 0, 0), (1, 1, 1))}}, "params.norm.mean .*asked for .0, 0, 0.*; params.norm.std"),
    ],
)
def test_another_run_in_the_same_folder_is_refused_and_told_apart(
    trained, dataset, mask, teacher_store, changes, words
):
    before = weights(trained)
    with pytest.raises(MismatchError, match=f"run: another run is there; it differs in {words}"):
        run(trained, dataset, mask, logits=teacher_store, **changes)
    assert weights(trained) == before


def test_a_folder_with_other_files_is_not_taken(dataset, mask, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(MismatchError, match=r"holds notes\.txt but no run\.json"):
        run(tmp_path, dataset, mask, alpha=0)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def halved(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("name", ["run.json", "result.json", "resume.pt"])
@pytest.mark.parametrize("damage", [halved, lambda content: b"", lambda content: b"[]", lambda content: b"\xff\xfe"])
def test_a_damaged_file_of_a_run_is_named_in_one_line(trained, dataset, mask, teacher_store, tmp_path, name, damage):
    copy = shutil.copytree(trained, tmp_path / "run")
    if name == "resume.pt":
        (copy / "result.json").unlink()
        (copy / "resume-previous.pt").unlink()
    (copy / name).write_bytes(damage((copy / name).read_bytes()))
    with pytest.raises(FastKDError, match=rf"run/{name}: ") as error:
        run(copy, dataset, mask, logits=teacher_store)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [halved, flipped, lambda content: b""])
def test_a_damaged_last_state_falls_back_to_the_one_before(trained, dataset, mask, teacher_store, tmp_path, damage):
    copy = shutil.copytree(trained, tmp_path / "run")
    for name in ("result.json", "model.safetensors"):
        (copy / name).unlink()
    (copy / "resume.pt").write_bytes(damage((copy / "resume.pt").read_bytes()))
    told = []
    run(copy, dataset, mask, logits=teacher_store, options={"log": told.append})
    assert re.search(r"resume\.pt: .*; falling back to the state before it, resume-previous\.pt", told[0])
    assert "going on after epoch 1" in told[1]
    assert weights(copy) == weights(trained)
    assert records(copy) == records(trained)


def test_a_damaged_state_does_not_push_out_the_whole_one(trained, dataset, mask, teacher_store, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "run")
    (copy / "result.json").unlink()
    (copy / "resume.pt").write_bytes(b"")
    run(copy, dataset, mask, logits=teacher_store)
    assert load_resume(copy / "resume.pt")["epoch"] == 2
    assert load_resume(copy / "resume-previous.pt")["epoch"] == 1


def test_flipped_bits_of_both_states_are_corrupt(trained, dataset, mask, teacher_store, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "run")
    (copy / "result.json").unlink()
    (copy / "resume-previous.pt").write_bytes(flipped((copy / "resume-previous.pt").read_bytes()))
    (copy / "resume.pt").write_bytes(flipped((copy / "resume.pt").read_bytes()))
    with pytest.raises(CorruptError, match=r"resume-previous\.pt: the content does not match"):
        run(copy, dataset, mask, logits=teacher_store)


def test_the_state_of_another_network_is_refused(trained, dataset, mask, teacher_store, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "run")
    (copy / "result.json").unlink()
    state = load_resume(copy / "resume.pt")
    save_resume(copy / "resume.pt", state | {"learner": Learner(create_model("resnet14", 10)).state_dict()})
    with pytest.raises(FormatError, match=r"resume\.pt: does not hold the state of this run"):
        run(copy, dataset, mask, logits=teacher_store)


def test_a_run_of_another_version_is_refused(trained, dataset, mask, teacher_store, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "run")
    head = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(head | {"format_version": 3}))
    with pytest.raises(FormatError, match=r"run\.json: run of version 3, this fastkd reads version 1 and 2"):
        run(copy, dataset, mask, logits=teacher_store)


@pytest.fixture(scope="module")
def training(raw_beton, raw_mask, teacher_store) -> tuple:
    """A command that trains for twelve short epochs."""
    options = [
        "--mask",
        raw_mask,
        "--logits",
        teacher_store,
        "--val",
        raw_beton,
        "--val-every",
        12,
        "--model",
        "resnet8",
        "--epochs",
        12,
    ]
    return ("train", raw_beton, *options, "--batch-size", 50, "--device", "cpu", "--num-workers", 1, "--json")


def test_a_run_that_was_killed_goes_on_to_the_bits_of_an_undisturbed_one(training, tmp_path):
    undisturbed = start(*training, "--out", tmp_path / "undisturbed")
    state = tmp_path / "killed" / "resume.pt"

    def die_after_the_state() -> None:
        """That of the third epoch; states are written beside the training, and change places."""
        while True:
            with contextlib.suppress(NotFoundError):
                if load_resume(state)["epoch"] == 3:
                    die()
            time.sleep(0.005)

    killed = fastkd_forked(
        *training, "--out", tmp_path / "killed", first=at_call("train_epoch " * 4, die_after_the_state)
    )()
    assert killed.code == -signal.SIGKILL, killed.err
    assert load_resume(state)["epoch"] == 3
    assert not (tmp_path / "killed" / "result.json").exists()
    resumed, whole = finish(start(*training, "--out", tmp_path / "killed")), finish(undisturbed)
    assert (resumed.code, whole.code) == (0, 0), resumed.err + whole.err
    assert "going on after epoch" in resumed.err
    assert weights(tmp_path / "killed") == weights(tmp_path / "undisturbed")
    assert records(tmp_path / "killed") == records(tmp_path / "undisturbed")
    same = ("fingerprint", "epochs", "val_top1", "val_top5")
    assert [resumed.result[key] for key in same] == [whole.result[key] for key in same]


def test_steps_have_their_lines_while_an_epoch_lasts_and_a_resume_changes_none(
    trained, dataset, mask, teacher_store, tmp_path, monkeypatch
):
    monkeypatch.setattr("fastkd.train.loop._NOTE_INTERVAL_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", dataset, mask, logits=teacher_store, options={"progress": interrupt_after(3)})
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    run(tmp_path / "run", dataset, mask, logits=teacher_store, options={"checkpoint_every": 2})
    assert records(tmp_path / "run") == records(trained)


def test_a_run_resumed_after_its_last_epoch_has_the_rates_of_that(trained, dataset, mask, teacher_store, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    found = run(tmp_path / "run", dataset, mask, logits=teacher_store)
    assert found["images_per_s"] > 0
    assert found["images_per_s"] == json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])["images_per_s"]
