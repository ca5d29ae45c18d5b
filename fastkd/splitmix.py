"""The draws of `hashing` for arrays, by numpy: where Numba's start would take longer than the work.

The mixing function is the finaliser of splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators",
OOPSLA 2014).
"""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)


def draws(a: np.ndarray, b: int, number: int) -> np.ndarray:
    """`hashing.draw` for every entry of `a` (integers, >= 0): uint64 array of the same length."""
    z = _mixed(a.astype(np.uint64))
    for part in (b, number):
        z ^= np.uint64(part)
        z = _mixed(z)
    return z


def _mixed(z: np.ndarray) -> np.ndarray:
    """One step of splitmix64 from the states z, in place."""
    z += GOLDEN
    z ^= z >> np.uint64(30)
    z *= MIX_1
    z ^= z >> np.uint64(27)
    z *= MIX_2
    z ^= z >> np.uint64(31)
    return z
