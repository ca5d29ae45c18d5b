"""`tools/quickstart`: says what it will do, sweeps, tells what distillation gains and where the page is; in a short form, without
setting anything up."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.suites import COMMANDS, kinds

from fastkd.cli.sweep_suite import digest_of
from fastkd.sweep.graph import make_plan
from fastkd.sweep.suite.read import read_suite

SUITE = ROOT / "tools" / "quickstart.toml"
SHORT = ("seed=[0]", "prune.keep=[0.05,0.1]", "train.epochs=1", "teacher.self.epochs=1")


@pytest.fixture
def quickstart(tmp_path):
    """A function that runs a copy of the script, whose set-up does nothing; data: what FASTKD_QUICKSTART_DATA says."""
    tools, programs = tmp_path / "tools", tmp_path / "venv" / "bin"
    tools.mkdir()
    programs.mkdir(parents=True)
    for path in (ROOT / "tools" / "quickstart", SUITE):
        shutil.copy(path, tools)
    script = "#!/usr/bin/env bash\n"
    (tools / "setup").write_text(f'{script}echo "setup $*"\n')
    (programs / "fastkd").write_text(f'{script}exec {sys.executable} -m fastkd "$@"\n')
    (programs / "python").write_text(f'{script}exec {sys.executable} "$@"\n')
    for path in (tools / "setup", programs / "fastkd", programs / "python"):
        path.chmod(0o755)

    def run(data: str, *options: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "FASTKD_VENV": str(programs.parent), "FASTKD_QUICKSTART_DATA": data}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        command = ["bash", str(tools / "quickstart"), *options]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return run


def test_it_ends_with_gains_and_the_page(quickstart, tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("vl_convert")
    done = quickstart("digits", "--jobs", "1", *(word for one in SHORT for word in ("--set", one)))
    assert done.returncode == 0, done.stderr
    assert re.match(r"A teacher learns from all images .* minutes", done.stdout, re.DOTALL)
    assert "setup report,digits\n" in done.stdout
    assert len(re.findall(r"On (5.01|10) % of the data distillation gains -?[\d.]+ points", done.stdout)) == 2
    page = Path(done.stdout.rstrip().rpartition(": ")[2])
    assert page == tmp_path / "quickstart" / "digits" / "quickstart.html"
    assert page.stat().st_size > 100_000


def test_other_data_is_refused_before_anything_is_set_up(quickstart):
    done = quickstart("imagenet")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "quickstart: FASTKD_QUICKSTART_DATA is imagenet, expected fashion-mnist or digits\n"


@pytest.mark.parametrize("scale", [None, "digits"])
def test_its_suite_has_a_store_for_all_students(scale, tmp_path):
    suite = read_suite(SUITE.read_text(encoding="utf-8"), "s.toml", COMMANDS, name="quickstart", scale=scale)
    found = kinds(make_plan(suite, tmp_path, COMMANDS, digest_of))
    assert (found["store"], found["teacher"], found["mask"], found["run"]) == (1, 1, 3, 18)
