import numpy as np
import pytest

from fastkd.errors import OptionError
from fastkd.train.parts.schedule import Rates
from fastkd.train.recipe import Recipe, choose_alpha, choose_recipe


def alpha_of(fraction: float, rule: str | None = None, alpha: str | None = "auto", kd: str = "kd") -> float:
    return choose_alpha(alpha, rule, fraction=fraction, kd=kd, has_teacher=True)


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.01, 1.0), (0.1, 1.0), (0.25, 0.875), (0.4, 0.75), (0.55, 0.625), (0.7, 0.5), (0.9, 0.5), (1.0, 0.5)],
)
def test_auto_follows_the_papers_optima(fraction, expected):
    assert alpha_of(fraction) == pytest.approx(expected)


def test_auto_never_rises_with_the_kept_fraction():
    values = [alpha_of(fraction) for fraction in np.linspace(0.001, 1, 200)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("rule", "fraction", "expected"),
    [("0.5:0.9", 0.1, 0.9), ("0.5:0.9", 0.8, 0.9), ("0:1,0.5:0.2,1:0.4", 0.75, 0.3), ("0:1,1:0", 0.25, 0.75)],
)
def test_a_rule_of_ones_own_overrides_it(rule, fraction, expected):
    assert alpha_of(fraction, rule) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("0.1", "'0.1' is no pair"),
        ("", "'' is no pair"),
        ("a:b", "'a': expected pairs"),
        ("0.5:1,0.5:0", "must increase"),
        ("0.5:1,0.2:0", "must increase"),
        ("0.5:1.5", "lie in 0 … 1"),
        ("nan:1", "lie in 0 … 1"),
        ("-1:1", "lie in 0 … 1"),
    ],
)
def test_a_malformed_rule_is_one_clear_line(rule, words):
    with pytest.raises(OptionError, match=f"^--alpha-rule .*{words}"):
        alpha_of(0.3, rule)


@pytest.mark.parametrize(
    ("kd", "has_teacher", "expected"), [("kd", True, 0.5), ("dkd", True, 0.5), ("vid", True, 1.0), ("kd", False, 0.0)]
)
def test_alpha_left_out_suits_the_loss(kd, has_teacher, expected):
    assert choose_alpha(None, None, fraction=0.1, kd=kd, has_teacher=has_teacher) == expected


@pytest.mark.parametrize(
    ("kd", "beta", "expected"),
    [
        ("vid", None, 1.0),
        ("at", None, 1.0),
        ("at", "native", 1000.0),
        ("at", "3", 3.0),
        ("dkd", None, 8.0),
        ("dkd", "2", 2.0),
    ],
)
def test_beta_is_the_papers_one_unless_told_otherwise(kd, beta, expected):
    assert choose_recipe("crop-flip", 10, model="resnet8", kd=kd, beta=beta).beta == expected


def test_the_paper_kd_row_of_table_1_can_be_asked_for():
    recipe = choose_recipe("crop-flip", 10, model="resnet8", kd="vid", alpha=2.0, beta="0")
    assert (recipe.alpha, recipe.beta) == (2.0, 0.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_smoothing": 1.0}, "--label-smoothing 1.0: expected 0 <= smoothing < 1"),
        ({"label_smoothing": -0.1}, "--label-smoothing -0.1"),
        ({"beta": "nan", "kd": "vid"}, "--beta nan: expected 0 … 1,000,000"),
        ({"kd": "vid", "alpha": -1.0}, "--alpha -1.0: expected 0 … 1,000,000"),
        ({"kd": "attention"}, "--kd attention: expected one of kd, dkd"),
        ({"kd": "attention", "beta": "native"}, "--kd attention: expected one of kd, dkd"),
    ],
)
def test_values_out_of_range_name_the_option(options, words):
    with pytest.raises(OptionError, match=words):
        choose_recipe("crop-flip", 10, model="resnet8", **options)


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (240, [0.05] * 150 + [0.005] * 30 + [0.0005] * 30 + [0.00005] * 30),
        (15, [0.05] * 9 + [0.005] * 2 + [0.0005] * 2 + [0.00005] * 2),
    ],
)
def test_the_milestones_move_with_the_number_of_epochs(epochs, expected):
    recipe = Recipe(model="resnet8", epochs=epochs)
    assert [Rates(recipe, 1)(epoch) for epoch in range(epochs)] == pytest.approx(expected)


def test_a_cosine_falls_from_the_initial_rate_towards_zero():
    recipe = Recipe(model="resnet8", epochs=100, schedule="cosine", lr=0.1)
    rates = [Rates(recipe, 1)(epoch) for epoch in range(100)]
    assert rates[0] == 0.1
    assert rates[50] == pytest.approx(0.05)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 1e-4


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("epochs", 0), ("epochs", -1), ("batch_size", 0), ("lr", 0.0), ("lr", -0.1), ("lr", float("inf"))],
        *[
            ("lr", float("nan")),
            ("momentum", 1.0),
            ("momentum", -0.1),
            ("weight_decay", -1e-4),
            ("schedule", "exponential"),
        ],
        *[("alpha", -0.1), ("alpha", 2.0), ("alpha", float("nan")), ("tau", 0.0), ("tau", -4.0), ("tau", float("inf"))],
        *[("seed", -1), ("seed", 2**63)],
    ],
)
def test_a_recipe_out_of_range_names_the_option(option, value):
    with pytest.raises(OptionError, match=rf"^--{option.replace('_', '-')} {value}: expected"):
        Recipe(model="resnet8", **{option: value})


def test_the_recipe_is_the_papers():
    recipe = Recipe(model="resnet8")
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum, recipe.weight_decay) == (
        240,
        64,
        0.05,
        0.9,
        5e-4,
    )
    assert (recipe.alpha, recipe.tau, recipe.tau_squared, recipe.schedule) == (0.5, 4.0, True, "step")
