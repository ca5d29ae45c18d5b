"""Sweeps that run: from nothing to a table and a page, killed and started again, in shards, with jobs that fail."""

import contextlib
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.commands import fastkd
from helpers.scripts import benchmark

kills = benchmark("sweep.sweep_kills")
SUITE = kills.SUITE.replace('prune.method = ["random", "el2n"]\n', "").replace("[0.05, 0.1]", "[0.05]")
"""Two runs, which is as few as share anything."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A folder in which a sweep has run, `s.toml` to `D/`."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "s.toml").write_text(SUITE)
    with contextlib.chdir(folder):
        outcome = fastkd("sweep", "s.toml", "--out", "D", "--jobs", 1)
    assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture
def inside(undisturbed, monkeypatch) -> Path:
    monkeypatch.chdir(undisturbed)
    return undisturbed


def test_a_sweep_ends_with_a_table_of_its_runs_and_a_page(undisturbed):
    lines = kills.table(undisturbed)
    assert [(line["source"], float(line["alpha"]), line["num_kept"]) for line in lines] == [
        ("store", 0.5, "72"),
        ("labels", 0.0, "72"),
    ]
    assert "<table>" in (undisturbed / "D" / "s.html").read_text()


def test_what_is_done_is_not_done_again(inside):
    before = {path: path.stat().st_mtime_ns for path in inside.rglob("D/*/**/*") if path.is_file()}
    table = (inside / "D/s.csv").read_bytes()
    result = fastkd("sweep", "s.toml", "--out", "D", "--json").result
    assert (result["num_commands_run"], result["owed"], result["ok"]) == (0, [], True)
    assert {path: path.stat().st_mtime_ns for path in inside.rglob("D/*/**/*") if path.is_file()} == before
    assert (inside / "D/s.csv").read_bytes() == table


def test_a_store_is_owed_while_a_run_that_reads_it_is_and_may_be_removed_after(inside):
    (store,) = Path("D/stores").rglob("*.h5")
    (run,) = {path.parent for path in Path("D/runs").glob("*/result.json") if "labels" not in path.parent.name}
    held, result = store.read_bytes(), run / "result.json"
    store.unlink()
    assert fastkd("sweep", "s.toml", "--out", "D", "--dry-run", "--json").result["num_owed"] == 0
    told = result.read_bytes()
    result.unlink()
    plan = fastkd("sweep", "s.toml", "--out", "D", "--dry-run", "--json").result
    assert sorted(one["kind"] for one in plan["commands"] if one["state"] != "done") == ["run", "store"]
    store.write_bytes(held)
    result.write_bytes(told)


def test_a_dry_run_tells_what_is_done_and_what_is_owed_and_writes_nothing(inside):
    before = sorted(inside.rglob("*"))
    result = fastkd("sweep", "s.toml", "--out", "D", "--set", "prune.keep=[0.05, 0.1]", "--dry-run", "--json").result
    owed = [one for one in result["commands"] if one["state"] == "owed"]
    assert [one["kind"] for one in owed] == ["mask", "store", "run", "run"]
    assert result["owed"]["forwards"] == 144
    assert result["live_forwards"] == 2 * (72 + 144)
    (store,) = (one for one in owed if one["kind"] == "store")
    assert "--reuse D/stores/" in store["command"]
    assert store["size_bytes"] > 0
    assert all(one["seconds"] > 0 for one in owed if one["kind"] in ("store", "run"))
    assert sorted(inside.rglob("*")) == before


def test_a_run_in_a_warm_worker_has_the_bytes_of_its_command_run_alone(inside, tmp_path):
    plan = fastkd("sweep", "s.toml", "--out", "D", "--dry-run", "--json").result
    (command,) = (one["command"] for one in plan["commands"] if one["kind"] == "run" and "--logits" in one["command"])
    words = command.split()[1:]
    out = words[words.index("--out") + 1]
    words[words.index("--out") + 1] = str(tmp_path / "run")
    env = os.environ | {"OMP_NUM_THREADS": str(plan["threads"])}
    subprocess.run([sys.executable, "-m", "fastkd", *words], env=env, check=True, capture_output=True)
    assert (tmp_path / "run/model.safetensors").read_bytes() == (inside / out / "model.safetensors").read_bytes()


def test_epochs_of_a_teacher_and_a_teacher_of_the_users_teach_by_masks_of_features(inside):
    """What is read of an output may lie in it, beside it, or be no output at all; done is told from what was read each time."""
    (weights,) = inside.glob("D/teachers/*/model.safetensors")
    text = SUITE.replace("[0.05]", "[0.1]").replace("train.alpha = [0, 0.5]", "train.alpha = [0.5]")
    text += 'prune.method = ["d2"]\nprune.score = ["forgetting"]\nteacher.big.epoch = [1, 2]\ntrain.teacher = ["big", "given"]\n'
    (inside / "e.toml").write_text(f'{text}[teacher.given]\ncheckpoint = "{weights.relative_to(inside)}"\n')
    result = fastkd("sweep", "e.toml", "--out", "D", "--jobs", 1, "--json").result
    assert (result["failed"], result["owed"], result["num_runs"]) == ({}, [], 3)
    with (inside / "D/e.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert sorted(line["teacher.epoch"] for line in lines) == ["", "1", "2"]
    prints = [line["teacher.fingerprint"] for line in sorted(lines, key=lambda line: line["teacher.epoch"])]
    assert prints[0] == prints[2] != prints[1]  # the user's is the same network, trained to the end
    assert fastkd("sweep", "e.toml", "--out", "D", "--json").result["num_commands_run"] == 0


def test_gc_lists_what_no_suite_names_any_more(inside):
    assert fastkd("sweep", "s.toml", "--out", "D", "--gc", "--json").result["outputs"] == []
    (inside / "D/masks/older-0123abcd.h5").write_bytes(b"12345")
    (found,) = fastkd("sweep", "s.toml", "--out", "D", "--gc", "--json").result["outputs"]
    assert (found["path"], found["size_bytes"]) == ("D/masks/older-0123abcd.h5", 5)
    (inside / "D/masks/older-0123abcd.h5").unlink()


def test_killed_and_gone_on_with_in_two_shards_it_has_the_same_table(undisturbed, tmp_path):
    process = kills.start(tmp_path, "--jobs", 2, suite=SUITE)
    while process.poll() is None and not list(tmp_path.glob("D/teachers/*/run.json")):
        time.sleep(0.01)
    assert process.poll() is None
    kills.kill_tree(process.pid)
    process.wait()
    shards = [kills.start(tmp_path, "--jobs", 1, "--shard", f"{index}/2", suite=SUITE) for index in (1, 2)]
    assert [shard.wait() for shard in shards] == [0, 0], (tmp_path / "said.txt").read_text()
    assert kills.table(tmp_path) == kills.table(undisturbed)


def test_jobs_that_fail_leave_a_line_each_and_the_rest_is_done(inside):
    """A mask larger than the data, and a teacher that diverges."""
    text = (inside / "s.toml").read_text() + 'train.teacher = ["big", "wild"]\n[teacher.wild]\nmodel = "resnet8"\n'
    (inside / "faulty.toml").write_text(text + 'epochs = 1\nlr = 1000\nviews = "center"\n')
    outcome = fastkd("sweep", "faulty.toml", "--out", "D", "--set", "prune.keep=[0.05, 5000]", "--json")
    assert outcome.code == 1, outcome.err
    result = json.loads(outcome.out)
    lines = {name.split("/")[0]: line for name, line in result["failed"].items()}
    assert lines.keys() == {"masks", "teachers"}
    assert "expected a count of 1 … 1438 samples" in lines["masks"]
    assert "training diverged; lower --lr" in lines["teachers"]
    assert {name.split("/")[0] for name in result["blocked"]} == {"runs", "stores"}
    assert sorted(result["owed"]) == sorted([*result["failed"], *result["blocked"]])
    assert (inside / "D/faulty.csv").read_text().count("\n") == 3
