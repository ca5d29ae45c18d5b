import os
import sys
import urllib.error
from pathlib import Path

import pytest
import torch
from torch import nn

from fastkd.errors import MissingDependencyError, ModelError, OptionError
from fastkd.models.cifar import CifarResNet, SubsamplePad, WideResNet
from fastkd.models.classes import imagenet_wnids
from fastkd.models.published import pretrained
from fastkd.models.registry import (
    canonical_name,
    create_model,
    is_cifar_model,
    load_weights,
)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def akamaster_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict as akamaster's code names it, from a DataParallel network of torch 0.4.0."""
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    return {f"module.{k.replace('fc.', 'linear.').replace('downsample', 'shortcut')}": v for k, v in state.items()}


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert list(left) == list(right)
    assert all(torch.equal(left[key], right[key]) for key in left)


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# Option A from table 6 of He et al. and akamaster's list; B adds the 1x1 convolutions and their batch norms.
@pytest.mark.parametrize(
    ("depth", "num_parameters"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
def test_the_parameters_are_those_of_the_paper(depth, num_parameters):
    assert count_parameters(CifarResNet(depth, 10, "A")) == num_parameters
    extra = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    assert count_parameters(CifarResNet(depth, 10, "B")) == num_parameters + extra


def test_wrn_40_2_has_its_parameters():
    assert count_parameters(WideResNet(40, 2, 100)) == 2_255_156


# ImageNet's count at C classes from He et al.'s table 1, with a stem of 3x3 instead of 7x7 pixels.
@pytest.mark.parametrize(
    ("name", "num_classes", "num_parameters"),
    [("CIFAR-ResNet18", 10, 11_173_962), ("cifar_resnet34", 10, 21_282_122), ("cifar-resnet50", 100, 23_705_252)],
)
def test_resnets_with_a_small_stem_have_their_parameters(name, num_classes, num_parameters):
    assert is_cifar_model(name)
    with torch.device("meta"):
        model = create_model(name, num_classes)
        original = create_model(canonical_name(name).removeprefix("cifar_"), num_classes)
    assert count_parameters(model) == num_parameters
    assert count_parameters(original) - num_parameters == 64 * 3 * (7 * 7 - 3 * 3)


@pytest.mark.parametrize(("name", "width"), [("cifar_resnet34", 512), ("cifar_resnet50", 2048)])
def test_a_small_stem_keeps_the_size_of_the_image(name, width):
    model = create_model(name, 7).eval()
    shapes = {}
    for part in ("conv1", "layer1", "layer4"):
        model.get_submodule(part).register_forward_hook(
            lambda _module, _inputs, out, part=part: shapes.update({part: tuple(out.shape[1:])})
        )
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert shapes == {"conv1": (64, 32, 32), "layer1": (width // 8, 32, 32), "layer4": (width, 4, 4)}


def test_repdistillers_resnetv2_loads():
    model = create_model("cifar_resnet50", 100)
    state = {k.replace("fc.", "linear.").replace("downsample", "shortcut"): v for k, v in model.state_dict().items()}
    assert_same_state(model, load_weights("cifar_resnet50", state, 100))


@pytest.mark.parametrize("name", ["resnet8", "resnet14", "resnet20", "wrn_40_2"])
@pytest.mark.parametrize("size", [8, 28, 32, 33])
def test_any_size_from_8_on_gives_logits(name, size):
    model = create_model(name, 7).eval()
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_the_pooling_is_that_of_8_by_8_windows():
    model = CifarResNet(8, 5).eval()
    features = model.layer3(model.layer2(model.layer1(torch.relu(model.bn1(model.conv1(torch.ones(1, 3, 32, 32)))))))
    pooled = nn.functional.avg_pool2d(features, 8).flatten(1)
    torch.testing.assert_close(model(torch.ones(1, 3, 32, 32)), model.fc(pooled))


def test_shortcut_a_takes_every_second_pixel_and_pads_the_channels_on_both_sides():
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    out = SubsamplePad(16, 32, 2)(x)
    assert out.shape == (2, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_wider_stages_than_the_stem_get_a_shortcut_in_the_first_stage():
    for shortcut in "AB":
        model = CifarResNet(8, 10, shortcut, widths=(32, 64, 128, 256))
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        assert ("layer1.0.downsample.0.weight" in model.state_dict()) == (shortcut == "B")


def test_the_keys_are_those_of_repdistiller():
    resnet, wide = set(create_model("resnet20", 10).state_dict()), set(create_model("wrn_40_2", 10).state_dict())
    assert {"conv1.weight", "bn1.weight", "layer3.2.conv2.weight", "layer2.0.downsample.0.weight", "fc.bias"} <= resnet
    assert "layer3.0.downsample.1.running_mean" in resnet
    assert {"block1.layer.0.convShortcut.weight", "block3.layer.5.bn2.weight", "bn1.weight", "fc.weight"} <= wide
    assert "block1.layer.1.convShortcut.weight" not in wide


def test_names_have_one_spelling():
    assert canonical_name("WRN-40-2") == "wrn_40_2"
    assert canonical_name("timm:ViT-x") == "timm:ViT-x"
    assert isinstance(create_model("Wrn-40-2", 10), WideResNet)
    assert is_cifar_model("ResNet20")
    assert not is_cifar_model("resnet18")


def test_a_torchvision_name_gives_torchvisions_network():
    model = create_model("resnet18", 12)
    assert model.fc.out_features == 12
    assert model.conv1.kernel_size == (7, 7)


def test_torchvision_is_not_imported_for_a_cifar_network():
    code = "import sys; from fastkd.models.registry import create_model; create_model('resnet8', 10); "
    code += "sys.exit('torchvision' in sys.modules or 'timm' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0


def test_an_unknown_name_is_refused_with_close_ones():
    with pytest.raises(ModelError) as error:
        create_model("resnet55", 10)
    assert "resnet56" in one_line(error)


@pytest.mark.parametrize("name", ["fcn_resnet50", "inception_v3", "nonsense"])
def test_names_that_are_no_plain_classifiers_are_refused(name):
    with pytest.raises(ModelError) as error:
        create_model(name, 10)
    assert name in one_line(error)


def test_bad_options_are_refused():
    with pytest.raises(OptionError):
        create_model("resnet20", 0)
    with pytest.raises(ModelError):
        create_model("resnet20", 10, shortcut="C")
    with pytest.raises(ModelError):
        create_model("resnet18", 10, shortcut="A")
    with pytest.raises(ModelError):
        CifarResNet(21, 10)
    with pytest.raises(ModelError):
        CifarResNet(20, 10, "A", widths=(64, 32, 32, 16))
    with pytest.raises(ModelError):
        WideResNet(41, 2, 10)


def test_missing_timm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match=r"fastkd\[timm\]"):
        create_model("timm:resnet18", 10)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_akamasters_keys_load(shortcut):
    model = create_model("resnet14", 13, shortcut=shortcut)
    loaded = load_weights("resnet14", akamaster_state(model), 13)
    assert_same_state(model, loaded)


@pytest.mark.parametrize("name", ["wrn_40_2", "resnet18", "mobilenet_v3_small", "squeezenet1_1", "mnasnet0_5"])
def test_weights_load_into_the_network_that_their_keys_describe(name):
    model = create_model(name, 6)
    state = {f"module._orig_mod.{key}": value for key, value in model.state_dict().items()}
    assert_same_state(model, load_weights(name, state))


def test_missing_counters_are_tolerated_and_other_missing_keys_are_not():
    state = create_model("resnet8", 10).state_dict()
    load_weights("resnet8", {key: value for key, value in state.items() if "num_batches" not in key})
    del state["layer2.0.bn2.bias"]
    with pytest.raises(ModelError, match=r"resnet8: .*layer2.0.bn2.bias is missing, expected shape \(32,\)"):
        load_weights("resnet8", state)


def test_unexpected_keys_and_other_shapes_are_refused():
    state = create_model("resnet8", 10).state_dict()
    with pytest.raises(ModelError, match=r"extra has shape \(3,\), expected no such key"):
        load_weights("resnet8", {**state, "extra": torch.zeros(3)})
    with pytest.raises(ModelError, match=r"conv1.weight has shape \(16, 3, 5, 5\), expected \(16, 3, 3, 3\)"):
        load_weights("resnet8", {**state, "conv1.weight": torch.zeros(16, 3, 5, 5)})
    with pytest.raises(ModelError, match=r"fc.bias has shape \(11,\), expected \(10,\)"):
        load_weights("resnet8", {**state, "fc.bias": torch.zeros(11)})
    with pytest.raises(ModelError):
        load_weights("resnet8", {})


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("resnet56", "resnet20"),
        ("wrn_40_2", "resnet8"),
        ("resnet50", "resnet34"),
        ("resnet18", "resnet8"),
        ("resnet50", "cifar_resnet34"),
        ("cifar_resnet34", "resnet34"),
    ],
)
def test_the_error_says_what_the_keys_look_like(asked, found):
    with torch.device("meta"):
        state = create_model(found, 10).state_dict()
    with pytest.raises(ModelError) as error:
        load_weights(asked, state)
    assert one_line(error).startswith(f"{asked}: ")
    assert one_line(error).endswith(f"the keys look like {found}")


def test_another_number_of_classes_is_refused():
    with pytest.raises(ModelError, match="10 classes, expected 100"):
        load_weights("resnet8", create_model("resnet8", 10).state_dict(), 100)


def test_pretrained_gives_the_normalisation_of_its_weights(monkeypatch):
    fresh = create_model("resnet18", 1000)

    def fetch(*args, **kwargs):
        assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
        return fresh.state_dict()

    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    model, spec = pretrained("resnet18")
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert_same_state(model, fresh)
    assert not model.training
    assert spec == {
        "model": "resnet18",
        "weights": "IMAGENET1K_V1",
        "num_classes": 1000,
        "class_names": list(imagenet_wnids()),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "resize_size": 256,
        "crop_size": 224,
    }


def test_a_failed_download_is_one_line(monkeypatch):
    def fail(*args, **kwargs):
        raise urllib.error.URLError("no\nnetwork")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(MissingDependencyError) as error:
        pretrained("resnet18")
    assert "resnet18" in one_line(error)


def test_pretrained_has_no_cifar_networks():
    with pytest.raises(ModelError, match="path of a checkpoint"):
        pretrained("resnet20")


def test_the_published_cifar_networks_load_unchanged():
    if "FASTKD_TEST_DATA" not in os.environ:
        pytest.skip("needs FASTKD_TEST_DATA")
    paths = sorted(Path(os.environ["FASTKD_TEST_DATA"], "cifar10-resnets").glob("*.th"))
    assert len(paths) == 3
    for path in paths:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        model = load_weights(path.name.split("-")[0], state, 10).eval()
        assert count_parameters(model) == {20: 269_722, 32: 464_154, 56: 853_018}[int(path.name[6:8])]
        own = model.state_dict()
        assert all(torch.equal(own[key[7:].replace("linear", "fc")], value) for key, value in state.items())
        logits = model(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        assert logits.isfinite().all()
