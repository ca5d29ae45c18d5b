"""The networks of RepDistiller's experiments: what its code gives for the same weights, keys, stages."""

import pytest
import torch
from torch import nn

from fastkd.models.cifar_mobile import shuffle
from fastkd.models.registry import create_model, load_weights
from fastkd.models.taps import Taps, embedding_name, stage_names

# Parameters, the first three logits of the image and weights below, shapes of the stages and a key, by RepDistiller b84f547.
NETWORKS = {
    "resnet8x4": (1_210_410, [1.0233, 1.35388, 1.4197], [(64, 32, 32), (128, 16, 16), (256, 8, 8)], "layer1.0.downsample.0.weight"),
    "resnet32x4": (7_410_730, [-0.25428, -0.16462, -0.18708], [(64, 32, 32), (128, 16, 16), (256, 8, 8)], "layer3.4.bn2.bias"),
    "wrn_16_1": (175_066, [0.37737, -0.44523, -0.87455], [(16, 32, 32), (32, 16, 16), (64, 8, 8)], "block3.layer.1.conv2.weight"),
    "wrn_16_2": (691_674, [0.12457, 0.6068, 0.75598], [(32, 32, 32), (64, 16, 16), (128, 8, 8)], "block1.layer.0.convShortcut.weight"),
    "wrn_40_1": (563_930, [-2.93046, -3.53818, -3.52202], [(16, 32, 32), (32, 16, 16), (64, 8, 8)], "block3.layer.5.bn1.weight"),
    "cifar_vgg8": (3_918_858, [-1.07532, -1.57054, -0.90579], [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)], "block4.1.running_var"),
    "cifar_vgg11": (9_231_114, [-0.48679, 0.21565, 0.87975], [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)], "block4.3.bias"),
    "cifar_vgg13": (9_416_010, [-1.11321, -0.54406, -0.91721], [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)], "block0.3.weight"),
    "cifar_vgg16": (14_728_266, [-1.05926, 0.09884, 1.1217], [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)], "block4.7.weight"),
    "cifar_vgg19": (20_040_522, [0.00439, -0.12679, 0.04579], [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)], "classifier.weight"),
    "cifar_mobilenetv2": (697_546, [0.15068, -0.53689, -0.65253], [(12, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2)], "blocks.0.0.conv.4.bias"),
    "cifar_shufflenetv1": (862_768, [25.08683, -19.22651, 12.03245], [(240, 16, 16), (480, 8, 8), (960, 4, 4)], "layer1.0.bn1.running_mean"),
    "cifar_shufflenetv2": (1_263_278, [0.03298, -0.41651, 0.53831], [(116, 16, 16), (232, 8, 8), (464, 4, 4)], "layer3.3.conv3.weight"),
}  # fmt: skip
IMAGE = torch.arange(3 * 32 * 32, dtype=torch.float32).sin().reshape(1, 3, 32, 32)


def waves(model: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict that the names and shapes alone decide."""
    found = {}
    for i, (key, value) in enumerate(sorted(model.state_dict().items())):
        wave = torch.arange(value.numel(), dtype=torch.float64).mul(i + 1).sin().reshape(value.shape)
        if value.ndim > 1:
            found[key] = (wave * (4 / value[0].numel()) ** 0.5).float()
        elif not key.endswith("num_batches_tracked"):
            is_positive = key.endswith(("weight", "running_var"))
            found[key] = (wave.abs() + 0.5 if is_positive else wave / 2).float()
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gives_what_repdistillers_gives_for_its_weights(name):
    num_parameters, logits, shapes, key = NETWORKS[name]
    state = waves(create_model(name, 10))
    assert key in state
    model = load_weights(name, {f"module.{key}": value for key, value in state.items()}, 10).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    taps = Taps(model, stage_names(model), "--layers")
    torch.testing.assert_close(model(IMAGE)[0, :3], torch.tensor(logits), rtol=1e-3, atol=1e-3)
    assert [tuple(caught.shape[1:]) for caught in taps.take()] == shapes


@pytest.mark.parametrize(
    "name", [*NETWORKS, "resnet14", "wrn_40_2", "resnet18", "cifar_resnet50", "shufflenet_v2_x0_5"]
)
def test_stages_before_their_last_relu_are_caught_where_they_have_one(name):
    model = create_model(name, 10).eval()
    stages = stage_names(model)
    taps = Taps(model, [*stages, *(f"{stage}:preact" for stage in stages)], "--layers")
    reads = Taps(model, [embedding_name(model)], "--layers")
    model(IMAGE)
    caught = taps.take()
    for after, before in zip(caught[: len(stages)], caught[len(stages) :], strict=True):
        assert after.shape == before.shape
        if name.startswith("wrn"):  # whose stages end in sums: the batch norm that reads them comes before the ReLU
            assert not torch.equal(before, after)
        elif name in ("cifar_mobilenetv2", "shufflenet_v2_x0_5"):  # stages that end in no ReLU of their own
            assert torch.equal(before, after)
        else:
            assert torch.equal(before.relu(), after)
            assert (before < 0).any()
    if name.startswith("wrn"):
        torch.testing.assert_close(caught[-1].relu().mean((2, 3)), reads.take()[0])


@pytest.mark.parametrize(
    "name", [name for name in NETWORKS if name not in ("cifar_vgg16", "cifar_vgg19", "resnet32x4")]
)
@pytest.mark.parametrize("size", [8, 28, 33, 64])
def test_any_size_from_8_on_gives_logits(name, size):
    assert create_model(name, 7).eval()(torch.zeros(1, 3, size, size)).shape == (1, 7)


def test_the_first_stages_of_vgg_and_mobilenet_start_from_the_layers_before_them():
    """What FSP compares first: there the map that the stage pools, the stem."""
    for name, stage, before in (("cifar_vgg8", "relu1", "relu0"), ("cifar_mobilenetv2", "blocks.1", "conv1")):
        model = create_model(name, 10).eval()
        taps = Taps(model, [f"{stage}:input", before], "--layers")
        model(IMAGE)
        start, expected = taps.take()
        assert torch.equal(start, expected)


def test_shuffled_channels_come_from_all_groups_in_turn():
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert shuffle(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert shuffle(x, 1).flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_vgg_halves_images_of_64_pixels_once_more():
    model = create_model("cifar_vgg8", 10).eval()
    taps = Taps(model, ["relu3", "relu4"], "--layers")
    model(torch.zeros(1, 3, 64, 64))
    assert [caught.shape[-1] for caught in taps.take()] == [8, 4]
