"""The decoder built otherwise; made once a session."""

import ctypes

import pytest
from helpers.scripts import benchmark

from fastkd.data.views.pixels import load_library

decoders = benchmark("data.decoders")


@pytest.fixture(scope="session")
def libraries(tmp_path_factory) -> dict[str, ctypes.CDLL]:
    """The decoder as it is (`own`), one that leaves all to libjpeg, one without code for AVX2."""
    if decoders.COMPILER is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("decoders")
    flags = {"libjpeg": decoders.LIBJPEG, "plain": decoders.PLAIN}
    built = {name: decoders.load(decoders.build(folder / f"{name}.so", flag, "-O1")) for name, flag in flags.items()}
    return {"own": load_library(), **built}
