import functools
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import exists_and, finish, kill_when, start
from stores import NORM, cache, save_teacher

from fastkd.data.views import Views
from fastkd.dist import World
from fastkd.errors import CorruptError, FastKDError, FormatError, MismatchError, OptionError, StoppedError
from fastkd.feed import Dataset, Loader
from fastkd.models.registry import create_model
from fastkd.prune.mask import Mask, save_mask
from fastkd.train.checkpoint import load_model
from fastkd.train.learner import Learner
from fastkd.train.metrics import evaluate
from fastkd.train.norm import Norm
from fastkd.train.recipe import Recipe, learning_rate
from fastkd.train.resume import load_resume, save_resume
from fastkd.train.student import train
from fastkd.train.teacher import load_teacher

VIEWS = Views("crop-flip", 32, 3)
RATES = ("images_per_s", "data_wait_percent", "step_percent")


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("student") / "t.safetensors", seed=5)


@pytest.fixture(scope="module")
def store(dataset, mask, teacher_file, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("student") / "l.h5"
    cache(path, dataset, load_teacher(str(teacher_file)), VIEWS, mask=mask)
    return path


@functools.cache
def loader_of(dataset: Dataset, mask: Mask, logits: Path | None, **options: Any) -> Loader:
    """One loader for all runs that want the same: each compiles its pipeline, and none remembers anything."""
    return Loader(dataset, VIEWS, mask=mask, logits=logits, shuffle=True, num_workers=1, **options)


@functools.cache
def validation(dataset: Dataset) -> Loader:
    return Loader(dataset, Views("center", 32), batch_size=200, num_workers=1)


def run(
    out: Path,
    dataset: Dataset,
    mask: Mask,
    *,
    logits: Path | None = None,
    options: dict[str, Any] | None = None,
    **recipe,
) -> dict[str, Any]:
    """Trains a resnet8 for two short epochs, unless told otherwise."""
    recipe = Recipe(**{"model": "resnet8", "epochs": 2, "batch_size": 48} | recipe)
    cut = {name: getattr(recipe, name) for name in ("batch_size", "seed", "drop_last")}
    loader = loader_of(dataset, mask, logits if recipe.alpha > 0 else None, **cut)
    options = {"norm": NORM, "inputs": {"beton": dataset.fingerprint}, "params": {}} | (options or {})
    return train(recipe, loader, out, **options)


def records(out: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the rates, which no two runs share."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in RATES} for line in lines if kind in (None, line["kind"])]


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def trained(dataset, mask, store, tmp_path_factory) -> Path:
    """A finished run from the store."""
    out = tmp_path_factory.mktemp("student") / "run"
    run(out, dataset, mask, logits=store)
    return out


def test_two_runs_of_one_seed_are_equal_to_the_bit(trained, dataset, mask, store, tmp_path):
    run(tmp_path / "again", dataset, mask, logits=store)
    assert weights(tmp_path / "again") == weights(trained)
    assert records(tmp_path / "again") == records(trained)


def test_another_seed_is_another_run(trained, dataset, mask, store, tmp_path):
    run(tmp_path / "other", dataset, mask, logits=store, seed=1, epochs=1)
    assert records(tmp_path / "other", "step")[0]["loss"] != records(trained, "step")[0]["loss"]


@pytest.fixture(scope="module")
def live(dataset, mask, teacher_file, tmp_path_factory) -> list[list[float]]:
    """The losses of a run with the live teacher: loss, cross-entropy and KD of ten steps."""
    out = tmp_path_factory.mktemp("student") / "live"
    run(out, dataset, mask, options={"teacher": load_teacher(str(teacher_file))})
    return losses(out)


def losses(out: Path) -> list[list[float]]:
    return [[line[key] for key in ("loss", "ce", "kd")] for line in records(out, "step")]


def test_the_live_teacher_gives_the_losses_of_its_store(trained, live):
    assert len(live) == 10
    np.testing.assert_allclose(live, losses(trained), rtol=1e-3)


@pytest.mark.parametrize("codec", ["int8+top4", "int4+top8"])
def test_quantised_stores_give_the_losses_of_the_live_teacher_within_their_error(
    live, dataset, mask, teacher_file, tmp_path, codec
):
    path = tmp_path / "l.h5"
    cache(path, dataset, load_teacher(str(teacher_file)), VIEWS, mask=mask, codec=codec)
    run(tmp_path / "run", dataset, mask, logits=path)
    np.testing.assert_allclose(live, losses(tmp_path / "run"), rtol=2e-3)


def test_alpha_zero_is_training_without_a_store(dataset, mask, store, tmp_path):
    recipe = Recipe(model="resnet8", epochs=1, batch_size=48, alpha=0)
    for name, logits in (("with", store), ("without", None)):
        loader = Loader(dataset, VIEWS, mask=mask, logits=logits, batch_size=48, shuffle=True)
        train(recipe, loader, tmp_path / name, norm=NORM, inputs={}, params={})
    assert weights(tmp_path / "with") == weights(tmp_path / "without")
    assert records(tmp_path / "with") == records(tmp_path / "without")


def test_at_alpha_one_the_labels_do_not_count(dataset, mask, teacher_file, tmp_path):
    """The same images under other labels: the weights come out the same."""
    shuffled = replace(dataset, beton=replace(dataset.beton, labels=dataset.beton.labels[::-1].copy()))
    for name, data in (("own", dataset), ("shuffled", shuffled)):
        recipe = Recipe(model="resnet8", epochs=1, batch_size=48, alpha=1)
        loader = Loader(data, VIEWS, mask=mask, batch_size=48, shuffle=True, num_workers=1)
        teacher = load_teacher(str(teacher_file))
        train(recipe, loader, tmp_path / name, norm=NORM, teacher=teacher, inputs={}, params={})
    assert records(tmp_path / "own", "step")[0]["ce"] != records(tmp_path / "shuffled", "step")[0]["ce"]
    states = [load_model(tmp_path / name / "model.safetensors")[0].state_dict() for name in ("own", "shuffled")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_label_smoothing_is_torchs(dataset, mask, tmp_path):
    """The first step's CE, from the same weights: (1 - s)·CE + s·(mean of -log p over classes)."""
    run(tmp_path / "hard", dataset, mask, alpha=0, epochs=1, batch_size=200)
    run(tmp_path / "smooth", dataset, mask, alpha=0, epochs=1, batch_size=200, label_smoothing=0.3)
    torch.manual_seed(0)
    model = create_model("resnet8", 10).train()
    batch = next(iter(loader_of(dataset, mask, None, batch_size=200, seed=0, drop_last=False).epoch(0)))
    with torch.no_grad():
        log_p = model(NORM(batch.images)).log_softmax(1)
    hard = -log_p.gather(1, batch.labels[:, None]).mean()
    expected = 0.7 * hard - 0.3 * log_p.mean()
    assert records(tmp_path / "hard", "step")[0]["ce"] == pytest.approx(float(hard), rel=1e-4)
    assert records(tmp_path / "smooth", "step")[0]["ce"] == pytest.approx(float(expected), rel=1e-4)


def test_distillation_changes_what_is_learnt(trained, dataset, mask, tmp_path):
    run(tmp_path / "labels", dataset, mask, alpha=0, epochs=1)
    assert records(tmp_path / "labels", "step")[0]["ce"] == records(trained, "step")[0]["ce"]
    assert records(tmp_path / "labels", "step")[1]["ce"] != records(trained, "step")[1]["ce"]


def test_the_metrics_have_a_line_a_step_and_one_an_epoch(trained):
    kinds = [(line["kind"], line["epoch"]) for line in records(trained)]
    assert kinds == [(kind, epoch) for epoch in (0, 1) for kind in ["step"] * 5 + ["epoch"]]
    steps = records(trained, "step")
    assert [line["step"] for line in steps] == list(range(10))
    for line in steps:
        assert line["loss"] == pytest.approx((line["ce"] + line["kd"]) / 2, rel=1e-6)
        assert line["kd"] > 0
    for epoch, line in enumerate(records(trained, "epoch")):
        losses = [step["loss"] for step in steps if step["epoch"] == epoch]
        assert line["loss"] == pytest.approx(sum(losses) / len(losses))


@pytest.fixture(scope="module")
def labelled(dataset, mask, tmp_path_factory) -> tuple[Path, dict]:
    """A run on labels alone, long enough to learn them, and its result."""
    out = tmp_path_factory.mktemp("student") / "labelled"
    options = {"val": validation(dataset), "val_every": 6}
    return out, run(out, dataset, mask, options=options, alpha=0, epochs=6, batch_size=20)


def test_labels_alone_are_learnt(labelled):
    out, result = labelled
    assert result["val_top1"] > 50  # chance is 10
    losses = [line["loss"] for line in records(out, "epoch")]
    assert losses[-1] < losses[0] / 2


def test_the_result_is_the_accuracy_of_the_weights_that_are_saved(labelled, dataset):
    out, result = labelled
    model, meta = load_model(out / "model.safetensors")
    found = evaluate(model, NORM, validation(dataset).epoch(0), World())
    assert (found["top1"], found["top5"]) == (result["val_top1"], result["val_top5"])
    assert meta["model"] == "resnet8"
    assert meta["class_names"] == dataset.class_names
    assert meta["norm"] == NORM.describe()


def test_accuracy_is_measured_as_often_as_asked_and_at_the_end(dataset, mask, tmp_path):
    val = validation(dataset)
    result = run(
        tmp_path / "run", dataset, mask, options={"val": val, "val_every": 2}, alpha=0, epochs=5, batch_size=100
    )
    assert ["val_top1" in line for line in records(tmp_path / "run", "epoch")] == [False, True, False, True, True]
    assert records(tmp_path / "run", "epoch")[-1]["val_top1"] == result["val_top1"]


def test_what_a_run_tells_of_itself_has_loss_and_accuracy_from_the_first_step_on(dataset, mask, tmp_path):
    told = []
    run(tmp_path / "run", dataset, mask, alpha=0, options={"val": validation(dataset), "note": told.append})
    losses = [line["loss"] for line in records(tmp_path / "run", "step")]
    whole = records(tmp_path / "run", "epoch")
    assert told[0] == f"epoch 1, loss {losses[0]:.4g}"
    assert told[-1] == f"epoch 2, loss {whole[-1]['loss']:.4g}, top-1 {whole[-1]['val_top1']:.2f} %"


def test_without_validation_data_there_is_no_accuracy(trained):
    result = json.loads((trained / "result.json").read_text())
    assert (result["epochs"], result["val_top1"], result["val_top5"]) == (2, None, None)


def test_drop_last_leaves_out_the_batch_that_is_not_full(dataset, mask, tmp_path):
    run(tmp_path / "run", dataset, mask, alpha=0, drop_last=True, epochs=1)
    assert len(records(tmp_path / "run", "step")) == 200 // 48


def test_a_finished_run_gives_its_result_without_training(trained, dataset, mask, store, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "run")
    (copy / "resume.pt").unlink()  # it could not train on
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    told = []
    result = run(copy, dataset, mask, logits=store, options={"log": told.append})
    assert result == json.loads((trained / "result.json").read_text())
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert "finished" in told[0]


def interrupt_after(num_steps: int):
    def progress(done: int, total: int) -> None:
        if done == num_steps:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("num_steps", [2, 7])
def test_an_interrupted_run_goes_on_to_the_same_bits(trained, dataset, mask, store, tmp_path, num_steps):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", dataset, mask, logits=store, options={"progress": interrupt_after(num_steps)})
    assert not (tmp_path / "run" / "result.json").exists()
    run(tmp_path / "run", dataset, mask, logits=store)
    assert weights(tmp_path / "run") == weights(trained)
    assert records(tmp_path / "run") == records(trained)


@pytest.mark.parametrize("every", [1, 3])
def test_states_within_epochs_change_nothing_and_are_gone_on_from(trained, dataset, mask, store, tmp_path, every):
    options = {"checkpoint_every": every}
    stop = interrupt_after(9)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", dataset, mask, logits=store, options=options | {"progress": stop})
    told = []
    run(tmp_path / "run", dataset, mask, logits=store, options=options | {"log": told.append})
    assert told[0].endswith("going on after epoch 1, step 3")
    assert weights(tmp_path / "run") == weights(trained)
    assert records(tmp_path / "run") == records(trained)


def test_sigterm_writes_a_state_that_is_gone_on_from(trained, dataset, mask, store, tmp_path):
    def ask(done: int, total: int) -> None:
        if done == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match="stopped by SIGTERM after epoch 1, step 2; the same command goes on"):
        run(tmp_path / "run", dataset, mask, logits=store, options={"progress": ask})
    assert signal.getsignal(signal.SIGTERM) == before
    state = load_resume(tmp_path / "run" / "resume.pt")
    assert (state["epoch"], state["step"]) == (1, 2)
    run(tmp_path / "run", dataset, mask, logits=store)
    assert weights(tmp_path / "run") == weights(trained)
    assert records(tmp_path / "run") == records(trained)


def test_lines_written_after_the_last_checkpoint_are_written_anew(trained, dataset, mask, store, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", dataset, mask, logits=store, options={"progress": interrupt_after(7)})
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "epoch": 1, "st')
    run(tmp_path / "run", dataset, mask, logits=store)
    assert records(tmp_path / "run") == records(trained)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 0.1}, "lr 0.05 .asked for 0.1"),
        ({"epochs": 3}, "epochs 2 .asked for 3"),
        ({"tau": 2.0, "seed": 4}, "seed 0 .asked for 4.; tau 4.0 .asked for 2.0"),
        ({"options": {"inputs": {"beton": "x", "mask": "y"}}}, "beton .* .asked for x.; mask None .asked for y"),
        ({"options": {"norm": Norm((0, 0, 0), (1, 1, 1))}}, "mean .*asked for .0, 0, 0.*; std"),
    ],
)
def test_another_run_in_the_same_folder_is_refused_and_told_apart(trained, dataset, mask, store, changes, words):
    before = weights(trained)
    with pytest.raises(MismatchError, match=f"run: another run is there; it differs in {words}"):
        run(trained, dataset, mask, logits=store, **changes)
    assert weights(trained) == before


def test_a_folder_with_other_files_is_not_taken(dataset, mask, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(MismatchError, match=r"holds notes\.txt but no run\.json"):
        run(tmp_path, dataset, mask, alpha=0)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def halved(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("name", ["run.json", "result.json", "resume.pt"])
@pytest.mark.parametrize("damage", [halved, lambda content: b"", lambda content: b"[]", lambda content: b"\xff\xfe"])
def test_a_damaged_file_of_a_run_is_named_in_one_line(trained, dataset, mask, store, tmp_path, name, damage):
    copy = shutil.copytree(trained, tmp_path / "run")
    if name == "resume.pt":
        (copy / "result.json").unlink()
        (copy / "resume-previous.pt").unlink()
    (copy / name).write_bytes(damage((copy / name).read_bytes()))
    with pytest.raises(FastKDError, match=rf"run/{name}: ") as error:
        run(copy, dataset, mask, logits=store)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [halved, flipped, lambda content: b""])
def test_a_damaged_last_state_falls_back_to_the_one_before(trained, dataset, mask, store, tmp_path, damage):
    copy = shutil.copytree(trained, tmp_path / "run")
    for name in ("result.json", "model.safetensors"):
        (copy / name).unlink()
    (copy / "resume.pt").write_bytes(damage((copy / "resume.pt").read_bytes()))
    told = []
    run(copy, dataset, mask, logits=store, options={"log": told.append})
    assert re.search(r"resume\.pt: .*; falling back to the state before it, resume-previous\.pt", told[0])
    assert "going on after epoch 1" in told[1]
    assert weights(copy) == weights(trained)
    assert records(copy) == records(trained)


def test_a_damaged_state_does_not_push_out_the_whole_one(trained, dataset, mask, store, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "run")
    (copy / "result.json").unlink()
    (copy / "resume.pt").write_bytes(b"")
    run(copy, dataset, mask, logits=store)
    assert load_resume(copy / "resume.pt")["epoch"] == 2
    assert load_resume(copy / "resume-previous.pt")["epoch"] == 1


def test_flipped_bits_of_both_states_are_corrupt(trained, dataset, mask, store, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "run")
    (copy / "result.json").unlink()
    (copy / "resume-previous.pt").write_bytes(flipped((copy / "resume-previous.pt").read_bytes()))
    (copy / "resume.pt").write_bytes(flipped((copy / "resume.pt").read_bytes()))
    with pytest.raises(CorruptError, match=r"resume-previous\.pt: the content does not match"):
        run(copy, dataset, mask, logits=store)


def test_the_state_of_another_network_is_refused(trained, dataset, mask, store, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "run")
    (copy / "result.json").unlink()
    state = load_resume(copy / "resume.pt")
    save_resume(copy / "resume.pt", state | {"learner": Learner(create_model("resnet14", 10)).state_dict()})
    with pytest.raises(FormatError, match=r"resume\.pt: does not hold the state of this run"):
        run(copy, dataset, mask, logits=store)


def test_a_run_of_another_version_is_refused(trained, dataset, mask, store, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "run")
    head = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(head | {"format_version": 2}))
    with pytest.raises(FormatError, match=r"run\.json: run of version 2, this fastkd reads version 1"):
        run(copy, dataset, mask, logits=store)


def test_fewer_samples_than_a_batch_are_refused(dataset, mask, tmp_path):
    with pytest.raises(OptionError, match=r"200 samples are fewer than one batch of 201 .*--batch-size"):
        run(tmp_path / "run", dataset, mask, alpha=0, batch_size=201)
    assert not (tmp_path / "run").exists()


def test_distillation_without_logits_is_refused(dataset, mask, tmp_path):
    with pytest.raises(OptionError, match=r"--alpha 0\.5 needs --logits or --teacher"):
        run(tmp_path / "run", dataset, mask)
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_says_where(dataset, mask, tmp_path):
    with pytest.raises(CorruptError, match=r"the loss of epoch 0, step \d is (nan|inf): training diverged; lower --lr"):
        run(tmp_path / "run", dataset, mask, alpha=0, lr=1e30)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (240, [0.05] * 150 + [0.005] * 30 + [0.0005] * 30 + [0.00005] * 30),
        (15, [0.05] * 9 + [0.005] * 2 + [0.0005] * 2 + [0.00005] * 2),
    ],
)
def test_the_milestones_move_with_the_number_of_epochs(epochs, expected):
    recipe = Recipe(model="resnet8", epochs=epochs)
    assert [learning_rate(recipe, epoch) for epoch in range(epochs)] == pytest.approx(expected)


def test_a_cosine_falls_from_the_initial_rate_towards_zero():
    recipe = Recipe(model="resnet8", epochs=100, schedule="cosine", lr=0.1)
    rates = [learning_rate(recipe, epoch) for epoch in range(100)]
    assert rates[0] == 0.1
    assert rates[50] == pytest.approx(0.05)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 1e-4


def test_the_learning_rate_in_the_metrics_is_the_schedules(dataset, mask, tmp_path):
    run(tmp_path / "run", dataset, mask, alpha=0, epochs=3, batch_size=200, schedule="cosine", lr=0.02)
    assert [line["lr"] for line in records(tmp_path / "run", "epoch")] == pytest.approx([0.02, 0.015, 0.005])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("epochs", 0), ("epochs", -1), ("batch_size", 0), ("lr", 0.0), ("lr", -0.1), ("lr", float("inf"))],
        *[("lr", float("nan")), ("momentum", 1.0), ("momentum", -0.1), ("weight_decay", -1e-4), ("schedule", "linear")],
        *[("alpha", -0.1), ("alpha", 2.0), ("alpha", float("nan")), ("tau", 0.0), ("tau", -4.0), ("tau", float("inf"))],
        *[("seed", -1), ("seed", 2**63)],
    ],
)
def test_a_recipe_out_of_range_names_the_option(option, value):
    with pytest.raises(OptionError, match=rf"^--{option.replace('_', '-')} {value}: expected"):
        Recipe(model="resnet8", **{option: value})


def test_the_recipe_is_the_papers():
    recipe = Recipe(model="resnet8")
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum, recipe.weight_decay) == (
        240,
        64,
        0.05,
        0.9,
        5e-4,
    )
    assert (recipe.alpha, recipe.tau, recipe.tau_squared, recipe.schedule) == (0.5, 4.0, True, "step")


@pytest.fixture(scope="module")
def training(raw_beton, raw_mask, store) -> tuple:
    """A command that trains for twelve short epochs."""
    options = [
        "--mask",
        raw_mask,
        "--logits",
        store,
        "--val",
        raw_beton,
        "--val-every",
        12,
        "--model",
        "resnet8",
        "--epochs",
        12,
    ]
    return ("train", raw_beton, *options, "--batch-size", 50, "--device", "cpu", "--num-workers", 1, "--json")


def test_a_run_that_was_killed_goes_on_to_the_bits_of_an_undisturbed_one(training, tmp_path):
    undisturbed = start(*training, "--out", tmp_path / "undisturbed")
    state = tmp_path / "killed" / "resume.pt"
    kill_when(
        start(*training, "--out", tmp_path / "killed"), exists_and(state, lambda: load_resume(state)["epoch"] >= 2)
    )
    assert 2 <= load_resume(state)["epoch"] < 12
    assert not (tmp_path / "killed" / "result.json").exists()
    resumed, whole = finish(start(*training, "--out", tmp_path / "killed")), finish(undisturbed)
    assert (resumed.code, whole.code) == (0, 0), resumed.err + whole.err
    assert "going on after epoch" in resumed.err
    assert weights(tmp_path / "killed") == weights(tmp_path / "undisturbed")
    assert records(tmp_path / "killed") == records(tmp_path / "undisturbed")
    same = ("fingerprint", "epochs", "val_top1", "val_top5")
    assert [resumed.result[key] for key in same] == [whole.result[key] for key in same]


def test_two_ranks_train_one_network_and_measure_the_one_that_is_saved(dataset, mask, store, raw_beton, tmp_path):
    """Batches of two: statistics of the batches differ so much between the ranks that mixing them up would show."""
    params = {"method": "random", "seed": 0}
    few, out = tmp_path / "m.h5", tmp_path / "run"
    save_mask(few, mask.sample_ids[:40], num_samples=600, beton_fingerprint=dataset.fingerprint, params=params)
    options = ["--mask", few, "--logits", store, "--val", raw_beton, "--model", "resnet8", "--epochs", 2]
    cpu = ["--batch-size", 2, "--device", "cpu", "--num-workers", 1, "--norm", "none"]
    outcome = finish(start("train", raw_beton, *options, *cpu, "--out", out, "--json", ranks=2))
    assert outcome.code == 0, outcome.err
    result = outcome.result
    assert (result["kind"], result["epochs"]) == ("run", 2)
    assert len(records(out, "step")) == 2 * 10
    model, meta = load_model(out / "model.safetensors")
    assert meta["params"]["global_batch"] == 4
    found = evaluate(model, Norm((0, 0, 0), (1, 1, 1)), validation(dataset).epoch(0), World())
    assert (found["top1"], found["top5"]) == (result["val_top1"], result["val_top5"])
