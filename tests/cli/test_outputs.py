"""What is there already where a command writes: every command that writes, over everything that may be there."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import Outcome, fastkd
from helpers.ranks import forked, wait_for
from helpers.scripts import benchmark

from fastkd.cli import cli
from fastkd.cli.command import Output
from fastkd.prune.masks.mask import save_mask
from fastkd.writing import claim

CPU = "--device cpu --num-workers 1"
# Of each command: a line, another line that makes something else, and the name of what it writes.
WRITERS = {
    "build-beton": ("build-beton {folder} --mode raw", "build-beton {folder} --mode jpg", "y.beton"),
    "score": (
        f"score {{x}} --method el2n --model {{t}} {CPU}",
        f"score {{x}} --method margin --model {{t}} {CPU}",
        "s.h5",
    ),
    "import-scores": ("import-scores {x} {npy} --higher hard", "import-scores {x} {npy} --higher easy", "i.h5"),
    "prune": ("prune {x} --keep 0.2", "prune {x} --keep 0.2 --seed 1", "m.h5"),
    "cache-logits": (
        f"cache-logits {{x}} --mask {{m}} --teacher {{t}} --num-seeds 1 {CPU}",
        f"cache-logits {{x}} --mask {{m}} --teacher {{t}} --num-seeds 2 {CPU}",
        "l.h5",
    ),
    "train": (
        f"train {{x}} --mask {{m}} --alpha 0 --model resnet8 --epochs 1 {CPU}",
        f"train {{x}} --mask {{m}} --alpha 0 --model resnet8 --epochs 1 --lr 0.01 {CPU}",
        "run",
    ),
    "merge": ("merge {l}", "merge {other_l}", "j.h5"),
    "report": ("report {runs}", "report {other_runs}", "r.html"),
    "inspect": ("inspect {m} --beton {x} --count 3", "inspect {m} --beton {x} --count 4", "g.png"),
}
FILES = [name for name in WRITERS if name != "train"]  # the others write a file


def call(command: str, files: dict, out: Path, which: int = 0, *more: str):
    line = WRITERS[command][which].format(**files).split()
    return fastkd(*line, "--gallery" if command == "inspect" else "--out", out, *more)


def is_one_line(outcome) -> bool:
    lines = [line for line in outcome.err.splitlines() if "error:" in line]
    return outcome.code == 1 and len(lines) == 1 and "internal error" not in outcome.err


@pytest.fixture(scope="module")
def files(raw_folder, raw_beton, raw_mask, teacher_file, teacher_store, trained, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("outputs")
    found = {"folder": raw_folder, "x": raw_beton, "m": raw_mask, "t": teacher_file, "l": teacher_store}
    np.save(folder / "v.npy", np.arange(600.0))
    assert call("cache-logits", found, folder / "other.h5").code == 0
    for name in ("runs", "other_runs"):
        line = WRITERS["train"][0].format(**found).split()
        outcome = fastkd(*line, "--val", raw_beton, "--seed", len(name), "--out", folder / name / "a")
        assert outcome.code == 0, outcome.err
        found[name] = folder / name
    return found | {"npy": folder / "v.npy", "other_l": folder / "other.h5"}


def test_these_are_all_commands_that_write():
    found = {name for name, one in cli.commands.items() if any(isinstance(param.type, Output) for param in one.params)}
    assert found == set(WRITERS)


@pytest.mark.parametrize("command", WRITERS)
def test_the_same_job_is_told_again_and_another_one_is_refused_until_it_is_forced(command, files, tmp_path):
    out = tmp_path / WRITERS[command][2]
    first = call(command, files, out)
    assert first.code == 0, first.err
    content = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = call(command, files, out, 0)
    assert again.code == 0, again.err

    def now() -> dict:
        return {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    assert now() == content
    refused = call(command, files, out, 1)
    assert is_one_line(refused), refused.err
    assert "--force" in refused.err
    assert now() == content
    forced = call(command, files, out, 1, "--force")
    assert forced.code == 0, forced.err
    assert now().keys() == content.keys()
    assert now() != content


@pytest.mark.parametrize("there", ["text", "another kind", "damaged"])
@pytest.mark.parametrize("command", FILES)
def test_a_file_of_somebody_elses_is_kept_until_it_is_forced(command, there, files, tmp_path):
    out = tmp_path / WRITERS[command][2]
    if there == "text":
        out.write_bytes(b"a thesis")
    elif there == "another kind" and command == "prune":
        out.write_bytes(Path(files["l"]).read_bytes())
    elif there == "another kind":
        save_mask(out, np.arange(3), num_samples=600, beton_fingerprint="b" * 32, params={})
    else:
        out.write_bytes(Path(files["m"]).read_bytes()[:700])
    before = out.read_bytes()
    refused = call(command, files, out)
    assert is_one_line(refused), refused.err
    assert out.read_bytes() == before
    assert os.listdir(tmp_path) == [out.name]
    forced = call(command, files, out, 0, "--force")
    assert forced.code == 0, forced.err
    assert out.read_bytes() != before


@pytest.mark.parametrize("command", WRITERS)
def test_neither_a_pipe_nor_an_input_is_written_over_by_any_means(command, files, tmp_path):
    pipe = tmp_path / WRITERS[command][2]
    os.mkfifo(pipe)
    assert is_one_line(call(command, files, pipe, 0, "--force"))
    assert pipe.is_fifo()
    source = next(
        Path(files[name]) for name in ("npy", "l", "m", "x") if f"{{{name}}}" in WRITERS[command][0] or name == "x"
    )
    if command in ("build-beton", "report"):
        return  # what they read is a folder
    before = source.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(source)
    assert is_one_line(call(command, files, link, 0, "--force"))
    assert source.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == sorted([pipe.name, "link"])


@pytest.mark.parametrize("command", WRITERS)
def test_what_another_process_is_writing_is_left_to_it(command, files, tmp_path):
    out, met = tmp_path / WRITERS[command][2], tmp_path / "met"

    def hold() -> None:
        with claim(out, is_folder=command == "train"):
            met.touch()
            time.sleep(60)

    pid = forked(hold)
    while not met.exists():
        time.sleep(0.005)
    met.unlink()
    try:
        outcome = call(command, files, out, 0, "--force")
        assert is_one_line(outcome)
        assert "is being written by another process" in outcome.err
        assert not out.exists()
    finally:
        os.kill(pid, signal.SIGKILL)
        wait_for([pid])


@pytest.mark.parametrize("command", WRITERS)
def test_a_file_that_must_not_grow_is_named_and_nothing_is_left_of_it(command, files, tmp_path):
    out, told = tmp_path / "out" / WRITERS[command][2], tmp_path / "told"
    out.parent.mkdir()

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        outcome = call(command, files, out)
        told.write_text(json.dumps(astuple(outcome)))

    assert wait_for([forked(write)]) == [0]
    outcome = Outcome(*json.loads(told.read_text()))
    assert is_one_line(outcome), outcome
    assert re.search(rf"{re.escape(str(out))}\S*: cannot be written \(File too large\): free some space", outcome.err)
    assert os.listdir(out.parent) == (["run"] if command == "train" else [])
    assert not out.is_file()


def test_a_result_that_cannot_be_printed_is_said_to_be_written(files, tmp_path):
    line = WRITERS["prune"][0].format(**files).split()
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "fastkd", *line, "--out", tmp_path / "m.h5"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "fastkd: error: standard output: cannot be written (No space left on device); the command itself is done, and what "
        "it writes is written\n"
    )
    assert (tmp_path / "m.h5").exists()


@pytest.mark.parametrize("command", FILES)
def test_a_folder_is_not_written_over(command, files, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert is_one_line(call(command, files, tmp_path / "a", 0, "--force"))
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]


def test_two_outputs_are_two_files(files, tmp_path):
    line = f"score {{x}} --method moderate --model {{t}} {CPU}".format(**files).split()
    outcome = fastkd(*line, "--out", tmp_path / "s.h5", "--features-out", tmp_path / "s.h5")
    assert is_one_line(outcome)
    assert "is given for two outputs" in outcome.err


def test_features_of_another_job_are_refused_before_anything_is_computed(files, tmp_path):
    (tmp_path / "f.h5").write_bytes(b"a thesis")
    line = f"score {{x}} --method moderate --model {{t}} {CPU}".format(**files).split()
    outcome = fastkd(*line, "--out", tmp_path / "s.h5", "--features-out", tmp_path / "f.h5")
    assert is_one_line(outcome)
    assert sorted(os.listdir(tmp_path)) == ["f.h5"]


@pytest.mark.parametrize("name", ["train", "train.beton"])
def test_a_json_file_of_the_users_is_never_put_away_for_a_manifest(files, tmp_path, name):
    (tmp_path / f"{name}.json").write_text('{"lr": 0.1}')
    for more in ((), ("--force",)):
        outcome = fastkd("build-beton", files["folder"], "--out", tmp_path / name, *more)
        assert is_one_line(outcome)
        assert "no manifest of fastkd's" in outcome.err
    assert json.loads((tmp_path / f"{name}.json").read_text()) == {"lr": 0.1}
    assert os.listdir(tmp_path) == [f"{name}.json"]


def test_a_beton_behind_a_link_is_built_and_found_there(files, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "x.beton").symlink_to(tmp_path / "far" / "y.beton")
    built = fastkd("build-beton", files["folder"], "--out", tmp_path / "x.beton", "--json")
    assert built.code == 0, built.err
    assert sorted(os.listdir(tmp_path / "far")) == ["y.beton", "y.beton.json"]
    assert fastkd("inspect", tmp_path / "x.beton", "--json").result["manifest"]


def test_an_image_that_changed_since_makes_it_another_beton(files, tmp_path, jpg_folder):
    folder = shutil.copytree(jpg_folder, tmp_path / "images")
    assert fastkd("build-beton", folder, "--out", tmp_path / "x.beton").code == 0
    picture = next(folder.rglob("*.jpg"))
    os.utime(picture, ns=(1, 1))
    outcome = fastkd("build-beton", folder, "--out", tmp_path / "x.beton")
    assert is_one_line(outcome)
    assert "another beton is there, of other files, options or versions" in outcome.err


def test_two_commands_started_together_never_lose_a_result(tmp_path):
    script = benchmark("cli.concurrent_starts")
    counts = script.campaign(tmp_path, ["prune", "import-scores"], 6, seed=0)
    assert [(sum(found.values()), found["wrong"]) for found in counts.values()] == [(6, 0), (6, 0)]
