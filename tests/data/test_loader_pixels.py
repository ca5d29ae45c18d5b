"""The views that a loader gives: the same for any way of loading, and the right ones."""

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.batches import ids_of, pixels
from helpers.synthetic import build, encoded, files_of, photo, pillow, stored, write_files
from PIL import Image

from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.beton.read import Beton, open_beton
from fastkd.data.beton.verify import verify_beton
from fastkd.data.loader import ViewLoader
from fastkd.data.sources.open import open_source
from fastkd.data.views.draw import Views, boxes
from fastkd.dist import World
from fastkd.hashing import crc32c
from fastkd.prune.masks.mask import Mask

EPOCH = 3


@pytest.fixture(scope="module", params=["crop-flip on raw", "rrc on jpg"])
def family(request, raw_beton, jpg_beton, raw_mask) -> tuple[Beton, Views, np.ndarray]:
    """A beton, views of it, and some of its sample_ids in an order of their own."""
    if request.param == "crop-flip on raw":
        return open_beton(raw_beton), Views("crop-flip", 32, 162), Mask.load(raw_mask).sample_ids
    return open_beton(jpg_beton), Views("rrc", 24, 5), np.array([20, 3, 17, 4, 11, 0, 23])


@pytest.fixture(scope="module")
def expected(family) -> dict[int, bytes]:
    """The views of one epoch as one worker makes them, one sample after the other."""
    beton, views, _ = family
    return pixels(ViewLoader(beton, views, batch_size=50, num_workers=1).epoch(EPOCH))


@pytest.fixture(scope="module")
def raw(raw_beton) -> ViewLoader:
    """A loader with two workers, for what does not depend on its options."""
    return ViewLoader(open_beton(raw_beton), Views("crop-flip", 32, 162), batch_size=64, num_workers=2)


# Same sample, same seed, same pixels


@pytest.mark.parametrize(
    "options",
    [{"num_workers": 2}, {"batch_size": 7}, {"shuffle": True, "seed": 9}],
    ids=lambda options: next(iter(options)),
)
def test_pixels_do_not_depend_on_how_they_are_loaded(family, expected, options):
    beton, views, _ = family
    assert pixels(ViewLoader(beton, views, **({"num_workers": 1} | options)).epoch(EPOCH)) == expected


def test_workers_do_not_get_in_each_others_way(family):
    beton, views, ids = family
    one, many = (ViewLoader(beton, views, num_workers=n, batch_size=1, prefetch=2 * n) for n in (1, 4))
    jobs = [(ids[i : i + 1], seed) for seed in range(5) for i in range(7)]
    images = [[batch.images.numpy().tobytes() for batch in loader.run(jobs * 10)] for loader in (one, many)]
    assert images[0] == images[1]


def test_pixels_do_not_depend_on_which_other_samples_are_kept(family, expected):
    beton, views, ids = family
    assert pixels(ViewLoader(beton, views, ids=ids).epoch(EPOCH)) == {i: expected[i] for i in ids.tolist()}


def test_an_epoch_that_is_resumed_goes_on_as_it_would_have(family):
    beton, views, _ = family
    loader = ViewLoader(beton, views, batch_size=9, shuffle=True)
    whole, rest = list(loader.epoch(EPOCH)), list(loader.epoch(EPOCH, start_batch=2))
    assert ids_of(rest) == ids_of(whole[2:])
    assert pixels(rest) == pixels(whole[2:])


def test_two_ranks_see_each_sample_once_and_as_one_rank_would(family, expected):
    beton, views, _ = family
    seen = [
        pixels(ViewLoader(beton, views, batch_size=5, shuffle=True, world=World(rank=rank, size=2)).epoch(EPOCH))
        for rank in range(2)
    ]
    assert not seen[0].keys() & seen[1].keys()
    assert seen[0] | seen[1] == expected


def test_an_epoch_iterated_again_is_equal(family, expected):
    beton, views, _ = family
    loader = ViewLoader(beton, views, shuffle=True)
    first, again = list(loader.epoch(EPOCH)), list(loader.epoch(EPOCH))
    assert ids_of(first) == ids_of(again)
    assert pixels(first) == pixels(again) == expected


def test_the_seeds_come_round_after_their_number_of_epochs(family):
    beton, views, ids = family
    few = replace(views, num_seeds=2)
    loader = ViewLoader(beton, few, ids=ids)
    zero, one, two = (pixels(loader.epoch(epoch)) for epoch in range(3))
    assert zero == two
    assert zero != one
    assert [next(loader.epoch(epoch)).aug_seed for epoch in (0, 1, 2, 7)] == [0, 1, 0, 1]


def test_two_loaders_in_two_threads_do_not_disturb_each_other(family, expected):
    beton, views, _ = family
    loaders = [ViewLoader(beton, views, batch_size=size, num_workers=2) for size in (7, 8)]
    seen: dict[int, dict[int, bytes]] = {}
    threads = [
        threading.Thread(target=lambda i=i: seen.update({i: pixels(loaders[i].epoch(EPOCH))}), daemon=True)
        for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == {0: expected, 1: expected}


def test_two_epochs_of_one_loader_can_run_side_by_side(raw):
    alone = [pixels(raw.epoch(epoch)) for epoch in (0, 1)]
    pairs = list(zip(raw.epoch(0), raw.epoch(1), strict=True))
    assert [pixels(batches) for batches in zip(*pairs, strict=True)] == alone


# The right pixels


def shown_by_pillow(image: np.ndarray, view: Sequence[int], size: int) -> np.ndarray:
    """A view (top, left, height, width, flip) of an image, cropped, resized and mirrored by Pillow: int64 (size, size, 3)."""
    top, left, h, w, flip = map(int, view)
    box = Image.fromarray(image).crop((left, top, left + w, top + h)).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(box).astype(int)[:, :: -1 if flip else 1]


@pytest.mark.parametrize("aug_seed", [0, 77])
def test_crop_flip_pads_by_four_then_crops_then_flips(raw, raw_folder, aug_seed):
    seen = pixels(raw.epoch(aug_seed))
    shown = boxes(raw.views, np.arange(600), aug_seed, np.full(600, 32), np.full(600, 32))
    for i, (file, (top, left, _, _, flip)) in enumerate(zip(files_of(raw_folder), shown, strict=True)):
        padded = np.pad(pillow(file.read_bytes()), ((4, 4), (4, 4), (0, 0)))
        crop = padded[top : top + 32, left : left + 32]
        assert seen[i] == (crop[:, ::-1] if flip else crop).tobytes(), f"sample {i}"


@pytest.fixture(scope="module")
def smooth(tmp_path_factory) -> Beton:
    """Smooth photos of many sizes, raw, so that what is stored is what was drawn."""
    folder = tmp_path_factory.mktemp("smooth")
    files = {
        f"a/{i:02}.png": encoded(photo(i, 30 + 17 * (i % 7), 30 + 23 * (i % 5)), "PNG", compress_level=1)
        for i in range(35)
    }
    return build(write_files(folder / "images", files), folder / "x.beton")


@pytest.mark.parametrize(
    "views",
    [Views("rrc", 24, 3), Views("rrc", 90, 3), Views("center", 28, version=1)],
    ids=lambda views: f"{views.kind} {views.size}",
)
def test_other_views_are_boxes_resized_by_pillow_then_flipped(smooth, views):
    loader = ViewLoader(smooth, views)
    for aug_seed in range(views.num_seeds):
        shown = boxes(views, np.arange(smooth.num_samples), aug_seed, smooth.heights, smooth.widths)
        seen = pixels(loader.epoch(aug_seed))
        for i, (top, left, h, w, flip) in enumerate(shown):
            wanted = shown_by_pillow(stored(smooth, i), (top, left, h, w, flip), views.size)
            found = np.frombuffer(seen[i], np.uint8).reshape(wanted.shape)
            assert np.abs(found - wanted).max() <= 1, f"sample {i}, aug_seed {aug_seed}"


def test_views_of_a_jpeg_are_those_of_the_picture_in_it(jpg_beton):
    beton, views = open_beton(jpg_beton), Views("rrc", 24, 5)
    seen = pixels(ViewLoader(beton, views).epoch(EPOCH))
    shown = boxes(views, np.arange(24), EPOCH, beton.heights, beton.widths)
    for i, view in enumerate(shown):
        found = np.frombuffer(seen[i], np.uint8).reshape(24, 24, 3)
        assert np.abs(found - shown_by_pillow(stored(beton, i), view, 24)).max() <= 1, f"sample {i}"


def test_the_pixels_of_given_views_stay_what_they_are(tmp_path):
    row, column, channel = np.ogrid[:32, :32, :3]
    files = {
        f"a/{i}.png": encoded((37 * i + row * row + 5 * column + 83 * channel).astype(np.uint8), "PNG")
        for i in range(4)
    }
    beton = build(write_files(tmp_path / "images", files), tmp_path / "x.beton")
    loader = ViewLoader(beton, Views("crop-flip", 32, 162))
    found = {
        seed: [crc32c(np.frombuffer(one, np.uint8)) for one in pixels(loader.epoch(seed)).values()]
        for seed in (0, 1, 161)
    }
    assert found == {
        0: [2886782925, 3611066739, 1349422050, 2990964737],
        1: [3411320167, 2422164951, 1868403288, 847394672],
        161: [219914624, 1391253772, 526019152, 3181212022],
    }


def test_ids_are_visited_in_their_own_order_where_nothing_shuffles(family):
    beton, views, ids = family
    assert ids_of(ViewLoader(beton, views, ids=ids, batch_size=3, num_workers=2).epoch(EPOCH)) == ids.tolist()


# Real photos


@pytest.mark.skipif("FASTKD_TEST_DATA" not in os.environ, reason="FASTKD_TEST_DATA names no folder of real data")
def test_real_photos_are_kept_checked_and_loaded(tmp_path):
    source = open_source(str(Path(os.environ["FASTKD_TEST_DATA"]) / "imagenet-500.zip"))
    some = replace(source, labels=source.labels[:40], names=source.names[:40])
    build_beton(some, tmp_path / "x.beton", WriteOptions(mode="keep", max_size=500), num_workers=1)
    beton = open_beton(tmp_path / "x.beton")
    assert verify_beton(beton) == []
    views = Views("rrc", 224, 50)
    one = pixels(ViewLoader(beton, views, num_workers=1).epoch(7))
    assert pixels(ViewLoader(beton, views, num_workers=2, batch_size=3, shuffle=True).epoch(7)) == one
    shown = boxes(views, np.arange(40), 7, beton.heights, beton.widths)
    for i, view in enumerate(shown):
        found = np.frombuffer(one[i], np.uint8).reshape(224, 224, 3)
        assert np.square(found - shown_by_pillow(stored(beton, i), view, 224)).mean() < 255**2 / 10**5, f"sample {i}"
