"""Numbers that options take: each is finite and within a range, which is checked before anything is opened."""

import math
from typing import Any

import click

MOST_EPOCHS, MOST_BATCH, MOST_WORKERS, MOST_PREFETCH, MOST_SIZE = 10**6, 2**20, 1024, 1024, 4096
"""The largest number of epochs, of samples in a batch, of loader threads, of batches made ahead, and of pixels of a side."""


class Real(click.FloatRange):
    """A finite number; click's own ranges let NaN through, as it is on no side of any bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As FloatRange's, but for NaN and the infinities, which are usage errors."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is no finite number.", param, ctx)
        return found
