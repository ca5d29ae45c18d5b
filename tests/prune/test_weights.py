"""Weights of kept samples: how they are made, kept in masks, carried from mask to mask, and what they do to the loss."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers.commands import fastkd
from helpers.damage import flip_bits_apart
from helpers.ranks import start_ranks, wait_for
from helpers.runs import step_losses
from helpers.stores import make_store, random_logits
from torch.nn import functional as F

from fastkd.artefact import write_artefact
from fastkd.data.beton.dataset import open_dataset
from fastkd.data.beton.read import identify, open_beton
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.distil.logits import dkd_loss, kd_loss
from fastkd.errors import FormatError
from fastkd.feed.loader import Loader
from fastkd.feed.resident import Resident
from fastkd.models.norm import Norm
from fastkd.prune.masks.mask import Mask, save_mask
from fastkd.prune.masks.weights import carried_weights, class_weights
from fastkd.prune.scores.score_file import save_scores
from fastkd.store.logit_store import LogitStore
from fastkd.train.objective import objective
from fastkd.train.recipe import Recipe
from fastkd.train.student import train

VIEWS = Views("crop-flip", 32, 3)
LABELS = np.repeat([0, 1, 2], [6, 30, 64])
KEPT = np.r_[0:6, 10:20, 40:44]  # 6 of 6, 10 of 30, 4 of 64


def test_by_inverse_class_every_class_weighs_the_same():
    weights = class_weights("inverse-class", LABELS, KEPT)
    assert weights.dtype == np.float32
    assert weights.mean() == pytest.approx(1)
    np.testing.assert_allclose(np.bincount(LABELS[KEPT], weights), 20 / 3, rtol=1e-6)


def test_by_inverse_rate_every_class_weighs_what_it_does_in_all_samples():
    weights = class_weights("inverse-rate", LABELS, KEPT)
    assert weights.mean() == pytest.approx(1)
    np.testing.assert_allclose(np.bincount(LABELS[KEPT], weights) / 20, [0.06, 0.3, 0.64], rtol=1e-6)


def test_classes_of_which_nothing_is_kept_weigh_nothing():
    for kind in ("inverse-class", "inverse-rate"):
        assert class_weights(kind, LABELS, np.arange(40, 50)).tolist() == [1] * 10


def test_samples_keep_the_weight_of_the_first_mask_that_keeps_them():
    a, b = (np.array([3, 1]), np.float32([2, 4])), (np.array([1, 5]), np.float32([8, 16]))
    ids = np.array([3, 1, 5])
    assert carried_weights(ids, [a, b], 9).tolist() == [2, 4, 16]
    assert carried_weights(ids, [(a[0], None), b], 9).tolist() == [1, 1, 16]
    assert carried_weights(ids, [a, (b[0], None)], 9).tolist() == [2, 4, 1]
    assert carried_weights(ids, [(a[0], None), (b[0], None)], 9) is None


def write(path: Path, weights: list[float] | np.ndarray | None, ids: tuple[int, ...] = (7, 3, 49)) -> Mask:
    weights = None if weights is None else np.array(weights)
    return save_mask(
        path, np.array(ids), num_samples=50, beton_fingerprint="a" * 32, params={"method": "x"}, weights=weights
    )


def test_weights_read_back_and_are_readable_with_plain_h5py(tmp_path):
    written = write(tmp_path / "m.h5", [0.5, 2, 1e-3])
    read = Mask.load(tmp_path / "m.h5")
    assert read.weights.dtype == np.float32
    assert read.weights.tolist() == written.weights.tolist() == np.float32([0.5, 2, 1e-3]).tolist()
    assert read.header == written.header
    with h5py.File(tmp_path / "m.h5") as file:
        assert file["weights"][...].tolist() == read.weights.tolist()


def test_masks_without_weights_are_the_files_that_they_were(tmp_path):
    write(tmp_path / "m.h5", None)
    with h5py.File(tmp_path / "m.h5") as file:
        assert list(file) == ["sample_ids"]
        assert file.attrs["format_version"] == 1
    assert Mask.load(tmp_path / "m.h5").header.fingerprint == "3b238a7ee861bca2a6f5bdb80bfc9d98"
    assert Mask.load(tmp_path / "m.h5").weights is None


def test_other_weights_are_another_mask(tmp_path):
    masks = [write(tmp_path / f"{i}.h5", weights) for i, weights in enumerate((None, [1, 1, 1], [1, 1, 2]))]
    assert len({mask.header.fingerprint for mask in masks}) == 3


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1, 2], "2 weights for 3 samples"),
        ([1, np.nan, 1], "1 of 3 weights are not positive numbers: sample 3 has nan"),
        ([1, 0, -1], "2 of 3 weights are not positive numbers: sample 3 has 0.0"),
        ([1, 1, np.inf], "sample 49 has inf"),
    ],
)
def test_what_cannot_be_weights_is_refused_where_it_is_written_and_where_it_is_read(weights, words, tmp_path):
    with pytest.raises(FormatError, match=words):
        write(tmp_path / "m.h5", weights)
    assert not (tmp_path / "m.h5").exists()
    arrays = {"sample_ids": np.array([7, 3, 49]), "weights": np.float32(weights)}
    write_artefact(
        tmp_path / "m.h5", kind="mask", format_version=2, inputs={}, params={"num_samples": 50}, arrays=arrays
    )
    for command in ("inspect", "verify"):
        outcome = fastkd(command, tmp_path / "m.h5")
        assert outcome.code == 1
        assert words in outcome.out + outcome.err


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    write(tmp_path / "m.h5", np.linspace(0.1, 2, 20), tuple(range(20)))
    outcomes = flip_bits_apart(tmp_path / "m.h5", "mask", 600)
    assert not outcomes["wrong"]
    assert outcomes["refused"]


def pruned(beton: Path, out: Path, *arguments: object) -> Mask:
    outcome = fastkd("prune", beton, "--out", out, *arguments)
    assert outcome.code == 0, outcome.err
    return Mask.load(out)


def test_prune_weighs_classes_and_inspect_shows_it(raw_beton, tmp_path):
    random = pruned(raw_beton, tmp_path / "r.h5", "--keep", 200, "--balance", "none")
    mask = pruned(raw_beton, tmp_path / "m.h5", "--keep", 200, "--balance", "none", "--weights", "inverse-class")
    assert mask.sample_ids.tolist() == random.sample_ids.tolist()
    labels = open_beton(raw_beton).labels
    assert mask.weights.tolist() == class_weights("inverse-class", labels, mask.sample_ids).tolist()
    assert mask.header.params["weights"] == "inverse-class"
    found = fastkd("inspect", tmp_path / "m.h5", "--beton", raw_beton, "--json").result
    assert found["weights"]["mean"] == pytest.approx(1)
    assert found["weights"]["min"] < 1 < found["weights"]["max"]
    assert [of["weight_percent"] for of in found["class_counts"].values()] == pytest.approx([10] * 10)
    assert "10.00 % of the weight" in fastkd("inspect", tmp_path / "m.h5", "--beton", raw_beton).out


def test_weights_come_from_npy_csv_and_score_files(raw_beton, tmp_path):
    values = np.random.default_rng(0).uniform(0.5, 3, 600)
    names = json.loads(raw_beton.with_name(raw_beton.name + ".json").read_text())["names"]
    np.save(tmp_path / "w.npy", values)
    order = np.random.default_rng(1).permutation(600)
    lines = ["filename,weight", *(f"{names[i]},{float(values[i])!r}" for i in order.tolist())]
    (tmp_path / "w.csv").write_text("\n".join(lines))
    digest = identify(open_beton(raw_beton))[0]
    direction = {"w": {"direction": "weights", "policies": {}}}
    save_scores(tmp_path / "w.h5", {"w": values}, direction, beton_fingerprint=digest)
    for name in ("w.npy", "w.csv", "w.h5"):
        mask = pruned(raw_beton, tmp_path / f"{name}.mask", "--keep", 100, "--weights", tmp_path / name)
        assert mask.weights.tolist() == values[mask.sample_ids].astype(np.float32).tolist(), name


def test_set_operations_carry_weights(raw_beton, tmp_path):
    np.save(tmp_path / "w.npy", np.arange(1, 601.0))
    one = pruned(raw_beton, tmp_path / "1.h5", "--keep", 200, "--weights", tmp_path / "w.npy")
    two = pruned(raw_beton, tmp_path / "2.h5", "--keep", 200, "--seed", 1, "--weights", "inverse-class")
    both = ("--mask", tmp_path / "1.h5", "--mask", tmp_path / "2.h5")
    own = dict(zip(one.sample_ids.tolist(), one.weights.tolist(), strict=True))
    its = dict(zip(two.sample_ids.tolist(), two.weights.tolist(), strict=True))
    for method in ("union", "intersection", "difference"):
        mask = pruned(raw_beton, tmp_path / f"{method}.h5", "--method", method, *both)
        assert mask.weights.tolist() == [own.get(i, its.get(i)) for i in mask.sample_ids.tolist()]
        shorter = pruned(raw_beton, tmp_path / f"{method}-30.h5", "--method", method, *both, "--keep", 30)
        assert shorter.weights.tolist() == mask.weights[:30].tolist()
        assert (
            pruned(raw_beton, tmp_path / f"{method}-none.h5", "--method", method, *both, "--weights", "none").weights
            is None
        )
    assert pruned(raw_beton, tmp_path / "c.h5", "--method", "complement", "--mask", tmp_path / "1.h5").weights is None


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("nowhere.npy", "nowhere.npy: neither inverse-class, inverse-rate or none, nor a file that is there"),
        ("short.npy", "599 scores without file names"),
        ("nan.npy", "1 of 600 scores are NaN"),
        ("negative.npy", "60 of 60 weights are not positive numbers"),
        ("two.h5", "holds a, b, expected a file of one score"),
    ],
)
def test_weights_that_make_no_sense_are_one_line(what, words, raw_beton, tmp_path):
    np.save(tmp_path / "short.npy", np.ones(599))
    np.save(tmp_path / "nan.npy", np.r_[np.nan, np.ones(599)])
    np.save(tmp_path / "negative.npy", -np.ones(600))
    direction = {key: {"direction": "weights", "policies": {}} for key in "ab"}
    digest = identify(open_beton(raw_beton))[0]
    save_scores(tmp_path / "two.h5", dict.fromkeys("ab", np.ones(600)), direction, beton_fingerprint=digest)
    outcome = fastkd("prune", raw_beton, "--keep", 0.1, "--weights", tmp_path / what, "--out", tmp_path / "m.h5")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1), outcome.err
    assert words in outcome.err
    assert not (tmp_path / "m.h5").exists()


def test_the_loss_is_the_mean_of_weighted_losses_of_the_samples():
    student, teacher = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0))
    labels, weights = torch.tensor([3, 0, 9, 3, 5, 1]), torch.tensor([0.5, 2, 1, 4, 0.1, 1])
    one = [slice(i, i + 1) for i in range(6)]
    for kd, beta in (("kd", 1.0), ("dkd", 8.0)):
        recipe = Recipe(model="resnet8", kd=kd, alpha=0.3, beta=beta, label_smoothing=0.1)
        whole, ce, _ = objective(recipe, student, teacher, labels, torch.zeros(()), weights)
        each = [objective(recipe, student[i], teacher[i], labels[i], torch.zeros(()))[0] for i in one]
        torch.testing.assert_close(whole, (torch.stack(each) * weights).mean())
    expected = F.cross_entropy(student, labels, label_smoothing=0.1, reduction="none") * weights
    torch.testing.assert_close(ce, expected.mean())
    for loss in (kd_loss, lambda s, t, **options: dkd_loss(s, t, labels, beta=8, **options)):
        assert loss(student, teacher, tau=4, weights=torch.ones(6)) == loss(student, teacher, tau=4)


@pytest.fixture(scope="module")
def weighted(raw_beton, tmp_path_factory) -> Path:
    """A mask of 300 samples with weights from 0.2 to 3."""
    folder = tmp_path_factory.mktemp("weighted")
    np.save(folder / "w.npy", np.random.default_rng(2).uniform(0.2, 3, 600))
    pruned(raw_beton, folder / "m.h5", "--keep", 300, "--weights", folder / "w.npy")
    return folder / "m.h5"


def test_batches_have_the_weights_of_their_samples(raw_beton, weighted):
    mask = Mask.load(weighted)
    own = dict(zip(mask.sample_ids.tolist(), mask.weights.tolist(), strict=True))
    loader = Loader(raw_beton, VIEWS, mask=weighted, batch_size=70, shuffle=True, num_workers=1)
    for batches in (loader, Resident(loader)):
        for batch in batches.epoch(1):
            assert batch.copy().weights.tolist() == [own[i] for i in batch.sample_ids.tolist()]
    assert next(Loader(raw_beton, VIEWS, mask=mask.sample_ids, num_workers=1).epoch(0)).weights is None


def test_two_ranks_with_their_data_on_the_device_are_one_process(raw_beton, weighted, tmp_path):
    mask, dataset = Mask.load(weighted), open_dataset(raw_beton)
    path = make_store(tmp_path / "l.h5", random_logits(3, 300, 10), mask.sample_ids, dataset=dataset, views=VIEWS)

    def train_as(world: World, out: Path, batch_size: int, is_resident: bool, **recipe: object) -> None:
        own = Recipe(model="resnet8", epochs=2, batch_size=batch_size, lr=0.001, **recipe)
        store = LogitStore(path)
        common = {"shuffle": True, "num_workers": 1, "world": world}
        loader = Loader(dataset, VIEWS, mask=mask, logits=store, batch_size=batch_size, **common)
        norm = Norm((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        batches = Resident(loader, store) if is_resident else loader
        train(own, batches, out, norm=norm, inputs={}, params={}, world=world)

    train_as(World(), tmp_path / "one", 128, False)
    pids = start_ranks(2, tmp_path / "meet", lambda world: train_as(world, tmp_path / "two", 64, True, sync_bn=True))
    assert wait_for(pids) == [0, 0]
    one, two = step_losses(tmp_path / "one"), step_losses(tmp_path / "two")
    assert len(one) == len(two) == 6  # every third of a batch that is not full
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)


def test_train_uses_the_weights_says_so_and_leaves_them_out_where_asked(raw_beton, weighted, tmp_path):
    flags = ["--alpha", 0, "--model", "resnet8", "--epochs", 1, "--device", "cpu", "--num-workers", 1, "--lr", 0.01]
    mask = Mask.load(weighted)
    digest = identify(open_beton(raw_beton))[0]
    save_mask(tmp_path / "p.h5", mask.sample_ids, num_samples=600, beton_fingerprint=digest, params={})
    found = {}
    for name, path, more in (
        ("weighted", weighted, []),
        ("left out", weighted, ["--no-mask-weights"]),
        ("plain", tmp_path / "p.h5", []),
    ):
        out = tmp_path / name
        outcome = fastkd("train", raw_beton, "--mask", path, *flags, *more, "--out", out)
        assert outcome.code == 0, outcome.err
        params = json.loads((out / "run.json").read_text())["params"]
        found[name] = step_losses(out)
        assert ("weights" in params) == (name == "weighted")
        assert params["recipe"]["mask_weights"] == (name != "left out")
        assert ("CE and KD of each sample times its weight" in outcome.err) == (name == "weighted")
        assert ("left out of the loss" in outcome.err) == (name == "left out")
    assert found["left out"] == found["plain"] != found["weighted"]
