"""Short forms of the campaigns of faults: system calls that fail, signals, damaged artefacts; and what they have shown."""

import json
import os

import pytest
import torch
from helpers.commands import assert_one_clear_line, fastkd
from helpers.refusals import refused
from helpers.runs import make_run
from helpers.scripts import benchmark
from helpers.stores import make_store, random_logits

from fastkd.cli import cli
from fastkd.errors import CorruptError, DiskError, FormatError, MismatchError
from fastkd.models.checkpoint import read_checkpoint
from fastkd.store.merge import merge_stores
from fastkd.store.tables import read_tables
from fastkd.train.resume import load_part, load_resume, require_position
from fastkd.train.run_folder import read_result, read_run, with_checksum
from fastkd.writing import reading


def test_the_campaigns_know_every_command():
    assert set(benchmark("cli.failing_calls").COMMANDS) == set(cli.commands)


def test_a_few_calls_that_fail_end_in_one_line_or_in_the_result():
    script = benchmark("cli.failing_calls")
    found = script.run(list(script.OF_DATA), 1, light=True)
    assert found["wrong"] == []
    assert len(found["commands"]) == len(script.OF_DATA)


def test_a_few_signals_leave_nothing_behind():
    assert benchmark("cli.signals").run(["import-scores"], 4, 0, light=True)["wrong"] == []


def test_a_few_damaged_masks_are_refused_or_the_same(tmp_path, monkeypatch):
    lab = benchmark("cli.lab")
    monkeypatch.chdir(tmp_path)
    lab.prepare(tmp_path, lab.DATA)
    found = benchmark("cli.damaged_artefacts").campaign(tmp_path, "mask", 150, 0)
    assert found["wrong"] == []
    assert sum(found["totals"].values()) == 150


def test_a_read_that_fails_names_the_file(tmp_path):
    def read() -> None:
        with reading(tmp_path / "x"):
            raise OSError(5, "anything")

    line = refused(DiskError, read)
    assert line == f"{tmp_path / 'x'}: cannot be read (Input/output error): mend that, or give a copy from elsewhere"


def test_a_merge_refuses_a_count_that_was_changed_and_bytes_behind_the_end(tmp_path):
    path = make_store(tmp_path / "l.h5", random_logits(2, 37, 10))
    tables, whole = read_tables(path), path.read_bytes()
    damaged = bytearray(whole)
    damaged[tables.top1_offset] ^= 1
    path.write_bytes(damaged)
    assert "count of top-1 hits" in refused(CorruptError, merge_stores, [path], tmp_path / "out.h5")
    assert_one_clear_line(fastkd("inspect", path), "counts of top-1 hits")
    path.write_bytes(whole + b"more")
    assert f"{path}: " in refused(CorruptError, merge_stores, [path], tmp_path / "out.h5")
    assert os.listdir(tmp_path) == ["l.h5"]


def test_the_folder_of_a_run_with_weights_of_another_is_refused(trained, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("run.json", "model.safetensors"):
        (folder / name).write_bytes((trained / name).read_bytes())
    assert read_checkpoint(folder).format == "fastkd"
    make_run(tmp_path / "other")
    (folder / "run.json").write_bytes((tmp_path / "other" / "run.json").read_bytes())
    assert "another run" in refused(MismatchError, read_checkpoint, folder)


@pytest.mark.parametrize(
    "change", [{"val_top1": 1e308}, {"val_top5": [1]}, {"epochs": -1}, {"files": {"a": True}}, {"files": []}]
)
def test_a_result_that_makes_no_sense_is_refused_though_it_is_sealed(tmp_path, change):
    out = make_run(tmp_path / "run")
    head = read_run(out)
    result = {name: value for name, value in read_result(out, head).items() if name != "checksum"}
    (out / "result.json").write_text(json.dumps(with_checksum(result | change)))
    assert "damaged" in refused(FormatError, read_result, out, head)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": -1},
        {"step": "2"},
        {"rows": [[1.0]]},
        {"jsonl": {"size_bytes": -1}},
        {"accuracy": {"top1": None}},
        {"run": 3},
        {"num_written": 10**6},
        {"epoch": torch.zeros(2)},
    ],
)
def test_a_state_that_says_nothing_of_a_place_is_refused(trained, change):
    state = load_resume(trained / "resume.pt")
    require_position(state)
    with pytest.raises(ValueError, match="no position"):
        require_position(state | change)


@pytest.mark.parametrize("momentum", [{"momentum_buffer": torch.zeros(3)}, {"momentum_buffer": {}}, 3])
def test_a_state_of_another_optimiser_is_refused(momentum):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2, 2))], lr=0.1, momentum=0.9)
    whole = optimizer.state_dict()
    load_part(optimizer, whole | {"state": {0: {"momentum_buffer": torch.ones(2, 2)}}})
    with pytest.raises((ValueError, AttributeError)):
        load_part(optimizer, whole | {"state": {0: momentum}})
    with pytest.raises(ValueError, match="settings"):
        load_part(optimizer, whole | {"param_groups": [whole["param_groups"][0] | {"momentum": float("nan")}]})
