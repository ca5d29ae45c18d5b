"""Networks of torchvision and timm, and those of them that are built for images of a size."""

import helpers.networks  # noqa: F401  (makes vit_tiny known)
import pytest
import torch
from helpers.commands import fastkd

from fastkd.errors import ModelError, OptionError
from fastkd.models.fitting import require_size
from fastkd.models.libraries import input_size, sized_name, torchvision_names
from fastkd.models.registry import CIFAR_MODELS, create_model
from fastkd.train.run_folder import read_run

CPU = "--device cpu --num-workers 1"


@pytest.mark.parametrize("name", [name for name in torchvision_names() if name.startswith("vit_")])
def test_every_vision_transformer_of_torchvisions_is_built_for_the_size_of_the_views(name):
    assert sized_name(name, input_size(name)) == name
    assert sized_name(name.replace("_", "-"), 448) == f"{name}@448"
    assert sized_name(f"{name}@112", 448) == f"{name}@112"  # what was said stays
    with torch.device("meta"):
        network = create_model(f"{name}@448", 7)
    assert network(torch.empty(1, 3, 448, 448, device="meta")).shape == (1, 7)


@pytest.mark.parametrize("name", [*CIFAR_MODELS, "resnet18", "convnext_tiny", "swin_t", "maxvit_t"])
def test_other_networks_keep_their_names(name):
    assert [sized_name(name, size) for size in (32, 64, 224)] == [name] * 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet18@64", "resnet18@64: resnet18 takes images of any size: leave @64 out"),
        ("resnet20@32", "unknown model 'resnet20': did you mean"),
        ("vit_b_16@60", "vit_b_16@60: cannot be built for images of 60 pixels"),
        ("vit_b_16@0", "vit_b_16@0: expected vit_b_16@PIXELS, the side of its images, as in vit_b_16@224"),
        ("vit_b_16@big", "expected vit_b_16@PIXELS"),
        ("vit_b_16@", "expected vit_b_16@PIXELS"),
        ("vit_b_17@64", "unknown model 'vit_b_17': did you mean vit_b_16"),
        ("googlenet", "has auxiliary heads"),
        ("wrn_40_3", "did you mean wrn_40_2"),
    ],
)
def test_names_that_make_no_network_are_refused(name, words):
    with pytest.raises(ModelError, match=words.replace("?", r"\?")):
        create_model(name, 10)


def test_a_rate_that_a_network_of_a_size_does_not_take_is_refused():
    with pytest.raises(OptionError, match=r"vit_tiny@32: does not take --drop-path 0\.1 .*\(0 where a recipe has it\)"):
        create_model("vit_tiny@32", 10, drop_path=0.1)
    for name in ("vit_tiny@32", "resnet8"):
        assert create_model(name, 10, drop_path=0.0)


def test_a_vision_transformer_trains_teaches_and_is_measured_at_the_size_of_small_images(raw_beton, raw_mask, tmp_path):
    run, line = tmp_path / "run", f"train {raw_beton} --mask {raw_mask} --alpha 0 --recipe deit-s {CPU}"
    line += f" --epochs 2 --warmup-epochs 1 --drop-path 0 --val {raw_beton} --batch-size 50 --views crop-flip --size 32 --out {run}"
    first = fastkd(*line.split(), "--model", "vit_tiny", "--json")
    assert first.code == 0, first.err
    assert "vit_tiny@32 on 200 samples" in first.err
    assert read_run(run)["params"]["recipe"]["model"] == "vit_tiny@32"
    again = fastkd(*line.split(), "--model", "vit-tiny@32", "--json")
    assert again.result == first.result
    found = fastkd(*f"evaluate {raw_beton} --model {run} {CPU} --json".split()).result
    assert found["top1"] == first.result["val_top1"]
    store = tmp_path / "l.h5"
    assert (
        fastkd(
            *f"cache-logits {raw_beton} --mask {raw_mask} --teacher {run} --num-seeds 1 {CPU} --out {store}".split()
        ).code
        == 0
    )
    student = f"train {raw_beton} --mask {raw_mask} --logits {store} --init {run} --model vit_tiny --epochs 1 --batch-size 50 {CPU}"
    assert fastkd(*student.split(), "--out", tmp_path / "student").code == 0
    other = fastkd(*f"evaluate {raw_beton} --model {run} --size 48 {CPU}".split())
    assert other.code == 1
    assert "vit_tiny@32: does not run on images of 48 pixels" in other.err


def test_timms_networks_of_a_size_are_built_for_the_views_and_others_keep_their_names():
    timm = pytest.importorskip("timm")
    assert sized_name("timm:resnet18", 64) == "timm:resnet18"
    assert sized_name("timm:vit_tiny_patch16_224", 224) == "timm:vit_tiny_patch16_224"
    for name in ("vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"):
        assert timm.is_model(name)
        network = create_model(sized_name(f"timm:{name}", 64), 10)
        assert require_size(network, name, 64, "") == []
    with pytest.raises(ModelError, match="timm:resnet18 takes images of any size"):
        create_model("timm:resnet18@64", 10)
