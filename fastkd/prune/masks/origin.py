"""How a mask was chosen, as plain values: what combined masks say of those that they are of, and what of it is drawn by seed."""

from collections.abc import Mapping
from typing import Any

from fastkd.prune.masks.mask import Mask

_OF_DATA = ("num_samples", "class_min", "class_max")


def origin_of(mask: Mask) -> dict[str, Any]:
    """What a combined mask says of one that it is of: its params, and the fingerprints of what it was chosen by."""
    header = mask.header
    params = {name: value for name, value in header.params.items() if name not in _OF_DATA}
    return params | {"inputs": {role: digest for role, digest in header.inputs.items() if role != "beton"}}


def without_seeds(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What is recorded of a mask, less what is drawn by seed alone: equal for two that differ in seeds.

    Args:
        chosen: method, seed, fingerprint, … of a mask, `inputs` by role, and of a combined one `of`, the same of each that it
            is of. Masks of before do not say that; theirs are told by their fingerprints.
    """
    if chosen.get("method") == "random":
        return {name: value for name, value in chosen.items() if name not in ("seed", "fingerprint")}
    of, inputs = chosen.get("of"), chosen.get("inputs", {})
    if not (isinstance(of, list) and all(isinstance(one, dict) for one in (*of, inputs))):
        return dict(chosen)
    told = {name: value for name, value in chosen.items() if name not in ("fingerprint", "inputs", "of")}
    others = {role: digest for role, digest in inputs.items() if not role.startswith("mask ")}
    return told | {"inputs": others, "of": [without_seeds(one) for one in of]}
