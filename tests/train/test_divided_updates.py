"""Updates that parts of a batch, ranks or a stop divide are those of one batch, one process and one sitting."""

from typing import Any

import helpers.networks  # noqa: F401  (makes tiny_vit and tiny_convnext known)
import numpy as np
import pytest
import torch
from helpers.ranks import start_ranks, wait_for
from helpers.runs import interrupt_after, records, run, step_losses, weights
from helpers.stores import NORM
from helpers.updates import loader_of, trained

from fastkd.data.beton.dataset import open_dataset
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.errors import OptionError
from fastkd.feed.loader import Loader
from fastkd.train.parts.microbatches import num_parts
from fastkd.train.recipe import Recipe
from fastkd.train.student import train


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"opt": "adamw", "lr": 0.001, "eps": 1e-4},
        {"alpha": 0.5},
    ],  # a small eps would make steps of rounding where gradients are 0
    ids=["sgd", "adamw", "kd"],
)
def test_four_batches_of_16_are_one_of_64(dataset, teacher_store, mask, tmp_path, more):
    """180 samples: the last batch of an epoch has 52, in four parts of 13. A network without batch statistics."""
    options = {"model": "tiny_vit", "epochs": 2, "alpha": 0, "lr": 0.01} | more
    logits = teacher_store if options["alpha"] else None
    loader = Loader(
        dataset,
        Views("crop-flip", 32, 3),
        mask=mask.sample_ids[:180],
        logits=logits,
        batch_size=64,
        shuffle=True,
        num_workers=1,
    )
    whole = trained(tmp_path / "whole", Recipe(batch_size=64, **options), loader)
    parts = trained(tmp_path / "parts", Recipe(batch_size=16, accumulate=4, **options), loader)
    np.testing.assert_allclose(step_losses(tmp_path / "parts"), step_losses(tmp_path / "whole"), rtol=0, atol=1e-6)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("num_samples", "num_ranks", "expected"),
    [(64, 1, 4), (52, 1, 4), (20, 1, 2), (3, 1, 1), (64, 2, 2), (64, 8, 1), (33, 2, 2)],
)
def test_parts_have_at_most_a_batch_of_samples_on_any_number_of_ranks(num_samples, num_ranks, expected):
    assert num_parts(Recipe(model="resnet8", batch_size=16, accumulate=4), num_samples, num_ranks) == expected
    assert num_parts(Recipe(model="resnet8", batch_size=16), num_samples, num_ranks) == 1


def test_two_ranks_with_adamw_warm_up_and_parts_are_one_process(raw_beton, tmp_path):
    """20 steps, every fifth of a batch that is not full."""
    recipe = {
        "model": "tiny_vit",
        "epochs": 4,
        "alpha": 0,
        "opt": "adamw",
        "lr": 1e-3,
        "warmup_epochs": 1,
        "clip_grad": 1.0,
    }
    recipe |= {"weight_decay": 0.05, "schedule": "cosine", "no_decay": ("norm", "bias"), "accumulate": 2}

    def as_rank(world: World, name: str, batch_size: int) -> None:
        loader = loader_of(open_dataset(raw_beton), 140, 2 * batch_size, world)
        train(
            Recipe(batch_size=batch_size, **recipe),
            loader,
            tmp_path / name,
            norm=NORM,
            inputs={},
            params={},
            world=world,
        )

    as_rank(World(), "one", 16)
    assert wait_for(start_ranks(2, tmp_path / "meet", lambda world: as_rank(world, "two", 8))) == [0, 0]
    assert len(step_losses(tmp_path / "one")) == 20
    np.testing.assert_allclose(step_losses(tmp_path / "two"), step_losses(tmp_path / "one"), rtol=0, atol=1e-4)


RESUMED: list[dict[str, Any]] = [
    {"opt": "adamw", "warmup_epochs": 1, "no_decay": ("norm",), "layer_decay": 0.8, "clip_grad": 1.0},
    {"opt": "adamw", "model": "tiny_vit", "amp": "fp16", "clip_grad": 1.0, "schedule": "cyclic", "lr": 0.001},
    {"accumulate": 3, "batch_size": 16, "ema": 0.9, "ema_warmup": True, "nesterov": True},
    {"dropout": 0.2, "model": "tiny_vit", "steps": 7, "schedule": "linear"},
]


@pytest.mark.parametrize("recipe", RESUMED, ids=["adamw", "fp16", "accumulate", "steps"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(dataset, mask, tmp_path, recipe):
    recipe = {"alpha": 0, "epochs": 2, "batch_size": 48} | recipe
    loader = loader_of(dataset, 200, 48)
    for name in ("whole", "stopped"):
        options: dict[str, Any] = {"checkpoint_every": 1} if name == "stopped" else {}
        if options:
            with pytest.raises(KeyboardInterrupt):
                trained(
                    tmp_path / name,
                    Recipe(**{"model": "resnet8"} | recipe),
                    loader,
                    progress=interrupt_after(6),
                    **options,
                )
        trained(tmp_path / name, Recipe(**{"model": "resnet8"} | recipe), loader, **options)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert records(tmp_path / "stopped") == records(tmp_path / "whole")


def test_a_loader_of_single_batches_has_nothing_to_accumulate(dataset, mask, tmp_path):
    with pytest.raises(
        OptionError, match="batches of 16 samples are no 4 of 16 to accumulate: give the loader a batch_size of 64"
    ):
        run(tmp_path / "run", dataset, mask, alpha=0, batch_size=16, accumulate=4)
