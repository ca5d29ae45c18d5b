"""When rows and flags of a store go to disk, as the filler's own calls tell."""

import os
import time

import numpy as np
import pytest
from helpers.stores import IDS, make_store, random_logits

from fastkd.store import filling
from fastkd.store.filling import StoreFiller
from fastkd.store.tables import read_tables

LOGITS = random_logits(4, len(IDS), 10)
NUM_BLOCKS = 4 * 5


@pytest.fixture
def path(tmp_path):
    """A store of 20 blocks, none of them filled."""
    return make_store(tmp_path / "l.h5", LOGITS, blocks=slice(0, 0))


@pytest.fixture
def calls(monkeypatch):
    """What was done, in order: `sync`, or the first byte of a write."""
    done = []
    fdatasync, write_all = os.fdatasync, filling.write_all

    def sync(file):
        done.append("sync")
        fdatasync(file)

    def write(file, data, offset):
        done.append(offset)
        write_all(file, data, offset)

    monkeypatch.setattr(os, "fdatasync", sync)
    monkeypatch.setattr(filling, "write_all", write)
    return done


def write_all_blocks(filler: StoreFiller, pause_s: float = 0.0) -> None:
    for aug_seed in range(4):
        for block in range(5):
            filler.write(aug_seed, block, LOGITS[aug_seed, filler.tables.block_rows_of(block)])
            time.sleep(pause_s)


@pytest.mark.parametrize("sync_s", [0.0, 0.02, 1.0, float("inf")])
def test_a_flag_is_set_only_when_all_that_it_stands_for_was_written_and_then_synced(path, calls, sync_s):
    tables = read_tables(path)
    filler = StoreFiller(tables, sync_s=sync_s)
    write_all_blocks(filler, 0.004)
    filler.close()
    synced, written = set(), set()
    for call in calls:
        number = None if call == "sync" else call - tables.done_offset
        if call == "sync":
            synced |= written
        elif 0 <= number < NUM_BLOCKS:
            aug_seed, block = divmod(number, 5)
            row = aug_seed * tables.num_rows + block * tables.block_rows
            assert tables.logits_offset + row * tables.codec.row_bytes in synced
            assert tables.top1_offset + 8 * number in synced
        else:
            written.add(call)
    assert read_tables(path).done.all()
    assert calls[-1] == "sync"  # of the last flags


def test_blocks_of_a_second_share_one_sync(path, calls):
    filler = StoreFiller(read_tables(path), sync_s=60.0)
    write_all_blocks(filler)
    assert "sync" not in calls
    assert not read_tables(path).done.any()
    filler.flush()
    assert calls.count("sync") == 2  # of the blocks, then of their flags
    assert read_tables(path).done.all()
    filler.flush()
    assert calls.count("sync") == 2  # there was nothing more
    filler.close()


def test_blocks_wait_no_longer_than_they_should(path, calls):
    filler = StoreFiller(read_tables(path), sync_s=0.03)
    write_all_blocks(filler, 0.01)
    assert 3 <= calls.count("sync") <= 10
    assert read_tables(path).done.sum() >= NUM_BLOCKS - 5
    filler.close()


def test_what_was_written_before_a_disk_failed_is_marked_done(path, monkeypatch):
    filler = StoreFiller(read_tables(path), sync_s=60.0)
    filler.write(0, 0, LOGITS[0, :8])
    with monkeypatch.context() as patch:
        patch.setattr(filling, "write_all", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(
            filling.DiskError, match="Input/output error while rows were written; those before are safe"
        ):
            filler.write(0, 1, LOGITS[0, 8:16])
    filler.close()
    assert np.argwhere(read_tables(path).done).tolist() == [[0, 0]]
