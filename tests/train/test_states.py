"""States of a run: when they are written, what is in them, and that a run goes on from them to the same bits."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers.fake_gpu import Event
from helpers.runs import interrupt_after, records, run, weights
from torch import nn

from fastkd.cli import cli
from fastkd.cli.train_options import parse_states
from fastkd.errors import DiskError
from fastkd.train.parts import states
from fastkd.train.parts.states import Checkpoints
from fastkd.train.resume import load_resume


def test_a_state_is_that_of_its_step_however_far_the_run_has_gone_when_it_is_written(tmp_path, monkeypatch):
    network, rows = nn.Linear(2, 1), [[1.0]]
    checkpoints = Checkpoints(tmp_path, {"fingerprint": "x"}, {"learner": network})
    before = network.weight.detach().clone()
    write = states.save_resume

    def late(path: Path, state: dict) -> None:
        with torch.no_grad():
            network.weight.add_(1)
        rows.append([2.0])
        write(path, state)

    monkeypatch.setattr(states, "save_resume", late)
    checkpoints.save({"epoch": 0, "step": 1, "rows": rows})
    checkpoints.finish()
    state = load_resume(tmp_path / "resume.pt")
    assert torch.equal(state["learner"]["weight"], before)
    assert state["rows"] == [[1.0]]


def test_a_state_that_cannot_be_written_ends_the_run_at_the_next_one(dataset, mask, tmp_path, monkeypatch):
    def full(path: Path, state: dict) -> None:
        raise DiskError(f"{path}: the disk is full")

    monkeypatch.setattr(states, "save_resume", full)
    with pytest.raises(DiskError, match=r"resume\.pt: the disk is full"):
        run(tmp_path / "run", dataset, mask, alpha=0)
    assert not (tmp_path / "run" / "result.json").exists()


def test_states_after_every_second_epoch_are_gone_on_from_to_the_same_bits(dataset, mask, tmp_path):
    recipe = {"alpha": 0, "epochs": 5, "batch_size": 100}
    run(tmp_path / "whole", dataset, mask, **recipe)
    options = {"checkpoint_epochs": 2}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", dataset, mask, options=options | {"progress": interrupt_after(7)}, **recipe)
    assert load_resume(tmp_path / "run" / "resume.pt")["epoch"] == 2
    run(tmp_path / "run", dataset, mask, options=options, **recipe)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    assert load_resume(tmp_path / "run" / "resume.pt")["epoch"] == 5
    assert load_resume(tmp_path / "run" / "resume-previous.pt")["epoch"] == 4


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, {}),
        ("500", {"checkpoint_every": 500}),
        ("10epochs", {"checkpoint_epochs": 10}),
        ("1 epoch", {"checkpoint_epochs": 1}),
    ],
)
def test_states_are_asked_for_in_steps_or_in_epochs(text, found):
    assert parse_states(text) == found


@pytest.mark.parametrize("text", ["0", "0epochs", "-1", "1.5", "ten", "5eps", "9999999999"])
def test_what_is_neither_steps_nor_epochs_is_a_usage_error(text):
    outcome = CliRunner().invoke(
        cli, ["train", "x.beton", "--model", "resnet8", "--out", "run", f"--checkpoint-every={text}"]
    )
    assert outcome.exit_code == 2
    assert "is not in the range of steps, 1 … 999999999, nor a number of epochs, e.g. 10epochs" in " ".join(
        outcome.output.split()
    )


def test_a_gpus_random_numbers_are_kept_with_a_state(tmp_path, monkeypatch):
    there = [torch.arange(16, dtype=torch.uint8)]
    for name, stub in {
        "get_rng_state": lambda device: there[0].clone(),
        "set_rng_state": lambda state, device: there.insert(0, state),
        "Event": type("_", (Event,), {"wait": lambda self: None}),
        "current_stream": lambda device: None,
        "Stream": lambda device: None,
        "stream": lambda stream: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    first = Checkpoints(tmp_path, {"fingerprint": "x", "format_version": 2}, {}, "cuda:0")
    first.save({"epoch": 1, "step": 0, "rows": [], "jsonl": None, "csv": None, "accuracy": {}})
    first.finish()
    there[:] = [torch.zeros(16, dtype=torch.uint8)]
    assert Checkpoints(tmp_path, {"fingerprint": "x", "format_version": 2}, {}, "cuda:0").load(lambda line: None)
    assert torch.equal(there[0], torch.arange(16, dtype=torch.uint8))
