"""The benchmarks as modules."""

import importlib
import sys
from types import ModuleType

from helpers import ROOT


def benchmark(name: str) -> ModuleType:
    """A module of `benchmarks/`, by its name below that; the package itself is the one that is installed."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return importlib.import_module(f"benchmarks.{name}")
