import io
import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.commands import assert_one_clear_line, fastkd
from helpers.lab import CPU

from fastkd.cli.common import progress_bar, say
from fastkd.prune.masks.mask import Mask
from fastkd.store.tables import read_tables

KEYS = {
    "build-beton": "kind path num_samples num_classes size_bytes fingerprint images_per_s",
    "prune": "kind path num_kept num_samples fraction class_min class_max fingerprint",
    "cache-logits": "kind path num_seeds num_rows num_classes codec size_bytes rows_written rows_reused fingerprint rows_per_s",
    "train": "kind path epochs val_top1 val_top5 images_per_s data_wait_percent",
    "evaluate": "top1 top5 num_samples",
    "report": "kind path groups",
    "verify": "ok problems",
}


INSPECTED = {
    "x.beton": "kind path num_samples num_classes size_bytes fingerprint",
    "m.h5": "kind path num_kept num_samples fraction class_min class_max fingerprint",
    "l.h5": "kind path num_seeds num_rows num_classes codec size_bytes fingerprint",
    "run": "kind path epochs val_top1 val_top5 images_per_s data_wait_percent",
    "run/model.safetensors": "kind path fingerprint model num_classes",
}


@pytest.mark.parametrize("command", sorted(KEYS))
def test_a_result_is_one_json_object_with_its_keys(done, command):
    assert set(KEYS[command].split()) <= set(done[command].result)


def test_the_numbers_are_those_of_what_was_made(done, lab):
    beton, mask, store = (done[name].result for name in ("build-beton", "prune", "cache-logits"))
    assert (beton["kind"], beton["num_samples"], beton["num_classes"]) == ("beton", 600, 10)
    assert beton["size_bytes"] == (lab / "x.beton").stat().st_size
    assert (mask["kind"], mask["num_kept"], mask["fraction"], mask["class_min"], mask["class_max"]) == (
        "mask",
        120,
        0.2,
        12,
        12,
    )
    assert (store["kind"], store["num_seeds"], store["num_rows"], store["num_classes"]) == ("logit-store", 2, 120, 10)
    assert (store["codec"], store["rows_written"], store["rows_reused"]) == ("fp16", 240, 0)
    assert (done["train"].result["kind"], done["train"].result["epochs"]) == ("run", 1)
    assert done["verify"].result == {"ok": True, "problems": []}


def test_evaluating_the_saved_weights_gives_the_accuracy_of_the_run(done):
    trained, found = done["train"].result, done["evaluate"].result
    assert (found["top1"], found["top5"], found["num_samples"]) == (trained["val_top1"], trained["val_top5"], 600)


@pytest.mark.parametrize("name", sorted(INSPECTED))
def test_inspect_says_what_a_file_is(done, lab, name):
    found = fastkd("inspect", lab / name, "--json").result
    assert set(INSPECTED[name].split()) | {"format_version", "inputs", "params"} <= set(found)


def test_what_inspect_says_is_what_the_command_said(done, lab):
    for command, name in (("build-beton", "x.beton"), ("prune", "m.h5"), ("cache-logits", "l.h5"), ("train", "run")):
        found, told = fastkd("inspect", lab / name, "--json").result, done[command].result
        shared = set(KEYS[command].split()) & set(found)
        assert {key: found[key] for key in shared} == {key: told[key] for key in shared}


def test_the_inputs_of_each_file_are_the_fingerprints_of_what_it_was_made_from(done, lab):
    names = ("x.beton", "m.h5", "l.h5", "run")
    beton, mask, store, run = (fastkd("inspect", lab / name, "--json").result for name in names)
    prints = {"beton": beton["fingerprint"], "mask": mask["fingerprint"], "logits": store["fingerprint"]}
    assert mask["inputs"] == {"beton": prints["beton"]}
    assert store["inputs"].items() >= {"beton": prints["beton"], "mask": prints["mask"]}.items()
    assert run["inputs"].items() >= prints.items()
    assert run["params"]["recipe"]["model"] == "resnet8"


def test_inspect_takes_several_files(done, lab):
    found = fastkd("inspect", lab / "m.h5", lab / "l.h5", "--json").result
    assert [one["kind"] for one in found["files"]] == ["mask", "logit-store"]


@pytest.mark.parametrize("name", ["x.beton", "m.h5", "l.h5", "run", "t.safetensors"])
def test_without_json_people_get_words(done, lab, name):
    outcome = fastkd("inspect", lab / name)
    assert outcome.code == 0
    assert str(lab / name) in outcome.out
    assert not outcome.out.startswith("{")


def test_the_report_is_printed_and_written(done, lab):
    outcome = fastkd("report", lab, "--out", lab / "again.html")
    assert outcome.out.splitlines()[0].split()[0] == "student"
    assert "resnet8" in outcome.out
    assert (lab / "again.html").read_text().startswith("<!doctype html>")


def test_a_finished_run_asked_for_again_prints_its_result(done, lab):
    student = ["--mask", lab / "m.h5", "--logits", lab / "l.h5", "--model", "resnet8", "--val", lab / "x.beton"]
    again = fastkd("train", lab / "x.beton", *student, "--epochs", 1, *CPU, "--out", lab / "run", "--json")
    assert again.result == done["train"].result
    assert "finished" in again.err


def test_masks_of_one_seed_are_nested_and_those_of_others_are_not(done, lab, tmp_path):
    def kept(keep: str, seed: int) -> list[int]:
        fastkd("prune", lab / "x.beton", "--keep", keep, "--seed", seed, "--out", tmp_path / "m.h5", "--force")
        return Mask.load(tmp_path / "m.h5").sample_ids.tolist()

    ids = {keep: kept(keep, 5) for keep in ("0.05", "0.3", "77", "1.0")}
    assert [len(one) for one in ids.values()] == [30, 180, 77, 600]
    assert ids["1.0"][:180] == ids["0.3"]
    assert ids["0.3"][:77] == ids["77"]
    assert ids["77"][:30] == ids["0.05"]
    assert set(kept("77", 6)) != set(ids["77"])


def test_a_store_serves_the_masks_inside_it(done, lab):
    fastkd("prune", lab / "x.beton", "--keep", 70, "--seed", 5, "--out", lab / "inside.h5")
    student = ["--logits", lab / "l.h5", "--model", "resnet8", "--epochs", 1, *CPU]
    outcome = fastkd("train", lab / "x.beton", "--mask", lab / "inside.h5", *student, "--out", lab / "inside", "--json")
    assert outcome.result["val_top1"] is None


def test_the_teacher_of_the_store_may_be_named_beside_it(done, lab):
    student = ["--mask", lab / "m.h5", "--logits", lab / "l.h5", "--model", "resnet8", "--epochs", 1, *CPU]
    outcome = fastkd(
        "train", lab / "x.beton", *student, "--teacher", lab / "t.safetensors", "--out", lab / "named", "--json"
    )
    assert outcome.result["epochs"] == 1


def test_verify_lists_what_is_damaged_and_exits_1(done, lab):
    path = Path(shutil.copy(lab / "l.h5", lab / "damaged.h5"))
    tables = read_tables(path)
    with path.open("r+b") as file:
        file.seek(tables.logits_offset)
        file.write(b"\xff")
    outcome = fastkd("verify", lab / "m.h5", path, "--json")
    assert outcome.code == 1
    problem = f"{path}: aug_seed 0: 1 of 120 rows do not match their checksum"
    assert json.loads(outcome.out) == {"ok": False, "problems": [problem]}
    assert problem in fastkd("verify", path).out


def test_verify_writes_a_missing_manifest(done, lab, tmp_path):
    copy = shutil.copy(lab / "x.beton", tmp_path / "copy.beton")
    assert fastkd("verify", copy, "--write-manifest").code == 0
    manifest = json.loads((tmp_path / "copy.beton.json").read_text())
    assert manifest["fingerprint"] == done["build-beton"].result["fingerprint"]


def test_a_config_file_gives_defaults_and_flags_override_it(done, lab, tmp_path):
    (tmp_path / "c.toml").write_text(f'keep = 0.1\nseed = 9\nout = "{tmp_path / "m.h5"}"\n')
    assert fastkd("prune", lab / "x.beton", "--config", tmp_path / "c.toml", "--json").result["num_kept"] == 60
    assert Mask.load(tmp_path / "m.h5").header.params["seed"] == 9
    fastkd("prune", lab / "x.beton", "--keep", 50, "--config", tmp_path / "c.toml", "--force")
    assert len(Mask.load(tmp_path / "m.h5").sample_ids) == 50
    assert Mask.load(tmp_path / "m.h5").header.params["seed"] == 9


def test_one_config_file_serves_several_commands(done, lab, tmp_path):
    text = f'[prune]\nkeep = 40\nout = "{tmp_path / "m.h5"}"\n[train]\nbatch-size = 7\ntau-squared = false\n'
    (tmp_path / "c.toml").write_text(text)
    assert fastkd("prune", lab / "x.beton", "--config", tmp_path / "c.toml", "--json").result["num_kept"] == 40
    options = ["--mask", tmp_path / "m.h5", "--model", "resnet8", "--epochs", 1, *CPU, "--out", tmp_path / "run"]
    outcome = fastkd("train", lab / "x.beton", *options, "--config", tmp_path / "c.toml")
    assert outcome.code == 0, outcome.err
    recipe = json.loads((tmp_path / "run" / "run.json").read_text())["params"]["recipe"]
    assert (recipe["batch_size"], recipe["tau_squared"], recipe["lr"]) == (7, False, 0.05)


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        *[("epoch = 3", "epoch"), ("epochs =", "c.toml"), ("\xff", "c.toml"), ('epochs = "many"', "epochs")],
        *[
            ("epochs = [1, 2]", "epochs"),
            ("out = [1]", "out"),
            ("train = 3", "train"),
            ("[train]\nlearning = 1", "learning"),
        ],
    ],
)
def test_a_config_file_that_makes_no_sense_is_a_usage_error(done, lab, tmp_path, text, culprit):
    (tmp_path / "c.toml").write_bytes(text.encode("latin-1"))
    options = ["--mask", lab / "m.h5", "--model", "resnet8", *([] if "out" in text else ["--out", tmp_path / "run"])]
    outcome = fastkd("train", lab / "x.beton", *options, "--config", tmp_path / "c.toml")
    assert outcome.code == 2
    assert_one_clear_line(outcome, culprit)
    assert not (tmp_path / "run").exists()


def test_help_shows_every_command_and_each_shows_an_example():
    listed = fastkd("--help").out
    for command in ("build-beton", "prune", "cache-logits", "train", "evaluate", "report", "inspect", "verify"):
        assert command in listed
        shown = fastkd(command, "--help").out
        assert f"fastkd {command} " in shown.split("Options:")[0].split("\n", 1)[1]
        assert "--json" in shown
        assert "--config" in shown


def test_an_exception_is_shown_whole_where_that_is_asked_for(done, lab, monkeypatch):
    monkeypatch.setenv("FASTKD_DEBUG", "1")
    with pytest.raises(Exception, match="nothing: no such file"):
        fastkd("inspect", lab / "nothing")


def test_the_rate_that_is_told_is_of_this_run_alone(monkeypatch, capsys):
    clock = iter([100.0, 120.0, 130.0, 145.0])
    monkeypatch.setattr("fastkd.cli.common.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with progress_bar("train", "steps") as tell:
        tell(3000, 4000)  # it goes on from here
        tell(3100, 4000)
        tell(1, 400)  # another file
        tell(31, 400)
    assert capsys.readouterr().err.splitlines() == [
        "train: 3,100 of 4,000 steps, 5 steps/s, 180 s left",
        "train: 31 of 400 steps, 2 steps/s, 184 s left",
    ]


def test_what_an_epoch_came_to_stays_in_the_log_once_a_second_at_most(monkeypatch, capsys):
    clock = iter([100.0, 100.2, 100.4, 101.5])
    monkeypatch.setattr("fastkd.cli.common.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with progress_bar("train", "steps") as tell:
        tell(1, 40)
        tell(10, 40, "epoch 1, top-1 5 %", stays=True)
        tell(20, 40, "epoch 2, top-1 6 %", stays=True)
        tell(30, 40, "epoch 3, top-1 7 %", stays=True)
    assert [line.split(", ")[-2:] for line in capsys.readouterr().err.splitlines()] == [
        ["epoch 1", "top-1 5 %"],
        ["epoch 3", "top-1 7 %"],
    ]


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A stderr that says that it is a terminal."""
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", screen)
    return screen


def test_a_bar_that_goes_on_shows_the_rate_of_this_run_alone(monkeypatch):
    terminal = terminal_of(monkeypatch)
    with progress_bar("train", "steps") as show:
        show(1_000_000, 1_000_100)
        time.sleep(0.5)
        show(1_000_010, 1_000_100, "now")
    rate = float(re.search(r"([\d.]+)(k?M?) steps/s, now", terminal.getvalue())[1])
    assert rate < 30
    assert not re.search(r"[kM] ?steps/s", terminal.getvalue())


def test_a_line_is_said_above_the_bar_and_the_last_note_is_shown(monkeypatch):
    terminal = terminal_of(monkeypatch)
    with progress_bar("train", "steps") as show:
        show(10, 20, "epoch 1")
        say("x.beton: a line")
        show(20, 20, "epoch 2")
        show(20, 20, "epoch 2, top-1 7 %")
    assert "\rx.beton: a line\n" in terminal.getvalue()
    assert "epoch 2, top-1 7 %" in terminal.getvalue().splitlines()[-1]
