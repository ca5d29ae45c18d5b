"""The examples, each at small size, and with their types."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from helpers.commands import fastkd
from helpers.notebooks import run_notebook
from helpers.stores import make_store, random_logits

from fastkd.cli import cli
from fastkd.data.sources.open import open_source
from fastkd.data.views.draw import Views
from fastkd.feed.loader import Loader

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
    """Whether what they are examples of is installed or not: then it is Any."""
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "examples"]
    done = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_loop_of_ones_own_with_a_timm_network(raw_beton, raw_mask, store):
    pytest.importorskip("timm")
    means = example("own_loop").train(str(raw_beton), str(raw_mask), store, epochs=2)
    assert len(means) == 2


def test_lightning_takes_the_loader_as_it_is(raw_beton, raw_mask, store):
    pytest.importorskip("lightning")
    assert example("with_lightning").train(str(raw_beton), str(raw_mask), store, epochs=1) > 0


IN_FFCV = """
import sys

import fastkd
import with_ffcv

seen = []


class Watched(with_ffcv.Loader):
    def __iter__(self):
        for batch, decoded in super().__iter__():
            seen.append((batch, decoded.clone()))
            yield batch, decoded


with_ffcv.Loader = Watched
with_ffcv.train(*sys.argv[1:], epochs=3)
loader, rows = fastkd.Loader(*sys.argv[1:2], mask=sys.argv[2], logits=sys.argv[3], normalize="cifar"), fastkd.LogitStore(sys.argv[3])
for number, (batch, decoded) in enumerate(seen):
    aug_seed = number // 3 % 2
    ids = batch.sample_ids.numpy()
    assert (decoded[:, 0] == batch.labels).all() and (rows.read(ids, aug_seed) == batch.logits.numpy()).all()
    assert (next(loader.run([(ids, aug_seed)])).images == batch.images).all()
orders = [sorted({i for batch, _ in seen[start : start + 3] for i in batch.sample_ids.tolist()}) for start in (0, 3, 6)]
assert [len(order) for order in orders] == [192] * 3 and orders[0] != orders[1]
"""


def test_ffcvs_own_loader_has_views_and_logits_that_belong_together(raw_beton, raw_mask, store):
    """In a process of its own: FFCV changes the threads of torch, and waits forever where its thread fails."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(EXAMPLES), *sys.path])}
    command = [sys.executable, "-c", IN_FFCV, raw_beton, raw_mask, store]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("loss") == 3


def test_the_trainer_of_hugging_face_learns_from_the_views_of_each_epoch(
    raw_beton, raw_mask, store, tmp_path, monkeypatch
):
    pytest.importorskip("transformers")
    epochs, epoch_of = [], Loader.epoch
    monkeypatch.setattr(
        Loader, "epoch", lambda self, epoch, **rest: epochs.append(epoch) or epoch_of(self, epoch, **rest)
    )
    assert example("with_transformers").train(str(raw_beton), str(raw_mask), store, str(tmp_path), epochs=2) > 0
    assert epochs == [0, 1]


def test_the_notebook_walks_the_main_job_with_pictures(tmp_path, monkeypatch):
    for package in ("sklearn", "vl_convert"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    sizes = {
        '\\"epochs\\": 60': '\\"epochs\\": 2',
        "--epochs 15": "--epochs 2",
        "for seed in (0, 1)": "for seed in (0,)",
    }
    shown = run_notebook(EXAMPLES / "main_job.ipynb", sizes)
    assert [picture.size for picture in shown[:-1]] == [(960, 144), (960, 144), (960, 336)]
    assert shown[-1].width > 300
    assert (tmp_path / "main_job" / "report.html").exists()


def test_the_notebook_is_small_and_names_no_machine():
    text = (EXAMPLES / "main_job.ipynb").read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert not re.search(r"/(home|root|tmp|work|usr)/", text)


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


@pytest.mark.parametrize("code", [0, 1])
def test_a_sweep_over_ssh_runs_a_shard_on_each_machine_where_the_suites_paths_hold(tmp_path, code):
    saying = 'echo "$PWD $*" >>"$TOLD"\n[[ $* != *2/3* ]] || exit $CODE\n'
    for name, text in (("ssh", 'cd / && exec bash -c "${@:3}"\n'), ("fastkd", saying)):
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (tmp_path / name).chmod(0o755)
    told, folder = tmp_path / "told", tmp_path / "a folder"
    folder.mkdir()
    environment = {**os.environ, "TOLD": str(told), "CODE": str(code), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [str(EXAMPLES / "sweep" / "over_ssh.sh"), "grid.toml", "out", "a", "b", "c"]
    done = subprocess.run(["bash", *command], cwd=folder, env=environment, capture_output=True, timeout=60)
    assert done.returncode == code
    expected = [f"{folder} sweep grid.toml --shard {i}/3 --out out" for i in (1, 2, 3)]
    assert sorted(told.read_text().splitlines()) == expected


def test_a_pod_of_kubernetes_runs_its_shard(tmp_path):
    text = (EXAMPLES / "sweep" / "kubernetes.yaml").read_text(encoding="utf-8")
    (line,) = re.findall(r"- exec (fastkd .*)", text)
    said = subprocess.run(
        ["bash", "-c", f"echo {line}"], env={"JOB_COMPLETION_INDEX": "2"}, capture_output=True, text=True
    )
    words = said.stdout.split()
    assert words == ["fastkd", "sweep", "grid.toml", "--shard", "3/4", "--out", "out"]
    cli.commands["sweep"].make_context("sweep", words[2:])  # raises what is no option or value
    assert text.count("completions: 4\n") == text.count("parallelism: 4\n") == 1
