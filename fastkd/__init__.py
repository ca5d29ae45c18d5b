"""fastkd: knowledge distillation on pruned data at the price of training without a teacher.

The names below load on first use, so that `import fastkd` costs nothing and pulls in neither torch nor ffcv.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastkd import losses
    from fastkd.cli.calls import build_beton, cache_logits, train_student
    from fastkd.data.beton.fields import Fields
    from fastkd.data.views.draw import Views
    from fastkd.data.views.mix import Mix
    from fastkd.errors import FastKDError
    from fastkd.feed.loader import Loader
    from fastkd.prune.masks.mask import Mask
    from fastkd.store.logit_store import LogitStore

__version__ = "0.1.0"
__all__ = [
    "FastKDError",
    "Fields",
    "Loader",
    "LogitStore",
    "Mask",
    "Mix",
    "Views",
    "build_beton",
    "cache_logits",
    "losses",
    "train_student",
]

_HOME = {
    "FastKDError": "fastkd.errors",
    "Fields": "fastkd.data.beton.fields",
    "Loader": "fastkd.feed.loader",
    "LogitStore": "fastkd.store.logit_store",
    "Mask": "fastkd.prune.masks.mask",
    "Mix": "fastkd.data.views.mix",
    "Views": "fastkd.data.views.draw",
    "build_beton": "fastkd.cli.calls",
    "cache_logits": "fastkd.cli.calls",
    "train_student": "fastkd.cli.calls",
}


def __getattr__(name: str) -> object:
    if name == "losses":
        return import_module("fastkd.losses")
    if name not in _HOME:
        raise AttributeError(f"module 'fastkd' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
