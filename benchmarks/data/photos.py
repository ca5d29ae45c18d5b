"""Some of the images of a source, or all of them many times over."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from fastkd.data.sources.open import Source


class Picked:
    """Reads images of a source by their places in a list of their numbers."""

    def __init__(self, source: Source, ids: list[int]) -> None:
        self.source, self.ids = source, ids

    def read(self, i: int) -> bytes | np.ndarray:
        return self.source.read(self.ids[i])


def some(source: Source, ids: Iterable[int]) -> Source:
    """A source of images of another one by their numbers, which may repeat."""
    ids = list(ids)
    names = [source.names[i] for i in ids]
    return replace(source, names=names, labels=source.labels[ids], reader=Picked(source, ids))
