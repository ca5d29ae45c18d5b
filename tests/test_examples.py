"""The examples, each at small size, and with their types."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from helpers.commands import fastkd
from helpers.stores import make_store, random_logits

from fastkd.data.sources.open import open_source
from fastkd.data.views.draw import Views

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def example(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def store(dataset, mask, tmp_path_factory) -> str:
    """Logits of two views of the kept samples."""
    path = tmp_path_factory.mktemp("examples") / "l.h5"
    views = Views("crop-flip", 32, 2)
    ids = mask.sample_ids
    return str(make_store(path, random_logits(2, len(ids), 10), ids, dataset=dataset, views=views))


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_is_of_20_to_60_lines(name):
    assert 20 <= len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 60


def test_the_types_of_the_examples_are_right():
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"]
    done = subprocess.run(
        [*command, *map(str, EXAMPLES.glob("*.py"))], cwd=EXAMPLES.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_a_loop_of_ones_own_with_a_timm_network(raw_beton, raw_mask, store):
    pytest.importorskip("timm")
    means = example("own_loop").train(str(raw_beton), str(raw_mask), store, epochs=2)
    assert len(means) == 2


def test_lightning_takes_the_loader_as_it_is(raw_beton, raw_mask, store):
    pytest.importorskip("lightning")
    assert example("with_lightning").train(str(raw_beton), str(raw_mask), store, epochs=1) > 0


def test_a_data_set_of_hugging_face_becomes_a_beton(jpg_folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    source = open_source(jpg_folder)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=source.class_names)})
    rows = {
        "image": [{"bytes": source.read(i), "path": name} for i, name in enumerate(source.names)],
        "label": source.labels.tolist(),
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "hf" / "train.parquet"))
    found = example("hugging_face").convert(str(tmp_path / "hf"), "train", str(tmp_path / "x.beton"))
    told = fastkd("build-beton", jpg_folder, "--mode", "keep", "--out", tmp_path / "y.beton", "--json").result
    assert found["fingerprint"] == told["fingerprint"]


def test_a_loss_of_ones_own_trains_a_student(raw_beton, raw_mask, store, tmp_path):
    out = str(tmp_path / "run")
    some = {"device": "cpu", "num_workers": 1, "batch_size": 100}
    module = example("own_loss")
    try:
        found = module.train(str(raw_beton), str(raw_mask), store, str(raw_beton), out, epochs=1, **some)
    finally:
        del module.LOGIT_LOSSES["cosine"]
    assert found["epochs"] == 1


TASKS = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
export SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0
exec "$@"
"""
SAYING = '#!/usr/bin/env bash\necho "$(basename "$0") $WORLD_SIZE $RANK $*" >>"$TOLD"\nexit ${CODE:-0}\n'


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (75, True), (1, False)])
def test_a_slurm_job_fills_the_store_then_trains_and_is_queued_again_when_it_is_stopped(tmp_path, code, requeued):
    programs = {"srun": TASKS, "fastkd": SAYING, "scontrol": SAYING.replace("exit ${CODE:-0}", "echo node1")}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    told = tmp_path / "told"
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS_PER_NODE": "1", "TOLD": str(told)}
    environment = {**os.environ, **slurm, "CODE": str(code), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [
        shutil.which("bash"),
        str(EXAMPLES / "slurm.sh"),
        "x.beton",
        "m.h5",
        "t",
        "v.beton",
        "o",
        "--model",
        "resnet8",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    lines = told.read_text().splitlines()
    filled = "fastkd 1 0 cache-logits x.beton --mask m.h5 --teacher t --num-seeds 50 --out o/logits.h5"
    trained = (
        "fastkd 1 0 train x.beton --mask m.h5 --logits o/logits.h5 --val v.beton --out o/run --checkpoint-every 500"
    )
    assert filled in lines
    assert (f"{trained} --model resnet8" in lines) == (code == 0)
    assert any("requeue 7" in line for line in lines) == requeued
