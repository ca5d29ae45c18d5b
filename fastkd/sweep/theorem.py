"""Theorem 3.1 of the paper, by its closed form and by simulation: regularised linear regression that learns from a teacher.

Eq. 4: θ_s(α, f, f_t) = (X_f X_fᵀ + λI)⁻¹ X_f ((1 - α) y_f + α X_fᵀ θ(f_t)), with θ(f_t) = (X_t X_tᵀ + λI)⁻¹ X_t y_t and
y = Xᵀθ* + η. The theorem: for f <= f_t the squared norm of the bias E_η[θ_s] - θ* is no larger than with f_t = f. numpy alone.
"""

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastkd.errors import OptionError
from fastkd.writing import atomic_path

DEFAULTS: dict[str, Any] = {
    "dim": 20,
    "num-samples": 2000,
    "ridge": 100.0,
    "noise": 1.0,
    "alpha": [0.25, 0.5, 0.75, 1.0],
    "fraction": [0.05, 0.1, 0.2, 0.5],
    "teacher-fraction": [0.05, 0.1, 0.2, 0.5, 1.0],
    "draws": 2000,
    "data-seeds": [0],
}
"""Keys of [theorem]: d; N; λ; the standard deviation of η; α; f; f_t; draws of η; seeds of X and θ*."""

BAND = 3.29
"""Standard errors of the band: 99.9 % of a normal distribution."""


def require_settings(table: Mapping[str, Any], place: Callable[..., str]) -> dict[str, Any]:
    """The settings of [theorem], with defaults.

    Raises:
        OptionError: unknown keys, or values that are no numbers in range; says where.
    """
    settings = DEFAULTS | dict(table)
    for key, value in table.items():
        where = place(("theorem", key))
        if key not in DEFAULTS:
            raise OptionError(f"{where}: [theorem] has no {key!r}, expected some of {', '.join(DEFAULTS)}")
        listed = isinstance(DEFAULTS[key], list)
        numbers = value if listed and isinstance(value, list) else [value]
        whole = key in ("dim", "num-samples", "draws", "data-seeds")
        kinds = (int,) if whole else (int, float)
        if (
            listed != isinstance(value, list)
            or not numbers
            or not all(isinstance(one, kinds) and not isinstance(one, bool) for one in numbers)
        ):
            raise OptionError(
                f"{where}: {key} is {value!r}, expected {'a list of ' if listed else ''}{'whole ' * whole}numbers"
            )
        least, most = {"alpha": (0, 1), "fraction": (0, 1), "teacher-fraction": (0, 1)}.get(key, (0, math.inf))
        if not all(least <= one <= most for one in numbers) or (
            key in ("dim", "num-samples", "ridge") and not numbers[0] > 0
        ):
            raise OptionError(f"{where}: {key} is {value!r}, expected numbers of {least} … {most}")
    if settings["draws"] < 2:
        raise OptionError(
            f"{place(('theorem', 'draws'))}: {settings['draws']} draws have no spread, expected at least 2"
        )
    smallest = min(*settings["fraction"], *settings["teacher-fraction"]) * settings["num-samples"]
    if smallest < settings["dim"]:
        where = place(("theorem", "fraction"))
        raise OptionError(
            f"{where}: {smallest:g} samples are fewer than the {settings['dim']} dimensions that the theorem is about"
        )
    return settings


def check_theorem(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for each seed, α, f and f_t >= f.

    Returns:
        data_seed, alpha, fraction, teacher_fraction; bias: the closed form's squared norm; bias_self: the same with f_t = f;
        simulated: the estimate from the draws, without their own spread; band: BAND standard errors of that; holds: bias <=
        bias_self; agrees: the simulation is within its band of the closed form.
    """
    return [line for seed in settings["data-seeds"] for line in _of_seed(settings, seed)]


def _of_seed(settings: Mapping[str, Any], seed: int) -> Iterator[dict[str, Any]]:
    d, n, draws = settings["dim"], settings["num-samples"], settings["draws"]
    rng = np.random.default_rng(seed)
    x_DN = rng.standard_normal((d, n))
    truth_D = rng.standard_normal(d)
    parts = sorted({*settings["fraction"], *settings["teacher-fraction"]})
    counts = {part: round(part * n) for part in parts}
    grams = {part: x_DN[:, :count] @ x_DN[:, :count].T for part, count in counts.items()}
    inverse = {part: np.linalg.inv(gram + settings["ridge"] * np.eye(d)) for part, gram in grams.items()}
    noise = {
        part: np.zeros((d, draws)) for part in parts
    }  # X_f η_f of each draw; the samples of f are among those of f_t
    below, sums = 0, np.zeros((d, draws))
    for part in parts:
        for first in range(below, counts[part], 100):
            last = min(first + 100, counts[part])
            sums = sums + x_DN[:, first:last] @ rng.normal(0.0, settings["noise"], (last - first, draws))
        noise[part], below = sums, counts[part]
    taught = {part: inverse[part] @ (grams[part] @ truth_D[:, None] + noise[part]) for part in parts}
    for alpha in settings["alpha"]:
        for part in settings["fraction"]:
            for of_teacher in settings["teacher-fraction"]:
                if of_teacher < part:
                    continue
                bias, own = (_bias(inverse, grams, truth_D, alpha, part, teacher) for teacher in (of_teacher, part))
                labels = grams[part] @ truth_D[:, None] + noise[part]
                found = inverse[part] @ ((1 - alpha) * labels + alpha * grams[part] @ taught[of_teacher])
                simulated, error = _squared_norm(found - truth_D[:, None])
                yield {
                    "data_seed": seed,
                    "alpha": alpha,
                    "fraction": part,
                    "teacher_fraction": of_teacher,
                    "bias": bias,
                    "bias_self": own,
                    "simulated": simulated,
                    "band": BAND * error,
                    "holds": bias <= own,
                    "agrees": abs(simulated - bias) <= BAND * error,
                }


def _bias(
    inverse: Mapping[float, np.ndarray],
    grams: Mapping[float, np.ndarray],
    truth_D: np.ndarray,
    alpha: float,
    part: float,
    of_teacher: float,
) -> float:
    """‖E[θ_s] - θ*‖²: E[θ_s] = A_f ((1 - α) I + α A_t) θ*, with A = (X Xᵀ + λI)⁻¹ X Xᵀ."""
    taught_D = inverse[of_teacher] @ grams[of_teacher] @ truth_D
    mean_D = inverse[part] @ grams[part] @ ((1 - alpha) * truth_D + alpha * taught_D)
    return float(np.sum((mean_D - truth_D) ** 2))


def _squared_norm(errors_DR: np.ndarray) -> tuple[float, float]:
    """The squared norm of the mean of R draws, less what their spread adds to it, and its standard error.

    With m the mean and C the covariance of a draw: E‖m‖² = ‖b‖² + tr(C)/R, Var ≈ 4 bᵀC b/R + 2 tr(C²)/R².
    """
    draws = errors_DR.shape[1]
    mean_D = errors_DR.mean(axis=1)
    cov_DD = np.cov(errors_DR)
    spread = 4 * mean_D @ cov_DD @ mean_D / draws + 2 * np.sum(cov_DD**2) / draws**2
    return float(np.sum(mean_D**2) - np.trace(cov_DD) / draws), float(np.sqrt(spread))


def write_theorem(lines: list[dict[str, Any]], out: Path) -> None:
    """Writes the lines as CSV, atomically."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    with atomic_path(out) as partial:
        partial.write_text(file.getvalue(), encoding="utf-8")
