"""A step in several parts: gradients of small batches that add up to those of the whole one."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fastkd.data.batch import Batch
from fastkd.dist import even_split
from fastkd.train.recipe import Recipe


def num_parts(recipe: Recipe, num_samples: int, num_ranks: int) -> int:
    """In how many parts each rank takes a step of so many samples over all ranks; the same on all of them.

    Parts have at most `batch_size` samples, whatever the number of ranks that a run goes on with, and as few as that allows;
    one part without `accumulate`.
    """
    if recipe.accumulate == 1:
        return 1
    most_of_a_rank = -(-num_samples // num_ranks)
    return -(-most_of_a_rank // recipe.batch_size)


def part_sizes(num_samples: int, num: int) -> list[int]:
    """The samples of each part of a rank's batch; they differ by at most one."""
    return [end - start for start, end in (even_split(num_samples, i, num) for i in range(num))]


def parts_of(batch: Batch, num: int) -> Iterator[tuple[Batch, float]]:
    """A rank's batch in parts, and the share of its samples that each has; the batch itself, whose share is 1, for one."""
    if num == 1:
        yield batch, 1.0
        return
    for i in range(num):
        start, end = even_split(len(batch), i, num)
        tensors: dict[str, Any] = {name: batch[name][start:end] for name in batch.keys()}  # noqa: SIM118  (a Batch iterates otherwise)
        yield replace(batch, **tensors), (end - start) / max(1, len(batch))
