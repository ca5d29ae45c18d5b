from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.damage import flip_bits_apart
from hypothesis import given
from hypothesis import strategies as st

from fastkd.artefact import write_artefact
from fastkd.errors import CorruptError, FormatError, MismatchError, NotFoundError, OptionError
from fastkd.prune.masks.mask import Mask, class_counts, parse_keep, random_order, save_mask

seeds = st.integers(0, 2**63 - 1)
label_arrays = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(lambda labels: np.array(labels, np.int64))


def write(path: Path, ids: list[int] | np.ndarray, num_samples: int = 50) -> Mask:
    params = {"method": "random", "seed": 3}
    return save_mask(path, np.array(ids), num_samples=num_samples, beton_fingerprint="a" * 32, params=params)


@given(label_arrays, seeds)
def test_the_order_visits_every_sample_once(labels, seed):
    assert np.array_equal(np.sort(random_order(labels, seed)), np.arange(len(labels)))


@given(label_arrays, seeds, st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)))
def test_masks_of_one_seed_are_nested_for_every_pair_of_fractions(labels, seed, fractions):
    counts = [max(1, round(fraction * len(labels))) for fraction in sorted(fractions)]
    small, large = (set(random_order(labels, seed)[:count].tolist()) for count in counts)
    assert small <= large


@given(label_arrays, seeds, st.data())
def test_classes_differ_by_at_most_one_unless_one_is_used_up(labels, seed, data):
    num_kept = data.draw(st.integers(1, len(labels)))
    kept = class_counts(labels, random_order(labels, seed)[:num_kept], 7)
    sizes = np.bincount(labels, minlength=7)
    assert kept.sum() == num_kept
    assert (kept >= np.minimum(sizes, kept.max() - 1)).all()


def test_short_classes_give_all_they_have_and_the_others_fill_up():
    labels = np.repeat([0, 1, 2], [1, 5, 20])
    for seed in range(20):
        assert class_counts(labels, random_order(labels, seed)[:10], 3).tolist() in ([1, 4, 5], [1, 5, 4])
        assert class_counts(labels, random_order(labels, seed)[:11], 3).tolist() == [1, 5, 5]
        assert class_counts(labels, random_order(labels, seed)[:20], 3).tolist() == [1, 5, 14]


def test_which_class_gets_the_odd_sample_depends_on_the_seed():
    labels = np.arange(40) % 4
    first = {int(labels[random_order(labels, seed)[0]]) for seed in range(60)}
    assert first == {0, 1, 2, 3}


def test_the_order_is_that_of_earlier_versions():
    order = random_order(np.arange(30) % 3, 7)
    assert order[:12].tolist() == [25, 0, 29, 13, 2, 15, 5, 4, 21, 17, 10, 3]


def test_a_class_keeps_its_order_when_another_class_grows():
    labels = np.repeat([0, 1], [20, 30])
    longer = np.repeat([0, 1], [20, 300])
    first = [ids[ids < 20].tolist() for ids in (random_order(labels, 5), random_order(longer, 5))]
    assert first[0] == first[1]


@given(seeds, seeds)
def test_other_seeds_choose_other_samples(one, other):
    labels = np.arange(400) % 4
    same = np.array_equal(random_order(labels, one)[:100], random_order(labels, other)[:100])
    assert same == (one == other)


def test_no_sample_is_favoured():
    labels = np.zeros(40, np.int64)
    times_kept = np.bincount(np.concatenate([random_order(labels, seed)[:20] for seed in range(400)]), minlength=40)
    assert times_kept.min() > 150  # 200 expected, standard deviation 10
    assert times_kept.max() < 250


@pytest.mark.parametrize(
    ("text", "count"),
    [("0.1", 20), ("1.0", 200), ("1", 1), ("200", 200), (".5", 100), ("0.0026", 1), ("1e-1", 20), ("0.333", 67)],
)
def test_keep_is_a_fraction_with_a_point_or_a_count_without_one(text, count):
    assert parse_keep(text, 200) == count


@pytest.mark.parametrize(
    "text",
    [
        *[
            "0",
            "0.0",
            "-1",
            "-0.5",
            "1.5",
            "201",
            "200.0",
            "nan",
            "inf",
            "-inf",
            "1e-9",
            "1e5",
            "0.002",
            "1/0",
            "1e999999",
        ],
        *["abc", "", " ", "0x10", "10%", "0,1", "0.1.2", "--"],
    ],
)
def test_a_keep_that_makes_no_sense_is_refused(text):
    with pytest.raises(OptionError, match=r"^--keep") as error:
        parse_keep(text, 200)
    assert "\n" not in str(error.value)


@given(st.integers(1, 10**9), st.data())
def test_a_fraction_keeps_the_nearest_count(num_samples, data):
    fraction = data.draw(st.floats(1 / num_samples, 1.0))
    assert abs(parse_keep(repr(fraction), num_samples) - Fraction(repr(fraction)) * num_samples) <= Fraction(1, 2)


def test_a_mask_reads_back_as_it_was_written(tmp_path):
    written = write(tmp_path / "m.h5", [7, 3, 49, 0])
    read = Mask.load(tmp_path / "m.h5")
    assert read.sample_ids.tolist() == [7, 3, 49, 0]
    assert read.sample_ids.dtype == np.int64
    assert (read.num_samples, read.fraction) == (50, 4 / 50)
    assert read.header == written.header
    assert read.header.inputs == {"beton": "a" * 32}
    assert read.header.params == {"method": "random", "seed": 3, "num_samples": 50}


def test_a_mask_is_readable_with_plain_h5py(tmp_path):
    write(tmp_path / "m.h5", [7, 3, 49, 0])
    with h5py.File(tmp_path / "m.h5") as file:
        assert file["sample_ids"][...].tolist() == [7, 3, 49, 0]
        assert np.asarray(file.attrs["fastkd_kind"]).astype(str) == "mask"
        assert file.attrs["format_version"] == 1


def test_the_same_mask_is_the_same_file(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, [7, 3])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_fingerprint_tells_masks_apart(tmp_path):
    one, reordered, of_more = (
        write(tmp_path / "a", [7, 3]),
        write(tmp_path / "b", [3, 7]),
        write(tmp_path / "c", [7, 3], 51),
    )
    assert len({mask.header.fingerprint for mask in (one, reordered, of_more)}) == 3


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    write(tmp_path / "m.h5", range(0, 50, 2))
    outcomes = flip_bits_apart(tmp_path / "m.h5", "mask", 1500)
    assert not outcomes["wrong"]
    assert outcomes["refused"]


def test_every_flipped_bit_of_the_ids_is_corrupt(tmp_path):
    write(tmp_path / "m.h5", [7, 3, 49])
    whole = (tmp_path / "m.h5").read_bytes()
    start = whole.index(np.array([7, 3, 49], "<i8").tobytes())
    for bit in range(3 * 64):
        damaged = bytearray(whole)
        damaged[start + bit // 8] ^= 1 << bit % 8
        (tmp_path / "m.h5").write_bytes(damaged)
        with pytest.raises(CorruptError, match="fingerprint"):
            Mask.load(tmp_path / "m.h5")


def test_every_cut_is_refused(tmp_path):
    write(tmp_path / "m.h5", range(40))
    whole = (tmp_path / "m.h5").read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        (tmp_path / "m.h5").write_bytes(whole[:length])
        with pytest.raises((FormatError, CorruptError), match=r"m\.h5"):
            Mask.load(tmp_path / "m.h5")


def test_other_files_are_no_masks(tmp_path):
    (tmp_path / "text").write_text("sample_ids\n1\n2\n")
    with h5py.File(tmp_path / "foreign", "w") as file:
        file["sample_ids"] = np.arange(3)
    for name, words in (("text", "not an HDF5 file"), ("foreign", "without fastkd's header")):
        with pytest.raises(FormatError, match=words):
            Mask.load(tmp_path / name)
    with pytest.raises(NotFoundError, match="nothing"):
        Mask.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("kind", "version", "words"),
    [("scores", 1, "is a scores, expected a mask"), ("mask", 3, "version 3, this fastkd reads version 1 and 2")],
)
def test_other_kinds_and_versions_are_refused(tmp_path, kind, version, words):
    arrays = {"sample_ids": np.arange(3)}
    write_artefact(
        tmp_path / "m.h5", kind=kind, format_version=version, inputs={}, params={"num_samples": 5}, arrays=arrays
    )
    with pytest.raises(FormatError, match=words):
        Mask.load(tmp_path / "m.h5")


@pytest.mark.parametrize("ids", [[], [0, 0], [-1], [50]])
def test_ids_that_no_mask_can_have_are_refused(tmp_path, ids):
    write(tmp_path / "m.h5", np.array(ids, np.int64))
    with pytest.raises(FormatError, match="not distinct numbers below 50"):
        Mask.load(tmp_path / "m.h5")


def test_another_beton_is_refused(tmp_path):
    mask = write(tmp_path / "m.h5", [1])
    mask.require_beton("a" * 32, "x.beton")
    with pytest.raises(MismatchError, match=r"m\.h5: .*another beton.*x\.beton"):
        mask.require_beton("b" * 32, "x.beton")
