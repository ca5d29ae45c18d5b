"""Recipes trained on loaders of a data set's first samples, and the weights that they end with."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastkd.data.beton.dataset import Dataset
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.feed.loader import Loader
from fastkd.models.checkpoint import load_model
from fastkd.train.recipe import Recipe
from fastkd.train.student import train
from helpers.stores import NORM


def trained(out: Path, recipe: Recipe, loader: Loader, **options: Any) -> dict[str, torch.Tensor]:
    train(recipe, loader, out, norm=NORM, inputs={}, params={}, **options)
    return load_model(out / "model.safetensors")[0].state_dict()


def loader_of(dataset: Dataset, num_ids: int, batch_size: int, world: World | None = None, **options: Any) -> Loader:
    options = {"shuffle": True, "num_workers": 1, "world": world or World()} | options
    return Loader(dataset, Views("crop-flip", 32, 3), mask=np.arange(num_ids), batch_size=batch_size, **options)
