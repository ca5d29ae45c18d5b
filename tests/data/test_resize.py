"""Resizing: the integer formula, to the bit."""

import ctypes

import numpy as np
import pytest
from helpers.decoding import view
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastkd.data.modes import MODE_RAW


def weights(length: int, out: int) -> np.ndarray:
    """The filter as resize.h defines it: int64 (out, length), rows that add up to 2^14."""
    table = np.zeros((out, length), np.int64)
    for i in range(out):
        reach = 2 * max(length, out)
        w = [max(0, reach - abs((2 * x + 1) * out - (2 * i + 1) * length)) for x in range(length)]
        inverse = 2**62 // sum(w)
        table[i] = np.diff([(sum(w[:x]) * inverse + 2**47) >> 48 for x in range(length + 1)])
    return table


def resized(image: np.ndarray, out: tuple[int, int]) -> np.ndarray:
    """The two passes of resize.h, without its code."""
    rows = (np.einsum("oh,hwc->owc", weights(image.shape[0], out[0]), image.astype(np.int64)) + 2**6) >> 7
    return ((np.einsum("ow,hwc->hoc", weights(image.shape[1], out[1]), rows) + 2**20) >> 21).astype(np.uint8)


sides = st.integers(1, 70)


@given(image=st.tuples(sides, sides), out=st.tuples(sides, sides), flip=st.booleans(), seed=st.integers(0, 99))
def test_a_resize_is_the_integer_formula_to_the_bit(image, out, flip, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (*image, 3), dtype=np.uint8)
    found = view(noise.tobytes(), MODE_RAW, image, (0, 0, *image), out, flip)
    wanted = resized(noise, out)
    np.testing.assert_array_equal(found, wanted[:, ::-1] if flip else wanted)


@pytest.mark.parametrize(("image", "out"), [((900, 700), (3, 5)), ((1, 1), (224, 224)), ((3000, 2), (1, 300))])
def test_a_resize_by_a_large_factor_is_the_integer_formula_too(image, out):
    noise = np.random.default_rng(1).integers(0, 256, (*image, 3), dtype=np.uint8)
    np.testing.assert_array_equal(view(noise.tobytes(), MODE_RAW, image, (0, 0, *image), out), resized(noise, out))


@given(image=st.tuples(sides, sides), out=st.tuples(sides, sides), seed=st.integers(0, 99))
def test_a_resize_is_pillows_antialiased_bilinear_to_rounding(image, out, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (*image, 3), dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(noise).resize(out[::-1], Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(view(noise.tobytes(), MODE_RAW, image, (0, 0, *image), out) - wanted).max() <= 1


@given(image=st.tuples(sides, sides), out=st.tuples(sides, sides), grey=st.integers(0, 255))
def test_an_even_colour_stays_what_it_is(image, out, grey):
    assert (view(bytes([grey]) * (3 * image[0] * image[1]), MODE_RAW, image, (0, 0, *image), out) == grey).all()


def test_pixels_outside_the_box_do_not_matter():
    noise = np.random.default_rng(2).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    other = 255 - noise
    other[10:40, 20:70] = noise[10:40, 20:70]
    found = [view(image.tobytes(), MODE_RAW, (60, 80), (10, 20, 30, 50), (24, 24)) for image in (noise, other)]
    np.testing.assert_array_equal(*found)


def test_a_machine_without_avx2_makes_the_same_bytes(libraries):
    plain = libraries["plain"]
    rng = np.random.default_rng(3)
    for _ in range(300):
        height, width, out_height, out_width = (int(x) for x in rng.integers(1, 90, 4))
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        box = (0, 0, height, width)
        out = np.zeros((out_height, out_width, 3), np.uint8)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (noise, out)]
        size, stride = ctypes.c_uint64(noise.size), ctypes.c_int64(3 * out_width)
        plain.fastkd_view(pointers[0], size, 1, height, width, *box, 0, pointers[1], stride, out_height, out_width)
        np.testing.assert_array_equal(
            view(noise.tobytes(), MODE_RAW, (height, width), box, (out_height, out_width)), out
        )
