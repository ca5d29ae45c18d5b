"""Mixed views: CutMix and mixup among the kept samples, as pure functions of (kept set, sample_id, aug_seed).

A sample's view is mixed with its partner's at the same aug_seed. The partner comes from a permutation of the kept samples,
so that each is a partner once in every plane, and none that is not kept is ever decoded. Everything is drawn by counter,
in integers and plain IEEE arithmetic without libm, whose last bits differ between machines: no batch, worker or rank is
known here. The share `lam` of the own image is the one that the pixels have, exactly, and each sample has its own.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import uint64

from fastkd.arguments import as_number
from fastkd.errors import OptionError
from fastkd.fingerprint import fingerprint
from fastkd.hashing import below, draw, draw_below, draw_unit, mix
from fastkd.intrinsics import njit

CUTMIX, MIXUP = 0, 1
MIXES = {"cutmix": CUTMIX, "mixup": MIXUP}
MIX_VERSION = 1
"""Raised whenever the same kept set, sample_id and aug_seed would give another partner, share or pixel."""

# Draw numbers, beyond those of views.py. Keys are (sample_id, aug_seed), the permutation's (number of kept samples, aug_seed).
_SHARE = (10_000, 10_001)
_CENTRE = (10_002, 10_003)
_PARTNER = 11_000
_ROUNDS = 8
_LOG_2 = math.log(2.0)


@dataclass(frozen=True, slots=True)
class Mix:
    """How views are mixed.

    kind: `cutmix` (a box of the partner's view, Yun et al. 2019) or `mixup` (a weighted mean, Zhang et al. 2018).
    alpha: the share of the own image is drawn from Beta(alpha, alpha); above 0.
    """

    kind: str
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in MIXES:
            raise OptionError(f"--mix {self.kind}: expected one of {', '.join(MIXES)}")
        if not 0 < as_number(self.alpha, "--mix-alpha") < math.inf:
            raise OptionError(f"--mix-alpha {self.alpha}: expected above 0")

    @property
    def code(self) -> int:
        """The kind as the integer that the compiled functions take."""
        return MIXES[self.kind]

    def identity(self) -> dict[str, Any]:
        """What decides a mixed view besides the views and the kept set; part of a store's identity."""
        return {"kind": self.kind, "alpha": float(self.alpha), "version": MIX_VERSION}


class Mixes(NamedTuple):
    """What some views are mixed with.

    partners: int64 (B,), sample_ids. regions: int32 (B, 4); `cutmix`: top, left, bottom, right of the box in pixels of the
    view; `mixup`: the own image's weight in 256ths, then zeros. lam: float32 (B,), the own image's share, 0 … 1.
    """

    partners: np.ndarray
    regions: np.ndarray
    lam: np.ndarray


class KeptSet:
    """The samples that partners come from, whatever their order.

    Args:
        ids: int64 (n,), distinct sample_ids. num_samples: N of the full beton.
    """

    def __init__(self, ids: np.ndarray, num_samples: int) -> None:
        self.ids = np.sort(ids)
        self._places = np.full(num_samples, -1, np.int32)
        self._places[self.ids] = np.arange(len(ids), dtype=np.int32)

    def draw(self, mix: Mix, size: int, ids: np.ndarray, aug_seed: int) -> Mixes:
        """What the views of some of the samples are mixed with.

        Args:
            size: side of a view in pixels. ids: int64 (B,), samples of the set. aug_seed: 0 …
        """
        ids = np.ascontiguousarray(ids, np.int64)
        found = Mixes(np.empty_like(ids), np.zeros((len(ids), 4), np.int32), np.empty(len(ids), np.float32))
        _draw(mix.code, float(mix.alpha), size, self.ids, self._places, ids, aug_seed, *found)
        return found


def kept_digest(ids: np.ndarray) -> str:
    """A fingerprint of a set of sample_ids, whatever their order: 32 hexadecimal digits."""
    return fingerprint([np.sort(ids).astype("<i8")])


@njit(cache=True, nogil=True)
def _round_keys(num_places: int, aug_seed: int) -> np.ndarray:
    """A uint64 for each round of a permutation."""
    keys = np.empty(_ROUNDS, np.uint64)
    for i in range(_ROUNDS):
        keys[i] = draw(num_places, aug_seed, _PARTNER + i)
    return keys


@njit(cache=True, nogil=True)
def _permuted(place: int, num_places: int, keys: np.ndarray) -> int:
    """Where the permutation of 0 … num_places-1 with these keys takes a place.

    A Feistel network over the pairs below a·b, with a and b about the root of num_places, walked on from what is no place
    (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): no table, and any place by itself.
    """
    a = math.ceil(math.sqrt(num_places))
    b = (num_places + a - 1) // a
    while True:
        left, right = place % a, place // a
        for i in range(0, _ROUNDS, 2):
            left += below(mix(uint64(right) + keys[i]), a)
            left -= a if left >= a else 0
            right += below(mix(uint64(left) + keys[i + 1]), b)
            right -= b if right >= b else 0
        place = left + a * right
        if place < num_places:
            return place


@njit(cache=True, nogil=True)
def permutation(num_places: int, aug_seed: int) -> np.ndarray:
    """The permutation by which partners are found, of 0 … num_places-1 in the order of sample_ids: int64 (num_places,)."""
    keys, out = _round_keys(num_places, aug_seed), np.empty(num_places, np.int64)
    for place in range(num_places):
        out[place] = _permuted(place, num_places, keys)
    return out


@njit(cache=True, nogil=True)
def _log(x: float) -> float:
    """log for 0 < x, by the series of the inverse hyperbolic tangent."""
    m, e = math.frexp(x)
    if m < 0.7071067811865476:
        m, e = 2.0 * m, e - 1
    s = (m - 1.0) / (m + 1.0)
    total = 0.0
    for n in range(25, 0, -2):
        total = 1.0 / n + s * s * total
    return e * _LOG_2 + 2.0 * s * total


@njit(cache=True, nogil=True)
def _exp(x: float) -> float:
    """exp for 0 <= x, infinity above 700."""
    if x > 700.0:
        return math.inf
    k = math.floor(x / _LOG_2)
    r = x - k * _LOG_2
    total = 1.0
    for n in range(18, 0, -1):
        total = 1.0 + r * total / n
    return math.ldexp(total, int(k))


@njit(cache=True, nogil=True)
def _cos(x: float) -> float:
    """cos for 0 <= x <= pi / 2."""
    total = 1.0
    for n in range(24, 0, -2):
        total = 1.0 - x * x * total / (n * (n - 1))
    return total


@njit(cache=True, nogil=True)
def beta_draw(alpha: float, sample_id: int, aug_seed: int) -> float:
    """A draw from Beta(alpha, alpha), without rejection (Devroye, "Random variate generation in one line of code", 1996)."""
    first = draw_unit(sample_id, aug_seed, _SHARE[0])
    if alpha == 1.0:
        return first
    turn = 2.0 * draw_unit(sample_id, aug_seed, _SHARE[1])
    sign = 1.0
    if turn >= 1.0:
        turn, sign = turn - 1.0, -1.0
    c = _cos(0.5 * math.pi * turn)
    q = (_exp(-_log(1.0 - first) / alpha) - 1.0) * c * c
    return 0.5 + 0.5 * sign * math.sqrt(1.0 - 1.0 / (1.0 + q))


@njit(cache=True, nogil=True)
def _draw(
    kind: int,
    alpha: float,
    size: int,
    kept: np.ndarray,
    places: np.ndarray,
    ids: np.ndarray,
    aug_seed: int,
    partners: np.ndarray,
    regions: np.ndarray,
    lam: np.ndarray,
) -> None:
    keys = _round_keys(len(kept), aug_seed)
    for b in range(len(ids)):
        sample_id = ids[b]
        partners[b] = kept[_permuted(places[sample_id], len(kept), keys)]
        share = beta_draw(alpha, sample_id, aug_seed)
        if kind == MIXUP:
            weight = int(256.0 * share + 0.5)
            regions[b, 0] = weight
            lam[b] = weight / 256.0
            continue
        half = int(size * math.sqrt(1.0 - share)) // 2  # of the box's side
        y = draw_below(sample_id, aug_seed, _CENTRE[0], size)
        x = draw_below(sample_id, aug_seed, _CENTRE[1], size)
        top, bottom = max(0, y - half), min(size, y + half)
        left, right = max(0, x - half), min(size, x + half)
        regions[b, 0], regions[b, 1], regions[b, 2], regions[b, 3] = top, left, bottom, right
        lam[b] = 1.0 - (bottom - top) * (right - left) / (size * size)


@njit(cache=True, nogil=True)
def blend(kind: int, region: np.ndarray, own: np.ndarray, other: np.ndarray) -> None:
    """Mixes the partner's view into the own one, uint8 (size, size, 3) both.

    `cutmix` copies the box. `mixup` gives (w·own + (256 - w)·other + 128) >> 8 with the weight w in 256ths: halves up.
    """
    to, source = own.reshape(-1), other.reshape(-1)
    if kind == CUTMIX:
        for y in range(region[0], region[2]):
            row = 3 * own.shape[1] * y
            # unsigned: an index that may be negative keeps the compiler from copying more than a byte at a time
            for i in range(uint64(row + 3 * region[1]), uint64(row + 3 * region[3])):
                to[i] = source[i]
        return
    w = np.int32(region[0])
    for i in range(len(to)):
        to[i] = np.uint8(
            (w * np.int32(to[i]) + (np.int32(256) - w) * np.int32(source[i]) + np.int32(128)) >> np.int32(8)
        )
