"""Where two descriptions differ, in words."""

import json
from typing import Any

_MOST_TOLD = 5


def differences(found: Any, wanted: Any, name: str = "") -> list[str]:
    """Where two JSON values differ, in words, each named by its keys: `views.kind rrc (asked for center)`."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted({*found, *wanted})
        start = f"{name}." if name else ""
        return [line for key in keys for line in differences(found.get(key), wanted.get(key), f"{start}{key}")]
    if json.dumps(found) == json.dumps(wanted):
        return []
    return [f"{name} {_short(found)} (asked for {_short(wanted)})"]


def _short(value: Any) -> str:
    """A value in a message: fingerprints by their first digits."""
    text = "none" if value is None else str(value)
    return text[:12] if len(text) >= 32 and set(text) <= set("0123456789abcdef") else text


def in_a_line(differs: list[str]) -> str:
    """The first few differences, and how many there are besides."""
    more = f" and {len(differs) - _MOST_TOLD} more" if len(differs) > _MOST_TOLD else ""
    return "; ".join(differs[:_MOST_TOLD]) + more
