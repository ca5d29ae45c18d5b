"""Views mixed among the kept samples: their pixels, labels and shares, whatever loads them; stores and students of them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.commands import fastkd
from helpers.runs import records
from helpers.stores import NORM, cache
from helpers.synthetic import overwrite

from fastkd.data.batch import Batch
from fastkd.data.beton.dataset import open_dataset
from fastkd.data.views.draw import Views
from fastkd.data.views.mix import KeptSet, Mix, beta_draw, permutation
from fastkd.dist import World
from fastkd.errors import CorruptError, MismatchError, OptionError
from fastkd.feed.loader import Loader
from fastkd.feed.resident import Resident
from fastkd.scoring.recording import Record
from fastkd.store.logit_store import LogitStore
from fastkd.train.recipe import Recipe
from fastkd.train.student import train

MIXES = [Mix("cutmix"), Mix("mixup", 0.4)]


def views_with(mix: Mix | None, num_seeds: int = 3) -> Views:
    return Views("crop-flip", 32, num_seeds, mix=mix)


@pytest.fixture(scope="module")
def stores(dataset, mask, teacher, tmp_path_factory) -> dict[str, Path]:
    """A mixed store of the 200 samples of `raw_mask` by the codec."""
    folder, found = tmp_path_factory.mktemp("mix"), {}
    for codec in ("fp16", "int8+top4", "int4+top8"):
        found[codec] = folder / f"{codec}.h5"
        cache(
            found[codec],
            dataset,
            teacher,
            views_with(MIXES[0]),
            mask=mask,
            codec=codec,
            block_rows=64,
            num_workers=1,
        )
    return found


def samples(batches) -> dict[int, tuple]:
    """Pixels, label, partner's label and share of each sample by its sample_id."""
    found: dict[int, tuple] = {}
    for batch in batches:
        rows = zip(batch.images, batch.labels.tolist(), batch.partner_labels.tolist(), batch.lam.tolist(), strict=True)
        for sample_id, (image, *rest) in zip(batch.sample_ids.tolist(), rows, strict=True):
            assert sample_id not in found
            found[sample_id] = (image.numpy().tobytes(), *rest)
    return found


def plain_images(loader: Loader, ids: np.ndarray, aug_seed: int) -> torch.Tensor:
    plain = Loader(loader.dataset, views_with(None), mask=loader.ids, num_workers=1)
    return next(plain.run([(ids, aug_seed)])).images


# Which partner, which share


@pytest.mark.parametrize("num_places", [1, 2, 3, 7, 200, 10_007])
def test_partners_are_a_permutation(num_places):
    planes = [permutation(num_places, seed) for seed in range(3)]
    assert all(np.array_equal(np.sort(plane), np.arange(num_places)) for plane in planes)
    assert num_places < 10 or not np.array_equal(planes[0], planes[1])


def test_permutations_are_uniform():
    """All 24 of four places about equally often; one fixed point on average, as among all permutations."""
    found, counts = np.unique([permutation(4, seed) for seed in range(4800)], axis=0, return_counts=True)
    assert len(found) == 24
    assert np.square(counts - 200).sum() / 200 < 54  # chi-squared of 23 degrees of freedom: 3 in 10,000 are above
    fixed = [np.count_nonzero(permutation(100, seed) == np.arange(100)) for seed in range(2000)]
    assert abs(np.mean(fixed) - 1) < 0.1
    assert abs(np.var(fixed) - 1) < 0.2


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_are_of_the_beta_distribution(alpha):
    draws = np.array([beta_draw(alpha, i, 5) for i in range(20_000)])
    assert abs(draws.mean() - 0.5) < 0.01
    assert abs(draws.var() - 1 / (4 * (2 * alpha + 1))) < 0.003
    fourth = ((draws - 0.5) ** 4).mean()
    assert abs(fourth - 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))) < 0.001


def test_partners_are_kept_samples_and_follow_from_the_set_alone(ids):
    one, other = (KeptSet(order, 600).draw(MIXES[0], 32, ids, 1) for order in (ids, ids[::-1]))
    assert np.array_equal(one.partners, other.partners)
    assert np.array_equal(np.sort(one.partners), np.sort(ids))
    fewer = KeptSet(ids[:100], 600).draw(MIXES[0], 32, ids[:100], 1)
    assert np.isin(fewer.partners, ids[:100]).all()


def test_the_draws_are_those_of_the_version(ids):
    """Frozen: another value here is another MIX_VERSION."""
    cut, up = (KeptSet(np.arange(50), 50).draw(mix, 32, np.arange(4), 2) for mix in MIXES)
    assert [cut.partners.tolist(), cut.regions.tolist(), up.regions[:, 0].tolist()] == [
        [11, 0, 6, 41],
        [[0, 0, 18, 19], [21, 15, 32, 32], [0, 10, 29, 32], [6, 1, 32, 29]],
        [227, 20, 182, 118],
    ]


# Pixels, labels


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix.kind)
def test_a_mixed_batch_is_the_formula(dataset, ids, mix):
    loader = Loader(dataset, views_with(mix), mask=ids, num_workers=1)
    batch = next(loader.run([(ids[:64], 2)]))
    mixes = loader.mixes(ids[:64], 2)
    own, other = plain_images(loader, ids[:64], 2).numpy(), plain_images(loader, mixes.partners, 2).numpy()
    expected = own.copy()
    for b, region in enumerate(mixes.regions):
        if mix.kind == "cutmix":
            top, left, bottom, right = region
            expected[b, :, top:bottom, left:right] = other[b, :, top:bottom, left:right]
            assert batch.lam[b] == np.float32(1 - (bottom - top) * (right - left) / 32**2)
        else:
            mixed = (region[0] * own[b].astype(int) + (256 - region[0]) * other[b].astype(int)) / 256
            expected[b] = np.floor(mixed + 0.5)
            assert batch.lam[b] == region[0] / 256
    assert np.array_equal(batch.images.numpy(), expected)
    assert np.array_equal(batch.partner_labels, dataset.beton.labels[mixes.partners])
    assert np.array_equal(batch.labels, dataset.beton.labels[ids[:64]])
    assert int((batch.lam < 1).sum()) > 0


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix.kind)
def test_mixed_pixels_do_not_depend_on_how_they_are_loaded(dataset, ids, mix):
    options = {"num_workers": 1, "batch_size": 64}
    expected = samples(Loader(dataset, views_with(mix), mask=ids, **options).epoch(1))
    assert len(expected) == 200
    others = {"batch_size": 3, "num_workers": 3, "shuffle": True, "seed": 4}
    loader = Loader(dataset, views_with(mix), mask=ids[::-1].copy(), **others)
    assert samples(loader.epoch(1)) == expected
    rest = samples(loader.epoch(1, start_batch=20))
    assert rest == {sample_id: expected[sample_id] for sample_id in rest}
    worlds = [World(rank=rank, local_rank=rank, size=2) for rank in range(2)]
    ranks = [samples(Loader(dataset, views_with(mix), mask=ids, world=world, **options).epoch(1)) for world in worlds]
    assert ranks[0] | ranks[1] == expected


def test_views_of_jpegs_are_mixed_at_any_size(photo_jpg):
    dataset = open_dataset(photo_jpg)
    views = Views("rrc", 24, 2, mix=Mix("mixup"))
    one, many = (samples(Loader(dataset, views, batch_size=n, num_workers=1).epoch(1)) for n in (1, 12))
    assert one == many


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix.kind)
def test_data_on_the_device_give_the_loaders_mixed_batches(dataset, ids, mix):
    loader = Loader(dataset, views_with(mix), mask=ids, batch_size=48, shuffle=True, seed=3, num_workers=1)
    resident = Resident(loader)
    for epoch in (0, 2):
        assert samples(resident.epoch(epoch)) == samples(loader.epoch(epoch))
    assert next(resident.epoch(0)).lam.dtype == torch.float32


def test_a_partner_that_does_not_decode_is_named(photo_jpg, copy_of):
    dataset = open_dataset(photo_jpg)
    partner = int(KeptSet(np.arange(12), 12).draw(MIXES[0], 24, np.array([3]), 0).partners[0])
    assert partner != 3
    path = copy_of(photo_jpg, manifest=True)
    overwrite(path, {int(dataset.beton.ptrs[partner]): b"\0\0\0\0"})
    loader = Loader(open_dataset(path), Views("rrc", 24, 1, mix=MIXES[0]), num_workers=1)
    with pytest.raises(CorruptError, match=rf"sample {partner}: its JPEG does not decode"):
        list(loader.run([(np.array([3]), 0)]))


@pytest.mark.parametrize(("kind", "alpha"), [("cutout", 1.0), ("mixup", 0.0), ("cutmix", -1.0), ("mixup", math.nan)])
def test_a_mix_out_of_range_is_refused(kind, alpha):
    with pytest.raises(OptionError, match="--mix"):
        Mix(kind, alpha)


# Stores and students


def test_a_mixed_store_holds_the_logits_of_the_mixed_images(dataset, ids, stores, teacher):
    store = LogitStore(stores["fp16"])
    loader = Loader(dataset, mask=np.sort(ids), logits=store, batch_size=50, shuffle=True, num_workers=1)
    assert loader.views == views_with(MIXES[0])
    for batch in loader.epoch(1):
        assert torch.allclose(batch.logits, teacher(batch.images), rtol=0, atol=2e-3)
    plain = next(Loader(dataset, views_with(None), mask=ids, num_workers=1).run([(ids[:64], 1)]))
    assert (torch.from_numpy(store.read(ids[:64], 1)) - teacher(plain.images)).abs().max() > 0.02


def test_students_of_a_mixed_store_and_of_the_live_teacher_agree(dataset, ids, stores, teacher, tmp_path):
    recipe = Recipe(model="resnet8", epochs=2, batch_size=48, lr=0.01)
    losses = {}
    for name in ("live", *stores):
        options = {"batch_size": 48, "shuffle": True, "num_workers": 1}
        loader = Loader(dataset, views_with(MIXES[0]), mask=ids, logits=stores.get(name), **options)
        live = teacher if name == "live" else None
        train(recipe, loader, tmp_path / name, norm=NORM, inputs={}, params={}, teacher=live)
        losses[name] = [line["loss"] for line in records(tmp_path / name)]
    for codec, limit in (("fp16", 1e-3), ("int8+top4", 2e-3), ("int4+top8", 2e-2)):
        np.testing.assert_allclose(losses[codec], losses["live"], rtol=limit)


def test_the_loss_weighs_both_labels_of_each_sample(dataset, ids, tmp_path):
    recipe = Recipe(model="resnet8", epochs=1, batch_size=200, alpha=0, label_smoothing=0.1)
    loader = Loader(dataset, views_with(MIXES[1]), mask=ids, batch_size=200, num_workers=1)
    train(recipe, loader, tmp_path / "run", norm=NORM, inputs={}, params={})
    found = records(tmp_path / "run")[0]["loss"]
    torch.manual_seed(recipe.seed)
    from fastkd.models.registry import create_model

    model = create_model("resnet8", 10)
    batch: Batch = next(loader.epoch(0))
    targets = batch.lam[:, None] * F.one_hot(batch.labels, 10) + (1 - batch.lam)[:, None] * F.one_hot(
        batch.partner_labels, 10
    )
    expected = F.cross_entropy(model(NORM(batch.images)), targets, label_smoothing=0.1)
    assert found == pytest.approx(expected.item(), rel=1e-5)


def test_a_mixed_store_serves_its_own_mask_alone(dataset, ids, stores):
    with pytest.raises(MismatchError, match="mixed among all 200 samples that it holds, 50 are kept here"):
        Loader(dataset, mask=ids[:50], logits=stores["fp16"])
    with pytest.raises(
        MismatchError, match=r"made for views\.mix .*cutmix.* \(asked for none\); its own are --views .* --mix cutmix"
    ):
        Loader(dataset, views_with(None), mask=ids, logits=stores["fp16"])


def test_a_mixed_store_is_reused_for_the_same_kept_set_alone(dataset, mask, stores, teacher, tmp_path):
    views = views_with(MIXES[0], 4)
    options = {"codec": "fp16", "block_rows": 64, "num_workers": 1, "reuse": [stores["fp16"]]}
    counts = cache(tmp_path / "more.h5", dataset, teacher, views, mask=mask, **options)
    assert (counts["rows_written"], counts["rows_reused"]) == (200, 600)
    with pytest.raises(MismatchError, match="mixed among other kept samples than the new store's"):
        cache(tmp_path / "all.h5", dataset, teacher, views, **options)
    with pytest.raises(MismatchError, match="its rows are of views"):
        cache(tmp_path / "plain.h5", dataset, teacher, views_with(None), mask=mask, **options)
    assert not (tmp_path / "all.h5").exists()


@pytest.mark.parametrize("kd", ["dkd", "crd"])
def test_what_goes_by_one_label_is_refused(dataset, ids, teacher, tmp_path, kd):
    loader = Loader(dataset, views_with(MIXES[0]), mask=ids, batch_size=48, num_workers=1)
    recipe = Recipe(model="resnet8", epochs=1, batch_size=48, kd=kd, alpha=0.5)
    with pytest.raises(OptionError, match=f"--kd {kd} goes by one label"):
        train(recipe, loader, tmp_path / "run", norm=NORM, inputs={}, params={}, teacher=teacher)
    plain = Recipe(model="resnet8", epochs=1, batch_size=48, alpha=0)
    with pytest.raises(OptionError, match="--record scores samples"):
        train(plain, loader, tmp_path / "run", norm=NORM, inputs={}, params={}, record=Record(methods=("el2n",)))


def test_from_the_command_line(raw_beton, raw_mask, teacher_file, tmp_path):
    make = ("cache-logits", raw_beton, "--mask", raw_mask, "--teacher", teacher_file, "--num-seeds", 2)
    store = tmp_path / "l.h5"
    assert fastkd(*make, "--mix", "mixup", "--mix-alpha", 0.2, "--out", store, "--json").result["rows_written"] == 400
    found = fastkd("inspect", store, "--json").result
    assert found["params"]["views"]["mix"] == {"kind": "mixup", "alpha": 0.2, "version": 1}
    assert (
        found["size_bytes"]
        == fastkd("plan", raw_beton, "--mask", raw_mask, "--num-seeds", 2, "--json").result["size_bytes"]
    )
    verified = fastkd("verify", store, "--against", raw_beton, "--teacher", teacher_file, "--rows", 50, "--json").result
    assert verified["ok"]
    learn = ("train", raw_beton, "--mask", raw_mask, "--logits", store, "--model", "resnet8", "--epochs", 1)
    told = fastkd(*learn, "--out", tmp_path / "run", "--json")
    assert told.result["epochs"] == 1
    assert "crop-flip 32 with mixup 0.2" in told.err
    refused = fastkd(*learn, "--mix", "cutmix", "--out", tmp_path / "other")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "its views are mixed by mixup, alpha 0.2; leave --mix and --mix-alpha out" in refused.err
    alone = fastkd(*make, "--mix-alpha", 1, "--out", tmp_path / "x.h5")
    assert (alone.code, alone.err.strip()) == (1, "fastkd: error: --mix-alpha 1 does nothing without --mix")
    scored = fastkd("score", raw_beton, "--logits", store, "--method", "el2n", "--out", tmp_path / "s.h5")
    assert scored.code == 1
    assert "its views are mixed (mixup) and have two labels" in scored.err
