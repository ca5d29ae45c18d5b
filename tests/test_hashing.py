import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkd.fingerprint import fingerprint
from fastkd.hashing import (
    _step_1_by_table,
    _step_4_by_table,
    _step_8_by_table,
    crc32c,
    draw,
    draw_below,
    draw_unit,
    mix,
)
from fastkd.splitmix import draws

KEYS = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (12345, 161, 1042), (2**63 - 1, 7, 2**31)]
WORDS = st.integers(0, 2**63 - 1)


def as_bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def crc32c_bit_by_bit(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_mix_is_the_finaliser_of_splitmix64():
    # The published generator, seeded with 0: its state steps by the golden gamma.
    steps = [np.uint64(i * 0x9E3779B97F4A7C15 % 2**64) for i in (1, 2, 3)]
    assert [int(mix(step)) for step in steps] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_draws_are_the_ones_that_stores_were_made_with():
    assert [int(draw(*key)) for key in KEYS] == [
        0x238275BC38FCBE91,
        0xB18A02F46D8D86C3,
        0x44E5B98100C67FB0,
        0x2F32A78496C67C60,
        0x0505559ACD23F568,
        0xE5099A6D91FA7BCB,
    ]


def test_draws_as_doubles_are_the_ones_that_stores_were_made_with():
    assert [draw_unit(*key) for key in KEYS] == [
        0.13870941014555427,
        0.6935121390102292,
        0.2691303195904541,
        0.18436667429957676,
        0.01961264638261162,
        0.8946777837281646,
    ]


def test_draws_below_a_bound_are_the_ones_that_stores_were_made_with():
    assert [draw_below(*key, 1000) for key in KEYS] == [138, 693, 269, 184, 19, 894]


@given(WORDS, WORDS, WORDS)
def test_a_drawn_double_lies_in_the_half_open_unit_interval(a, b, number):
    assert 0.0 <= draw_unit(a, b, number) < 1.0


@given(WORDS, WORDS, WORDS, st.integers(1, 2**32))
def test_a_drawn_integer_lies_below_its_bound(a, b, number, bound):
    assert 0 <= draw_below(a, b, number, bound) < bound


@given(WORDS, WORDS, WORDS)
def test_a_bound_of_one_leaves_only_zero(a, b, number):
    assert draw_below(a, b, number, 1) == 0


@given(st.lists(WORDS, max_size=20), WORDS, WORDS)
def test_drawing_for_many_is_drawing_for_each(keys, b, number):
    assert draws(np.array(keys, np.int64), b, number).tolist() == [int(draw(key, b, number)) for key in keys]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_neighbouring_keys_draw_evenly_from_seven(position):
    keys = np.zeros((7_000, 3), np.int64)
    keys[:, position] = np.arange(7_000)
    counts = np.bincount([draw_below(*key, 7) for key in keys.tolist()], minlength=7)
    assert ((counts - 1000) ** 2 / 1000).sum() < 22.5  # chi-squared, 6 degrees of freedom: 0.1 %


def test_every_part_of_a_key_moves_half_the_bits():
    for position in range(3):
        moved = []
        for i in range(500):
            key, other = [i, i + 1, i + 2], [i, i + 1, i + 2]
            other[position] ^= 1
            moved.append((int(draw(*key)) ^ int(draw(*other))).bit_count())
        assert 30 < np.mean(moved) < 34


def test_sample_and_seed_do_not_change_places():
    assert draw(3, 5, 0) != draw(5, 3, 0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_crc32c_agrees_with_the_vectors_of_rfc_3720(data, expected):
    assert crc32c(as_bytes(data)) == expected


@given(st.binary(max_size=70))
def test_crc32c_of_any_length_agrees_with_the_definition(data):
    assert crc32c(as_bytes(data)) == crc32c_bit_by_bit(data)


@given(st.binary(min_size=13, max_size=13))
def test_processors_without_the_instruction_get_the_same_crc32c(data):
    crc = np.uint32(_step_8_by_table(np.uint32(0xFFFFFFFF), np.uint64(int.from_bytes(data[:8], "little"))))
    crc = np.uint32(_step_4_by_table(crc, np.uint32(int.from_bytes(data[8:12], "little"))))
    crc = _step_1_by_table(crc, np.uint8(data[12]))
    assert crc ^ 0xFFFFFFFF == crc32c_bit_by_bit(data)


def test_the_fingerprint_of_given_parts_stays_what_it_is():
    assert fingerprint([]) == "cae66941d9efbd404e4d88758ea67670"
    assert fingerprint(["fastkd", b"\x00\x01"]) == "efd7a745e24e8da96d25516078815731"
    assert fingerprint(["fastkd", b"\x00\x01", np.arange(6).reshape(2, 3)]) == "6adecb7107c84a2b5da1b85ded185de2"


@given(st.lists(st.binary(max_size=12), max_size=4), st.lists(st.binary(max_size=12), max_size=4))
def test_other_parts_have_another_fingerprint_wherever_they_are_cut(parts, others):
    assert (fingerprint(parts) == fingerprint(others)) == (parts == others)


@pytest.mark.parametrize(
    "other",
    [
        np.arange(6, dtype=np.int64).reshape(3, 2),
        np.arange(6, dtype=np.int64),
        np.arange(6, dtype=np.uint64).reshape(2, 3),
        np.arange(6, dtype=">i8").reshape(2, 3),
        np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::-1],
    ],
)
def test_arrays_of_another_type_shape_or_content_have_another_fingerprint(other):
    assert fingerprint([other]) != fingerprint([np.arange(6, dtype=np.int64).reshape(2, 3)])


def test_an_array_has_the_same_fingerprint_however_it_lies_in_memory():
    array = np.arange(12).reshape(3, 4)
    assert fingerprint([np.asfortranarray(array)]) == fingerprint([array])
    assert fingerprint([np.repeat(array, 2, axis=1)[:, ::2]]) == fingerprint([array])


def test_an_array_is_never_mistaken_for_strings_that_spell_it():
    content = (3).to_bytes(8, "little") + b"abc"
    assert fingerprint([as_bytes(content)]) != fingerprint([b"|u1(11,)", b"abc"])
