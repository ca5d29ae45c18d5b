"""Data on the device against the loader: the same bytes, the same losses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.ranks import start_ranks, wait_for
from helpers.runs import records
from helpers.stores import make_store, random_logits

from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.loader import ViewLoader
from fastkd.data.sources.arrays import ArrayImages
from fastkd.data.sources.open import Source
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.errors import OptionError
from fastkd.feed.loader import Loader
from fastkd.feed.resident import Resident, make_resident
from fastkd.models.norm import Norm
from fastkd.store.logit_store import LogitStore
from fastkd.train.recipe import Recipe
from fastkd.train.student import train

NUM_SEEDS = 5
VIEWS = Views("crop-flip", 32, NUM_SEEDS)


@pytest.fixture(scope="module")
def store(dataset, ids, tmp_path_factory) -> LogitStore:
    path = tmp_path_factory.mktemp("resident") / "l.h5"
    logits = random_logits(NUM_SEEDS, len(ids), 10)
    return LogitStore(make_store(path, logits, ids, dataset=dataset, views=VIEWS))


def both(dataset, ids, store=None, views=VIEWS, **options) -> tuple[Loader, Resident]:
    loader = Loader(dataset, views, mask=ids, logits=store, num_workers=1, **options)
    return loader, Resident(loader, store)


def assert_equal_epochs(loader: Loader, resident: Resident, epoch: int, start_batch: int = 0) -> None:
    pairs = list(
        zip(loader.epoch(epoch, start_batch=start_batch), resident.epoch(epoch, start_batch=start_batch), strict=True)
    )
    assert len(pairs) == len(loader) - start_batch == len(resident) - start_batch
    for expected, found in pairs:
        assert found.images.dtype == torch.uint8
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.labels, expected.labels)
        assert torch.equal(found.sample_ids, expected.sample_ids)
        assert found.aug_seed == expected.aug_seed
        assert (found.logits is None) == (expected.logits is None)
        assert found.logits is None or torch.equal(found.logits, expected.logits)


@pytest.mark.parametrize("epoch", [0, 1, 3, 8])
def test_batches_are_the_loaders_to_the_byte(dataset, ids, store, epoch):
    assert_equal_epochs(*both(dataset, ids, store, batch_size=48, shuffle=True, seed=3), epoch)


def test_all_views_of_a_sample_are_the_loaders(dataset, ids):
    loader, resident = both(dataset, ids[:20], views=Views("crop-flip", 32, 162), batch_size=20)
    for epoch in range(162):
        assert_equal_epochs(loader, resident, epoch)


def test_a_run_that_resumes_gets_the_rest_of_the_epoch(dataset, ids, store):
    assert_equal_epochs(*both(dataset, ids, store, batch_size=48, shuffle=True), 2, start_batch=3)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_ranks_get_their_own_parts(dataset, ids, rank):
    world = World(rank=rank, local_rank=rank, size=3)
    assert_equal_epochs(*both(dataset, ids, batch_size=24, shuffle=True, world=world), 1)


def test_whole_images_are_resident_for_validation(dataset, ids):
    assert_equal_epochs(*both(dataset, ids, views=Views("center", 32), batch_size=64), 0)


def test_losses_are_the_loaders(dataset, ids, store, tmp_path):
    recipe = Recipe(model="resnet8", epochs=2, batch_size=48)
    found = []
    for name, loader in zip(
        ("loader", "resident"), both(dataset, ids, store, batch_size=48, shuffle=True), strict=True
    ):
        norm = Norm((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        train(recipe, loader, tmp_path / name, norm=norm, inputs={}, params={})
        found.append([line["loss"] for line in records(tmp_path / name)])
    assert found[0] == found[1]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("loader", "resident")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("views", "words"), [(Views("rrc", 32, 2), "rrc resizes"), (Views("center", 24), "24×24 pixels")]
)
def test_views_that_resize_are_refused_where_asked_for_and_left_to_the_loader_else(dataset, ids, views, words):
    loader = Loader(dataset, views, mask=ids, num_workers=1)
    with pytest.raises(OptionError, match=f"--resident on: .*{words}.*; use --resident auto"):
        make_resident(loader, None, "on")
    assert make_resident(loader, None, "auto") is loader
    assert make_resident(loader, None, "off") is loader


# How the data come there


def test_ranks_decode_a_part_each_and_have_all(dataset, ids, monkeypatch, tmp_path):
    whole = Resident(Loader(dataset, VIEWS, mask=ids, num_workers=1))._pixels
    decoded: list[int] = []
    run = ViewLoader.run
    monkeypatch.setattr(ViewLoader, "run", lambda self, jobs: (decoded.append(len(self.ids)), run(self, jobs))[1])

    def one_rank(world: World) -> None:
        resident = Resident(Loader(dataset, VIEWS, mask=ids, num_workers=1, world=world))
        assert torch.equal(resident._pixels, whole)
        (tmp_path / f"{world.rank}").write_text(str(sum(decoded)))

    assert wait_for(start_ranks(3, tmp_path / "meet", one_rank)) == [0, 0, 0]
    assert [int((tmp_path / str(rank)).read_text()) for rank in range(3)] == [67, 67, 66]


def test_more_ranks_than_samples_have_all_of_them(dataset, ids, tmp_path):
    whole = Resident(Loader(dataset, VIEWS, mask=ids[:2], num_workers=1))._pixels

    def one_rank(world: World) -> None:
        loader = Loader(dataset, VIEWS, mask=ids[:2], num_workers=1, world=world)
        assert torch.equal(Resident(loader)._pixels, whole)

    assert wait_for(start_ranks(3, tmp_path / "meet", one_rank)) == [0, 0, 0]


def peak_bytes(function) -> int:
    """The most memory that this process had while it called the function, above what it had before."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark is from now on

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

    before = status("VmRSS")
    function()
    return status("VmHWM") - before


def test_nothing_of_the_size_of_the_data_exists_besides_them(tmp_path):
    num_images, side = 6000, 64
    images = np.random.default_rng(0).integers(0, 256, (num_images, side, side, 3), dtype=np.uint8)
    names, labels = [f"{i}.png" for i in range(num_images)], np.zeros(num_images, np.int64)
    reader = ArrayImages("digits", "", "train", images)
    source = Source(spec="noise", class_names=["noise"], labels=labels, names=names, reader=reader)
    build_beton(source, tmp_path / "noise.beton", WriteOptions(mode="raw"), num_workers=1)
    loader = Loader(tmp_path / "noise.beton", Views("crop-flip", side, 2), num_workers=1)
    list(Loader(loader.dataset, loader.views, num_workers=1).epoch(0))  # compiled, and the file is in memory
    found: list[Resident] = []
    peak = peak_bytes(lambda: found.append(Resident(loader)))
    batches = 6 * 512 * 3 * side**2
    assert peak <= found[0]._pixels.nbytes + batches + 10_000_000
