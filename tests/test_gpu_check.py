"""`tools/gpu-check`: its own form for a CPU, its smallest; and what it says where something is missing or fails."""

import json
import subprocess
import sys

import pytest
import torch
from helpers import ROOT
from helpers.scripts import benchmark

CPU = ["--device", "cpu", "--smallest"]


@pytest.fixture
def check():
    return benchmark("gpu.check")


def test_steps_run_on_two_ranks_and_are_not_run_again(check, tmp_path, capsys):
    asked = [*CPU, "--checks", "steps/plain/2", "--out", str(tmp_path / "report.json")]
    assert check.main(asked) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert {name: found["ok"] for name, found in report["checks"].items()} == {"steps/plain/2": True}
    assert len(report["checks"]["steps/plain/2"]["losses"]) == 3
    assert set(report["owed"]) >= {check.ON_GPUS, *check.names_of(2)}
    assert check.main(asked) == 0
    again = capsys.readouterr()
    assert again.err == ""
    assert json.loads(again.out) == report


def test_without_a_gpu_everything_is_owed_by_name(check, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert check.main(["--out", str(tmp_path / "report.json")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["checks"] == {}
    assert report["owed"] == dict.fromkeys([check.ON_GPUS, *check.names_of(2)], "no GPU here")


def test_with_one_gpu_what_takes_two_is_owed(check):
    assert set(check.owed("cuda", 1)) == {name for name in check.names_of(2) if name.endswith("/2")}
    assert check.owed("cuda", 2) == {}


def test_every_flag_is_checked_on_one_rank_and_on_all_but_where_one_is_refused_there(check):
    names = check.names_of(8)
    assert {name for name in names if name.startswith("steps/")} == {
        f"steps/{flag}/{size}" for flag in check.FLAGS for size in (1, 8) if (flag, size) != ("crd", 8)
    }
    assert {name.split("/")[0] for name in names} == {
        *("steps", "stored-live", "loader", "data-wait", "filling", "resident", "ways")
    }


def test_checks_are_chosen_by_the_beginnings_of_their_names(check):
    names = check.names_of(2)
    assert check.chosen(names, "steps/ema,loader") == ["steps/ema/1", "steps/ema/2", "loader"]
    assert check.chosen(names, None) == names
    with pytest.raises(SystemExit, match="--checks load: expected some of steps/plain/1"):
        check.chosen(names, "steps,load")


def test_a_report_of_another_machine_is_begun_anew(check, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"gpus": ["a"], "owed": {}, "checks": {"loader": {"ok": True}}}))
    assert check.load(tmp_path / "r.json", {"gpus": ["a"]})["checks"] == {"loader": {"ok": True}}
    assert check.load(tmp_path / "r.json", {"gpus": ["b"]})["checks"] == {}


def test_a_check_that_fails_or_hangs_says_its_last_lines_and_leaves_nothing_running(check):
    assert check.run([sys.executable, "-c", "pass"], 60) is None
    assert check.run([sys.executable, "-c", "raise SystemExit('no luck')"], 60) == "ended with 1:\nno luck"
    hangs = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(61.25)'])"
    assert check.run([sys.executable, "-c", hangs], 2).startswith("ended with longer than 2 s")
    assert "time.sleep(61.25)" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout


def test_the_tool_starts_the_check():
    assert "-m benchmarks.gpu.check" in (ROOT / "tools" / "gpu-check").read_text()
