import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import finish, start
from helpers.runs import loader_of, records, run, validation, weights
from helpers.stores import NORM, VIEWS, cache

from fastkd.dist import World
from fastkd.errors import CorruptError, OptionError
from fastkd.feed.loader import Loader
from fastkd.models.checkpoint import load_model
from fastkd.models.norm import Norm
from fastkd.models.registry import create_model
from fastkd.prune.masks.mask import save_mask
from fastkd.teacher.network import load_teacher
from fastkd.train import loop
from fastkd.train.metrics import evaluate
from fastkd.train.recipe import Recipe
from fastkd.train.student import train


def test_two_runs_of_one_seed_are_equal_to_the_bit(trained, dataset, mask, teacher_store, tmp_path):
    run(tmp_path / "again", dataset, mask, logits=teacher_store)
    assert weights(tmp_path / "again") == weights(trained)
    assert records(tmp_path / "again") == records(trained)


def test_another_seed_is_another_run(trained, dataset, mask, teacher_store, tmp_path):
    run(tmp_path / "other", dataset, mask, logits=teacher_store, seed=1, epochs=1)
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


def test_alpha_zero_is_training_without_a_store(dataset, mask, teacher_store, tmp_path):
    recipe = Recipe(model="resnet8", epochs=1, batch_size=48, alpha=0)
    for name, logits in (("with", teacher_store), ("without", None)):
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


def test_fewer_samples_than_a_batch_are_refused(dataset, mask, tmp_path):
    with pytest.raises(OptionError, match=r"200 samples are fewer than one batch of 201 .*--batch-size"):
        run(tmp_path / "run", dataset, mask, alpha=0, batch_size=201)
    assert not (tmp_path / "run").exists()


def test_distillation_without_logits_is_refused(dataset, mask, tmp_path):
    with pytest.raises(OptionError, match=r"--alpha 0\.5 needs --logits or --teacher"):
        run(tmp_path / "run", dataset, mask)
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_says_where(dataset, mask, tmp_path):
    with pytest.raises(
        CorruptError, match=r"the loss of epoch 1, step \d+ is (nan|inf): training diverged; lower --lr"
    ):
        run(tmp_path / "run", dataset, mask, alpha=0, lr=1000, batch_size=10)
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_run_that_diverges_ends_when_its_loss_is_next_told_and_not_with_the_epoch(
    dataset, mask, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "_NOTE_INTERVAL_S", 0.0)
    steps = []
    options = {"progress": lambda done, total: steps.append(done)}
    with pytest.raises(CorruptError, match=r"the loss of epoch 1, step \d+ is (nan|inf)"):
        run(tmp_path / "run", dataset, mask, alpha=0, lr=1000, batch_size=10, options=options)
    assert len(steps) < 10  # of the epoch's 20


def test_the_learning_rate_in_the_metrics_is_the_schedules(dataset, mask, tmp_path):
    run(tmp_path / "run", dataset, mask, alpha=0, epochs=3, batch_size=200, schedule="cosine", lr=0.02)
    assert [line["lr"] for line in records(tmp_path / "run", "epoch")] == pytest.approx([0.02, 0.015, 0.005])


def test_two_ranks_train_one_network_and_measure_the_one_that_is_saved(
    dataset, mask, teacher_store, raw_beton, tmp_path
):
    """Batches of two: statistics of the batches differ so much between the ranks that mixing them up would show."""
    params = {"method": "random", "seed": 0}
    few, out = tmp_path / "m.h5", tmp_path / "run"
    save_mask(few, mask.sample_ids[:40], num_samples=600, beton_fingerprint=dataset.fingerprint, params=params)
    options = ["--mask", few, "--logits", teacher_store, "--val", raw_beton, "--model", "resnet8", "--epochs", 2]
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
