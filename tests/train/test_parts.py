"""The parts of a run: optimiser, average, states, and the order of what a step does."""

import json
import math
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.fake_gpu import Event, NoWaits
from helpers.ranks import start_ranks, wait_for
from helpers.runs import interrupt_after, records, run, step_losses, weights
from helpers.stores import NORM
from torch import nn

from fastkd.cli import cli
from fastkd.cli.train_options import parse_states
from fastkd.data.batch import Batch
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.errors import CorruptError, DiskError
from fastkd.feed import resident
from fastkd.feed.loader import Loader
from fastkd.feed.resident import Resident
from fastkd.models.registry import create_model
from fastkd.train import loop
from fastkd.train.learner import Learner
from fastkd.train.loop import Run, one_step
from fastkd.train.metrics import Stopwatch
from fastkd.train.parts import states
from fastkd.train.parts.average import Average
from fastkd.train.parts.captured import can_be_captured, captured
from fastkd.train.parts.compiling import measured_convolutions
from fastkd.train.parts.optimizer import make_optimizer, set_learning_rate
from fastkd.train.parts.states import Checkpoints
from fastkd.train.recipe import Recipe
from fastkd.train.resume import load_resume
from fastkd.train.sharing import seed_dropout, wrapped
from fastkd.train.student import train

RECIPE = Recipe(model="resnet8", lr=0.1)


def three_steps(*, fused: bool) -> list[float]:
    """A weight after each of three steps under a gradient scaler, of which the first overflows."""
    weight = nn.Parameter(torch.zeros(1000))
    optimizer = make_optimizer(RECIPE, [weight], fused=fused)
    scaler = torch.amp.GradScaler("cpu")
    found = []
    for step in range(3):
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(weight.sum() * (math.inf if step == 0 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        found.append(float(weight.detach()[0]))
    return found


def test_a_first_step_whose_gradients_overflow_is_skipped_by_the_fused_update_as_by_the_plain_one():
    """In deterministic mode torch fills memory that nobody has written with NaN, so that reading it shows."""
    torch.use_deterministic_algorithms(True)
    try:
        plain, fused = three_steps(fused=False), three_steps(fused=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert plain[0] == fused[0] == 0
    assert fused == pytest.approx(plain, rel=1e-6)


def test_a_run_that_diverges_in_fp16_names_the_scaler(dataset, mask, tmp_path):
    words = r"with --amp fp16, its gradient scaler at \d+(\.\d+)?: training diverged; lower --lr, or use --amp bf16"
    with pytest.raises(CorruptError, match=words):
        run(tmp_path / "run", dataset, mask, alpha=0, lr=1000, batch_size=10, amp="fp16")


@pytest.mark.parametrize("fused", [True, False])
def test_the_state_of_another_device_is_gone_on_from_by_this_ones_update(fused):
    def made(*, fused: bool) -> tuple[nn.Parameter, torch.optim.Optimizer]:
        weight = nn.Parameter(torch.ones(8))
        return weight, make_optimizer(RECIPE, [weight], fused=fused)

    weight, before = made(fused=not fused)
    weight.grad = torch.full((8,), 2.0)
    before.step()
    _, after = made(fused=fused)
    after.load_state_dict(before.state_dict())
    assert after.param_groups[0]["fused"] is fused
    assert torch.equal(*(next(iter(one.state.values()))["momentum_buffer"] for one in (before, after)))


def test_a_rate_that_is_a_tensor_stays_that_tensor():
    rate = torch.tensor(0.1)
    optimizer = make_optimizer(RECIPE, [nn.Parameter(torch.ones(1))], fused=True, lr=rate)
    set_learning_rate(optimizer, 0.025)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.025)


def test_the_average_is_torchs_to_the_bit_and_reads_its_states():
    torch.manual_seed(0)
    network = create_model("resnet8", 10)
    own = Average(network, 0.9)
    its = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    for step in range(4):
        with torch.no_grad():
            for tensor in (*network.parameters(), *(b for b in network.buffers() if b.is_floating_point())):
                tensor.add_(torch.randn_like(tensor))
        if step == 2:
            own = Average(network, 0.9)
            own.load_state_dict(its.state_dict())
        own.update(network)
        its.update_parameters(network)
    own.take_statistics(network)
    expected = its.module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in own.module.state_dict().items())
    assert own.state_dict().keys() == its.state_dict().keys()


def test_a_network_wears_the_average_while_it_is_measured_and_has_its_own_weights_after():
    network = nn.Linear(2, 1)
    average, before = Average(network, 0.5), network.weight.detach().clone()
    with torch.no_grad():
        network.weight.add_(1)
    with average.worn_by(network):
        assert torch.equal(network.weight, before)
    assert torch.equal(network.weight, before + 1)


def test_a_state_is_that_of_its_step_however_far_the_run_has_gone_when_it_is_written(tmp_path, monkeypatch):
    network, rows = nn.Linear(2, 1), [[1.0]]
    checkpoints = Checkpoints(tmp_path, {"fingerprint": "x"}, {"learner": network})
    before = network.weight.detach().clone()
    write = states.save_resume

    def late(path: Path, state: dict) -> None:
        with torch.no_grad():
            network.weight.add_(1)
        rows.append([2.0])
        write(path, state)

    monkeypatch.setattr(states, "save_resume", late)
    checkpoints.save({"epoch": 0, "step": 1, "rows": rows})
    checkpoints.finish()
    state = load_resume(tmp_path / "resume.pt")
    assert torch.equal(state["learner"]["weight"], before)
    assert state["rows"] == [[1.0]]


def test_a_state_that_cannot_be_written_ends_the_run_at_the_next_one(dataset, mask, tmp_path, monkeypatch):
    def full(path: Path, state: dict) -> None:
        raise DiskError(f"{path}: the disk is full")

    monkeypatch.setattr(states, "save_resume", full)
    with pytest.raises(DiskError, match=r"resume\.pt: the disk is full"):
        run(tmp_path / "run", dataset, mask, alpha=0)
    assert not (tmp_path / "run" / "result.json").exists()


def test_states_after_every_second_epoch_are_gone_on_from_to_the_same_bits(dataset, mask, tmp_path):
    recipe = {"alpha": 0, "epochs": 5, "batch_size": 100}
    run(tmp_path / "whole", dataset, mask, **recipe)
    options = {"checkpoint_epochs": 2}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", dataset, mask, options=options | {"progress": interrupt_after(7)}, **recipe)
    assert load_resume(tmp_path / "run" / "resume.pt")["epoch"] == 2
    run(tmp_path / "run", dataset, mask, options=options, **recipe)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    assert load_resume(tmp_path / "run" / "resume.pt")["epoch"] == 5
    assert load_resume(tmp_path / "run" / "resume-previous.pt")["epoch"] == 4


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, {}),
        ("500", {"checkpoint_every": 500}),
        ("10epochs", {"checkpoint_epochs": 10}),
        ("1 epoch", {"checkpoint_epochs": 1}),
    ],
)
def test_states_are_asked_for_in_steps_or_in_epochs(text, found):
    assert parse_states(text) == found


@pytest.mark.parametrize("text", ["0", "0epochs", "-1", "1.5", "ten", "5eps", "9999999999"])
def test_what_is_neither_steps_nor_epochs_is_a_usage_error(text):
    outcome = CliRunner().invoke(
        cli, ["train", "x.beton", "--model", "resnet8", "--out", "run", f"--checkpoint-every={text}"]
    )
    assert outcome.exit_code == 2
    assert "is not in the range of steps, 1 … 999999999, nor a number of epochs, e.g. 10epochs" in " ".join(
        outcome.output.split()
    )


def test_a_gpus_random_numbers_are_kept_with_a_state(tmp_path, monkeypatch):
    there = [torch.arange(16, dtype=torch.uint8)]
    for name, stub in {
        "get_rng_state": lambda device: there[0].clone(),
        "set_rng_state": lambda state, device: there.insert(0, state),
        "Event": type("_", (Event,), {"wait": lambda self: None}),
        "current_stream": lambda device: None,
        "Stream": lambda device: None,
        "stream": lambda stream: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    first = Checkpoints(tmp_path, {"fingerprint": "x", "format_version": 2}, {}, "cuda:0")
    first.save({"epoch": 1, "step": 0, "rows": [], "jsonl": None, "csv": None, "accuracy": {}})
    first.finish()
    there[:] = [torch.zeros(16, dtype=torch.uint8)]
    assert Checkpoints(tmp_path, {"fingerprint": "x", "format_version": 2}, {}, "cuda:0").load(lambda line: None)
    assert torch.equal(there[0], torch.arange(16, dtype=torch.uint8))


def test_ranks_drop_other_values_and_a_step_is_repeated():
    def dropped(rank: int, step: int) -> tuple[float, ...]:
        torch.manual_seed(0)
        seed_dropout(0, step, World(rank=rank, local_rank=rank, size=4))
        return tuple(nn.functional.dropout(torch.ones(32)).tolist())

    masks = [dropped(rank, step) for rank in range(1, 4) for step in range(3)]
    assert len(set(masks)) == 9
    assert dropped(2, 1) == masks[4]
    assert dropped(0, 0) == dropped(0, 1) not in masks  # as a single process: its own generator goes on


def made_run(dataset, *, model: str = "resnet8", size: int = 2, **flags) -> tuple[Run, Batch]:
    """A run on labels alone with the fused update, as on a GPU."""
    recipe = Recipe(model=model, alpha=0, batch_size=size, **flags)
    torch.manual_seed(0)
    learner = Learner(create_model(model, 10), precision=torch.bfloat16 if recipe.amp == "bf16" else None)
    learner.norm = NORM
    loader = Loader(dataset, Views("crop-flip", 32, 3), mask=np.arange(4), batch_size=size, num_workers=1)
    made = Run(
        recipe=recipe,
        learner=learner,
        wrapped=learner.train(),
        optimizer=make_optimizer(recipe, learner.parameters(), fused=True),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        average=Average(learner.model, recipe.ema) if recipe.ema else None,
        loader=loader,
        live=None,
        world=World(),
        watch=Stopwatch("cpu"),
        checkpoints=Checkpoints(Path(), {}, {}),
        recording=None,
        rows=[],
        num_written=0,
        accuracy={},
        lines=None,
        table=None,
    )
    return made, next(loader.epoch(0))


@pytest.mark.parametrize(
    ("flags", "most"), [({}, 319), ({"amp": "bf16"}, 392), ({"ema": 0.999}, 320)], ids=["plain", "bf16", "ema"]
)
def test_a_step_of_resnet32_launches_no_more_than_it_did(dataset, flags, most):
    """Operations that reach a kernel, forward, backward and update, in the second step; who needs more, says so here."""
    made, batch = made_run(dataset, model="resnet32", **flags)
    one_step(made, batch, 0, 1.0)
    with NoWaits() as mode:
        one_step(made, batch, 1, 1.0)
    assert sum(mode.launched.values()) <= most, mode.launched


def test_gradients_are_gone_before_the_forward_pass_needs_memory(dataset):
    made, batch = made_run(dataset)
    seen = []
    made.learner.model.register_forward_pre_hook(
        lambda module, inputs: seen.append(sum(p.grad is not None for p in module.parameters()))
    )
    for step in range(2):
        one_step(made, batch, step, 1.0)
    assert seen == [0, 0]


def test_what_ranks_tell_one_another_is_part_of_the_update_and_no_waiting_for_data(dataset, monkeypatch):
    made, _ = made_run(dataset)
    marks, made.noted_s = [], math.inf
    monkeypatch.setattr(made.watch, "did", marks.append)
    over_ranks = loop.over_ranks
    monkeypatch.setattr(loop, "over_ranks", lambda *args: marks.append("ranks") or over_ranks(*args))
    loop.train_epoch(made, 0, 0)
    assert marks == ["data_wait", "forward", "backward", "update", "ranks", "update"] * 2


def test_cudnn_measures_its_ways_while_a_gpu_trains():
    found = []
    for device in ("cuda", "cpu"):
        with measured_convolutions(torch.device(device)):
            found.append(torch.backends.cudnn.benchmark)
    assert found == [True, False]
    assert torch.backends.cudnn.benchmark is False


def resident_epochs(dataset, record=None, log=lambda line: None) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    """Three epochs of five batches of 8 and one of 4, at falling rates; as they are, or recorded. Rows and weights."""
    made, _ = made_run(dataset, size=8, ema=0.9)
    made.optimizer = make_optimizer(made.recipe, made.learner.parameters(), fused=True, lr=torch.tensor(0.0))
    views = Views("crop-flip", 32, 3)
    loader = Resident(Loader(dataset, views, mask=np.arange(44), batch_size=8, shuffle=True, num_workers=1))
    step = partial(one_step, made, number=0, share=1.0)
    step = step if record is None else captured(step, 8, record, log)
    rows = []
    for epoch in range(3):
        set_learning_rate(made.optimizer, 0.05 / (epoch + 1))
        rows += [step(batch) for batch in loader.epoch(epoch)]
    return torch.stack(rows).tolist(), made.learner.state_dict() | made.average.state_dict()


def test_a_recorded_step_trains_on_each_batch_once_as_the_step_itself_does(dataset):
    """The recording is played by running its function again, as a graph would run its kernels, on the memory that it knows."""
    plays, recordings = [], []

    def record(work):
        recordings.append(work)
        return lambda: plays.append(1) or work()

    plain, recorded = resident_epochs(dataset), resident_epochs(dataset, record)
    assert recorded[0] == plain[0]
    assert all(torch.equal(value, plain[1][name]) for name, value in recorded[1].items())
    assert (len(recordings), len(plays)) == (1, 15 - 3)


def test_a_step_that_cannot_be_recorded_goes_on_as_it_is_and_says_so(dataset):
    def record(work):
        raise RuntimeError("operation not permitted when stream is capturing")

    told = []
    assert resident_epochs(dataset, record, told.append)[0] == resident_epochs(dataset)[0]
    assert len(told) == 1
    assert "operation not permitted" in told[0]


def test_only_steps_that_are_all_the_same_and_on_the_device_are_recorded():
    def found(*, is_resident: bool = True, size: int = 1, **recipe) -> bool:
        return can_be_captured(Recipe(model="resnet8", **recipe), World(size=size), is_resident=is_resident)

    assert found()
    assert found(amp="bf16", ema=0.9, kd="dkd")
    assert not found(is_resident=False)
    assert not found(size=2)
    assert not any(found(**one) for one in ({"amp": "fp16"}, {"resize_from": 16}, {"kd": "vid"}, {"kd": "crd"}))


def test_an_epoch_of_small_images_is_cut_at_once_to_the_loaders_bytes(dataset, monkeypatch):
    loader = Loader(dataset, Views("crop-flip", 32, 3), mask=np.arange(44), batch_size=8, shuffle=True, num_workers=1)
    made, cuts = Resident(loader), []
    cut = made._cut
    monkeypatch.setattr(made, "_cut", lambda rows, seed: cuts.append(len(rows)) or cut(rows, seed))
    for most, expected in ((2**26, [44]), (20 * 3 * 32 * 32, [16, 16, 12])):
        monkeypatch.setattr(resident, "_CUT_BYTES", most)
        cuts.clear()
        for own, its in zip(made.epoch(1), loader.epoch(1), strict=True):
            assert torch.equal(own.images, its.images)
            assert own.images.is_contiguous(memory_format=torch.channels_last)
        assert cuts == expected


def train_ranks(world: World, dataset, out: Path, *, compiled: bool, num_ids: int, **recipe) -> None:
    recipe = Recipe(**{"model": "resnet8", "epochs": 2, "batch_size": 8, "alpha": 0, "lr": 0.001} | recipe)
    common = {"num_workers": 1, "world": world}
    loader = Loader(dataset, Views("crop-flip", 32, 3), mask=np.arange(num_ids), batch_size=8, shuffle=True, **common)
    val = Loader(dataset, Views("center", 32), mask=np.arange(30), batch_size=9, **common)
    train(recipe, loader, out, norm=NORM, val=val, compiled=compiled, inputs={}, params={}, world=world)


def test_compiled_ranks_with_tails_train_as_plain_ones_and_compile_full_batches_alone(dataset, tmp_path, monkeypatch):
    """33 samples in batches of 16: of the last one a rank has one sample and the other none. Compiled by torch as far as its
    kernels, which take a minute."""
    flags = {"ema": 0.9, "amp": "bf16"}
    whole = torch.compile

    def counted(function, **options):
        def backend(module, inputs):
            with (tmp_path / "sizes").open("a") as file:
                file.write(json.dumps([list(x.shape) for x in inputs if isinstance(x, torch.Tensor)][:400]) + "\n")
            return module

        assert options == {"mode": None, "dynamic": False}
        return whole(function, backend=backend, dynamic=False)

    monkeypatch.setattr(torch, "compile", counted)
    for name, compiled in (("plain", False), ("compiled", True)):
        pids = start_ranks(
            2,
            tmp_path / f"meet-{name}",
            lambda world, name=name, compiled=compiled: train_ranks(
                world, dataset, tmp_path / name, compiled=compiled, num_ids=33, **flags
            ),
        )
        assert wait_for(pids) == [0, 0]
    assert len(step_losses(tmp_path / "plain")) == 6
    np.testing.assert_allclose(step_losses(tmp_path / "compiled"), step_losses(tmp_path / "plain"), rtol=0, atol=1e-5)
    shapes = [shape for line in (tmp_path / "sizes").read_text().splitlines() for shape in json.loads(line)]
    assert {shape[0] for shape in shapes if shape[1:] == [3, 32, 32]} == {8, 9}  # a step's, and an evaluation's


def test_what_is_compiled_is_split_where_a_bucket_of_gradients_is_full(tmp_path):
    """A wide network, of more than the first bucket's megabyte: gradients are sent while others are computed."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(12)))
            self.graphs: list[int] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            def backend(module, inputs):
                self.graphs.append(1)
                return module

            return torch.compile(self.layers, backend=backend)(x)

    def as_rank(world: World) -> None:
        made = Wide()
        wrapped(made, world, is_static=False)(torch.zeros(2, 1024)).sum().backward()
        assert len(made.graphs) >= 2

    assert wait_for(start_ranks(2, tmp_path / "meet", as_rank)) == [0, 0]


def test_batch_statistics_are_not_sent_in_every_step_and_gradients_lie_in_their_buckets(tmp_path):
    def as_rank(world: World) -> None:
        ddp = wrapped(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), world, is_static=True)
        assert not ddp.will_sync_module_buffers()
        assert ddp.gradient_as_bucket_view
        assert ddp.static_graph

    assert wait_for(start_ranks(2, tmp_path / "meet", as_rank)) == [0, 0]
