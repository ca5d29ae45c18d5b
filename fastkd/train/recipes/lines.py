"""Straight lines through points, as `--alpha-rule 0.1:1,0.7:0.5` or `--tau 0:8,1:2` write them."""

import itertools

from fastkd.errors import OptionError

Points = tuple[tuple[float, float], ...]
"""(x, value) in increasing x, 0 … 1."""


def number(text: str, option: str, expected: str) -> float:
    """A number as text.

    Raises:
        OptionError: it is none; says what was `expected`.
    """
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"{option} {text!r}: expected {expected}") from None


def parse_points(text: str, option: str, pair: str, example: str) -> Points:
    """Points from pairs x:value with commas between them.

    Args:
        pair: what a pair is called, such as `f:alpha`. example: of pairs.

    Raises:
        OptionError: no pairs of numbers, x that do not increase or do not lie in 0 … 1.
    """
    points = []
    for part in text.split(","):
        left, colon, right = part.partition(":")
        if not colon:
            raise OptionError(f"{option} {text}: {part!r} is no pair {pair} such as {example.partition(',')[0]}")
        x, value = (number(one, option, f"pairs {pair} such as {example}") for one in (left, right))
        points.append((x, value))
    if any(a[0] >= b[0] for a, b in itertools.pairwise(points)):
        raise OptionError(f"{option} {text}: the fractions must increase")
    if any(not 0 <= x <= 1 for x, _ in points):
        raise OptionError(f"{option} {text}: fractions and weights lie in 0 … 1")
    return tuple(points)


def parse_course(text: str, name: str) -> Points:
    """The points of an option whose value changes along the fraction of training that is done.

    Raises:
        OptionError: as `parse_points`.
    """
    return parse_points(text, f"--{name}", f"fraction:{name}", "0:1,0.5:0.5")


def along(points: Points, x: float) -> float:
    """The value at x on the straight lines through the points; the outer values beyond them."""
    if x <= points[0][0]:
        return points[0][1]
    for (low, at_low), (high, at_high) in itertools.pairwise(points):
        if x <= high:
            return at_low + (at_high - at_low) * (x - low) / (high - low)
    return points[-1][1]
