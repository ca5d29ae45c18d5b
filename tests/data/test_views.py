import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, ks_2samp
from torchvision.transforms import RandomResizedCrop

from fastkd.data.views.draw import Views, boxes, center_view, crop_flip_view, rrc_view
from fastkd.errors import OptionError

SAMPLES = np.r_[np.arange(100), 49_999, 1_281_166, 2**40]
HEIGHT, WIDTH = 375, 500
NUM_DRAWS = 4_000


def walk(views: Views, ids: np.ndarray, height: int = 32, width: int = 32) -> np.ndarray:
    """The views of each sample in the order of its seeds: int64 (n, K, 5)."""
    heights, widths = np.full(len(ids), height), np.full(len(ids), width)
    return np.stack([boxes(views, ids, seed, heights, widths) for seed in range(views.num_seeds)], axis=1)


@pytest.fixture(scope="module")
def crop_flip_walk() -> np.ndarray:
    return walk(Views("crop-flip", 32, 162), SAMPLES)


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    """One rrc view each of many samples: int64 (n, 5)."""
    return np.array([rrc_view(i, 5, HEIGHT, WIDTH) for i in range(NUM_DRAWS)])


@pytest.fixture(scope="module")
def torchvisions() -> np.ndarray:
    """As many boxes of torchvision's RandomResizedCrop: int64 (n, 4)."""
    image = torch.empty(3, HEIGHT, WIDTH)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(NUM_DRAWS)]
    return np.array(drawn)


def test_the_162_seeds_of_crop_flip_visit_each_of_the_162_views_once(crop_flip_walk):
    for views in crop_flip_walk:
        tops, lefts, flips = views[:, 0], views[:, 1], views[:, 4]
        assert sorted(zip(tops, lefts, flips, strict=True)) == [
            (top, left, flip) for top in range(9) for left in range(9) for flip in (0, 1)
        ]


def test_a_shorter_range_of_seeds_is_the_beginning_of_the_long_one(crop_flip_walk):
    np.testing.assert_array_equal(walk(Views("crop-flip", 32, 10), SAMPLES), crop_flip_walk[:, :10])


def test_flips_of_crop_flip_alternate(crop_flip_walk):
    flips = crop_flip_walk[:, :, 4]
    assert (flips[:, 1:] + flips[:, :-1] == 1).all()


def test_about_half_of_the_samples_begin_flipped():
    flips = [crop_flip_view(i, 0)[2] for i in range(10_000)]
    assert 4_850 < sum(flips) < 5_150


@pytest.mark.parametrize("aug_seed", [0, 1, 80, 161])
def test_each_seed_shows_every_crop_equally_often(aug_seed):
    crops = [crop_flip_view(i, aug_seed)[:2] for i in range(8_100)]
    counts = np.bincount([9 * top + left for top, left in crops], minlength=81)
    assert chisquare(counts).pvalue > 0.001


def test_samples_walk_in_orders_of_their_own(crop_flip_walk):
    assert len({views.tobytes() for views in crop_flip_walk}) == len(SAMPLES)


def test_crop_flip_views_are_the_ones_that_stores_were_made_with():
    found = {(i, seed): crop_flip_view(i, seed) for i in (0, 1, 49_999) for seed in (0, 1, 2, 161)}
    assert found == {
        (0, 0): (8, 6, 0),
        (0, 1): (2, 4, 1),
        (0, 2): (4, 4, 0),
        (0, 161): (8, 4, 1),
        (1, 0): (4, 7, 0),
        (1, 1): (8, 6, 1),
        (1, 2): (6, 4, 0),
        (1, 161): (6, 8, 1),
        (49_999, 0): (0, 7, 1),
        (49_999, 1): (4, 0, 0),
        (49_999, 2): (5, 7, 1),
        (49_999, 161): (5, 0, 0),
    }


def test_rrc_views_are_the_ones_that_stores_were_made_with():
    keys = [(0, 0, 375, 500), (0, 1, 375, 500), (1, 0, 375, 500), (1_281_166, 49, 500, 333), (3, 2, 32, 32)]
    assert [rrc_view(*key) for key in keys] == [
        (184, 119, 177, 218, 1),
        (27, 5, 344, 400, 0),
        (2, 8, 366, 480, 0),
        (307, 8, 128, 161, 0),
        (5, 10, 13, 12, 1),
    ]


@given(st.integers(0, 2**40), st.integers(0, 2**31 - 2), st.integers(1, 5_000) | st.just(65_535), st.integers(1, 5_000))
def test_an_rrc_box_lies_inside_its_image(sample_id, aug_seed, height, width):
    top, left, h, w, flip = rrc_view(sample_id, aug_seed, height, width)
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h >= 1
    assert w >= 1
    assert flip in (0, 1)


def test_an_rrc_box_keeps_to_the_area_and_the_ratios_of_its_family(drawn):
    h, w = drawn[:, 2], drawn[:, 3]
    assert ((h + 0.5) * (w + 0.5) >= 0.08 * HEIGHT * WIDTH).all()
    assert ((w - 0.5) / (h + 0.5) <= 4 / 3).all()
    assert ((w + 0.5) / (h - 0.5) >= 3 / 4).all()


@pytest.mark.parametrize(
    "quantity",
    [
        pytest.param(lambda box: box[:, 2] * box[:, 3], id="area"),
        pytest.param(lambda box: box[:, 3] / box[:, 2], id="ratio"),
        pytest.param(lambda box: box[:, 0] + box[:, 2] / 2, id="middle row"),
        pytest.param(lambda box: box[:, 1] + box[:, 3] / 2, id="middle column"),
        pytest.param(lambda box: box[:, 0] / np.maximum(HEIGHT - box[:, 2], 1), id="top"),
        pytest.param(lambda box: box[:, 1] / np.maximum(WIDTH - box[:, 3], 1), id="left"),
    ],
)
def test_rrc_boxes_are_spread_as_torchvisions_are(drawn, torchvisions, quantity):
    assert ks_2samp(quantity(drawn), quantity(torchvisions)).pvalue > 0.01


def test_half_of_the_rrc_views_are_flipped_whatever_their_box(drawn):
    large = drawn[:, 2] * drawn[:, 3] > np.median(drawn[:, 2] * drawn[:, 3])
    for some in (drawn[large, 4], drawn[~large, 4]):
        assert 0.46 < some.mean() < 0.54


@pytest.mark.parametrize("shape", [(1000, 10), (10, 1000), (601, 7), (8, 333), (400, 1), (1, 400)])
def test_an_image_too_long_for_any_box_shows_its_middle_as_torchvision_does(shape):
    expected = RandomResizedCrop.get_params(torch.empty(3, *shape), [0.08, 1.0], [3 / 4, 4 / 3])
    assert {rrc_view(i, 0, *shape)[:4] for i in range(20)} == {tuple(expected)}


def test_another_seed_or_another_sample_is_another_view():
    here = np.array([rrc_view(i, 3, HEIGHT, WIDTH) for i in range(1_000)])
    next_seed = np.array([rrc_view(i, 4, HEIGHT, WIDTH) for i in range(1_000)])
    assert (here != next_seed).any(axis=1).all()
    assert (here[:-1] != here[1:]).any(axis=1).all()


def test_views_are_of_the_sample_and_not_of_its_place_among_others():
    views, ids = Views("rrc", 224, 8), np.array([7, 3, 900, 12])
    heights, widths = np.array([300, 200, 100, 64]), np.array([64, 100, 200, 300])
    together = boxes(views, ids, 5, heights, widths)
    for i in range(len(ids)):
        alone = boxes(views, ids[i : i + 1], 5, heights[i : i + 1], widths[i : i + 1])
        np.testing.assert_array_equal(together[i], alone[0])


@pytest.mark.parametrize(
    ("height", "width", "size", "ratio", "expected"),
    [
        (375, 500, 224, 0.875, (23, 86, 328, 328)),
        (500, 375, 224, 0.875, (86, 23, 328, 328)),
        (101, 57, 32, 1.0, (22, 0, 57, 57)),
        (32, 32, 32, 0.875, (0, 0, 32, 32)),
        (32, 33, 32, 0.875, (2, 2, 28, 28)),
        (1, 1, 8, 0.5, (0, 0, 1, 1)),
    ],
)
def test_the_center_view_is_a_square_in_the_middle(height, width, size, ratio, expected):
    assert center_view(height, width, size, ratio) == expected


def test_center_views_are_never_flipped():
    assert not walk(Views("center", 24), SAMPLES, 40, 50)[:, :, 4].any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("crop", 32), "crop-flip, rrc, center"),
        (("rrc", 0), "1 … 4096"),
        (("rrc", 4097), "1 … 4096"),
        (("rrc", 224, 0), "0 seeds"),
        (("rrc", 224, 2**31), "seeds"),
        (("crop-flip", 32, 163), "1 … 162"),
        (("center", 32, 2), "1 … 1"),
        (("center", 32, 1, 0.0), "crop ratio"),
        (("center", 32, 1, 1.01), "crop ratio"),
        (("center", 32, 1, float("nan")), "crop ratio"),
    ],
)
def test_views_that_cannot_be_are_refused_with_what_can(arguments, words):
    with pytest.raises(OptionError) as error:
        Views(*arguments)
    assert words in str(error.value)


@pytest.mark.parametrize("aug_seed", [-1, 8])
def test_a_seed_outside_the_family_is_refused(aug_seed):
    one = np.ones(1, np.int64)
    with pytest.raises(OptionError, match=f"aug_seed {aug_seed}, expected 0 … 7"):
        boxes(Views("rrc", 224, 8), one, aug_seed, one, one)


def test_an_identity_tells_views_apart_but_not_the_number_of_their_seeds():
    families = [
        Views("crop-flip", 32),
        Views("rrc", 32),
        Views("rrc", 33),
        Views("center", 32),
        Views("center", 32, 1, 0.9),
        Views("center", 32, version=1),
    ]
    assert len({str(views.identity()) for views in families}) == len(families)
    assert Views("rrc", 32, 7).identity() == Views("rrc", 32, 9).identity()
