import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkd.data.sources.mat import read_mat
from fastkd.errors import FormatError

scipy_io = pytest.importorskip("scipy.io")


def mat_file(*, is_compressed: bool = False, **arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    scipy_io.savemat(file, arrays, do_compression=is_compressed)
    return file.getvalue()


ARRAYS = {
    "other": np.eye(2),
    "X": np.arange(96, dtype=np.uint8).reshape(4, 4, 3, 2),
    "y": np.array([[1], [10]], np.uint8),
}
FILES = [mat_file(is_compressed=is_compressed, **ARRAYS) for is_compressed in (False, True)]


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i4", "i8", "f4", "f8"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 3), (4, 2, 3, 5)])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_arrays_are_those_that_scipy_wrote(dtype, shape, is_compressed):
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    content = mat_file(is_compressed=is_compressed, a=np.eye(3), data=array, z=np.ones(1))
    one, two = read_mat(content, ["data", "a"], "file")
    np.testing.assert_array_equal(one, array, strict=True)
    assert (two == np.eye(3)).all()


def test_variables_of_other_kinds_are_passed_by():
    content = mat_file(text="hello", cells=np.array([1, "a"], object), data=np.ones((2, 2)))
    assert read_mat(content, ["data"], "file")[0].shape == (2, 2)


@pytest.mark.parametrize("value", ["hello", np.array([1, "a"], object), np.ones(2) * 1j])
def test_a_variable_that_is_no_array_of_real_numbers_is_refused(value):
    with pytest.raises(FormatError, match="real numbers"):
        read_mat(mat_file(X=value), ["X"], "file")


def test_a_missing_variable_is_named():
    with pytest.raises(FormatError, match="found no X"):
        read_mat(mat_file(y=np.ones(2)), ["X", "y"], "file")


@pytest.mark.parametrize("content", [b"", b"MATLAB", b"MATLAB 5.0".ljust(128), b"\x89HDF".ljust(200, b"\0")])
def test_a_file_of_another_format_is_refused(content):
    with pytest.raises(FormatError, match="MATLAB 5"):
        read_mat(content, ["X"], "file")


@given(st.sampled_from(FILES), st.floats(0, 0.999))
def test_a_cut_file_is_refused(content, share):
    with pytest.raises(FormatError):
        read_mat(content[: int(share * len(content))], ["X", "y"], "file")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FILES), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_file_with_changed_bytes_reads_or_is_refused(content, changes):
    changed = bytearray(content)
    for place, value in changes:
        changed[int(place * len(changed))] = value
    with contextlib.suppress(FormatError):
        read_mat(bytes(changed), ["X", "y"], "file")
