"""What is at work at the same time while a store is filled."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.stores import VIEWS, cache
from torch import nn

from fastkd.store.tables import read_tables
from fastkd.teacher import blocks


class Counting(nn.Module):
    """A network that says when it was asked for so many batches, and of how many samples."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.asked = network, [threading.Event() for _ in range(40)]
        self.sizes: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        next(event for event in self.asked if not event.is_set()).set()
        self.sizes.append(len(images))
        return self.network(images)


@pytest.fixture
def counting(teacher):
    return replace(teacher, model=Counting(teacher.model))


@pytest.fixture
def options(dataset, mask, counting):
    return {"dataset": dataset, "mask": mask, "teacher": counting, "views": VIEWS, "block_rows": 16}


def test_the_teacher_is_at_the_next_blocks_while_one_is_encoded(options, counting, tmp_path, monkeypatch):
    encode, seen = blocks.encode_rows, []

    def encode_late(*arguments):
        if not seen:  # the first block is encoded when the teacher has the second, or never
            seen.append(counting.model.asked[1].wait(timeout=60))
        return encode(*arguments)

    monkeypatch.setattr(blocks, "encode_rows", encode_late)
    cache(tmp_path / "l.h5", **options)
    assert seen == [True]


def test_the_teacher_is_ahead_of_the_disk_by_a_few_blocks_at_most(options, counting, tmp_path, monkeypatch):
    encode, ahead = blocks.encode_rows, []

    def encode_late(*arguments):
        if not ahead:
            counting.model.asked[blocks.AHEAD].wait(timeout=60)
            counting.model.asked[blocks.AHEAD + 1].wait(timeout=0.5)
            ahead.append(sum(event.is_set() for event in counting.model.asked) - 1)
        return encode(*arguments)

    monkeypatch.setattr(blocks, "encode_rows", encode_late)
    cache(tmp_path / "l.h5", **options)
    assert ahead == [blocks.AHEAD]


@pytest.mark.parametrize("block_rows", [16, 256])
def test_all_batches_are_of_one_size_and_none_is_larger_than_the_store(options, counting, mask, tmp_path, block_rows):
    assert 16 < len(mask.sample_ids) < 256
    cache(tmp_path / "l.h5", **options | {"block_rows": block_rows})
    assert set(counting.model.sizes) == {min(block_rows, len(mask.sample_ids))}


def test_what_fails_while_blocks_are_written_ends_the_fill_and_its_thread(options, tmp_path, monkeypatch):
    encode, num_encoded = blocks.encode_rows, []

    def fail(*arguments):
        num_encoded.append(1)
        if len(num_encoded) == 5:
            raise RuntimeError("a bug")
        return encode(*arguments)

    monkeypatch.setattr(blocks, "encode_rows", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        cache(tmp_path / "l.h5", **options)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastkd-writer")]
    done = read_tables(tmp_path / "l.h5").done.reshape(-1)
    assert np.flatnonzero(done)[:4].tolist() == [0, 1, 2, 3]
    assert not done[4]
