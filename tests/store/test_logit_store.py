import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.stores import IDS, fill, make_store, random_logits
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkd.errors import (
    BusyError,
    MismatchError,
    OptionError,
    UnfinishedError,
)
from fastkd.store.codec import make_codec
from fastkd.store.fidelity import through
from fastkd.store.filling import create_store, fill_lock, store_bytes
from fastkd.store.logit_store import LogitStore
from fastkd.store.tables import read_tables

LOGITS = random_logits(3, len(IDS), 10)


@pytest.fixture
def path(tmp_path) -> Path:
    return make_store(tmp_path / "l.h5", LOGITS)


def test_what_is_filled_is_read(path):
    store = LogitStore(path)
    assert (store.num_seeds, store.num_classes) == (3, 10)
    assert np.array_equal(store.sample_ids, IDS)
    for aug_seed in range(3):
        assert np.array_equal(store.read(IDS, aug_seed), LOGITS[aug_seed])


def test_int8_reads_as_its_codec_decodes(tmp_path):
    logits = random_logits(2, len(IDS), 100)
    store = LogitStore(make_store(tmp_path / "l.h5", logits, codec="int8+top4"))
    codec = make_codec("int8+top4", 100)
    for aug_seed in range(2):
        expected = through(codec, logits[aug_seed])
        assert np.array_equal(store.read(IDS, aug_seed), expected)


@given(st.lists(st.sampled_from(range(len(IDS))), max_size=50), st.integers(0, 2))
def test_rows_come_in_the_order_asked_for(tmp_path_factory, rows, aug_seed):
    path = tmp_path_factory.getbasetemp() / "asked.h5"
    store = LogitStore(path if path.exists() else make_store(path, LOGITS))
    assert np.array_equal(store.read(IDS[rows], aug_seed), LOGITS[aug_seed, rows].reshape(-1, 10))


def test_plain_h5py_and_numpy_read_the_logits(path):
    with h5py.File(path) as file:
        records, ids, done = (file[name][...] for name in ("logits", "sample_ids", "done"))
    assert records.shape == (3, 37, 64)
    assert records.dtype == np.uint8
    assert np.array_equal(ids, IDS)
    assert done.shape == (3, 5)
    assert (done == 1).all()
    assert np.array_equal(records[:, :, :20].copy().view("<f2"), LOGITS)


@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 37, 10), (2, 37, 1000)])
def test_the_logits_are_contiguous_and_aligned_for_mmap(tmp_path, shape):
    path = make_store(tmp_path / "l.h5", random_logits(*shape), IDS[: shape[1]])
    with h5py.File(path) as file:
        offset, num_bytes = file["logits"].id.get_offset(), file["logits"].nbytes
        assert file["logits"].chunks is None
        records = file["logits"][...]
    assert offset % 4096 == 0
    assert path.read_bytes()[offset : offset + num_bytes] == records.tobytes()


def test_the_header_says_what_the_store_is(path):
    header = read_tables(path).header
    assert (header.kind, header.format_version) == ("logit-store", 1)
    assert header.inputs == {"beton": "b" * 32, "teacher": "c" * 32}
    assert header.params["views"]["kind"] == "crop-flip"
    assert {name: header.params[name] for name in ("codec", "num_classes", "num_seeds", "block_rows")} == {
        "codec": "fp16",
        "num_classes": 10,
        "num_seeds": 3,
        "block_rows": 8,
    }


def test_the_same_content_is_the_same_file(path, tmp_path):
    again = make_store(tmp_path / "again.h5", LOGITS)
    assert again.read_bytes() == path.read_bytes()
    assert read_tables(again).header == read_tables(path).header


def test_an_unfinished_store_is_refused_with_one_line(tmp_path):
    path = make_store(tmp_path / "l.h5", LOGITS, blocks=slice(1, 3))
    with pytest.raises(UnfinishedError, match=r"l\.h5: 9 of 15 blocks are not filled.*cache-logits") as error:
        LogitStore(path)
    assert "\n" not in str(error.value)


def test_a_store_filled_in_two_parts_is_the_one_filled_at_once(path, tmp_path):
    parts = make_store(tmp_path / "parts.h5", LOGITS, blocks=slice(3, 5))
    assert read_tables(parts).done.tolist() == [[0, 0, 0, 1, 1]] * 3
    fill(parts, LOGITS, slice(0, 3))
    assert parts.read_bytes() == path.read_bytes()


def test_samples_that_are_not_there_are_counted(path):
    strangers = np.setdiff1d(np.arange(90), IDS)[:5]
    with pytest.raises(
        MismatchError, match=rf"holds 37 samples, 5 of the 42 .* \(sample {strangers[0]} is the first\)"
    ):
        LogitStore(path).read(np.r_[IDS, strangers], 0)
    for ids in ([-1], [10**12]):
        with pytest.raises(MismatchError, match="1 of the 1"):
            LogitStore(path).read(np.array(ids), 0)


@pytest.mark.parametrize("aug_seed", [-1, 3])
def test_an_aug_seed_outside_the_store_is_refused(path, aug_seed):
    with pytest.raises(OptionError, match=f"aug_seed is {aug_seed}, expected 0 … 2"):
        LogitStore(path).read(IDS, aug_seed)


def test_gathered_records_are_those_of_the_file(path):
    store, rng = LogitStore(path), np.random.default_rng(0)
    rows = rng.integers(0, 37, 100)
    assert np.array_equal(store.gather(IDS[rows], 2), store.records[2, rows])
    assert store.gather(IDS[:0], 2).shape == (0, 64)


def resident_bytes(store: LogitStore, aug_seed: int) -> int:
    """How much of a plane is in the page cache, by mincore(2)."""
    plane = store.records[aug_seed]
    start = plane.ctypes.data // 4096 * 4096
    pages = np.zeros(-(-plane.nbytes // 4096), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(plane.nbytes), ctypes.c_void_p(pages.ctypes.data)) == 0
    return 4096 * int((pages & 1).sum())


def test_a_prefetched_plane_comes_into_memory_and_the_others_stay_out(tmp_path):
    ids = np.arange(4000)
    store = LogitStore(make_store(tmp_path / "l.h5", random_logits(3, 4000, 500), ids, block_rows=4000))
    with store.tables.path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident_bytes(store, 1):
        pytest.skip("this file system does not let go of its pages")
    store.prefetch(1, 2000)
    deadline = time.monotonic() + 20
    while resident_bytes(store, 1) < 2000 * 1024 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 2000 * 1024 <= resident_bytes(store, 1) < 3000 * 1024
    assert resident_bytes(store, 2) == 0


@pytest.mark.parametrize("aug_seed", range(3))
def test_prefetching_changes_nothing(path, aug_seed):
    store = LogitStore(path)
    store.prefetch(aug_seed)
    store.prefetch(aug_seed, 5)
    assert np.array_equal(store.read(IDS, aug_seed), LOGITS[aug_seed])


@given(
    num_seeds=st.integers(1, 5),
    num_rows=st.integers(1, 3000),
    codec=st.sampled_from(["fp16", "int8+top4", "int4+top8"]),
    num_classes=st.integers(1, 300),
    block_rows=st.integers(1, 300),
    num_probes=st.integers(1, 256),
)
@settings(max_examples=40)
def test_the_size_of_the_file_is_known_before_it_is_made(tmp_path_factory, codec, num_classes, num_probes, **shape):
    path = tmp_path_factory.getbasetemp() / "size.h5"
    made = make_codec(codec, num_classes)
    probes = np.zeros((num_probes, 2), np.int64)
    create_store(
        path,
        sample_ids=np.arange(shape["num_rows"]),
        num_seeds=shape["num_seeds"],
        codec=made,
        block_rows=shape["block_rows"],
        inputs=dict.fromkeys(("beton", "mask", "teacher"), "f" * 32),
        params={"teacher": {"model": "m" * 100}},
        probes=probes,
        probe_crc32c=probes[:, 0],
    )
    assert path.stat().st_size == store_bytes(codec=made, num_probes=num_probes, **shape)


def test_a_store_that_another_process_fills_is_busy(path):
    hold = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=r"l\.h5: another process is filling"), fill_lock(path):
            pass
        other.communicate("\n")
    with fill_lock(path):
        assert np.array_equal(LogitStore(path).read(IDS, 0), LOGITS[0])


def test_a_store_that_the_disk_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    ids = np.arange(10**6)
    with pytest.raises(OptionError, match=r"l\.h5: the store takes [0-9,]+ bytes, [0-9,]+ are free"):
        make_store(tmp_path / "l.h5", np.broadcast_to(np.float32(0), (162, len(ids), 65_536)), ids)
    assert not list(tmp_path.iterdir())
