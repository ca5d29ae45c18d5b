import numpy as np
import pytest
from helpers.stores import crc32c_by_the_polynomial
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastkd.errors import OptionError
from fastkd.store.codec import check_encodable, decode_rows, encode_rows, make_codec
from fastkd.store.unpack import _half_by_integers

thorough = settings(max_examples=300)


NAMES = ("fp16", "int8+top4", "int4+top8")
QUANTISED = {"int8+top4": (4, 255), "int4+top8": (8, 15)}
"""name → (largest logits kept, codes)"""


LOGITS = np.array([[0.1, -2.5, 3.25, 7.125, -0.0, 1e-3, -11.25, 3.25, 2.0, 0.7]], np.float32)
SALT = 2**64 - 3


GOLDEN = {
    "fp16": (
        "662e 00c1 8042 2047 0080 1914 a0c9 8042 0040 9a39"  # the ten logits
        "0abe2c91"  # CRC32C of this and the number 7 + SALT = 4
    ),
    "int8+top4": (
        "f2 bb 00 00 f0 f0 00 00 00 ff"  # codes; those of the four largest are 0
        "002a a0c9"  # scale, offset
        "0300 2047 0200 8042 0700 8042 0800 0040"  # class 3: 7.125, 2: 3.25, 7: 3.25, 8: 2
        "356f56e8"
    ),
    "int4+top8": (
        "f0 00 00 00 00"  # two codes a byte: class 1 has 15, class 6 has 0
        "ab38 a0c9"  # scale, offset
        "0300 2047 0200 8042 0700 8042 0800 0040 0900 9a39 0000 662e 0500 1914 0400 0080"
        "728f2272"
    ),
}


def round_trip(name: str, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decoded logits and records."""
    codec = make_codec(name, logits.shape[1])
    numbers = np.arange(len(logits))
    records = encode_rows(codec, logits, numbers, SALT)
    decoded, good = decode_rows(codec, records, numbers, SALT)
    assert good.all()
    return decoded, records


def decode_by_the_docstring(name: str, num_classes: int, record: bytes) -> tuple[np.ndarray, float, float]:
    """Logits (float64), scale and offset, from what the module says of the layout and from nothing else."""
    if name == "fp16":
        return np.frombuffer(record, "<f2", num_classes).astype(np.float64), 0.0, 0.0
    top, _ = QUANTISED[name]
    num_bytes = num_classes if name == "int8+top4" else (num_classes + 1) // 2
    codes = np.frombuffer(record, np.uint8, num_bytes)
    if name == "int4+top8":
        codes = np.stack([codes % 16, codes // 16], 1).reshape(-1)[:num_classes]
    scale, offset = np.frombuffer(record, "<f2", 2, num_bytes).astype(np.float64)
    logits = offset + scale * codes
    pair = np.dtype([("index", "<u2"), ("logit", "<f2")])
    for index, logit in np.frombuffer(record, pair, min(top, num_classes), num_bytes + 4):
        logits[index] = logit
    return logits, float(scale), float(offset)


@st.composite
def rows(draw: st.DrawFn) -> np.ndarray:
    """One row of logits, of kinds on which rounding is awkward: float32 (1, C)."""
    num_classes = draw(st.integers(1, 40) | st.just(1000))
    centre = np.float32(draw(st.floats(-65000, 65000, width=32)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ways = {
        "normal": lambda: rng.normal(0, 3, num_classes),
        "wide": lambda: rng.uniform(-65000, 65000, num_classes),
        "constant": lambda: np.full(num_classes, centre),
        "near ties": lambda: centre + np.spacing(centre) * rng.integers(-3, 4, num_classes),
        "tiny range": lambda: centre + rng.uniform(-1, 1, num_classes) * 10.0 ** -draw(st.integers(0, 12)),
        "extremes": lambda: rng.choice([65000, 64999, 64980, -65000, -64990, 6e-8, -6e-8, 1e-40, 0.0], num_classes),
        "halfway": lambda: 2048 + rng.integers(-4, 5, num_classes) + rng.choice([0, 1e-3], num_classes),
        "negative": lambda: -np.abs(rng.normal(500, 200, num_classes)),
    }
    row = ways[draw(st.sampled_from(sorted(ways)))]()
    return np.clip(row, -65000, 65000).astype(np.float32)[None]


encodable_rows = rows().filter(lambda row: not check_encodable(row).any())


@given(encodable_rows)
def test_fp16_is_rounding_to_float16_and_nothing_else(logits):
    decoded, _ = round_trip("fp16", logits)
    assert np.array_equal(decoded, logits.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("name", QUANTISED)
@thorough
@given(encodable_rows)
def test_the_class_with_the_largest_logit_survives(name, logits):
    decoded, _ = round_trip(name, logits)
    assert decoded.argmax() == logits.argmax()


@pytest.mark.parametrize("name", QUANTISED)
@thorough
@example(np.array([[1000.4, 1000.4, 1000.41, 1010, 1011, 1012, 1013]], np.float32))
@example(np.full((1, 20), 1e-45, np.float32))
@given(encodable_rows)
def test_the_classes_beside_the_largest_are_within_half_a_step(name, logits):
    top, _ = QUANTISED[name]
    if logits.shape[1] <= top:
        return
    decoded, records = round_trip(name, logits)
    _, scale, _ = decode_by_the_docstring(name, logits.shape[1], records[0].tobytes())
    others = np.argsort(-logits[0], kind="stable")[top:]
    error = np.abs(decoded[0, others].astype(np.float64) - logits[0, others])
    rounding_of_the_sum = np.spacing(np.abs(decoded[0, others])) / 2
    assert (error <= scale / 2 + rounding_of_the_sum).all()


def float16_not_below(x: float) -> float:
    """Of the finite float16 numbers, the smallest one that is not below x."""
    numbers = np.arange(2**16, dtype=np.uint16).view(np.float16)
    numbers = np.sort(numbers[np.isfinite(numbers)]).astype(np.float64)
    return float(numbers[np.searchsorted(numbers, x)])


@pytest.mark.parametrize("name", QUANTISED)
@given(encodable_rows)
def test_step_and_offset_are_the_documented_ones(name, logits):
    top, levels = QUANTISED[name]
    if logits.shape[1] <= top:
        return
    _, records = round_trip(name, logits)
    _, scale, offset = decode_by_the_docstring(name, logits.shape[1], records[0].tobytes())
    others = np.sort(logits[0].astype(np.float64))[:-top]
    assert offset == -float16_not_below(-others[0])
    assert scale == float16_not_below((others[-1] - offset) / levels)


@pytest.mark.parametrize("name", QUANTISED)
@thorough
@given(encodable_rows)
def test_the_largest_are_exact_in_float16_but_for_the_first_where_rounding_would_hide_it(name, logits):
    decoded, _ = round_trip(name, logits)
    top = np.argsort(-logits[0], kind="stable")[: QUANTISED[name][0]]
    in_float16 = logits[0, top].astype(np.float16)
    assert np.array_equal(decoded[0, top[1:]], in_float16[1:].astype(np.float32))
    if decoded[0, top[0]] != in_float16[0]:
        others = np.delete(decoded[0], top[0])
        one_less = np.nextafter(decoded[0, top[0]].astype(np.float16), np.float16(-np.inf))
        assert in_float16[0] <= one_less <= others.max() < decoded[0, top[0]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, -3.0, 0.1, 65000.0, -65000.0])
def test_constant_rows_come_back_as_float16_has_them(name, value):
    decoded, _ = round_trip(name, np.full((2, 30), value, np.float32))
    expected = float(np.float16(value))
    assert np.abs(decoded - expected).max() <= np.spacing(np.float16(value))


@given(encodable_rows, st.sampled_from(NAMES))
def test_a_decoder_written_from_the_documentation_agrees(logits, name):
    decoded, records = round_trip(name, logits)
    expected, _, _ = decode_by_the_docstring(name, logits.shape[1], records[0].tobytes())
    assert np.isfinite(expected).all()
    assert (np.abs(decoded[0] - expected) <= np.spacing(np.abs(expected).astype(np.float32))).all()


def checksum_by_the_docstring(payload: bytes, number: int) -> bytes:
    return crc32c_by_the_polynomial(payload + ((number + SALT) % 2**64).to_bytes(8, "little")).to_bytes(4, "little")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_classes", [1, 3, 10, 26, 1000])
def test_a_record_is_payload_then_checksum_then_zeros(name, num_classes):
    logits = np.random.default_rng(0).normal(0, 3, (2, num_classes)).astype(np.float32)
    codec, numbers = make_codec(name, num_classes), [5, 2**33 + 1]
    for record, number in zip(encode_rows(codec, logits, np.array(numbers), SALT), numbers, strict=True):
        payload, rest = record[: codec.payload_bytes].tobytes(), record[codec.payload_bytes :].tobytes()
        assert rest[:4] == checksum_by_the_docstring(payload, number)
        assert not any(rest[4:])


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_of_a_record_are_frozen(name):
    record = bytes.fromhex(GOLDEN[name]).ljust(64, b"\0")
    assert encode_rows(make_codec(name, 10), LOGITS, np.array([7]), SALT)[0].tobytes().hex() == record.hex()


def test_the_frozen_bytes_are_these_logits():
    assert np.array_equal(
        decode_by_the_docstring("fp16", 10, bytes.fromhex(GOLDEN["fp16"]))[0], LOGITS[0].astype("<f2")
    )
    for name, smallest, largest in (("int8+top4", -11.25, 0.7), ("int4+top8", -11.25, -2.5)):
        decoded, scale, _ = decode_by_the_docstring(name, 10, bytes.fromhex(GOLDEN[name]))
        assert np.abs(decoded - LOGITS[0]).max() <= scale / 2
        assert 0.99 < scale * QUANTISED[name][1] / (largest - smallest) < 1.01


@pytest.mark.parametrize("name", NAMES)
def test_any_flipped_bit_of_payload_or_checksum_is_noticed(name):
    codec = make_codec(name, 10)
    bits = 8 * (codec.payload_bytes + 4)
    damaged = encode_rows(codec, np.tile(LOGITS, (bits, 1)), np.arange(bits), SALT)
    assert decode_rows(codec, damaged, np.arange(bits), SALT)[1].all()
    damaged[np.arange(bits), np.arange(bits) // 8] ^= (1 << np.arange(bits) % 8).astype(np.uint8)
    _, good = decode_rows(codec, damaged, np.arange(bits), SALT)
    assert not good.any()


@pytest.mark.parametrize("name", NAMES)
def test_a_record_of_another_place_or_store_is_noticed(name):
    codec = make_codec(name, 10)
    records = encode_rows(codec, np.tile(LOGITS, (50, 1)), np.arange(50), SALT)
    _, good = decode_rows(codec, np.roll(records, 1, axis=0), np.arange(50), SALT)
    assert not good.any()
    _, good = decode_rows(codec, records, np.arange(50), SALT + 1)
    assert not good.any()


@given(st.sampled_from(NAMES), st.integers(1, 40), st.data())
def test_noise_instead_of_a_record_is_noticed(name, num_classes, data):
    codec = make_codec(name, num_classes)
    noise = data.draw(st.binary(min_size=codec.row_bytes, max_size=codec.row_bytes).filter(any))
    _, good = decode_rows(codec, np.frombuffer(noise, np.uint8)[None], np.array([0]), SALT)
    end = codec.payload_bytes
    assert good[0] == (noise[end : end + 4] == checksum_by_the_docstring(noise[:end], 0))


def test_rows_are_encoded_each_for_itself():
    logits = np.random.default_rng(1).normal(0, 3, (5, 100)).astype(np.float32)
    for name in NAMES:
        codec = make_codec(name, 100)
        alone = np.concatenate([encode_rows(codec, logits[[i]], np.array([i]), SALT) for i in range(5)])
        assert np.array_equal(encode_rows(codec, logits, np.arange(5), SALT), alone)


@pytest.mark.parametrize(
    ("name", "num_classes", "row_bytes"),
    [
        *[("fp16", 10, 64), ("fp16", 30, 64), ("fp16", 31, 128), ("fp16", 1000, 2048)],
        *[("int4+top8", 8, 64), ("int4+top8", 48, 64), ("int4+top8", 49, 128), ("int4+top8", 1000, 576)],
        *[("int8+top4", 8, 64), ("int8+top4", 40, 64), ("int8+top4", 41, 128), ("int8+top4", 1000, 1024)],
    ],
)
def test_records_have_their_documented_size(name, num_classes, row_bytes):
    assert make_codec(name, num_classes).row_bytes == row_bytes


@given(st.sampled_from(NAMES), st.integers(1, 65_536))
def test_records_are_multiples_of_64_bytes_without_a_line_to_spare(name, num_classes):
    codec = make_codec(name, num_classes)
    assert codec.row_bytes % 64 == 0
    assert 4 <= codec.row_bytes - codec.payload_bytes < 68


def test_auto_is_fp16_for_few_classes():
    assert [make_codec("auto", c).name for c in (1, 10, 64, 65, 1000)] == ["fp16"] * 3 + ["int8+top4"] * 2


def test_processors_without_float16_decode_the_same_numbers():
    halves = np.arange(2**16, dtype="<u2")
    halves = halves[np.isfinite(halves.view("<f2"))]
    decoded = np.array([_half_by_integers(halves.view(np.uint8), 2 * i) for i in range(len(halves))], np.float32)
    assert decoded.tobytes() == halves.view("<f2").astype(np.float32).tobytes()


@pytest.mark.parametrize(("name", "num_classes"), [("int4", 10), ("int4+top8", 0), ("fp16", 0), ("int8+top4", 65_537)])
def test_unknown_codecs_and_numbers_of_classes_are_refused(name, num_classes):
    with pytest.raises(OptionError, match=f"codec '{name}'|^{num_classes} classes"):
        make_codec(name, num_classes)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 7e4, -7e4])
def test_what_float16_cannot_hold_is_not_encodable(value):
    logits = np.zeros((3, 5), np.float32)
    logits[1, 4] = value
    assert check_encodable(logits).tolist() == [False, True, False]


def test_ordinary_logits_are_encodable():
    assert not check_encodable(np.array([[5e4, -5e4], [0, 1e-40]], np.float32)).any()
