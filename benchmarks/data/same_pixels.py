"""Claim: views decoded by fastkd's own code are, to the byte, those that libjpeg-turbo decodes, on every processor.

Rrc views of photos (as they come, and shrunk to 500 pixels and encoded anew), and views of small
JPEGs of every form: subsamplings, grey, RGB, CMYK, progressive, with restart markers, with tables of their own, odd sizes, noise
whose quantization was changed so that coefficients wrap; boxes of one pixel and the whole image among them. Each is made by the
decoder as it is, with a row index and without, by a build without AVX2, and by one that leaves all to libjpeg, which is what
they are compared with: pixels and status.

    python -m benchmarks.data.same_pixels imagenet-500.zip --photo-views 50_000 --small-views 50_000
"""

import argparse
import ctypes
import io
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import measure
from benchmarks.data import decoders
from fastkd.data.beton.encode import WriteOptions, encode
from fastkd.data.modes import MODE_JPG
from fastkd.data.sources.open import Source, open_source
from fastkd.data.views.draw import rrc_view
from fastkd.data.views.pixels import index_entry, load_library

FORMS: list[dict] = [
    *({"subsampling": kind} for kind in (0, 1, 2, "4:1:1")),
    *({"subsampling": kind, "optimize": True} for kind in (0, 1, 2)),
    {"progressive": True},
    {"restart_marker_rows": 1},
    {"keep_rgb": True},
    {"mode": "L"},
    {"mode": "CMYK"},
]
BOXES = 20  # of a small JPEG


def small_jpeg(rng: np.random.Generator) -> tuple[bytes, tuple[int, int]]:
    """A JPEG of some form and its height and width, 1 … 100."""
    height, width = (int(x) for x in rng.integers(1, 101, 2))
    coarse = rng.integers(0, 256, (*(-(-side // int(rng.choice([1, 4, 16]))) for side in (height, width)), 3))
    image = Image.fromarray(coarse.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    options = dict(FORMS[rng.integers(len(FORMS))])
    file = io.BytesIO()
    image.convert(options.pop("mode", "RGB")).save(file, "JPEG", quality=int(rng.integers(5, 101)), **options)
    content = bytearray(file.getvalue())
    if rng.random() < 0.2:
        for at in (i for i in range(len(content) - 70) if content[i : i + 3] == b"\xff\xdb\x00"):
            content[at + 5 : at + 69] = rng.integers(1, int(rng.choice([4, 64, 256])), 64).astype(np.uint8).tobytes()
    return bytes(content), (height, width)


def some_boxes(rng: np.random.Generator, height: int, width: int) -> Iterator[decoders.Box]:
    """The whole image, single pixels, and boxes drawn from it."""
    yield 0, 0, height, width
    yield height - 1, width - 1, 1, 1
    for i in range(BOXES - 2):
        h, w = (1 if i == 0 else int(rng.integers(1, side, endpoint=True)) for side in (height, width))
        yield int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w


def differences(
    libraries: dict[str, ctypes.CDLL],
    content: bytes,
    image: tuple[int, int],
    box: decoders.Box,
    out: tuple[int, int],
    flip: int,
    entry: bytes,
) -> list[str]:
    """Which of the ways of making a view do not give libjpeg's."""
    payload = np.frombuffer(content, np.uint8)
    expected = decoders.view(libraries["libjpeg"], payload, image, box, out, flip)
    ways = {"own": ("own", b""), "indexed": ("own", entry), "plain": ("plain", entry)}
    found = {
        way: decoders.view(libraries[name], payload, image, box, out, flip, rows) for way, (name, rows) in ways.items()
    }
    return [way for way, (status, pixels) in found.items() if status != expected[0] or (pixels != expected[1]).any()]


def compare(
    libraries: dict[str, ctypes.CDLL],
    small_views: int,
    source: Source | None = None,
    photo_views: int = 0,
    seed: int = 0,
) -> Counter:
    """Views made, images among them that have an index, and views that differ."""
    rng, found = np.random.default_rng(seed), Counter[str]()

    def look_at(content: bytes, image: tuple[int, int], views: list[tuple[decoders.Box, tuple[int, int], int]]) -> None:
        entry = index_entry(np.frombuffer(content, np.uint8), MODE_JPG, *image)
        found["images"] += 1
        found["images with an index"] += bool(entry)
        for box, out, flip in views:
            found["views"] += 1
            found["wrong"] += bool(differences(libraries, content, image, box, out, flip, entry))

    while found["views"] < small_views:
        content, image = small_jpeg(rng)
        views = [
            (box, box[2:] if i % 2 else (int(rng.integers(1, 60)), int(rng.integers(1, 60))), int(rng.integers(2)))
            for i, box in enumerate(some_boxes(rng, *image))
        ]
        look_at(content, image, views)
    if source is None:
        return found
    options = [WriteOptions(mode="keep"), WriteOptions(mode="jpg", max_size=500)]
    each = -(-photo_views // (len(source) * len(options)))
    for i in range(len(source)):
        for option in options:
            one = encode(source.read(i), source.names[i], option)
            size = one.height, one.width
            drawn = [rrc_view(i, aug_seed, *size) for aug_seed in range(each)]
            look_at(one.payload.tobytes(), size, [((t, l, h, w), (224, 224), flip) for t, l, h, w, flip in drawn])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--photo-views", type=int, default=50_000)
    parser.add_argument("--small-views", type=int, default=50_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        libraries = {
            "own": load_library(),
            "libjpeg": decoders.load(decoders.build(Path(folder) / "libjpeg.so", decoders.LIBJPEG)),
            "plain": decoders.load(decoders.build(Path(folder) / "plain.so", decoders.PLAIN)),
        }
        found = compare(libraries, args.small_views, open_source(args.source), args.photo_views)
    assert found["wrong"] == 0, found
    measure.save("same_pixels", dict(found))


if __name__ == "__main__":
    main()
