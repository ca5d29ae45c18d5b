"""No method diverges in its first 40 steps at the default learning rate, from either beta: the benchmark's short form."""

import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.scripts import benchmark
from helpers.stores import save_teacher
from helpers.synthetic import build, coloured_noise, encoded, write_files

from fastkd.data.beton.dataset import open_dataset
from fastkd.data.views.draw import Views
from fastkd.distil.methods import LOGIT_LOSSES, METHODS
from fastkd.feed.loader import Loader
from fastkd.teacher.network import load_teacher

STEPS = 40
script = benchmark("train.first_steps")
RECIPES = {name: recipe for name, recipe in script.recipes("resnet8", 10, 4) if not recipe.standardise_logits}


def batch_of(kd: str) -> int:
    """Few samples, for the sake of time; more for what relates those of a batch, whose scale is of larger ones."""
    return 8 if kd == "sp" or (kd in METHODS and METHODS[kd].layers == "embedding") else 4


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Loaders of images of CIFAR-10 by their batch, and the published ResNet-20; without the data random ones and noise."""
    folder = tmp_path_factory.mktemp("first")
    if "FASTKD_TEST_DATA" in os.environ:
        data = Path(os.environ["FASTKD_TEST_DATA"])
        with zipfile.ZipFile(data / "cifar10-jpeg.zip") as images:
            names = [name for name in images.namelist() if name.startswith("cifar10/test/") and "/00" in name]
            files = {name.removeprefix("cifar10/test/"): images.read(name) for name in names if int(name[-6:-4]) < 32}
        (weights,) = (data / "cifar10-resnets").glob("resnet20-*.th")
        teacher = load_teacher(str(weights), model_name="resnet20", norm="imagenet", num_classes=10)
    else:
        noise = {(i, label): np.asarray(coloured_noise(i, label, 10, 32)) for label in range(10) for i in range(32)}
        files = {f"class{label}/{i:02}.png": encoded(image, "PNG") for (i, label), image in noise.items()}
        teacher = load_teacher(str(save_teacher(folder / "t.safetensors", name="resnet20")))
    dataset = open_dataset(build(write_files(folder / "images", files), folder / "x.beton").path)
    assert dataset.beton.num_samples == STEPS * 8
    common = {"views": Views("crop-flip", 32, 162), "shuffle": True, "num_workers": 1}
    loaders = {
        size: Loader(dataset, mask=np.arange(STEPS * size) * 8 // size, batch_size=size, **common) for size in (4, 8)
    }
    return loaders, teacher


@pytest.mark.parametrize("name", RECIPES)
def test_no_method_diverges_at_its_defaults(name, given, tmp_path):
    (loaders, teacher), size = given, batch_of(RECIPES[name].kd)
    recipe = replace(RECIPES[name], batch_size=size)
    found = script.first_steps(recipe, loaders[size], teacher, tmp_path / "run")
    assert not found["diverged"], found


def test_all_methods_are_tried_from_both_kinds_of_beta():
    tried = {(recipe.kd, recipe.beta) for recipe in RECIPES.values()}
    natives = {(name, method.native) for name, method in METHODS.items() if method.native is not None}
    assert tried >= natives | {(name, 1.0) for name in METHODS} | {
        (n, own.beta or 1.0) for n, own in LOGIT_LOSSES.items()
    }
    assert {recipe.lr for recipe in RECIPES.values()} == {0.05}
