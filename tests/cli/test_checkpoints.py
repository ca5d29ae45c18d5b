"""Every option that takes a checkpoint takes those that others leave, and the folder of a run."""

from pathlib import Path

import pytest
import torch
from helpers.commands import Outcome, assert_one_clear_line, fastkd
from helpers.stores import save_teacher

from fastkd.artefact import open_artefact
from fastkd.cli import cli
from fastkd.models.checkpoint import load_model
from fastkd.models.registry import weights_fingerprint
from fastkd.train.run_folder import read_json

CPU = "--device cpu --num-workers 1"
TRAIN = f"train {{x}} --mask {{m}} --model resnet8 --epochs 1 {CPU} --out {{out}}"
FOREIGN = "--model-name resnet8 --norm none"
# An option that takes a checkpoint: its line, and what else it needs where the file does not say what it is.
TAKERS = {
    "evaluate --model": (f"evaluate {{x}} {CPU} --model {{ckpt}}", FOREIGN),
    "score --model": (f"score {{x}} --method el2n {CPU} --out {{out}} --model {{ckpt}}", FOREIGN),
    "cache-logits --teacher": (
        f"cache-logits {{x}} --mask {{m}} --num-seeds 1 {CPU} --out {{out}} --teacher {{ckpt}}",
        "--teacher-model resnet8 --teacher-norm none",
    ),
    "train --teacher": (f"{TRAIN} --teacher {{ckpt}}", "--teacher-model resnet8 --teacher-norm none"),
    "train --init": (f"{TRAIN} --alpha 0 --init {{ckpt}}", ""),
    "plan --teacher": (
        f"plan {{x}} --num-seeds 1 --outputs logits,embedding {CPU} --teacher {{ckpt}}",
        "--teacher-model resnet8 --teacher-norm none",
    ),
    "verify --teacher": (
        f"verify {{l}} --against {{x}} --rows 10 {CPU} --teacher {{ckpt}}",
        "--teacher-model resnet8 --teacher-norm .5,.5,.5/.25,.25,.25",
    ),
}


def call(taker: str, files: dict, ckpt: Path, out: Path, *more: str) -> Outcome:
    line, foreign = TAKERS[taker]
    is_foreign = ckpt.suffix == ".pth"
    return fastkd(*line.format(**files, ckpt=ckpt, out=out).split(), *(foreign.split() if is_foreign else ()), *more)


def used(taker: str, outcome: Outcome, out: Path) -> object:
    """What an outcome says of the weights that were taken."""
    assert outcome.code == 0, outcome.err
    if taker.startswith(("score", "cache")):
        with open_artefact(out, None) as (_, header):
            return {name: header.inputs[name] for name in ("model 1", "model", "teacher") if name in header.inputs}
    if taker.startswith("train"):
        inputs = read_json(out / "run.json")["inputs"]
        return {name: inputs[name] for name in ("teacher", "init") if name in inputs}
    return outcome.out.splitlines()[-1].rpartition(":")[2]


@pytest.fixture(scope="module")
def files(raw_beton, raw_mask, teacher_file, teacher_store, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("checkpoints")
    found = {"x": raw_beton, "m": raw_mask, "l": teacher_store, "folder": folder}
    save_teacher(folder / "other.safetensors", seed=5)
    states = {
        name: load_model(path)[0].state_dict()
        for name, path in (("plain", teacher_file), ("average", folder / "other.safetensors"))
    }
    torch.save(states["plain"], folder / "plain.pth")
    torch.save(states["average"], folder / "average.pth")
    torch.save({"model": states["plain"], "model_ema": states["average"]}, folder / "both.pth")
    return found


def test_these_are_all_commands_that_take_checkpoints():
    found = {name for name, one in cli.commands.items() if any(param.name == "ema_weights" for param in one.params)}
    assert found == {taker.split()[0] for taker in TAKERS}


@pytest.mark.parametrize("taker", TAKERS)
def test_either_of_two_sets_of_weights_is_taken_and_said(taker, files, tmp_path):
    folder = files["folder"]
    plain, both = (call(taker, files, folder / f"{name}.pth", tmp_path / name) for name in ("plain", "both"))
    assert used(taker, plain, tmp_path / "plain") == used(taker, both, tmp_path / "both")
    assert both.err.count("takes the weights under model, not those under model_ema; --ema-weights takes those") == 1
    other = call(taker, files, folder / "both.pth", tmp_path / "other", "--ema-weights")
    assert other.err.count("takes the weights under model_ema, not those under model") == 1
    if not taker.startswith("verify"):  # whose rows are the teacher's
        average = call(taker, files, folder / "average.pth", tmp_path / "average")
        assert used(taker, average, tmp_path / "average") == used(taker, other, tmp_path / "other")
    assert_one_clear_line(
        call(taker, files, folder / "plain.pth", tmp_path / "none", "--ema-weights"), "holds no averaged weights"
    )


@pytest.mark.parametrize("taker", [taker for taker in TAKERS if not taker.startswith("verify")])
def test_the_folder_of_a_run_is_taken_for_its_weights(taker, files, trained, tmp_path):
    folder, file = (
        used(taker, call(taker, files, path, tmp_path / path.name), tmp_path / path.name)
        for path in (trained, trained / "model.safetensors")
    )
    assert folder == file


def test_a_run_that_a_student_starts_from_is_not_replaced_by_it(files, trained):
    before = weights_fingerprint(load_model(trained)[0])
    for option in ("--init", "--teacher"):
        line = TRAIN.format(**files, out=trained).split()
        outcome = fastkd(*line, option, trained, "--force")
        assert_one_clear_line(outcome, f"is what {trained} is read from")
    assert weights_fingerprint(load_model(trained)[0]) == before


def test_weights_that_are_published_have_no_average(files):
    outcome = fastkd("evaluate", files["x"], "--model", "resnet18", "--ema-weights")
    assert_one_clear_line(outcome, "--ema-weights: --model resnet18 is a published network")
