"""Claim: no damage of an image file ends a build but by its name, starts a program, or is stored as other pixels than Pillow's.

COUNT damaged copies of small pictures in every format that Pillow writes and three forms of JPEG: cut, bytes changed, most of
them near the head, pieces of zeros, pieces put elsewhere. Each is encoded in all three modes, in a child process that an alarm
ends after 60 s and that finds programs of ours in its PATH under the names of those that Pillow knows (Ghostscript, djpeg, netpbm's),
which tell on being started; Python tells of any other that it starts itself. An outcome is

    refused   a SourceError, in one line that begins with the file's name
    stored    the loader decodes it; raw and kept pixels are those that Pillow decodes
    wrong     anything else: a crash, a hang, another exception, other pixels, a program that was started

    python -m benchmarks.data.damaged_images --count 100_000
"""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import measure
from fastkd.data.beton.encode import MODES, Encoded, WriteOptions, encode
from fastkd.data.modes import MODE_JPG
from fastkd.data.sources.picture import decode
from fastkd.data.views.pixels import OK, cut_view
from fastkd.errors import FastKDError, SourceError

HANGS_AFTER_S = 60
JPEGS = {
    "JPEG progressive": {"progressive": True},
    "JPEG 4:4:4": {"subsampling": 0},
    "JPEG restarts": {"restart_marker_rows": 1},
}
NAME = "a/0.png"
PROGRAMS = (
    "gs",
    "gswin64c",
    "gswin32c",
    "djpeg",
    "cjpeg",
    "ppmtogif",
    "ppmquant",
    "giftopnm",
    "xv",
    "display",
    "convert",
)
"""What Pillow, or what it was once able to do, starts."""
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn")
"""Python's events of a program being started."""


def picture() -> Image.Image:
    """A smooth picture of 48×40 pixels."""
    coarse = np.random.default_rng(5).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC)


def written(kind: str) -> bytes | None:
    """The picture in a format, in the first of Pillow's modes that the format takes; None where this Pillow writes none."""
    for mode in ("RGB", "RGBA", "L", "P", "1", "F"):
        file = io.BytesIO()
        try:
            picture().convert(mode).save(file, kind.split()[0], **JPEGS.get(kind, {}))
        except (OSError, ValueError, KeyError):
            continue
        return file.getvalue()
    return None


def kinds() -> list[str]:
    """The formats that this Pillow writes, and forms of JPEG."""
    Image.init()
    return [kind for kind in [*sorted(Image.SAVE), *JPEGS] if written(kind) is not None]


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """A damaged copy."""
    what = rng.choice(["bytes", "bytes", "bytes", "cut", "zeroed", "moved"])
    copy = bytearray(content)
    if what == "cut":
        return content[: rng.integers(len(content))]
    if what == "bytes":
        for _ in range(rng.integers(1, 8)):
            end = len(copy) if rng.random() < 0.4 else min(len(copy), 200)
            copy[rng.integers(end)] = int(rng.choice([0, 255, rng.integers(256)]))
        return bytes(copy)
    size = int(rng.integers(1, 40))
    at, source = (int(x) for x in rng.integers(0, max(1, len(copy) - size), 2))
    copy[at : at + size] = bytes(size) if what == "zeroed" else content[source : source + size]
    return bytes(copy)


def loaded(image: Encoded) -> np.ndarray | None:
    """A stored image as the loader decodes it; None where it does not."""
    size, out = (image.height, image.width), np.empty((image.height, image.width, 3), np.uint8)
    return out if cut_view(image.payload, image.mode, *size, 0, 0, *size, 0, out) == OK else None


def outcome(copy: bytes, mode: str) -> str:
    """What became of one damaged copy in a mode."""
    try:
        image = encode(copy, NAME, WriteOptions(mode=mode))
    except SourceError as error:
        is_line = str(error).startswith(f"{NAME}: ") and "\n" not in str(error)
        return "refused" if is_line else f"wrong: {error}"
    pixels = loaded(image)
    if pixels is None:
        return "wrong: the loader does not decode it"
    is_own = mode == "raw" or (mode == "keep" and image.mode == MODE_JPG and copy.startswith(image.payload.tobytes()))
    try:
        same = not is_own or np.array_equal(pixels, decode(copy, NAME))
    except FastKDError as error:
        return f"wrong: Pillow does not decode it: {error}"
    return "stored" if same else "wrong: other pixels than Pillow's"


def child(kind: str, count: int, seed: int) -> Counter:
    """The outcomes of some damaged copies of the picture in one format, in all modes."""
    content, rng = written(kind), np.random.default_rng(seed)
    assert content is not None
    for mode in MODES:
        outcome(content, mode)  # loads what encodes, which may take long
    started: list[str] = []
    sys.addaudithook(lambda event, arguments: started.append(event) if event in STARTS else None)
    outcomes: Counter = Counter()
    for number in range(count):
        copy = damaged(content, rng)
        print(f"{kind} {number}", file=sys.stderr, flush=True)
        signal.alarm(HANGS_AFTER_S)
        for mode in MODES:
            try:
                result = outcome(copy, mode)
            except Exception as error:
                result = f"wrong: {type(error).__name__}: {error}"
            result = f"wrong: a program was started: {started[-1]}" if started else result
            outcomes[result if "wrong" not in result else f"{result} (number {number}, {mode})"] += 1
    signal.alarm(0)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--print", action="store_true", help="Print the outcomes instead of recording them.")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, count, seed = args.child
        print(json.dumps(child(kind, int(count), int(seed))))
        return
    outcomes: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in PROGRAMS:
            program = Path(folder, name)
            program.write_text(f"#!/bin/sh\ntouch {folder}/started\n")
            program.chmod(0o755)
        environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
        for kind in kinds():
            command = measure.script(__spec__.name, "--child", kind, args.count // len(kinds()), args.seed)
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            last = done.stderr.strip().splitlines()[-1:]
            ended = {f"wrong: ended with {done.returncode} at {last}": 1}
            outcomes[kind] = ended if done.returncode else json.loads(done.stdout)
            if Path(folder, "started").exists():
                outcomes[kind] |= {"wrong: a program was started": 1}
                Path(folder, "started").unlink()
    totals: Counter = Counter()
    for results in outcomes.values():
        for result, number in results.items():
            totals[result.split(":")[0]] += number
    result = {"damaged": args.count // len(kinds()) * len(kinds()), "totals": dict(totals), "outcomes": outcomes}
    if args.print:
        print(json.dumps(result, indent=1))
    else:
        measure.save("damaged_images", result)
    sys.exit(bool(totals["wrong"]))


if __name__ == "__main__":
    main()
