import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import fastkd, fastkd_in_ranks
from helpers.moments import at_call, stall
from helpers.ranks import start_ranks, wait_for
from helpers.stores import NORM
from helpers.traces import reference

from fastkd.data.beton.dataset import Dataset
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.errors import FormatError, MismatchError, OptionError
from fastkd.feed.loader import Loader
from fastkd.prune.masks.mask import Mask
from fastkd.prune.scores.recorder import RECORDABLE
from fastkd.prune.scores.score_file import Scores, load_scores
from fastkd.scoring.recording import Record, TrainingRecord, parse_record
from fastkd.train import learner
from fastkd.train.recipe import Recipe
from fastkd.train.student import train

RECORD = Record(methods=RECORDABLE, window=3, el2n_epochs=4)
EPOCHS = 6
CPU = ("--device", "cpu", "--num-workers", 1)


def stall_in_the_third_epoch(rank: int) -> None:
    at_call("train_epoch " * 3, stall)()


def run(
    out: Path,
    dataset: Dataset,
    mask: Mask,
    record: Record | None = RECORD,
    batch_size: int = 48,
    world: World = World(),  # noqa: B008  (frozen)
    **options: Any,
) -> dict[str, Any]:
    recipe = Recipe(model="resnet8", epochs=EPOCHS, batch_size=batch_size, alpha=0, lr=0.02)
    views = Views("crop-flip", 32, 9)
    loader = Loader(dataset, views, mask=mask, batch_size=batch_size, shuffle=True, num_workers=1, world=world)
    options |= {"inputs": {"beton": dataset.fingerprint}, "params": {}, "world": world}
    return train(recipe, loader, out, norm=NORM, record=record, **options)


@pytest.fixture(scope="module")
def recorded(dataset, mask, tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A run that records, and the logits (T, N, C) that its network gave in training mode, caught on the way."""
    out = tmp_path_factory.mktemp("recording") / "run"
    trace = np.full((EPOCHS, 600, 10), np.nan, np.float32)
    network, seen = learner.create_model, []

    def hooked(*arguments: Any, **options: Any) -> torch.nn.Module:
        model = network(*arguments, **options)
        model.register_forward_hook(lambda module, _, logits: seen.append(logits.detach().clone()))
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "create_model", hooked)
        run(out, dataset, mask)
    loader = Loader(dataset, Views("crop-flip", 32, 9), mask=mask, batch_size=48, shuffle=True, num_workers=1)
    assert len(seen.pop(0)) == 1  # an empty image, before the run: whether the network can take the views
    batches = iter(seen)
    for epoch in range(EPOCHS):
        for batch in loader.epoch(epoch):
            trace[epoch, batch.sample_ids.numpy()] = next(batches).numpy()
    assert next(batches, None) is None  # no extra forward
    return out, trace


def test_the_scores_are_those_of_plain_numpy_on_the_logged_trace(recorded, dataset, mask):
    out, trace = recorded
    found, kept = load_scores(out / "scores.h5"), np.sort(mask.sample_ids)
    expected = reference(trace[:, kept], dataset.beton.labels[kept], 3, 4)
    assert np.array_equal(found.values["forgetting"][kept], expected["forgetting"])
    assert 0 < found.values["forgetting"][kept].max() < EPOCHS or (expected["forgetting"] > 0).any()
    for name in ("el2n", "aum", "dual"):
        np.testing.assert_allclose(found.values[name][kept], expected[name], rtol=1e-6, atol=1e-6, err_msg=name)
    mean = found.extras["target_prob_mean"][kept]
    np.testing.assert_allclose(mean, expected["target_prob_mean"], rtol=1e-6)


def test_samples_that_the_run_did_not_see_have_no_score(recorded, mask):
    unseen = np.setdiff1d(np.arange(600), mask.sample_ids)
    for name, values in load_scores(recorded[0] / "scores.h5").values.items():
        assert np.isnan(values[unseen]).all(), name
        assert not np.isnan(values[mask.sample_ids]).any(), name


def test_recording_changes_nothing_of_the_training(recorded, dataset, mask, tmp_path):
    run(tmp_path / "run", dataset, mask, record=None)
    with_record, without = (
        torch.load(out / "resume.pt", weights_only=True)["learner"] for out in (recorded[0], tmp_path / "run")
    )
    assert all(torch.equal(with_record[name], without[name]) for name in without)


def test_the_file_says_how_the_scores_were_made(recorded, dataset):
    found = load_scores(recorded[0] / "scores.h5")
    assert found.header.inputs == {"beton": dataset.fingerprint}
    assert found.methods["forgetting"]["policies"]["never_learned"] == "total"
    assert found.methods["dual"]["policies"] == {"window": 3, "epochs": EPOCHS, "mode": "training"}
    assert found.methods["aum"]["direction"].startswith("high = hard")


def same_scores(one: Scores, other: Scores) -> bool:
    arrays = [{**scores.values, **scores.extras} for scores in (one, other)]
    return all(np.array_equal(arrays[0][name], arrays[1][name], equal_nan=True) for name in arrays[0])


@pytest.mark.parametrize("num_steps", [2, 13, 27])
def test_an_interrupted_run_records_the_same_bits(recorded, dataset, mask, tmp_path, num_steps):
    def stop(done: int, total: int) -> None:
        if done == num_steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", dataset, mask, progress=stop)
    run(tmp_path / "run", dataset, mask)
    assert same_scores(load_scores(tmp_path / "run" / "scores.h5"), load_scores(recorded[0] / "scores.h5"))


@pytest.mark.parametrize(("size", "dies_at"), [(1, 13), (2, None), (2, 13)])
def test_ranks_that_are_killed_and_resumed_record_their_logged_trace(
    size, dies_at, recorded, dataset, mask, tmp_path, monkeypatch
):
    """Every rank writes the logits of its forwards into a file, the first time up to its kill in the third epoch."""
    trace = np.lib.format.open_memmap(tmp_path / "trace.npy", "w+", np.float32, (EPOCHS, 600, 10))
    forward = learner.Learner.forward

    def logged(module, inputs, batch, teacher_layers, step):
        found = forward(module, inputs, batch, teacher_layers, step)
        trace[step // 5, batch.sample_ids.numpy()] = found[0].detach().numpy()
        return found

    monkeypatch.setattr(learner.Learner, "forward", logged)
    for num, death in enumerate([dies_at, None] if dies_at else [None]):

        def die(done: int, total: int, death: int | None = death) -> None:
            if done == death:
                os.kill(os.getpid(), 9)

        def as_rank(world: World, die=die) -> None:
            run(tmp_path / "run", dataset, mask, batch_size=48 // size, world=world, progress=die)

        codes = wait_for(start_ranks(size, tmp_path / f"meet{num}", as_rank))
        assert codes == ([-9] * size if death else [0] * size)
    kept = np.sort(mask.sample_ids)
    expected, found = (
        reference(trace[:, kept], dataset.beton.labels[kept], 3, 4),
        load_scores(tmp_path / "run/scores.h5"),
    )
    assert np.array_equal(found.values["forgetting"][kept], expected["forgetting"])
    for name in ("el2n", "aum", "dual"):
        np.testing.assert_allclose(found.values[name][kept], expected[name], rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(
        found.extras["target_prob_mean"][kept], expected["target_prob_mean"], rtol=1e-6, err_msg="mean"
    )


def test_a_run_that_records_something_else_is_another_run(recorded, dataset, mask):
    with pytest.raises(MismatchError, match=r"another run is there; it differs in params.record.never_learned total"):
        run(
            recorded[0], dataset, mask, record=Record(methods=RECORDABLE, never_learned="zero", window=3, el2n_epochs=4)
        )


def test_the_state_of_another_recorder_is_refused(tmp_path):
    small, large = (TrainingRecord(RECORD, n, World(), torch.device("cpu")) for n in (5, 6))
    for state in (small.state_dict(), {}, {"presented": torch.zeros(6)}):
        with pytest.raises(FormatError, match=r"resume\.pt: does not hold what this run records"):
            large.load_state_dict(state, tmp_path / "resume.pt")


def arguments(beton: Path, mask: Path, out: Path) -> list[object]:
    record = ["--record", "dual,el2n,aum,forgetting", "--dual-window", 2]
    return [
        "train",
        beton,
        "--mask",
        mask,
        "--alpha",
        0,
        "--model",
        "resnet8",
        "--epochs",
        4,
        *record,
        *CPU,
        "--out",
        out,
    ]


@pytest.fixture(scope="module")
def two_ranks(raw_beton, raw_mask, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ranks") / "run"
    outcomes = fastkd_in_ranks(2, *arguments(raw_beton, raw_mask, out), "--batch-size", 24)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    return out


def test_two_ranks_record_every_sample_of_every_epoch(two_ranks, mask):
    found = load_scores(two_ranks / "scores.h5")
    state = torch.load(two_ranks / "resume.pt", weights_only=True)["record"]
    kept = np.isin(np.arange(600), mask.sample_ids)
    assert state["presented"].numpy().tolist() == np.where(kept, 4, 0).tolist()
    for name, values in found.values.items():
        assert np.isnan(values).tolist() == (~kept).tolist(), name
    assert ((found.extras["target_prob_mean"][kept] > 0) & (found.extras["target_prob_mean"][kept] < 1)).all()


def test_two_ranks_killed_and_resumed_record_the_same_bits(two_ranks, raw_beton, raw_mask, tmp_path):
    command = [*arguments(raw_beton, raw_mask, tmp_path / "run"), "--batch-size", 24]
    killed = fastkd_in_ranks(2, *command, first=stall_in_the_third_epoch, until=(tmp_path / "run" / "resume.pt").exists)
    assert [outcome.code for outcome in killed] == [-signal.SIGKILL] * 2
    assert not (tmp_path / "run" / "result.json").exists()
    assert [outcome.code for outcome in fastkd_in_ranks(2, *command)] == [0, 0]
    assert same_scores(load_scores(tmp_path / "run" / "scores.h5"), load_scores(two_ranks / "scores.h5"))


def test_a_prune_by_recorded_scores_works(raw_beton, tmp_path):
    flags = ["--alpha", 0, "--model", "resnet8", "--epochs", 1, "--record", "el2n,forgetting", *CPU]
    assert fastkd("train", raw_beton, *flags, "--out", tmp_path / "run").code == 0
    chosen = ["--method", "scores", "--scores", tmp_path / "run" / "scores.h5", "--score", "forgetting"]
    assert fastkd("prune", raw_beton, "--keep", 0.1, *chosen, "--out", tmp_path / "m.h5").code == 0
    assert len(Mask.load(tmp_path / "m.h5").sample_ids) == 60


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("loss", {}, "--record loss: expected some of forgetting,el2n,aum,dual"),
        (",", {}, "--record ,: expected some of"),
        ("dual", {"window": 1}, "window of 1 epochs"),
        ("forgetting", {"never_learned": "perhaps"}, "--never-learned perhaps"),
    ],
)
def test_what_cannot_be_recorded_is_refused(text, options, words):
    with pytest.raises(OptionError, match=words):
        parse_record(text, **options)


def test_options_of_recording_need_it(raw_beton, tmp_path):
    flags = ["--alpha", 0, "--model", "resnet8", "--dual-window", 5, "--out", tmp_path / "run"]
    outcome = fastkd("train", raw_beton, *flags)
    assert outcome.code == 1
    assert "--dual-window does nothing without --record" in outcome.err
