"""What samples and classes are ordered by. Plain functions of numpy's, which `radix` and `turns` compile for one sample."""

from typing import Any, NamedTuple

import numpy as np

CLASS_ORDER, ROUND_ORDER = 1, 2
"""Numbers of the draws that order the samples of a class (and those of equal scores), and the classes of a round."""


def score_key(bits: Any, ascending: bool) -> Any:
    """uint32 that have the order of float32 scores: smaller comes first, low scores where `ascending`.

    Args:
        bits: uint32, the scores' bits, an array or one of them; -0.0 counts as 0.0.
    """
    plus = np.uint32(bits * (bits != np.uint32(0x80000000)))
    rising = np.uint32(plus ^ np.uint32(np.uint32(0x80000000) | (np.uint32(0) - (plus >> np.uint32(31)))))
    return rising if ascending else np.uint32(~rising)


def turn_place(rank: Any, size: Any, proportional: bool) -> Any:
    """When the sample of that rank of a group of that size has its turn: `rank`, or Webster's (2·rank + 1) / size."""
    return (2.0 * rank + 1.0) / size if proportional else rank


SEEDED = np.zeros(0, np.int64)
"""Turns drawn anew in each round."""


class Turns(NamedTuple):
    """How groups take turns.

    quotas, sizes: int64 (G,), samples given and samples in all of each group. proportional: places by rank and size; else
    rounds. order: int64 (G,), of the groups within a round; SEEDED for one drawn anew each round from the seed.
    """

    quotas: np.ndarray
    sizes: np.ndarray
    proportional: bool
    seed: int
    order: np.ndarray = SEEDED
