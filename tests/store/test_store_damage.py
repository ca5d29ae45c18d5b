"""Logit stores that are damaged, changed, cut, or none."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.damage import flip_bits_apart
from helpers.stores import IDS, make_store, random_logits

from fastkd.errors import (
    CorruptError,
    FastKDError,
    FormatError,
    NotFoundError,
)
from fastkd.prune.masks.mask import save_mask
from fastkd.store.logit_store import LogitStore
from fastkd.store.tables import read_tables
from fastkd.store.verify import verify_store

LOGITS = random_logits(3, len(IDS), 10)


@pytest.fixture
def path(tmp_path) -> Path:
    return make_store(tmp_path / "l.h5", LOGITS)


def flip(path: Path, at: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def test_what_an_unfinished_store_has_is_verified(tmp_path):
    path = make_store(tmp_path / "l.h5", LOGITS, blocks=slice(1, 3))
    assert verify_store(path) == ["9 of 15 blocks are not filled yet"]
    flip(path, read_tables(path).logits_offset + 8 * 64)
    assert verify_store(path)[1:] == ["aug_seed 0: 1 of 37 rows do not match their checksum"]


def test_any_flipped_bit_of_a_row_is_found_where_it_is(path):
    tables = read_tables(path)
    whole = path.read_bytes()
    for bit in range(0, 24 * 8, 5):  # of payload and checksum
        path.write_bytes(whole)
        flip(path, tables.logits_offset + (37 + 9) * 64 + bit // 8, bit % 8)
        with pytest.raises(CorruptError, match=f"sample {IDS[9]}, aug_seed 1: .*checksum"):
            LogitStore(path).read(IDS, 1)
        assert verify_store(path) == ["aug_seed 1: 1 of 37 rows do not match their checksum"]
        assert np.array_equal(LogitStore(path).read(IDS, 0), LOGITS[0])


def test_a_whole_store_has_no_problems(path):
    assert verify_store(path) == []


def test_rows_that_were_never_written_are_found(path):
    tables = read_tables(path)
    with path.open("r+b") as file:
        file.seek(tables.logits_offset)
        file.write(bytes(64 * 10))
    assert verify_store(path) == ["aug_seed 0: 10 of 37 rows do not match their checksum"]


@pytest.mark.parametrize(("first", "second", "num_rows"), [(3, 11, 1), (0, 8, 8), (0, 37, 37), (5, 37 + 5, 1)])
def test_exchanged_rows_blocks_and_planes_are_found(path, first, second, num_rows):
    tables = read_tables(path)
    with path.open("r+b") as file:
        content = []
        for row in (first, second):
            file.seek(tables.logits_offset + row * 64)
            content.append(file.read(num_rows * 64))
        for row, found in zip((second, first), content, strict=True):
            file.seek(tables.logits_offset + row * 64)
            file.write(found)
    assert sum(int(line.split(": ")[1].split()[0]) for line in verify_store(path)) == 2 * num_rows
    with pytest.raises(CorruptError, match="checksum"):
        LogitStore(path).read(IDS, first // 37)


def test_anything_but_zeros_behind_a_checksum_is_found(path):
    flip(path, read_tables(path).logits_offset + 37 * 64 + 40)
    assert verify_store(path) == ["aug_seed 1: 1 of 37 rows have other bytes than 0 behind it"]


def test_a_changed_flag_is_found(path):
    whole, tables = path.read_bytes(), read_tables(path)
    for bit in range(8):
        path.write_bytes(whole)
        flip(path, tables.done_offset + 7, bit)
        assert len(verify_store(path)) == 1


def test_a_changed_count_of_hits_is_found(path):
    whole, tables = path.read_bytes(), read_tables(path)
    for bit in range(64):
        path.write_bytes(whole)
        flip(path, tables.top1_offset + 9 * 8 + bit // 8, bit % 8)
        assert verify_store(path) == ["1 of 15 counts of top-1 hits do not match their checksum"]


def test_bytes_behind_the_end_are_found(path):
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"more")
    assert verify_store(path) == [f"{size + 4:,} bytes, expected {size:,}"]


def test_every_cut_is_refused(path):
    whole = path.read_bytes()
    end = read_tables(path).logits_offset + 3 * 37 * 64
    for length in [*range(0, end, 709), end - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises((FormatError, CorruptError), match=r"l\.h5"):
            LogitStore(path)


@pytest.mark.parametrize(
    ("attribute", "changes"),
    [
        ("inputs", {"teacher": "d" * 32}),
        ("inputs", {"beton": "d" * 32}),
        ("params", {"codec": "int8+top4"}),
        ("params", {"codec": "zip"}),
        ("params", {"num_classes": 11}),
        ("params", {"num_seeds": 2}),
        ("params", {"num_seeds": "three"}),
        ("params", {"block_rows": 9}),
        ("params", {"block_rows": 0}),
        ("params", {"views": {"kind": "rrc", "size": 32}}),
    ],
)
def test_a_changed_header_is_refused(path, attribute, changes):
    with h5py.File(path, "r+") as file:
        found = file.attrs[attribute]
        text = json.dumps(json.loads(found) | changes, sort_keys=True)
        file.attrs[attribute] = text if isinstance(found, str) else np.bytes_(text)
    with pytest.raises((CorruptError, FormatError), match=r"l\.h5"):
        LogitStore(path)


@pytest.mark.parametrize("digit", ["g", "0", "-"])
def test_a_changed_fingerprint_is_refused(path, digit):
    with h5py.File(path, "r+") as file:
        file.attrs["fingerprint"] = np.bytes_(digit.encode() + bytes(file.attrs["fingerprint"])[1:])
    with pytest.raises((CorruptError, FormatError), match=r"l\.h5: "):
        LogitStore(path)


def test_an_exchanged_row_order_is_refused(path):
    with h5py.File(path, "r+") as file:
        file["sample_ids"][:2] = IDS[[1, 0]]
    with pytest.raises(CorruptError, match="row order"):
        LogitStore(path)


def test_a_missing_dataset_is_refused(path):
    whole = path.read_bytes()
    for name in ("logits", "sample_ids", "done", "probes", "probe_crc32c"):
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            del file[name]
        with pytest.raises(FormatError, match=rf"l\.h5: .*{name}"):
            LogitStore(path)


def test_other_versions_are_refused(path):
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(FormatError, match="format version 2, this fastkd reads version 1"):
        LogitStore(path)


def test_other_files_are_no_stores(tmp_path):
    save_mask(tmp_path / "m.h5", IDS, num_samples=90, beton_fingerprint="b" * 32, params={})
    with pytest.raises(FormatError, match=r"m\.h5: is a mask, expected a logit-store"):
        LogitStore(tmp_path / "m.h5")
    (tmp_path / "text").write_text("logits")
    with pytest.raises(FormatError, match="text: not an HDF5 file"):
        LogitStore(tmp_path / "text")
    with pytest.raises(NotFoundError, match="nothing"):
        LogitStore(tmp_path / "nothing")


def test_probes_of_views_that_the_store_has_not_are_refused(path):
    """They name pixels to decode: a seed beyond the views' would be read beyond a table."""
    whole = path.read_bytes()
    for probe in ((int(IDS[0]), 2**40), (int(IDS[0]), -1), (10**9, 0), (-5, 0)):
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            file["probes"][3] = probe
        with pytest.raises(FastKDError, match=r"l\.h5"):
            LogitStore(path)


def test_a_flipped_bit_anywhere_is_noticed_or_changes_nothing(path):
    outcomes = flip_bits_apart(path, "logit-store", 300)
    assert not outcomes["wrong"]
    assert outcomes["refused"]


def test_a_flipped_bit_of_a_store_of_one_row_is_noticed_or_changes_nothing(tmp_path):
    make_store(tmp_path / "l.h5", random_logits(1, 1, 2), IDS[:1])
    outcomes = flip_bits_apart(tmp_path / "l.h5", "logit-store", 500)
    assert not outcomes["wrong"]
    assert outcomes["refused"]
