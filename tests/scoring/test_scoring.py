import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.commands import assert_one_clear_line, fastkd, fastkd_in_ranks
from helpers.stores import make_store, random_logits, save_teacher

from fastkd.data.views.draw import Views
from fastkd.feed.loader import Loader
from fastkd.models.checkpoint import load_model
from fastkd.prune.scores.features import load_features
from fastkd.prune.scores.formulas import row_statistics
from fastkd.prune.scores.score_file import load_scores
from fastkd.prune.select.centres import class_centre_distances
from fastkd.scoring.networks import gradient_norms
from fastkd.teacher.network import load_teacher

CPU = ("--device", "cpu", "--num-workers", 1)
METHODS = ("el2n", "grand", "margin", "entropy", "confidence", "moderate")


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scoring")
    return [save_teacher(folder / f"{seed}.safetensors", seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def whole(dataset):
    """All images as the networks take them, and their labels."""
    batches = [batch.copy() for batch in Loader(dataset, Views("center", 32), batch_size=200, num_workers=1).epoch(0)]
    images = torch.cat([batch.images for batch in batches])
    return (images.float() / 255 - 0.5) / 0.25, torch.cat([batch.labels for batch in batches])


@pytest.fixture(scope="module")
def scored(raw_beton, networks, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scoring") / "s.h5"
    flags = [part for name in METHODS for part in ("--method", name)]
    flags += [part for path in networks for part in ("--model", path)]
    outcome = fastkd("score", raw_beton, *flags, *CPU, "--out", out, "--features-out", out.with_name("f.h5"), "--json")
    assert outcome.result["undefined"] == dict.fromkeys(METHODS, 0)
    return out


def forward(path: Path, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Logits and features, the plain way."""
    model, _ = load_model(path)
    features = []
    model.fc.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.no_grad():
        return model(images).double().numpy(), features[0].double().numpy()


def test_scores_are_the_means_over_networks_of_what_plain_numpy_gives(scored, networks, whole, dataset):
    images, labels = whole
    y, rows = labels.numpy(), np.arange(600)
    expected = {name: np.zeros(600) for name in METHODS}
    for path in networks:
        logits, features = forward(path, images)
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        others = p.copy()
        others[rows, y] = -1
        el2n = np.linalg.norm(p - np.eye(10)[y], axis=1)
        expected["el2n"] += el2n / 2
        expected["grand"] += el2n * np.sqrt(1 + np.square(features).sum(axis=1)) / 2
        expected["margin"] += (others.max(axis=1) - p[rows, y]) / 2
        expected["entropy"] += -(p * np.log(p)).sum(axis=1) / 2
        expected["confidence"] += (1 - p[rows, y]) / 2
        expected["moderate"] += class_centre_distances(features.astype(np.float32), y) / 2
    found = load_scores(scored)
    for name in METHODS:
        np.testing.assert_allclose(found.values[name], expected[name], rtol=2e-4, atol=2e-5, err_msg=name)
    assert found.header.inputs["beton"] == dataset.fingerprint
    assert len(found.header.inputs) == 3


def test_the_features_are_those_of_the_last_network(scored, networks, whole, dataset):
    features, header = load_features(scored.with_name("f.h5"), dataset.fingerprint, "x", 600)
    np.testing.assert_allclose(features, forward(networks[1], whole[0])[1], atol=1e-4)
    assert header.inputs["model"] == load_teacher(str(networks[1])).fingerprint


def autograd_norms(path: Path, images: torch.Tensor, labels: torch.Tensor, last: bool) -> np.ndarray:
    """A backward for each sample alone."""
    model, _ = load_model(path)
    params = list((model.fc if last else model).parameters())
    found = []
    for image, label in zip(images, labels, strict=True):
        loss = F.cross_entropy(model(image[None]), label[None])
        grads = torch.autograd.grad(loss, params)
        found.append(torch.cat([g.reshape(-1).double() for g in grads]).norm().item())
    return np.array(found)


def test_grand_in_closed_form_equals_autograd_on_a_cifar_resnet(networks, raw_beton, whole, tmp_path):
    flags = ["--method", "grand", "--model", networks[0], *CPU]
    assert fastkd("score", raw_beton, *flags, "--out", tmp_path / "s.h5").code == 0
    images, labels = whole
    some = torch.arange(0, 600, 20)
    found = load_scores(tmp_path / "s.h5").values["grand"][some.numpy()]
    np.testing.assert_allclose(found, autograd_norms(networks[0], images[some], labels[some], last=True), rtol=1e-5)


def test_exact_gradients_equal_autograd_sample_by_sample(networks, whole):
    images, labels = whole
    some = torch.arange(0, 600, 40)
    model, _ = load_model(networks[0])
    found = gradient_norms(model, images[some], labels[some]).numpy()
    np.testing.assert_allclose(found, autograd_norms(networks[0], images[some], labels[some], last=False), rtol=1e-5)


def test_grand_does_not_depend_on_the_batch_but_deepcores_does(networks, raw_beton, tmp_path):
    def grand(*flags: object) -> np.ndarray:
        out = tmp_path / f"{'-'.join(map(str, flags))}.h5"
        arguments = ["--method", "grand", "--model", networks[0], *CPU, "--out", out, *flags]
        assert fastkd("score", raw_beton, *arguments).code == 0
        return load_scores(out).values["grand"].astype(float)

    whole_batches, ragged = grand("--batch-size", 200), grand("--batch-size", 256)
    np.testing.assert_allclose(ragged, whole_batches, rtol=1e-5)
    deepcore = grand("--batch-size", 256, "--compat", "deepcore")
    np.testing.assert_allclose(deepcore[:512] * 256, ragged[:512], rtol=1e-5)
    np.testing.assert_allclose(deepcore[512:] * 88, ragged[512:], rtol=1e-5)
    np.testing.assert_array_equal(grand("--compat", "deepcore"), deepcore)


def test_deepcores_scores_of_another_batch_are_other_scores(networks, raw_beton, tmp_path):
    common = ["--method", "grand", "--model", networks[0], *CPU, "--compat", "deepcore", "--out", tmp_path / "s.h5"]
    assert fastkd("score", raw_beton, *common).code == 0
    again = fastkd("score", raw_beton, *common, "--batch-size", 250)
    assert_one_clear_line(again, "batch_size")


def test_two_ranks_score_as_one_does(raw_beton, networks, scored, tmp_path):
    flags = [part for name in METHODS for part in ("--method", name)]
    flags += [part for path in networks for part in ("--model", path)]
    outcomes = fastkd_in_ranks(2, "score", raw_beton, *flags, *CPU, "--out", tmp_path / "s.h5")
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    one, two = load_scores(scored), load_scores(tmp_path / "s.h5")
    for name in METHODS:
        np.testing.assert_allclose(two.values[name], one.values[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def store(dataset, tmp_path_factory) -> tuple[Path, np.ndarray, np.ndarray]:
    ids = np.random.default_rng(2).permutation(600)[:100]
    logits = random_logits(3, 100, 10)
    path = tmp_path_factory.mktemp("scoring") / "l.h5"
    return make_store(path, logits, ids, dataset=dataset), logits, ids


def test_scores_from_a_store_need_no_network(raw_beton, store, dataset, tmp_path):
    path, logits, ids = store
    names = ("el2n", "margin", "entropy", "confidence", "variance")
    flags = [part for name in names for part in ("--method", name)]
    outcome = fastkd("score", raw_beton, *flags, "--logits", path, *CPU, "--out", tmp_path / "s.h5", "--json")
    assert outcome.result["undefined"] == dict.fromkeys(names, 500)
    labels = dataset.beton.labels[ids]
    views = np.stack([row_statistics(view, labels) for view in logits])
    el2n, margin, entropy, probability = views.mean(axis=0)[:, :4].T
    expected = {"el2n": el2n, "margin": -margin, "entropy": entropy, "confidence": 1 - probability}
    expected["variance"] = views[:, :, 3].var(axis=0, ddof=1)
    found = load_scores(tmp_path / "s.h5")
    for name in names:
        np.testing.assert_allclose(found.values[name][ids], expected[name], rtol=1e-5, atol=1e-7, err_msg=name)
        assert np.isnan(np.delete(found.values[name], ids)).all()


@pytest.fixture(scope="module")
def memorized(raw_beton, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("memorization") / "s.h5"
    return out, memorize(raw_beton, out, 4).result


def memorize(beton: Path, out: Path, num_models: int, *more: object):
    flags = ["--method", "memorization", "--num-models", num_models, "--epochs", 1, "--min-count", 1, *CPU, "--json"]
    return fastkd("score", beton, *flags, "--out", out, *more)


def test_memorization_is_undefined_where_no_network_was_trained_without_a_sample(memorized):
    values = load_scores(memorized[0]).values["memorization"]
    undefined = np.isnan(values)
    assert memorized[1]["undefined"]["memorization"] == undefined.sum()
    # all four or none of four networks on seven tenths each: .7**4 + .3**4 = 25 %
    assert 0.15 < undefined.mean() < 0.35
    assert (np.abs(values[~undefined]) <= 1).all()


def test_memorization_goes_on_with_the_networks_that_are_there(memorized, raw_beton, tmp_path, monkeypatch):
    monkeypatch.setattr("fastkd.train.memorization._read_trial", interrupted_at(3))
    assert memorize(raw_beton, tmp_path / "s.h5", 4).code != 0
    monkeypatch.undo()
    assert len(list((tmp_path / "s.h5.networks").glob("*.h5"))) == 3
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "s.h5.networks").glob("*.h5")}
    result = memorize(raw_beton, tmp_path / "s.h5", 4).result
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "s.h5.networks").glob("*.h5")}
    assert before.items() < after.items()
    assert result["fingerprint"] == memorized[1]["fingerprint"]


def interrupted_at(number: int):
    from fastkd.train.memorization import _read_trial

    calls = []

    def read(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            raise KeyboardInterrupt
        return _read_trial(*arguments)

    return read


def test_networks_of_another_call_are_refused(memorized, raw_beton):
    outcome = memorize(raw_beton, memorized[0], 4, "--subset", 0.5)
    assert outcome.code == 1
    assert "another scores is there; it differs in methods.memorization.policies.subset" in outcome.err
    outcome = memorize(raw_beton, memorized[0], 4, "--subset", 0.5, "--force")
    assert outcome.code == 1
    assert "a network of another subset" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "el2n"], "--method el2n needs --model or --logits"),
        (["--method", "variance", "--model", "N"], "--method variance is over the views of a store"),
        (["--method", "grand", "--logits", "L"], "--method grand needs the network"),
        (["--method", "el2n", "--logits", "L", "--model", "N"], "--model and --logits are both given"),
        (["--method", "el2n", "--logits", "L", "--norm", "none"], "--norm does nothing for scores from store"),
        (["--method", "el2n", "--model", "N", "--compat", "deepcore"], "--compat does nothing without --method grand"),
        (["--method", "el2n", "--model", "N", "--epochs", 3], "--epochs does nothing for scores from networks"),
        (["--method", "el2n", "--method", "memorization"], "no other --method"),
        (["--method", "memorization"], "needs --num-models"),
        (["--method", "el2n", "--model", "T"], "few.safetensors has 3"),
        (["--method", "el2n", "--model", "nowhere.pt"], "nowhere.pt: no such file"),
        (["--method", "el2n", "--logits", "N"], "not an HDF5 file"),
    ],
)
def test_what_cannot_be_scored_is_one_line(arguments, words, raw_beton, networks, store, tmp_path):
    few = save_teacher(tmp_path / "few.safetensors", num_classes=3)
    files = {"N": networks[0], "L": store[0], "T": few}
    out = tmp_path / "s.h5"
    outcome = fastkd("score", raw_beton, *[files.get(a, a) for a in arguments], *CPU, "--out", out)
    assert outcome.code == 1
    assert words in outcome.err
    assert len([line for line in outcome.err.splitlines() if line.startswith("fastkd: error")]) == 1
    assert not out.exists()


@pytest.mark.parametrize(("option", "value"), [("--num-models", 1), ("--subset", 1.0), ("--epochs", 0)])
def test_a_number_outside_its_range_is_a_usage_error(option, value, raw_beton, tmp_path):
    flags = ["--method", "memorization", "--num-models", 3, option, value]
    outcome = fastkd("score", raw_beton, *flags, "--out", tmp_path / "s.h5")
    assert outcome.code == 2
    assert f"Invalid value for '{option}'" in outcome.err


def test_a_store_of_other_views_of_another_beton_is_refused(photo_raw, store, tmp_path):
    outcome = fastkd("score", photo_raw, "--method", "el2n", "--logits", store[0], *CPU, "--out", tmp_path / "s.h5")
    assert outcome.code == 1
    assert "made for another beton" in outcome.err


def test_logits_that_are_not_numbers_are_refused(raw_beton, networks, tmp_path):
    model, _ = load_model(networks[0])
    with torch.no_grad():
        model.fc.weight[3] = 3e38  # finite, as the logits are not
    torch.save(model.state_dict(), tmp_path / "bad.pt")
    flags = ["--model", tmp_path / "bad.pt", "--model-name", "resnet8", "--norm", "none", *CPU]
    outcome = fastkd("score", raw_beton, "--method", "el2n", *flags, "--out", tmp_path / "s.h5")
    assert outcome.code == 1
    assert "its logits of sample 0 are not finite" in outcome.err


def test_the_result_says_what_was_written(scored):
    attributes = json.dumps(load_scores(scored).methods)
    assert "high = hard" in attributes
    assert '"num_networks": 2' in attributes
