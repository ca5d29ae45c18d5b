import contextlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkd.data.sources.pickled import read_plain_pickle, uint8_array
from fastkd.errors import FormatError

CONTENT = pickle.dumps({"data": np.zeros((2, 3), np.uint8), "labels": [1, 2], "names": ["a"]}, 2)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x80\x02.", id="nothing on the stack"),
        pytest.param(b"\x80\x02]q\x01.", id="a list"),
        pytest.param(b"\x80\x02}r\xff\xff\xff\xffs.", id="a memo number of four thousand million"),
        pytest.param(b"\x80\x02}h\x07.", id="an unknown memo number"),
        pytest.param(b"\x80\x02}((u.", id="a mark for a key"),
        pytest.param(b"\x80\x02}" + b"N" + b"\x85" * 300_000 + b"Ns.", id="a key three hundred thousand tuples deep"),
        pytest.param(b"\x80\x02}cbuiltins\neval\n.", id="eval"),
        pytest.param(b"\x80\x02}cnumpy\nload\n.", id="another global of numpy"),
        pytest.param(b"\x80\x02c_codecs\nencode\n(U\x01aU\x03hextR.", id="another codec"),
        pytest.param(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", id="bytes that say they are exbibytes"),
        pytest.param(b"PK\x03\x04", id="a zip"),
    ],
)
def test_a_malformed_pickle_is_refused(content):
    with pytest.raises(FormatError) as error:
        read_plain_pickle(content, "file")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param([1, 2], id="a list"),
        pytest.param(np.zeros(3), id="floats"),
        pytest.param(np.array([None, {}]), id="objects"),
        pytest.param(np.zeros(2, np.dtype("u2")), id="uint16"),
    ],
)
def test_only_arrays_of_uint8_are_taken(value):
    content = read_plain_pickle(pickle.dumps({"data": value}, 2), "file")
    with pytest.raises(FormatError):
        uint8_array(content["data"], "file")


def test_an_array_in_fortran_order_keeps_its_axes():
    array = np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    content = read_plain_pickle(pickle.dumps({"data": array}, 2), "file")
    assert (uint8_array(content["data"], "file") == array).all()


@pytest.mark.filterwarnings("ignore:invalid escape:DeprecationWarning")  # pickletools reading a damaged string
@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.integers(0, len(CONTENT) - 1), st.integers(0, 255), min_size=1, max_size=3))
def test_a_pickle_with_changed_bytes_reads_or_is_refused(changes):
    content = bytearray(CONTENT)
    for position, value in changes.items():
        content[position] = value
    with contextlib.suppress(FormatError):
        uint8_array(read_plain_pickle(bytes(content), "file").get("data"), "file")


@given(st.integers(0, len(CONTENT) - 1))
def test_a_cut_pickle_is_refused(size):
    with pytest.raises(FormatError, match="cut or malformed"):
        read_plain_pickle(CONTENT[:size], "file")
