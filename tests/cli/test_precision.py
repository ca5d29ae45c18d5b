"""`auto` of --amp and --teacher-precision: what it takes, that this is what runs and stores are told by, and what they began with."""

import os
import subprocess
import sys

import pytest
import torch
from helpers.commands import assert_one_clear_line, fastkd, fastkd_in_ranks

from fastkd.models.norm import parse_norm
from fastkd.store.tables import read_tables
from fastkd.teacher import precision
from fastkd.teacher.precision import auto_precision, cpu_flags
from fastkd.train.run_folder import claim_folder, read_run

CPU = "--device cpu --num-workers 1"
TRAIN = f"train {{x}} --mask {{m}} --model resnet8 --epochs 1 --batch-size 100 {CPU}"
CACHE = f"cache-logits {{x}} --mask {{m}} --teacher {{t}} --num-seeds 1 {CPU}"


@pytest.fixture
def files(raw_beton, raw_mask, teacher_file, tmp_path) -> dict:
    return {"x": raw_beton, "m": raw_mask, "t": teacher_file, "out": tmp_path / "out"}


@pytest.fixture
def has(monkeypatch):
    """Sets what the CPU can do."""
    return lambda *flags: monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset(flags))


@pytest.mark.parametrize(
    ("flags", "taken"),
    [
        (("avx512f", "avx512_bf16"), "bf16"),
        (("amx_bf16", "amx_tile"), "bf16"),
        (("avx2", "avx512f", "avx512bw"), "fp32"),
        ((), "fp32"),
    ],
)
def test_auto_is_bf16_where_the_cpu_multiplies_it(flags, taken, has):
    has(*flags)
    assert auto_precision("cpu")[0] == taken


def test_the_flags_are_those_that_linux_tells(tmp_path):
    (tmp_path / "x86").write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_bf16\nbugs\t: x\n\nflags\t\t: fpu\n")
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    found = [cpu_flags(tmp_path / name) for name in ("x86", "arm", "none")]
    assert found == [{"fpu", "avx512_bf16", "amx_bf16"}, set(), set()]


def test_a_gpu_is_asked_whether_it_computes_in_it(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")
    for answer in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda answer=answer, **how: asked.append(how) or answer)
        assert auto_precision("cuda:0")[0] == ("bf16" if answer else "fp32")
    assert asked == [{"including_emulation": False}] * 2


def test_a_run_is_told_by_what_auto_took_and_goes_on_with_it(files, has):
    line = f"{TRAIN} --alpha 0 --amp auto --out {{out}}".format(**files).split()
    has("avx512_bf16")
    first = fastkd(*line)
    assert "--amp auto takes bf16: the CPU has avx512_bf16" in first.err
    assert read_run(files["out"])["params"]["recipe"]["amp"] == "bf16"
    has()
    again = fastkd(*line)
    assert "--amp auto takes bf16: what is there was begun with it" in again.err
    assert "this run is finished" in again.err
    assert fastkd(*line[:-4], "--amp", "bf16", "--out", files["out"]).code == 0
    assert_one_clear_line(fastkd(*line[:-4], "--amp", "off", "--out", files["out"]), "amp")
    anew = fastkd(*line, "--force")
    assert "--amp auto takes fp32: the CPU does not compute in bf16" in anew.err
    assert read_run(files["out"])["params"]["recipe"]["amp"] == "off"


def test_a_store_is_told_by_what_auto_took_and_goes_on_with_it(files, has):
    line = f"{CACHE} --teacher-precision auto --out {{out}}".format(**files).split()
    has("amx_bf16")
    assert "--teacher-precision auto takes bf16: the CPU has amx_bf16" in fastkd(*line).err
    assert read_tables(files["out"]).header.params["teacher"]["precision"] == "bf16"
    has()
    again = fastkd(*line, "--json")
    assert (again.result["rows_written"], again.result["rows_reused"]) == (0, 200)
    check = f"verify {{out}} --against {{x}} --teacher {{t}} --teacher-precision auto --rows 50 {CPU}"
    assert fastkd(*check.format(**files).split(), "--json").result["ok"]
    plan = "plan {x} --num-seeds 1 --outputs logits,embedding --teacher {t} --teacher-precision auto --device cpu"
    assert "--teacher-precision auto takes fp32: the CPU does not" in fastkd(*plan.format(**files).split()).err
    student = f"{TRAIN} --logits {{out}} --teacher {{t}} --teacher-precision auto --out {{out}}.run"
    assert "--teacher-precision auto takes bf16: what is there" in fastkd(*student.format(**files).split()).err


def test_a_live_teachers_precision_is_part_of_the_run_and_runs_of_before_go_on(files, tmp_path):
    """Those have it beside their identity alone."""
    line = f"{TRAIN} --teacher {{t}} --out {{out}}".format(**files).split()
    assert fastkd(*line, "--teacher-precision", "bf16").code == 0
    new = read_run(files["out"])
    assert new["params"]["teacher_precision"] == "bf16"
    for asked, code in (("auto", 0), ("bf16", 0), ("fp32", 1)):
        assert fastkd(*line, "--teacher-precision", asked).code == code
    params = {name: value for name, value in new["params"].items() if name != "teacher_precision"}
    old = tmp_path / "old"
    claim_folder(old, {"inputs": new["inputs"], "params": params}, {"about": new["about"]})
    assert fastkd(*line[:-1], old, "--teacher-precision", "bf16").code == 0
    assert read_run(old)["params"] == params
    assert_one_clear_line(fastkd(*line[:-1], old, "--teacher-precision", "fp16"), "teacher_precision")
    plain = [*line[:-1], tmp_path / "plain"]
    assert fastkd(*plain).code == 0
    assert "teacher_precision" not in read_run(tmp_path / "plain")["params"]


def test_a_live_teachers_normalisation_is_part_of_the_run_and_runs_of_before_go_on(files, tmp_path):
    """Those have it beside their identity alone, or nowhere."""
    line = f"{TRAIN} --teacher {{t}} --out {{out}}".format(**files).split()
    assert fastkd(*line, "--teacher-norm", "cifar").code == 0
    new = read_run(files["out"])
    assert new["params"]["teacher_norm"] == parse_norm("cifar").describe()
    others = [("--teacher-norm", "imagenet"), ("--teacher-norm", "cifar", "--teacher-size", 48)]
    for other in others:
        assert_one_clear_line(fastkd(*line, *other), "teacher_norm")
    params = {name: value for name, value in new["params"].items() if name != "teacher_norm"}
    for about in (new["about"], None):
        old = tmp_path / f"old-{about is None}"
        claim_folder(old, {"inputs": new["inputs"], "params": params}, {"about": about} if about else {})
        for other in others if about else ():
            assert_one_clear_line(fastkd(*line[:-1], old, *other), "teacher_norm")
        assert fastkd(*line[:-1], old, "--teacher-norm", "cifar").code == 0
        assert read_run(old)["params"] == params


def test_ranks_whose_machines_differ_are_told_so(files, monkeypatch):
    def of_rank() -> frozenset[str]:
        return frozenset({"avx512_bf16"} if os.environ.get("RANK") == "0" else ())

    monkeypatch.setattr(precision, "cpu_flags", of_rank)
    outcomes = fastkd_in_ranks(2, *f"{CACHE} --teacher-precision auto --out {{out}}".format(**files).split())
    assert [outcome.code for outcome in outcomes] == [1, 1]
    for outcome in outcomes:
        assert "rank 1 differs from rank 0 in --teacher-precision auto: fp32, rank 0 has bf16" in outcome.err


def test_auto_without_a_teacher_does_nothing(files):
    line = f"{TRAIN} --alpha 0 --teacher-precision auto --out {{out}}".format(**files).split()
    assert_one_clear_line(fastkd(*line), "--teacher-precision does nothing without --teacher")


FAULTS = """
import resource, sys
import numpy as np
from fastkd.cli.common import keep_freed_memory

def work():
    for _ in range(5):
        np.ones(10 << 20)

if sys.argv[1:]:
    keep_freed_memory()
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_kept_unless_the_environment_says_otherwise():
    """80 MiB, more than glibc would learn to keep by itself."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}

    def faults(*kept: str, **more: str) -> int:
        code = [sys.executable, "-c", FAULTS, *kept]
        return int(subprocess.run(code, env=plain | more, capture_output=True, text=True, check=True).stdout)

    without = faults()
    assert without > 20
    assert faults("kept") < without / 10
    assert faults("kept", MALLOC_ARENA_MAX="2") > 20
