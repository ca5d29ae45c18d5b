"""Where the scores of `fastkd score` come from, and which of its options do nothing then."""

from pathlib import Path
from typing import Any

from fastkd.errors import OptionError

_OF_NETWORKS = ("model_name", "ema_weights", "features_out", "grand_params", "compat", "centre")
_OF_MEMORIZATION = ("num_models", "subset", "min_count", "student", "epochs", "seed")
_UNUSED = {
    "networks": _OF_MEMORIZATION,
    "store": ("norm", "size", "batch_size", *_OF_NETWORKS, *_OF_MEMORIZATION),
    "memorization": ("class_map", *_OF_NETWORKS),
}
"""Options that do nothing for scores from each source."""


def choose_source(methods: tuple[str, ...], model: tuple[str, ...], logits: Path | None, given: dict[str, Any]) -> str:
    """Where the scores come from: `networks`, `store` or `memorization`; refuses options that do not go together."""
    if "memorization" in methods:
        source = "memorization"
        if len(methods) > 1 or model or logits:
            raise OptionError(
                "--method memorization trains networks of its own: no other --method, --model or --logits"
            )
        if given["num_models"] is None:
            raise OptionError("--method memorization needs --num-models")
    elif logits is not None:
        source = "store"
        if model:
            raise OptionError("--model and --logits are both given; scores come from one of them")
        wrong = [method for method in methods if method in ("grand", "moderate")]
        if wrong:
            raise OptionError(f"--method {wrong[0]} needs the network, which a logit store does not hold: give --model")
    else:
        source = "networks"
        if not model:
            raise OptionError(f"--method {methods[0]} needs --model or --logits")
        if "variance" in methods:
            raise OptionError("--method variance is over the views of a store: give --logits")
        for name, method in (
            ("grand_params", "grand"),
            ("compat", "grand"),
            ("centre", "moderate"),
            ("features_out", "moderate"),
        ):
            if given[name] is not None and method not in methods:
                raise OptionError(f"--{name.replace('_', '-')} does nothing without --method {method}")
    for name in _UNUSED[source]:
        if given[name] is not None and given[name] is not False:
            raise OptionError(f"--{name.replace('_', '-')} does nothing for scores from {source}, leave it out")
    return source
