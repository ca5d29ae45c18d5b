"""Claim: no damage of a row index changes a pixel: it is refused when it is opened, or costs time.

COUNT damaged copies of the index of a beton of small JPEGs: bits and bytes changed, most of them in the head and in the table
of where entries begin, cut, pieces zeroed, repeated or moved, entries of other images, the index of another beton. Each is put
beside the beton and opened by a loader, whose views are compared with those without an index. An outcome is

    refused   one line that names the file, when it is opened
    same      every view has the pixels that it has without an index
    wrong     anything else

and of those that are opened, how many `fastkd verify` finds.

    python -m benchmarks.data.damaged_indexes --count 10_000
"""

import argparse
import io
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import measure
from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.beton.read import Beton, open_beton
from fastkd.data.beton.row_index import damaged_entries, row_index_path
from fastkd.data.loader import ViewLoader
from fastkd.data.sources.open import open_source
from fastkd.data.views.draw import Views
from fastkd.errors import FastKDError

NUM_IMAGES, SIDE = 12, 96


def make_beton(folder: Path, seed: int) -> Beton:
    """A beton of pictures of several subsamplings, with its index."""
    rng = np.random.default_rng(seed)
    for i in range(NUM_IMAGES):
        file = folder / f"images{seed}" / "a" / f"{i:02}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        content = io.BytesIO()
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(content, "JPEG", subsampling=i % 3)
        file.write_bytes(content.getvalue())
    path = folder / f"{seed}.beton"
    build_beton(open_source(str(folder / f"images{seed}")), path, WriteOptions(mode="keep"))
    return open_beton(path)


def damaged(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A damaged copy; other: the index of another beton."""
    copy = bytearray(content)
    size = int(rng.integers(1, 80))
    at, source = (int(x) for x in rng.integers(0, max(1, len(copy) - size), 2))
    what = rng.choice(["bit", "bytes", "head", "table", "cut", "zeroed", "moved", "of another", "another"])
    if what == "bit":
        copy[rng.integers(len(copy))] ^= 1 << int(rng.integers(8))
    elif what in ("bytes", "head", "table"):
        low, high = {"head": (0, 64), "table": (len(copy) - 8 * NUM_IMAGES, len(copy))}.get(str(what), (0, len(copy)))
        for _ in range(rng.integers(1, 8)):
            copy[rng.integers(low, high)] = int(rng.choice([0, 255, rng.integers(256)]))
    elif what == "cut":
        return content[: rng.integers(len(content))]
    elif what == "zeroed":
        copy[at : at + size] = bytes(size)
    elif what == "moved":
        copy[at : at + size] = copy[source : source + size]
    elif what == "of another":
        copy[64 : len(copy) - 8 * NUM_IMAGES] = other[64 : len(copy) - 8 * NUM_IMAGES]
    else:
        return other
    return bytes(copy)


def views_of(beton: Beton) -> np.ndarray:
    """One rrc view of each image: uint8 (NUM_IMAGES, 3, 40, 40)."""
    loader = ViewLoader(beton, Views("rrc", 40, 4), batch_size=NUM_IMAGES, num_workers=1)
    return np.concatenate([batch.images.numpy() for batch in loader.epoch(1)])


def campaign(folder: Path, count: int, seed: int = 0) -> Counter:
    """Outcomes of `count` damaged copies."""
    rng, found = np.random.default_rng(seed), Counter[str]()
    beton, other = (make_beton(folder, number) for number in (0, 1))
    path = row_index_path(beton.path)
    content, foreign = path.read_bytes(), row_index_path(other.path).read_bytes()
    whole = views_of(beton)
    path.unlink()
    assert (views_of(beton) == whole).all()
    for _ in range(count):
        copy = damaged(content, foreign, rng)
        if copy == content:
            found["the same bytes"] += 1
            continue
        path.write_bytes(copy)
        try:
            same = bool((views_of(beton) == whole).all())
            found["same" if same else "wrong"] += 1
            found["same, found by verify"] += same and len(damaged_entries(beton)) > 0
        except FastKDError as error:
            is_named = str(error).startswith(f"{path}: ") and "\n" not in str(error)
            found["refused" if is_named else "wrong"] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(Path(folder), args.count)
    assert found["wrong"] == 0, found
    measure.save("damaged_indexes", {"outcomes": dict(found), "count": args.count})


if __name__ == "__main__":
    main()
