"""Networks that cannot take the views they would be given: told before anything is made."""

import numpy as np
import pytest
import torch
from torch import nn

from fastkd.data.beton.dataset import open_dataset
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.errors import ModelError, OptionError
from fastkd.feed.loader import Loader
from fastkd.models.fitting import require_size
from fastkd.models.registry import create_model
from fastkd.train.learner import make_learner
from fastkd.train.recipe import Recipe


def test_a_network_that_images_are_too_small_for_is_named_with_the_way_out():
    with pytest.raises(ModelError, match=r"^big: does not run on images of 32 pixels \(.*\): give another --size$"):
        require_size(nn.Sequential(nn.Conv2d(3, 4, 40)), "big", 32, "give another --size")


def test_asking_changes_nothing():
    torch.manual_seed(0)
    model = create_model("resnet8", 10)
    before, state = torch.get_rng_state(), {key: value.clone() for key, value in model.state_dict().items()}
    assert require_size(model, "resnet8", 32, "") == []
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("size", "expected"), [(32, "layer4.0.bn1"), (64, None)])
def test_norms_that_get_one_value_of_an_image_are_found(size, expected):
    assert next(iter(require_size(create_model("resnet18", 10), "resnet18", size, "")), None) == expected


@pytest.mark.parametrize(
    ("num_ids", "num_ranks", "options", "refused"),
    [
        (65, 1, {}, True),
        (65, 1, {"drop_last": True}, False),
        (66, 1, {}, False),
        (67, 2, {}, True),
        (67, 2, {"sync_bn": True}, False),
    ],
)
def test_a_last_batch_of_one_sample_is_refused_where_it_has_no_variance(
    raw_beton, num_ids, num_ranks, options, refused
):
    world = World(rank=0, local_rank=0, size=num_ranks)
    recipe = Recipe(model="resnet18", alpha=0, **options)
    loader = Loader(
        open_dataset(raw_beton),
        Views("crop-flip", 32, 3),
        mask=np.arange(num_ids),
        global_batch=64,
        drop_last=recipe.drop_last,
        num_workers=1,
        world=world,
    )
    if refused:
        with pytest.raises(OptionError, match=r"^resnet18: layer4\.0\.bn1 gets one value .*use --drop-last or another"):
            make_learner(recipe, loader, None, world)
    else:
        make_learner(recipe, loader, None, world)
