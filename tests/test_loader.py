import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.event import install_recorder
from PIL import Image
from synthetic import build, encoded, files_of, photo, pillow, stored, write_files

from fastkd.data.batch import Batch
from fastkd.data.beton import Beton, open_beton
from fastkd.data.build import WriteOptions, build_beton
from fastkd.data.loader import ViewLoader, default_num_workers
from fastkd.data.sources import open_source
from fastkd.data.verify import verify_beton
from fastkd.data.views import Views, boxes
from fastkd.dist import World
from fastkd.errors import CorruptError, OptionError
from fastkd.hashing import crc32c
from fastkd.prune.mask import Mask

EPOCH = 3


def pixels(batches: Iterable[Batch]) -> dict[int, bytes]:
    """The view of each sample by its sample_id; no sample may come twice."""
    seen: dict[int, bytes] = {}
    for batch in batches:
        for sample_id, image in zip(batch.sample_ids.tolist(), batch.images.permute(0, 2, 3, 1), strict=True):
            assert sample_id not in seen
            seen[sample_id] = image.numpy().tobytes()
    return seen


def ids_of(batches: Iterable[Batch]) -> list[int]:
    return [i for batch in batches for i in batch.sample_ids.tolist()]


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fastkd-loader")]


def outcome(function: Callable[[], object]) -> object:
    """What the function returns or raises; fails where it does not come back."""
    found: list[object] = []

    def call() -> None:
        try:
            found.append(function())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(60)
    assert found, "hangs"
    return found[0]


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
    [Views("rrc", 24, 3), Views("rrc", 90, 3), Views("center", 28)],
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


# Batches


def test_a_batch_holds_the_labels_and_ids_of_its_images(raw):
    for batch in raw.epoch(0):
        assert batch.labels.tolist() == raw.beton.labels[batch.sample_ids].tolist()
        assert (batch.labels.dtype, batch.sample_ids.dtype, batch.logits) == (torch.int64, torch.int64, None)


def test_images_are_bytes_in_channels_last_order(raw):
    for batch in raw.epoch(0):
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (len(batch), 3, 32, 32)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_that_was_handed_out_never_changes(raw):
    kept, copies = [], []
    for batch in raw.epoch(0):
        kept.append(batch)
        copies.append(batch.copy())
    list(raw.epoch(1))
    for batch, copy in zip(kept, copies, strict=True):
        assert torch.equal(batch.images, copy.images)
        assert torch.equal(batch.labels, copy.labels)
        assert torch.equal(batch.sample_ids, copy.sample_ids)


def test_any_part_of_a_batch_keeps_all_of_its_memory(raw):
    corners = [batch.images[:, 0, :2, :2] for batch in raw.epoch(0)]  # the rest of each batch is let go
    labels = [batch.labels.numpy()[1:] for batch in raw.epoch(0)]
    before = [part.clone() for part in corners], [part.copy() for part in labels]
    for epoch in range(1, 4):
        list(raw.epoch(epoch))
    assert all(map(torch.equal, corners, before[0]))
    assert all(map(np.array_equal, labels, before[1]))


def test_epochs_take_no_more_memory_than_the_batches_under_way(raw):
    places = set()
    for epoch in range(5):
        for batch in raw.epoch(epoch):
            places.add(batch.images.data_ptr())
    assert len(places) <= raw.prefetch + 3


def test_a_copy_of_a_batch_can_be_changed_by_itself(raw):
    batch = next(raw.epoch(0))
    copy = batch.copy()
    copy.images.zero_()
    copy.labels.fill_(-1)
    assert batch.images.any()
    assert (batch.labels >= 0).all()
    assert copy.images.is_contiguous(memory_format=torch.channels_last)


def test_ids_are_visited_in_their_own_order_where_nothing_shuffles(family):
    beton, views, ids = family
    assert ids_of(ViewLoader(beton, views, ids=ids, batch_size=3, num_workers=2).epoch(EPOCH)) == ids.tolist()


def test_the_last_batch_is_what_is_left(raw):
    assert [len(batch) for batch in raw.epoch(0)] == [64] * 9 + [24]
    assert len(raw) == 10


def test_the_last_batch_is_left_out_where_that_is_asked_for(raw_beton):
    loader = ViewLoader(open_beton(raw_beton), Views("crop-flip", 32), batch_size=64, drop_last=True)
    assert [len(batch) for batch in loader.epoch(0)] == [64] * 9
    assert len(loader) == 9


def test_a_rank_without_a_sample_in_the_last_batch_gets_an_empty_one(raw_beton):
    beton, ids = open_beton(raw_beton), np.arange(9)
    lengths = [
        [len(batch) for batch in ViewLoader(beton, Views("crop-flip", 32), ids=ids, batch_size=4, world=world).epoch(0)]
        for world in (World(rank=0, size=2), World(rank=1, size=2))
    ]
    assert lengths == [[4, 1], [4, 0]]


@settings(max_examples=25)
@given(
    jobs=st.lists(st.tuples(st.lists(st.integers(0, 599), max_size=20), st.sampled_from([0, 1, 161])), max_size=12),
)
def test_batches_that_are_named_come_in_the_order_of_their_names(raw, jobs):
    batches = list(raw.run((np.array(ids, np.int64), aug_seed) for ids, aug_seed in jobs))
    assert [(batch.sample_ids.tolist(), batch.aug_seed) for batch in batches] == jobs


def test_workers_are_shared_among_the_processes_of_a_node(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cpus = len(os.sched_getaffinity(0))
    assert default_num_workers() == cpus
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cpus))
    assert default_num_workers() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(100 * cpus))
    assert default_num_workers() == 1


# Ending


def test_leaving_a_loop_early_leaves_no_threads(raw):
    for number, _ in enumerate(raw.epoch(0)):
        assert loader_threads()
        if number == 1:
            break
    assert not loader_threads()


@pytest.mark.parametrize("num_seen", [1, 5, 20])  # at an end of what is made in one go, and between
def test_a_loop_over_small_batches_can_be_left_anywhere(raw_beton, num_seen):
    loader = ViewLoader(open_beton(raw_beton), Views("crop-flip", 32), batch_size=4, num_workers=2)
    seen = [batch for _, batch in zip(range(num_seen), loader.epoch(0), strict=False)]
    assert ids_of(seen) == list(range(4 * num_seen))
    assert not loader_threads()


def test_an_error_in_the_loop_leaves_no_threads(raw):
    def loop() -> None:
        for _ in raw.epoch(0):
            raise ValueError("of the training loop")

    with pytest.raises(ValueError, match="of the training loop"):
        loop()
    assert not loader_threads()


def test_the_end_of_an_epoch_leaves_no_threads(raw):
    list(raw.epoch(0))
    assert not loader_threads()


def test_an_error_of_the_jobs_reaches_the_caller_and_leaves_no_threads(raw):
    def jobs() -> Iterable[tuple[np.ndarray, int]]:
        yield np.arange(3), 0
        raise KeyError("of the jobs")

    with pytest.raises(KeyError, match="of the jobs"):
        list(raw.run(jobs()))
    assert not loader_threads()


# Damage


def zeros_in_the_second_half(beton: Beton, sample_id: int) -> dict[int, bytes]:
    size = int(beton.sizes[sample_id])
    return {int(beton.ptrs[sample_id]) + size // 2: bytes(size - size // 2)}


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("batch_size", [4, 1])  # of 1, several are made in one go
def test_a_corrupt_jpeg_is_named_where_its_batch_would_have_come(jpg_beton, copy_of, batch_size, num_workers):
    whole = open_beton(jpg_beton)
    path = copy_of(jpg_beton, zeros_in_the_second_half(whole, 10))
    loader = ViewLoader(open_beton(path), Views("rrc", 24), batch_size=batch_size, num_workers=num_workers)
    before: list[Batch] = []
    error = outcome(lambda: before.extend(loader.epoch(0)))
    assert isinstance(error, CorruptError)
    assert str(error).startswith(f"{path}: sample 10: its JPEG does not decode")
    assert ids_of(before) == list(range(10 - 10 % batch_size))
    assert not loader_threads()


def test_a_corrupt_jpeg_that_is_not_kept_does_not_matter(jpg_beton, copy_of):
    path = copy_of(jpg_beton, zeros_in_the_second_half(open_beton(jpg_beton), 10))
    ids = np.delete(np.arange(24), 10)
    assert ids_of(ViewLoader(open_beton(path), Views("rrc", 24), ids=ids).epoch(0)) == ids.tolist()


def test_a_jpeg_of_another_size_than_the_table_says_is_refused(jpg_beton, copy_of):
    width = int(open_beton(jpg_beton).widths[10])
    path = copy_of(jpg_beton, {24 + 2 * 1041 + 24 * 10 + 1: (width - 1).to_bytes(2, "little")})
    loader = ViewLoader(open_beton(path), Views("rrc", 24))
    with pytest.raises(CorruptError, match="sample 10: its JPEG has another size than the beton's table says"):
        list(loader.epoch(0))


# Arguments


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


# What else is in the process


def in_a_new_process(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def beside_ffcvs_loader(photo_jpg) -> subprocess.CompletedProcess[str]:
    """A process that says how many threads torch has after an import, and uses a loader of FFCV's own between two."""
    code = """
import sys
import torch
torch.set_num_threads(3)
from fastkd.data.loader import ViewLoader
print("threads", torch.get_num_threads(), flush=True)
from fastkd.data.beton import open_beton
from fastkd.data.views import Views
from ffcv.loader import Loader

def views():
    return [batch.images for batch in ViewLoader(open_beton(sys.argv[1]), Views("rrc", 24)).epoch(0)]

before = views()
print("ffcv", sum(len(labels) for _, labels in Loader(sys.argv[1], batch_size=4, num_workers=1)), flush=True)
print("equal", all((a == b).all().item() for a, b in zip(before, views(), strict=True)))
"""
    return in_a_new_process(code, photo_jpg)


def test_loaders_of_a_process_share_what_is_compiled(raw_beton, jpg_beton):
    list(ViewLoader(open_beton(raw_beton), Views("crop-flip", 32)).epoch(0))
    with install_recorder("numba:compile") as compiled:
        list(ViewLoader(open_beton(jpg_beton), Views("rrc", 24)).epoch(0))
    assert compiled.buffer == []


def test_importing_the_loader_leaves_torchs_threads_as_they_are(beside_ffcvs_loader):
    assert "threads 3" in beside_ffcvs_loader.stdout


def test_a_loader_of_ffcvs_own_in_the_same_process_does_no_harm(beside_ffcvs_loader):
    assert beside_ffcvs_loader.stdout.splitlines()[1:] == ["ffcv 12", "equal True"]
    assert beside_ffcvs_loader.stderr == ""


def test_building_a_beton_leaves_torchs_threads_as_they_are(photo_folder, tmp_path):
    code = """
import sys
import torch
torch.set_num_threads(3)
from fastkd.data.build import WriteOptions, build_beton
from fastkd.data.sources import open_source
build_beton(open_source(sys.argv[1]), sys.argv[2], WriteOptions(mode="jpg"), num_workers=1)
print("threads", torch.get_num_threads())
"""
    assert in_a_new_process(code, photo_folder, tmp_path / "x.beton").stdout == "threads 3\n"


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
