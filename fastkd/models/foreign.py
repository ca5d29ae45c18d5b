"""Torch files of others: what lies beside the weights, and which weights are meant where there are several."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from fastkd.errors import FormatError

STATE_KEYS = ("state_dict", "model", "net", "model_state_dict")
EMA_KEYS = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "model_ema_state_dict")
"""Where training loops put weights, and averages of them."""

_TOP = "the top level"


class _Unread:
    """What stands for a numpy object beside the weights: it is rebuilt as nothing, and numpy has no part in it."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_NUMPY = (
    "dtype",
    "ndarray",
    *(f"{core}.multiarray.{what}" for core in ("core", "_core") for what in ("scalar", "_reconstruct")),
)


def _stand_in(path: str) -> type:
    module, _, name = f"numpy.{path}".rpartition(".")
    return type(name, (_Unread,), {"__module__": module, "__qualname__": name})


ALLOWED: list[Any] = [argparse.Namespace, *map(_stand_in, _NUMPY)]
"""Classes that may stand beside weights: they do nothing when they are rebuilt. Command lines are Namespaces."""


def choose_weights(path: Path, content: object, *, ema_weights: bool, log: Callable[[str], None]) -> dict[str, Tensor]:
    """The weights that are meant, of what a torch file holds: the file itself, or under one of STATE_KEYS or EMA_KEYS.

    Args:
        ema_weights: take those under EMA_KEYS; else they are taken only where there are no others.
        log: told which were taken where others are there.

    Raises:
        FormatError: no weights, none that are meant, or several.
    """
    top = content if isinstance(content, dict) else {}
    plain, averaged = (
        {key: state for key in keys if (state := _tensors(top.get(key)))} for keys in (STATE_KEYS, EMA_KEYS)
    )
    if not plain and (own := _tensors(content)):
        plain = {_TOP: own}
    if not plain and not averaged:
        found = (
            f"a dict of {', '.join(map(str, content))}"[:100]
            if isinstance(content, dict)
            else f"a {type(content).__name__}"
        )
        expected = f"names and tensors, or one of {', '.join(STATE_KEYS)}"
        raise FormatError(f"{path}: holds no state dict: found {found}, expected {expected}")
    chosen = averaged if ema_weights else plain or averaged
    if not chosen:
        raise FormatError(
            f"{path}: holds no averaged weights, only those under {_listed(plain)}: leave --ema-weights out"
        )
    if len(chosen) > 1:
        raise FormatError(
            f"{path}: holds weights under {_listed(chosen)} and does not say which are meant: save one alone"
        )
    (name, state), others = next(iter(chosen.items())), plain if ema_weights else averaged
    if others and others is not chosen:
        way_out = "" if ema_weights else "; --ema-weights takes those"
        log(f"{path}: takes the weights under {name}, not those under {_listed(others)}{way_out}")
    elif name in EMA_KEYS and not ema_weights:
        log(f"{path}: takes the weights under {name}, as there are no others")
    return state


def _listed(names: Iterable[str]) -> str:
    return " and ".join(names)


def _tensors(value: object) -> dict[str, Tensor]:
    """The tensors of a state dict; none where it is none. What else lies in it, an epoch or a best accuracy, is left out."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        return {}
    found = {key: one.detach() for key, one in value.items() if isinstance(one, Tensor)}
    return found if any(one.ndim for one in found.values()) else {}
