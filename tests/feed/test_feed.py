import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.stores import crc32c_by_the_polynomial, make_store, random_logits

from fastkd.data.beton.dataset import Dataset, open_dataset
from fastkd.data.beton.manifest import manifest_text
from fastkd.data.beton.read import manifest_path
from fastkd.data.identity import choose_probes, probe_checksums
from fastkd.data.views.draw import Views
from fastkd.errors import MismatchError, UnfinishedError
from fastkd.feed.loader import Loader
from fastkd.prune.masks.mask import Mask, save_mask
from fastkd.store.logit_store import LogitStore

VIEWS = Views("crop-flip", 32, 3)


@pytest.fixture(scope="module")
def dataset(raw_beton) -> Dataset:
    return open_dataset(raw_beton)


@pytest.fixture(scope="module")
def store(dataset, raw_mask, tmp_path_factory) -> Path:
    """A store of random logits for the views of the 200 samples of `raw_mask`."""
    path = tmp_path_factory.mktemp("feed") / "l.h5"
    ids = Mask.load(raw_mask).sample_ids
    return make_store(path, random_logits(3, len(ids), 10), ids, dataset=dataset, views=VIEWS)


def mask_of(dataset: Dataset, path: Path, ids: np.ndarray, fingerprint: str | None = None) -> Path:
    params = {"method": "random", "seed": 0}
    fingerprint = fingerprint or dataset.fingerprint
    save_mask(path, ids, num_samples=dataset.beton.num_samples, beton_fingerprint=fingerprint, params=params)
    return path


def assert_logits_are_those_of_the_store(loader: Loader, path: Path, epochs: int = 4) -> None:
    store = LogitStore(path)
    for epoch in range(epochs):
        for batch in loader.epoch(epoch):
            assert batch.aug_seed == epoch % loader.views.num_seeds
            expected = store.read(batch.sample_ids.numpy(), batch.aug_seed)
            assert np.array_equal(batch.logits.numpy(), expected)


@pytest.mark.parametrize("num_workers", [1, 4])
def test_batches_carry_the_logits_of_their_samples_and_seed(dataset, raw_mask, store, num_workers):
    loader = Loader(
        dataset, VIEWS, mask=raw_mask, logits=store, batch_size=48, shuffle=True, seed=3, num_workers=num_workers
    )
    assert_logits_are_those_of_the_store(loader, store)


def test_batches_of_an_int8_store_carry_what_the_store_reads(dataset, raw_mask, tmp_path):
    ids = Mask.load(raw_mask).sample_ids
    logits = random_logits(3, len(ids), 10)
    path = make_store(tmp_path / "l.h5", logits, ids, codec="int8+top4", dataset=dataset, views=VIEWS)
    assert_logits_are_those_of_the_store(Loader(dataset, mask=raw_mask, logits=path, shuffle=True), path, 1)


def test_a_smaller_nested_mask_works_with_the_store_of_the_larger(dataset, raw_mask, store, tmp_path):
    smaller = mask_of(dataset, tmp_path / "m.h5", Mask.load(raw_mask).sample_ids[:50])
    loader = Loader(dataset, VIEWS, mask=smaller, logits=store, batch_size=16, shuffle=True)
    assert len(loader.ids) == 50
    assert_logits_are_those_of_the_store(loader, store, 2)


def test_fewer_seeds_than_the_store_has_are_its_first(dataset, raw_mask, store):
    loader = Loader(dataset, Views("crop-flip", 32, 2), mask=raw_mask, logits=store)
    assert_logits_are_those_of_the_store(loader, store)


def test_without_views_those_of_the_store_are_taken(dataset, raw_mask, store):
    assert Loader(dataset, mask=raw_mask, logits=store).views == VIEWS


def test_without_views_and_a_store_they_are_those_that_suit_the_images(dataset, raw_mask, jpg_beton):
    assert Loader(dataset, mask=raw_mask).views == Views("crop-flip", 32, 162)
    assert Loader(jpg_beton).views == Views("rrc", 224, 50)


def test_without_a_store_there_are_no_logits(dataset, raw_mask):
    assert next(Loader(dataset, VIEWS, mask=raw_mask).epoch(0)).logits is None


def test_without_a_mask_all_samples_come(dataset):
    loader = Loader(dataset, VIEWS, batch_size=250)
    ids = np.concatenate([batch.sample_ids.numpy() for batch in loader.epoch(0)])
    assert np.array_equal(np.sort(ids), np.arange(600))


def test_the_logits_do_not_change_the_images(dataset, raw_mask, store):
    with_logits, without = (Loader(dataset, VIEWS, mask=raw_mask, logits=x, shuffle=True) for x in (store, None))
    for a, b in zip(with_logits.epoch(1), without.epoch(1), strict=True):
        assert a.images.equal(b.images)
        assert a.labels.equal(b.labels)


def test_a_mask_of_another_beton_is_refused(dataset, tmp_path):
    mask = mask_of(dataset, tmp_path / "m.h5", np.arange(50), "f" * 32)
    with pytest.raises(MismatchError, match=r"m\.h5: this mask was made for another beton \(ffffffffffff\)"):
        Loader(dataset, VIEWS, mask=mask)


def test_a_store_of_another_beton_is_refused(dataset, raw_mask, tmp_path):
    ids = Mask.load(raw_mask).sample_ids
    path = make_store(tmp_path / "l.h5", random_logits(3, 200, 10), ids)
    with pytest.raises(MismatchError, match=r"l\.h5: this logit-store was made for another beton"):
        Loader(dataset, VIEWS, mask=raw_mask, logits=path)


@pytest.mark.parametrize(
    ("views", "words"),
    [
        (
            Views("rrc", 32, 3),
            r"made for views\.kind crop-flip \(asked for rrc\).*; its own are --views crop-flip --size 32",
        ),
        (Views("crop-flip", 32, 4), "3 seeds .* 4"),
    ],
)
def test_a_store_of_other_views_or_too_few_seeds_is_refused(dataset, raw_mask, store, views, words):
    with pytest.raises(MismatchError, match=words):
        Loader(dataset, views, mask=raw_mask, logits=store)


def test_a_store_of_another_size_of_views_is_refused(jpg_beton, tmp_path):
    small = open_dataset(jpg_beton)
    views = Views("rrc", 48, 2)
    path = make_store(tmp_path / "l.h5", random_logits(2, 24, 3), np.arange(24), dataset=small, views=views)
    Loader(small, views, logits=path)
    with pytest.raises(
        MismatchError, match=r"l\.h5: made for views\.size 48 \(asked for 64\); its own are --views rrc --size 48"
    ):
        Loader(small, Views("rrc", 64, 2), logits=path)


def test_a_mask_that_is_not_inside_the_store_is_refused_with_a_number(dataset, raw_mask, store, tmp_path):
    outside = np.setdiff1d(np.arange(600), Mask.load(raw_mask).sample_ids)[:7]
    mask = mask_of(dataset, tmp_path / "m.h5", np.r_[Mask.load(raw_mask).sample_ids[:20], outside])
    with pytest.raises(MismatchError, match=r"l\.h5: holds 200 samples, 7 of the 27 asked for are not among them"):
        Loader(dataset, VIEWS, mask=mask, logits=store)
    with pytest.raises(MismatchError, match="400 of the 600"):
        Loader(dataset, VIEWS, logits=store)


def test_a_store_of_another_number_of_classes_is_refused(raw_beton, raw_mask, store, tmp_path):
    copy = Path(shutil.copy(raw_beton, tmp_path / "copy.beton"))
    manifest = json.loads(manifest_path(raw_beton).read_text())
    manifest["class_names"].append("one more")
    manifest_path(copy).write_text(manifest_text(manifest))
    with pytest.raises(MismatchError, match=r"l\.h5: rows of 10 logits, .*copy\.beton has 11 classes"):
        Loader(copy, VIEWS, mask=raw_mask, logits=store)


def test_an_unfinished_store_is_refused(dataset, raw_mask, tmp_path):
    ids = Mask.load(raw_mask).sample_ids
    path = make_store(tmp_path / "l.h5", random_logits(3, 200, 10), ids, blocks=slice(5), dataset=dataset)
    with pytest.raises(UnfinishedError, match=r"l\.h5: 60 of 75 blocks"):
        Loader(dataset, VIEWS, mask=raw_mask, logits=path)


def test_under_torchrun_each_process_sees_its_part(dataset, raw_mask, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    seen = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        seen += [i for batch in Loader(dataset, VIEWS, mask=raw_mask, shuffle=True).epoch(0) for i in batch.sample_ids]
    assert sorted(map(int, seen)) == sorted(Mask.load(raw_mask).sample_ids.tolist())


def test_probe_views_that_decode_to_other_pixels_are_refused(dataset, raw_mask, tmp_path):
    ids = Mask.load(raw_mask).sample_ids
    path = make_store(tmp_path / "l.h5", random_logits(3, 200, 10), ids, dataset=dataset, other_probes=2)
    with pytest.raises(MismatchError, match=r"l\.h5: 2 of 20 probe views decode to other pixels here"):
        Loader(dataset, VIEWS, mask=raw_mask, logits=path)


def test_probes_are_views_of_the_store_and_mostly_distinct():
    ids = np.random.default_rng(0).permutation(10_000)[:3000]
    probes = choose_probes(ids, 20)
    assert 200 < len(probes) <= 256
    assert len(np.unique(probes, axis=0)) == len(probes)
    assert np.isin(probes[:, 0], ids).all()
    assert set(probes[:, 1]) == set(range(20))


def test_a_probe_is_the_checksum_of_the_pixels_that_a_batch_shows(dataset):
    probes = np.array([[5, 1], [599, 2]])
    batches = Loader(dataset, VIEWS).run([(probes[:1, 0], 1), (probes[1:, 0], 2)])
    expected = [crc32c_by_the_polynomial(batch.images[0].permute(1, 2, 0).numpy().tobytes()) for batch in batches]
    assert probe_checksums(dataset.beton, VIEWS, probes, probes[:, 0]).tolist() == expected
