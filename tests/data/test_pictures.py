"""Every format that Pillow can write, whole and damaged, given to a build."""

import io
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from helpers.refusals import refused
from helpers.scripts import benchmark
from helpers.synthetic import encoded, photo, pillow
from PIL import Image

from fastkd.data.sources.picture import FORMATS, MAX_PIXELS, decode, size_of
from fastkd.errors import SourceError

damaged_images = benchmark("data.damaged_images")
Image.init()
READ = {*FORMATS, "MPO"} & {*Image.SAVE}  # an MPO is a JPEG with others behind it
NUM_DAMAGED = 40  # copies of each format


def written(kind: str) -> bytes:
    """A picture as a file of a format."""
    content = damaged_images.written(kind)
    return content if content is not None else pytest.skip(f"this Pillow writes no {kind}")


@pytest.mark.parametrize("kind", sorted(READ))
def test_a_format_that_is_read_is_read_whatever_its_name(kind):
    content = written(kind)
    assert (decode(content, "a.png") == pillow(content)).all()
    assert size_of(content, "a.png") == (40, 48)


@pytest.mark.parametrize("kind", sorted({*Image.SAVE} - READ))
def test_a_format_that_is_not_read_is_refused_with_those_that_are(kind):
    message = refused(SourceError, decode, written(kind), "a.png")
    assert message.startswith("a.png: cannot be decoded (")
    assert ", ".join(FORMATS) in message


@pytest.mark.parametrize("kind", ["EPS", "DDS", "ICO", "JPEG2000", "PCX", "QOI"])
def test_a_format_that_is_not_read_is_named(kind):
    assert f"the format {kind};" in refused(SourceError, decode, written(kind), "a.png")


@pytest.mark.parametrize("kind", damaged_images.kinds())
def test_a_damaged_file_of_any_format_is_refused_by_name_or_stored_with_pillows_pixels(kind):
    outcomes = damaged_images.child(kind, NUM_DAMAGED, seed=1)
    assert set(outcomes) <= {"refused", "stored"}
    assert outcomes.total() == 3 * NUM_DAMAGED


def test_no_other_program_is_started_for_an_image(tmp_path):
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    (tmp_path / "a.png").write_bytes(written("EPS"))
    code = "import sys; from fastkd.data.sources.picture import decode; decode(open(sys.argv[1], 'rb').read(), 'a.png')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")],
        env={"PATH": f"{tmp_path}:/bin:/usr/bin", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "SourceError: a.png: " in done.stderr
    assert not (tmp_path / "started").exists()


def claiming(width: int, height: int) -> bytes:
    """A PPM of a few bytes whose header claims a size."""
    return b"P6 %d %d 255\n" % (width, height) + bytes(99)


@pytest.mark.parametrize("side", [13_400, 30_000])
def test_a_header_that_claims_more_pixels_than_are_read_is_refused_by_name(side):
    assert side**2 > MAX_PIXELS
    for read in (decode, size_of):
        assert refused(SourceError, read, claiming(side, side), "a.ppm").startswith("a.ppm: cannot be decoded (")


def deep_pictures() -> Iterator[tuple[str, bytes]]:
    """Files of one grey ramp, of 16 bits: name and content."""
    ramp = np.linspace(0, 65_535, 64 * 64).astype(np.uint16).reshape(64, 64)
    yield "png", encoded(ramp, "PNG")
    yield "tiff", encoded(ramp, "TIFF")
    yield "pgm", b"P5 64 64 65535\n" + ramp.astype(">u2").tobytes()
    yield "plain pgm", b"P2 64 64 65535\n" + " ".join(map(str, ramp.reshape(-1).tolist())).encode()


@pytest.mark.parametrize(
    ("name", "content"), [*deep_pictures()], ids=lambda value: value if isinstance(value, str) else ""
)
def test_grey_pictures_of_16_bits_keep_their_upper_eight(name, content):
    ramp = np.linspace(0, 65_535, 64 * 64).astype(np.uint16).reshape(64, 64) >> 8
    np.testing.assert_array_equal(decode(content, name)[:, :, 0], ramp)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_32_bits_are_refused_by_name(mode):
    file = io.BytesIO()
    Image.fromarray(photo(1, 40, 48)[:, :, 0]).convert(mode).save(file, "TIFF")
    assert refused(SourceError, decode, file.getvalue(), "a.tif").startswith("a.tif: found pixels of a range")
