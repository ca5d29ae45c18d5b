"""The parts of a run: its optimiser and groups of parameters, and the average of its weights."""

import math

import helpers.networks  # noqa: F401  (makes tiny_vit and tiny_convnext known)
import numpy as np
import pytest
import torch
from helpers.runs import run
from torch import nn

from fastkd.errors import CorruptError
from fastkd.models.registry import create_model
from fastkd.train.parts.average import Average, in_time
from fastkd.train.parts.compiling import measured_convolutions
from fastkd.train.parts.groups import parameter_groups
from fastkd.train.parts.optimizer import make_optimizer, set_learning_rate
from fastkd.train.recipe import Recipe

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


def test_norms_and_biases_are_spared_the_decay():
    network = create_model("tiny_vit", 10)
    names = {id(parameter): name for name, parameter in network.named_parameters()}

    def spared(*kinds: str) -> set[str]:
        groups = parameter_groups(Recipe(model="tiny_vit", no_decay=kinds), network, network)
        assert sum(len(group["params"]) for group in groups) == len(names)
        return {names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}

    layer = "encoder.layers.encoder_layer_0"
    assert {f"{layer}.ln_1.weight", f"{layer}.ln_1.bias", "class_token"} <= spared("norm")
    assert f"{layer}.mlp.0.bias" not in spared("norm")
    assert {f"{layer}.mlp.0.bias", f"{layer}.ln_1.bias", f"{layer}.self_attention.in_proj_bias"} <= spared("bias")
    assert f"{layer}.ln_1.weight" not in spared("bias")
    both = spared("norm", "bias")
    assert all(network.get_parameter(name).ndim > 1 for name in names.values() if name not in both)
    assert "encoder.pos_embedding" not in both


@pytest.mark.parametrize(
    ("model", "first", "middle", "last"),
    [
        ("resnet8", "conv1.weight", "layer2.0.conv1.weight", "fc.weight"),
        ("tiny_vit", "class_token", "encoder.layers.encoder_layer_0.ln_1.weight", "heads.head.weight"),
        ("tiny_convnext", "features.0.0.weight", "features.1.0.block.0.weight", "classifier.2.weight"),
    ],
)
def test_each_layer_learns_at_a_share_of_the_rate_of_the_next(model, first, middle, last):
    network = create_model(model, 10)
    recipe = Recipe(model=model, layer_decay=0.5)
    optimizer = make_optimizer(recipe, parameter_groups(recipe, network, network), fused=False)
    set_learning_rate(optimizer, 0.2)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = [rates[id(network.get_parameter(name))] for name in (first, middle, last)]
    assert found[0] < found[1] < found[2] == 0.2
    assert min(rates.values()) == found[0]
    assert all(float(np.log2(0.2 / rate)).is_integer() for rate in rates.values())


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


def test_the_decay_of_an_average_warms_up():
    network = nn.Linear(1, 1, bias=False)
    plain, warm = Average(network, 0.9), Average(network, 0.9, warmup=True)
    expected = 0.0
    for step in range(40):
        with torch.no_grad():
            network.weight.fill_(step)
        for average in (plain, warm):
            average.update(network)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = float(step) if step == 0 else decay * expected + (1 - decay) * step
    assert float(warm.module.weight.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(warm.module.weight.detach()) > float(plain.module.weight.detach())


def test_an_average_that_is_too_slow_for_a_run_is_said(dataset, mask, tmp_path):
    told: list[str] = []
    run(tmp_path / "run", dataset, mask, alpha=0, ema=0.99, epochs=1, options={"log": told.append})
    assert any(line.startswith("train: --ema 0.99 averages over some 100 steps") for line in told)
    assert in_time(0.9, 30, warmup=False)
    assert in_time(0.9999, 10, warmup=True)


def test_cudnn_measures_its_ways_while_a_gpu_trains():
    found = []
    for device in ("cuda", "cpu"):
        with measured_convolutions(torch.device(device)):
            found.append(torch.backends.cudnn.benchmark)
    assert found == [True, False]
    assert torch.backends.cudnn.benchmark is False
