"""Arguments that a loader refuses."""

import numpy as np
import pytest

from fastkd.data.beton.read import open_beton
from fastkd.data.loader import ViewLoader
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.errors import OptionError


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (np.ones(600, bool), "numpy.flatnonzero"),
        (np.array([0.0, 1.0]), "integer"),
        (np.array([[0, 1]]), "one-dimensional"),
        (np.array([], np.int64), "no ids"),
        (np.array([-1, 3]), "0 … 599"),
        (np.array([3, 600]), "0 … 599"),
        (np.array([3, 4, 3]), "2 of them distinct"),
        (np.array([2**64 - 1], np.uint64), "0 … 599"),
    ],
    ids=["a boolean mask", "floats", "a table", "none", "below 0", "beyond the end", "repeated", "beyond int64"],
)
def test_ids_that_name_no_samples_are_refused(raw_beton, ids, words):
    with pytest.raises(OptionError) as error:
        ViewLoader(open_beton(raw_beton), Views("crop-flip", 32), ids=ids)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"num_workers": -1}, {"prefetch": 0}, {"seed": -1}, {"seed": 2**63}],
    ids=lambda options: "{}={}".format(*next(iter(options.items()))),
)
def test_an_option_outside_its_range_is_named(raw_beton, options):
    with pytest.raises(OptionError, match=f"^{next(iter(options))} is "):
        ViewLoader(open_beton(raw_beton), Views("crop-flip", 32), **options)


def test_fewer_samples_than_a_batch_that_has_to_be_full_are_refused(raw_beton):
    with pytest.raises(OptionError, match="600 samples are fewer than one batch of 800 on 2 ranks"):
        ViewLoader(
            open_beton(raw_beton), Views("crop-flip", 32), batch_size=400, drop_last=True, world=World(rank=1, size=2)
        )


def test_crop_flip_is_refused_for_images_of_another_size(raw_beton, jpg_beton):
    with pytest.raises(OptionError, match="need images of 28×28, sample 0 has 32×32; use rrc"):
        ViewLoader(open_beton(raw_beton), Views("crop-flip", 28))


@pytest.mark.parametrize(("sample_id", "aug_seed"), [(2, 0), (-1, 0), (24, 0), (2**40, 0), (5, -1), (5, 3), (5, 2**40)])
def test_a_batch_that_names_what_is_not_there_is_refused(jpg_beton, sample_id, aug_seed):
    loader = ViewLoader(open_beton(jpg_beton), Views("rrc", 24, 3), ids=np.array([5, 6]))
    with pytest.raises(OptionError):
        list(loader.run([(np.array([sample_id]), aug_seed)]))
