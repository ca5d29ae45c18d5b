"""A loader, its batches, masks and stores as Python users take them."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.batches import ids_of
from helpers.stores import NORM, make_store, random_logits
from hypothesis import given
from hypothesis import strategies as st

import fastkd
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.errors import MismatchError, OptionError
from fastkd.feed.loader import Loader
from fastkd.feed.resident import Resident
from fastkd.models.norm import Norm, parse_norm
from fastkd.prune.masks.mask import Mask, save_mask
from fastkd.store.logit_store import LogitStore

VIEWS = Views("crop-flip", 32, 3)


@pytest.fixture(scope="module")
def store(dataset, ids, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("python") / "l.h5"
    embeddings = random_logits(3, len(ids), 6)
    return make_store(path, random_logits(3, len(ids), 10), ids, dataset=dataset, views=VIEWS, embeddings=embeddings)


@pytest.fixture
def loader(dataset, ids) -> Loader:
    """Thirteen batches of 16, the last of 8."""
    return Loader(dataset, VIEWS, mask=ids, batch_size=16, shuffle=True, seed=2, num_workers=1)


def what(batches) -> list[tuple[int, list[int]]]:
    """aug_seed and sample_ids of each batch."""
    return [(batch.aug_seed, batch.sample_ids.tolist()) for batch in batches]


# Epochs


def test_each_iteration_is_the_next_epoch(loader):
    found = [what(loader) for _ in range(4)]
    assert found == [what(loader.epoch(epoch)) for epoch in range(4)]
    assert len({json.dumps(epoch) for epoch in found}) == 4


def test_set_epoch_says_which_epoch_is_next(loader):
    loader.set_epoch(7)
    assert what(loader) == what(loader.epoch(7))
    assert what(loader) == what(loader.epoch(8))


def test_a_loop_that_is_left_early_is_followed_by_the_next_epoch(loader):
    for _ in loader:
        break
    assert what(loader) == what(loader.epoch(1))


def test_an_epoch_that_is_named_does_not_count(loader):
    list(loader.epoch(5))
    assert what(loader) == what(loader.epoch(0))


@given(epoch=st.integers(0, 5), done=st.integers(0, 13))
def test_a_state_goes_on_after_any_batch(dataset, ids, epoch, done):
    options = {"mask": ids, "batch_size": 16, "shuffle": True, "num_workers": 1}
    loader, resumed = (Loader(dataset, VIEWS, **options) for _ in range(2))
    loader.set_epoch(epoch)
    batches = iter(loader)
    seen = [next(batches) for _ in range(done)]
    resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    if done < 13:
        assert what(seen) + what(resumed) == what(loader.epoch(epoch))
    assert what(resumed) == what(loader.epoch(epoch + 1))
    batches.close()


def test_a_state_before_and_between_epochs_begins_the_next_one(loader):
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (0, 0)
    list(loader)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (1, 0)
    loader.set_epoch(6)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (6, 0)


def test_a_state_serves_another_number_of_ranks_with_the_same_global_batch(dataset, ids, loader):
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    rest = [sorted(ids) for _, ids in what(batches)]
    parts = []
    for rank in range(2):
        world = World(rank=rank, local_rank=rank, size=2)
        part = Loader(dataset, VIEWS, mask=ids, global_batch=16, shuffle=True, seed=2, num_workers=1, world=world)
        part.load_state_dict(state)
        parts.append(what(part))
    assert [sorted(one + other) for (_, one), (_, other) in zip(*parts, strict=True)] == rest


@pytest.mark.parametrize(
    "other",
    [{"seed": 3}, {"shuffle": False}, {"batch_size": 8}, {"drop_last": True}, {"order": "pages"}, {"mask": None}],
    ids=lambda other: next(iter(other)),
)
def test_a_state_of_other_batches_is_refused(dataset, ids, loader, other):
    options = {"mask": ids, "batch_size": 16, "shuffle": True, "seed": 2, "num_workers": 1} | other
    with pytest.raises(MismatchError, match="make it with the mask, batch size, shuffle, seed, order and drop_last"):
        Loader(dataset, VIEWS, **options).load_state_dict(loader.state_dict())


@pytest.mark.parametrize(
    "change",
    [{"epoch": -1}, {"batch": 13}, {"batch": -1}, {"epoch": 1.5}, {"batch": True}, {"more": 1}],
    ids=str,
)
def test_a_state_that_is_none_is_refused(loader, change):
    with pytest.raises(OptionError):
        loader.load_state_dict(loader.state_dict() | change)
    with pytest.raises(OptionError, match="expected epoch, batch and batches"):
        loader.load_state_dict(None)


def test_an_epoch_that_is_none_is_refused(loader):
    with pytest.raises(OptionError, match="epoch is -1"):
        loader.set_epoch(-1)


# What a loader says of itself


def test_sizes_of_an_epoch(dataset, ids, loader):
    assert (len(loader), loader.batch_size, loader.num_samples) == (13, 16, 200)
    world = World(rank=1, local_rank=1, size=3)
    part = Loader(dataset, VIEWS, mask=ids, global_batch=16, drop_last=True, num_workers=1, world=world)
    assert (len(part), part.batch_size, part.num_samples) == (12, 6, 192)


def test_a_kind_of_views_is_enough(dataset):
    assert Loader(dataset, views="crop-flip").views == Views("crop-flip", 32, 162)


@pytest.mark.parametrize("name", ["Loader", "Batch", "Mask", "LogitStore", "Dataset"])
def test_what_a_thing_is_fits_a_line(dataset, ids, mask, store, name):
    loader = Loader(dataset, mask=ids, logits=store, batch_size=16, num_workers=1)
    found = {
        "Loader": (loader, ": 200 of 600 samples, crop-flip 32, K = 3, logits of "),
        "Batch": (
            next(iter(loader)),
            "Batch(16 samples, aug_seed 0: images 3×32×32, labels, sample_ids, logits 10; cpu)",
        ),
        "Mask": (mask, ": 200 of 600 samples, "),
        "LogitStore": (LogitStore(store), ": 3 views of 200 samples, 10 classes, fp16, embeddings of 6)"),
        "Dataset": (dataset, ": 600 images of 10 classes)"),
    }
    thing, words = found[name]
    assert repr(thing).startswith(f"{name}(")
    assert words in repr(thing)
    assert "\n" not in repr(thing)


INNER = ("ViewLoader", "as_ids", "choose_views", "check_store", "kept_ids", "read_tables", "open_beton", "else as `")


@pytest.mark.parametrize("name", fastkd.__all__)
def test_the_help_of_a_public_name_says_all_by_itself(name):
    public = getattr(fastkd, name)
    members = [(one, value) for one, value in inspect.getmembers(public) if not one.startswith("_")]
    for one, value in [(name, public), *members]:
        if callable(value) and not isinstance(value, int):
            assert inspect.getdoc(value), one
            assert [word for word in INNER if word in inspect.getdoc(value)] == [], one


# Batches


def test_a_batch_is_unpacked_as_images_and_labels_and_with_a_store_logits(dataset, ids, store):
    plain, stored = (Loader(dataset, VIEWS, mask=ids, logits=one, num_workers=1) for one in (None, store))
    images, labels = next(plain.epoch(0))
    images_too, labels_too, logits = next(stored.epoch(0))
    assert torch.equal(images, images_too)
    assert torch.equal(labels, labels_too)
    assert torch.equal(logits, next(stored.epoch(0)).logits)


def test_tensors_of_a_batch_have_names(dataset, ids, store):
    batch = next(Loader(dataset, mask=ids, logits=store, embeddings=True, num_workers=1).epoch(0))
    assert batch.keys() == ["images", "labels", "sample_ids", "logits", "embeddings"]
    assert dict(batch).keys() == set(batch.keys())
    assert all(batch[name] is getattr(batch, name) for name in dict(batch))
    assert "logits" in batch
    assert "lam" not in batch
    with pytest.raises(KeyError, match="'lam' is not in this batch, which has images, labels,"):
        batch["lam"]


@pytest.mark.parametrize(
    ("normalize", "norm"),
    [
        ("cifar", parse_norm("cifar")),
        ("none", parse_norm("none")),
        (".5,.5,.5/.2,.2,.2", Norm((0.5,) * 3, (0.2,) * 3)),
        (NORM, NORM),
    ],
    ids=["cifar", "none", "numbers", "Norm"],
)
def test_normalised_images_are_floats(dataset, ids, normalize, norm):
    options = {"mask": ids, "num_workers": 1, "batch_size": 64}
    plain, floats = Loader(dataset, VIEWS, **options), Loader(dataset, VIEWS, normalize=normalize, **options)
    for source in (floats, Resident(floats)):
        for expected, found in zip(plain.epoch(1), source.epoch(1), strict=True):
            assert found.images.dtype == torch.float32
            assert found.images.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(found.images, norm(expected.images))
            assert ids_of([found]) == ids_of([expected])


@pytest.mark.parametrize("normalize", ["imagnet", True, 0.5, (0.5, 0.5)])
def test_a_normalisation_that_is_none_is_refused(dataset, normalize):
    with pytest.raises(OptionError, match="normalize "):
        Loader(dataset, VIEWS, normalize=normalize)


# Masks


def test_a_mask_has_a_length_and_members(mask):
    assert len(mask) == 200
    kept = set(mask.sample_ids.tolist())
    assert [sample_id for sample_id in range(-1, 601) if sample_id in mask] == sorted(kept)
    assert np.int64(mask.sample_ids[0]) in mask
    assert all(other not in mask for other in ("7", 0.5, None))


def test_a_weighted_mask_says_so(dataset, tmp_path):
    weights = np.ones(3, np.float32)
    facts = {"num_samples": 600, "beton_fingerprint": dataset.fingerprint, "params": {"method": "random"}}
    made = save_mask(tmp_path / "m.h5", np.arange(3), weights=weights, **facts)
    assert repr(made).endswith("m.h5: 3 of 600 samples, random, weighted)")
    assert repr(Mask.load(tmp_path / "m.h5")) == repr(made)
