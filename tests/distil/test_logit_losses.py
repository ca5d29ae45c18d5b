"""DIST, MLLD, TTM, WTTM and standardised logits against the papers' formulas in numpy, float64; how the table has them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers.commands import fastkd
from helpers.runs import records, run
from torch import nn

from fastkd.distil.logits import dist_loss, mlld_loss, standardised, ttm_loss
from fastkd.distil.methods import LOGIT_LOSSES, METHODS
from fastkd.errors import OptionError
from fastkd.report.facts import differing, facts_of, label_of
from fastkd.teacher.network import load_teacher
from fastkd.train.learner import Learner
from fastkd.train.objective import objective
from fastkd.train.recipe import Recipe, choose_recipe
from fastkd.train.run_folder import read_run

STUDENT, TEACHER = np.random.default_rng(11).normal(0, 2, (2, 7, 5))
LABELS = torch.tensor([0, 3, 4, 1, 1, 2, 0])
WEIGHTS = np.array([0.5, 1.0, 1.5, 2.0, 0.1, 1.0, 0.9])


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def divergences(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    return (teacher * np.log(teacher / student)).sum(1)


def dist(student: np.ndarray, teacher: np.ndarray, tau: float, beta: float, weights: np.ndarray) -> float:
    own, its = softmax(student / tau), softmax(teacher / tau)
    inter = np.mean([w * (1 - np.corrcoef(a, b)[0, 1]) for w, a, b in zip(weights, own, its, strict=True)])
    intra = np.mean([1 - np.corrcoef(own[:, c], its[:, c])[0, 1] for c in range(own.shape[1])])
    return tau**2 * (inter + beta * intra)


def mlld(student: np.ndarray, teacher: np.ndarray, tau: float, beta: float, weights: np.ndarray) -> float:
    total = 0.0
    for temperature in (tau / 2, tau * 3 / 4, tau, tau * 5 / 4, tau * 3 / 2):
        own, its = softmax(student / temperature), softmax(teacher / temperature)
        total += temperature**2 * np.mean(weights * divergences(its, own))
        samples, classes = 0.0, 0.0
        for i in range(len(own)):
            for j in range(len(own)):
                samples += (own[i] @ own[j] - its[i] @ its[j]) ** 2
        for c in range(own.shape[1]):
            for d in range(own.shape[1]):
                classes += (own[:, c] @ own[:, d] - its[:, c] @ its[:, d]) ** 2
        total += beta * (samples / own.shape[0] + classes / own.shape[1])
    return total


def ttm(student: np.ndarray, teacher: np.ndarray, tau: float, beta: float, weights: np.ndarray) -> float:
    return np.mean(weights * divergences(softmax(teacher / tau), softmax(student)))


def wttm(student: np.ndarray, teacher: np.ndarray, tau: float, beta: float, weights: np.ndarray) -> float:
    powers = softmax(teacher) ** (1 / tau)
    sums = powers.sum(1)
    return np.mean(weights * sums * divergences(powers / sums[:, None], softmax(student)))


PAPERS: dict[str, Callable[..., float]] = {"dist": dist, "mlld": mlld, "ttm": ttm, "wttm": wttm}
NEW = sorted(PAPERS)


def loss_of(name: str, student: torch.Tensor, teacher: torch.Tensor, tau: float, beta: float, weights=None):
    return LOGIT_LOSSES[name].loss(student, teacher, LABELS[: len(student)], tau, beta, True, weights)


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("tau", [1.0, 4.0])
@pytest.mark.parametrize("beta", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_a_loss_is_its_papers(name, tau, beta, is_weighted):
    weights = WEIGHTS if is_weighted else np.ones(7)
    given = torch.tensor(WEIGHTS) if is_weighted else None
    found = loss_of(name, torch.tensor(STUDENT), torch.tensor(TEACHER), tau, beta, given)
    assert float(found) == pytest.approx(PAPERS[name](STUDENT, TEACHER, tau, beta, weights), rel=2e-5)


@pytest.mark.parametrize("name", NEW)
def test_its_gradient_is_the_slope_of_the_papers(name):
    student = torch.tensor(STUDENT, requires_grad=True)
    loss_of(name, student, torch.tensor(TEACHER), 4.0, 2.0).backward()
    slopes = np.zeros_like(STUDENT)
    for place in np.ndindex(*STUDENT.shape):
        step = np.zeros_like(STUDENT)
        step[place] = 1e-5
        ends = [PAPERS[name](STUDENT + sign * step, TEACHER, 4.0, 2.0, np.ones(7)) for sign in (1, -1)]
        slopes[place] = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(student.grad.numpy(), slopes, rtol=1e-3, atol=2e-5)


def test_dist_does_not_see_the_scale_of_probabilities():
    """Probabilities drawn half-way to even ones cost nothing."""
    its = softmax(TEACHER)
    own = torch.tensor(np.log((its + 1 / 5) / 2))
    assert float(dist_loss(own, torch.tensor(TEACHER), tau=1, beta=1)) == pytest.approx(0, abs=1e-5)


def test_the_weight_of_wttm_is_1_for_a_teacher_that_is_sure_and_grows_with_its_doubt():
    sure, even = torch.tensor([[60.0, 0, 0, 0]]), torch.zeros(1, 4)
    student = torch.tensor([[1.0, 0, 2, 0]])
    for teacher, expected in ((sure, 1.0), (even, 4 * (1 / 4) ** (1 / 2))):
        plain = ttm_loss(student, teacher, tau=2)
        weighted = ttm_loss(student, teacher, tau=2, by_smoothness=True)
        assert float(weighted) == pytest.approx(expected * float(plain), rel=1e-5)


@pytest.mark.parametrize("name", NEW)
def test_a_student_that_matches_costs_nothing(name):
    teacher = torch.tensor(TEACHER)
    student = teacher / 4 if name.endswith("ttm") else teacher
    assert float(loss_of(name, student, teacher, 4.0, 1.0)) == pytest.approx(0, abs=1e-5)


def test_standardised_logits_have_mean_0_and_deviation_1_whatever_their_shift_and_scale():
    expected = (STUDENT - STUDENT.mean(1, keepdims=True)) / STUDENT.std(1, keepdims=True)
    np.testing.assert_allclose(standardised(torch.tensor(STUDENT)).numpy(), expected, rtol=1e-5, atol=1e-6)
    moved = standardised(torch.tensor(7 * STUDENT - 30))
    np.testing.assert_allclose(moved.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert standardised(torch.ones(2, 5, dtype=torch.bfloat16)).tolist() == [[0.0] * 5] * 2


@pytest.mark.parametrize("name", [name for name, loss in LOGIT_LOSSES.items() if loss.standardises] + ["vid"])
def test_the_objective_standardises_what_is_distilled_alone(name):
    student, teacher, term = torch.tensor(STUDENT), torch.tensor(TEACHER), torch.tensor(3.0)
    plain, its = Recipe(model="resnet8", kd=name), Recipe(model="resnet8", kd=name, standardise_logits=True)
    _, ce, kd = objective(its, student, teacher, LABELS, term)
    _, same_ce, other_kd = objective(plain, student, teacher, LABELS, term)
    scores = standardised(student), standardised(teacher)
    assert float(kd) == float(objective(plain, *scores, LABELS, term)[2]) != float(other_kd)
    assert float(ce) == float(same_ce)


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_a_rank_without_samples_has_gradients_of_nothing_and_one_sample_has_finite_ones(name):
    for count in (0, 1):
        student = torch.tensor(STUDENT[:count], requires_grad=True)
        own, its = standardised(student), standardised(torch.tensor(TEACHER[:count]))
        loss_of(name, own, its, 4.0, 2.0).backward()
        assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_certain_networks_leave_losses_finite(name):
    student = torch.tensor([[200.0, 0, 0, 0], [0, -300, 0, 0]], requires_grad=True)
    loss = loss_of(name, student, torch.tensor([[-200.0, 0, 1, 0], [500, 0, 0, 0]]), 1.0, 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", [name for name, loss in LOGIT_LOSSES.items() if not loss.one_label])
def test_no_loss_asks_a_gpu_for_a_value(name):
    """Tensors of the device `meta` have none to give: an `item()` or a mask as an index raises."""
    student = torch.empty(8, 10, device="meta", requires_grad=True)
    loss = LOGIT_LOSSES[name].loss(student, torch.empty(8, 10, device="meta"), LABELS, 4.0, 1.0, True, None)
    loss.backward()
    assert standardised(student).shape == (8, 10)


def test_the_batch_counts_in_what_relates_samples():
    """Half batches do not average to the whole one, which is why no weights are applied there."""
    student, teacher = torch.tensor(STUDENT[:6]), torch.tensor(TEACHER[:6])
    for loss in (dist_loss, mlld_loss):
        whole = loss(student, teacher, tau=1, beta=1)
        halves = [loss(student[part], teacher[part], tau=1, beta=1) for part in (slice(3), slice(3, 6))]
        assert float(whole) != pytest.approx(float(sum(halves) / 2), rel=1e-4)
        alone = [loss(student[part], teacher[part], tau=1, beta=0) for part in (slice(3), slice(3, 6))]
        assert float(loss(student, teacher, tau=1, beta=0)) == pytest.approx(float(sum(alone) / 2), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *[({"kd": kd, "standardise_logits": True}, f"--standardise-logits: --kd {kd} ") for kd in ("mlld", "ttm", "wttm")],
        *[({"kd": kd, "tau_squared": False}, f"--no-tau-squared: --kd {kd} has no ") for kd in ("ttm", "wttm")],
        *[({"kd": kd, "beta": beta}, f"--beta {beta} is the ") for kd in ("kd", "ttm") for beta in ("2", "native")],
        *[({"kd": kd, "layers": ("layer1",)}, f"--layers layer1: --kd {kd} looks at logits") for kd in NEW],
        *[({"kd": kd, "alpha": 2.0}, "--alpha 2.0: expected 0 … 1") for kd in NEW],
    ],
)  # fmt: skip
def test_what_a_loss_does_not_have_is_refused(options, words):
    with pytest.raises(OptionError, match=words):
        choose_recipe("crop-flip", 10, model="resnet8", **options)


@pytest.mark.parametrize(("kd", "beta", "expected"), [("dist", None, 1.0), ("mlld", "native", 1.0), ("dist", "2", 2.0)])
def test_beta_weighs_what_they_add(kd, beta, expected):
    assert choose_recipe("crop-flip", 10, model="resnet8", kd=kd, beta=beta).beta == expected


def test_runs_of_before_stay_the_same_runs_and_those_of_another_formula_do_not():
    """What run.json says of a recipe has a new word only where the word says something new."""
    assert "standardise_logits" not in Recipe(model="resnet8").describe()
    assert Recipe(model="resnet8", standardise_logits=True).describe()["standardise_logits"] is True
    versions = {name: Recipe(model="resnet8", kd=name).describe().get("kd_version") for name in METHODS}
    assert versions == dict.fromkeys(METHODS) | {"ab": 2}


@pytest.mark.parametrize(
    ("kd", "student", "expected"),
    [
        ("vid", (16, 8, 8), None),
        ("vid", (16, 4, 4), None),
        ("vid", (16, 16, 16), 2),
        ("vid", (16, 4, 16), 2),
        ("hint", (16, 16, 16), None),
        ("ab", (16, 8, 8), 2),
    ],
)
def test_vid_of_a_student_with_larger_maps_is_another_run_than_before(kd, student, expected):
    """Its maps are averaged down before they are regressed, and were after; all others of its runs go on."""
    shapes = [(8, 8, 8), student], [(16, 8, 8), (16, 8, 8)]
    method = METHODS[kd].make(*shapes, None)
    assert Learner(nn.Identity(), method).described(Recipe(model="resnet8", kd=kd)).get("kd_version") == expected


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_a_store_serves_every_loss_on_logits_as_the_live_teacher_does(
    name, dataset, mask, teacher_store, teacher_file, tmp_path
):
    recipe = {
        "kd": name,
        "alpha": 0.4,
        "epochs": 1,
        "batch_size": 100,
        "standardise_logits": LOGIT_LOSSES[name].standardises,
    }
    run(tmp_path / "store", dataset, mask, logits=teacher_store, **recipe)
    run(tmp_path / "live", dataset, mask, options={"teacher": load_teacher(str(teacher_file))}, **recipe)
    stored, live = (records(tmp_path / source, "step") for source in ("store", "live"))
    assert len(stored) == 2
    for own, its in zip(stored, live, strict=True):
        assert own["loss"] == pytest.approx(0.6 * own["ce"] + 0.4 * own["kd"], rel=1e-5)
        assert own["kd"] == pytest.approx(its["kd"], rel=1e-3)


def test_the_command_says_which_loss_it_trains_with_and_so_does_the_report(
    raw_beton, raw_mask, teacher_store, tmp_path
):
    common = ["--mask", raw_mask, "--logits", teacher_store, "--model", "resnet8", "--epochs", 1, "--batch-size", 200]
    asked = {
        "dist": (["--kd", "dist", "--standardise-logits"], "alpha 0.5, beta 1, tau 4, DIST times tau², standardised logits from"),
        "wttm": (["--kd", "wttm"], "alpha 0.5, tau 4, WTTM logits from"),
        "kd": ([], "alpha 0.5, tau 4, KD times tau², logits from"),
    }  # fmt: skip
    facts = {}
    for name, (options, words) in asked.items():
        outcome = fastkd("train", raw_beton, *common, *options, "--device", "cpu", "--out", tmp_path / name)
        assert outcome.code == 0, outcome.err
        assert words in outcome.err
        facts[name] = facts_of(read_run(tmp_path / name))
    names = differing(list(facts.values()))
    labels = {name: label_of(one, list(facts.values()), names) for name, one in facts.items()}
    assert labels["dist"].startswith("DIST α=0.5 τ=4 (store)")
    assert "standardise_logits true" in labels["dist"]
    assert labels["wttm"] == "WTTM α=0.5 τ=4 (store)"
    assert labels["kd"] == "KD α=0.5 τ=4 (store)"


def test_standardised_logits_of_no_teacher_are_refused(raw_beton, tmp_path):
    options = ("--alpha", 0, "--standardise-logits", "--model", "resnet8", "--device", "cpu", "--out", tmp_path / "run")
    outcome = fastkd("train", raw_beton, *options)
    assert outcome.code == 1
    assert "--standardise-logits does nothing without --logits or --teacher" in outcome.err
