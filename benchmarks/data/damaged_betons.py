"""Claim: no damage of a beton crashes, hangs or passes as another image, and verify finds all that matters.

COUNT damaged copies of small betons (raw, jpg, both with a manifest; one that FFCV's own writer wrote, without): bits
flipped in header, field table, metadata, allocation table, payload and manifest, bytes overwritten by extremes (0, 255, 2^63),
cuts, zeroed pages, pieces put elsewhere. Each copy is opened, verified and loaded in a child process that an alarm ends after
60 s, and what the views and labels come to is compared with the whole file's. An outcome is

    refused     an error of fastkd's, in one line, at opening or loading, and verify reports it, too
    found       it loads, to other pixels or labels, and verify reports it
    harmless    it loads to the same pixels and labels
    unknowable  it loads to others, without a manifest that could know better
    wrong       anything else: a crash, a hang, another exception, a difference that verify does not see

    python -m benchmarks.data.damaged_betons --count 10_000
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import measure
from fastkd.data.beton.build import build_beton
from fastkd.data.beton.dataset import open_dataset
from fastkd.data.beton.encode import WriteOptions
from fastkd.data.beton.read import HEADER_BYTES, manifest_path, open_beton
from fastkd.data.beton.verify import verify_beton
from fastkd.data.loader import ViewLoader
from fastkd.data.sources.open import open_source
from fastkd.data.views.draw import Views
from fastkd.errors import FastKDError

NUM_IMAGES, PAGE, HANGS_AFTER_S = 12, 2**21, 60
KINDS = ("raw", "jpg", "foreign")
EXTREMES = (bytes(8), b"\xff" * 8, (2**63).to_bytes(8, "little"), (2**63 - 1).to_bytes(8, "little"), b"\x01" + bytes(7))


def write_foreign(folder: Path, path: Path) -> None:
    """FFCV's own writer in a process that may not end by itself."""
    code = f"""
import os
import numpy as np
from PIL import Image
from pathlib import Path
from ffcv.fields import FloatField, IntField, RGBImageField
from ffcv.writer import DatasetWriter

class Photos:
    files = sorted(Path({str(folder)!r}).glob("*/*"))
    def __len__(self):
        return len(self.files)
    def __getitem__(self, i):
        return 0.5, np.asarray(Image.open(self.files[i])), i % 3

fields = {{"weight": FloatField(), "image": RGBImageField("jpg"), "label": IntField()}}
DatasetWriter({str(path)!r}, fields, num_workers=1, page_size={PAGE}).from_indexed_dataset(Photos(), chunksize=4)
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def write_fastkd(folder: Path) -> None:
    """A raw and a jpg beton of a dozen smooth pictures."""
    for i in range(NUM_IMAGES):
        coarse = np.random.default_rng(i).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        (folder / "images" / "abc"[i % 3]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((56, 40)).save(folder / "images" / "abc"[i % 3] / f"{i:02}.png")
    source = open_source(str(folder / "images"))
    for mode in ("raw", "jpg"):
        build_beton(source, folder / f"{mode}.beton", WriteOptions(mode=mode, page_size=PAGE), num_workers=1)


def damage(rng: np.random.Generator, content: bytes, manifest: bytes) -> tuple[str, bytes, bytes]:
    """One damaged copy: what was done, the beton, its manifest."""
    table = int.from_bytes(content[16:24], "little")
    beton = open_beton_tables(content)
    spans = {
        "header": (0, HEADER_BYTES),
        "fields": (HEADER_BYTES, HEADER_BYTES + 64),
        "metadata": beton,
        "table": (table, len(content)),
        "payload": (PAGE, len(content[:table].rstrip(b"\0"))),
    }
    what = str(rng.choice([*spans, "metadata", "table", "payload", "extreme", "cut", "zeroed", "moved", "manifest"]))
    out = bytearray(content)
    if what in spans:
        for at in rng.integers(*spans[what], rng.integers(1, 3)).tolist():
            out[at] ^= 1 << int(rng.integers(8))
    elif what == "extreme":
        start, end = spans[str(rng.choice(["header", "metadata", "table"]))]
        at = int(rng.integers(start, max(start + 1, end - 8)))
        size = int(rng.choice([1, 2, 4, 8]))
        out[at : at + size] = EXTREMES[int(rng.integers(len(EXTREMES)))][-size:]
    elif what == "cut":
        del out[int(rng.choice([rng.integers(0, len(out)), len(out) - rng.integers(1, 400), table, PAGE])) :]
    elif what == "zeroed":
        at = int(rng.choice([0, PAGE, rng.integers(*spans["payload"])]))
        end = min(at + int(rng.choice([512, 4096, PAGE])), table)
        out[at:end] = bytes(end - at)
    elif what == "moved":
        size, at = int(rng.integers(8, 500)), int(rng.integers(*spans["payload"]))
        out[at : at + size] = out[PAGE : PAGE + size]
    elif manifest:
        head = bytearray(manifest)
        at = int(rng.integers(len(head)))
        head[at] ^= 1 << int(rng.integers(8))
        return what, content, bytes(head)
    return what, bytes(out), manifest


def open_beton_tables(content: bytes) -> tuple[int, int]:
    """Where the metadata lies."""
    num_fields, num_samples = int.from_bytes(content[2:4], "little"), int.from_bytes(content[8:16], "little")
    start = HEADER_BYTES + 1041 * num_fields
    return start, start + num_samples * (24 if num_fields == 2 else 32)


def load(path: Path) -> list:
    """Checksums of what a loader gives: (sample_id, label, pixels), and the dataset's identity."""
    dataset = open_dataset(path)
    loader = ViewLoader(dataset.beton, Views("rrc", 16, 3), batch_size=5, num_workers=1)
    rows = []
    for batch in loader.epoch(1):
        for image, label, sample_id in zip(batch.images, batch.labels, batch.sample_ids, strict=True):
            rows.append((int(sample_id), int(label), zlib.crc32(image.permute(1, 2, 0).contiguous().numpy().data)))
    return [dataset.fingerprint, dataset.class_names, rows]


def outcome(path: Path, whole: list) -> str:
    """What became of one damaged copy."""
    try:
        problems = verify_beton(open_beton(path))
    except FastKDError as error:
        problems = [str(error)]
    try:
        found = load(path)
    except FastKDError as error:
        if "\n" in str(error):
            return "wrong: more than a line"
        return "refused" if problems else f"wrong: verify is silent about: {error}"
    if found == whole:
        return "harmless"
    if problems:
        return "found"
    return "wrong: another view, and verify is silent" if manifest_path(path).exists() else "unknowable"


def child(folder: Path, kind: str, count: int, seed: int) -> dict[str, Counter]:
    path = folder / f"{kind}.beton"
    content = path.read_bytes()
    manifest = manifest_path(path).read_bytes() if manifest_path(path).exists() else b""
    whole, rng = load(path), np.random.default_rng(seed)
    copy = folder / f"{kind}-{seed}" / "x.beton"
    copy.parent.mkdir()
    outcomes: dict[str, Counter] = {}
    for number in range(count):
        what, damaged, head = damage(rng, content, manifest)
        copy.unlink(missing_ok=True)  # the last one may still be mapped
        copy.write_bytes(damaged)
        if head:
            manifest_path(copy).write_bytes(head)
        print(f"{kind} {number} {what}", file=sys.stderr, flush=True)
        signal.alarm(HANGS_AFTER_S)
        try:
            result = outcome(copy, whole)
        except Exception as error:
            result = f"wrong: {type(error).__name__}: {error}"
        outcomes.setdefault(what, Counter())[result if "wrong" not in result else f"{result} (number {number})"] += 1
    signal.alarm(0)
    return outcomes


def children(folder: Path, count: int, seed: int, each: int = 5_000) -> dict[str, dict[str, dict[str, int]]]:
    """kind → what was done → outcome → how many."""
    result: dict[str, dict[str, dict[str, int]]] = {}
    for kind in KINDS:
        total: dict[str, Counter] = {}
        left, number = count // len(KINDS), seed
        while left > 0:
            command = measure.script(__spec__.name, "--child", folder, kind, min(each, left), number)
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                last = done.stderr.strip().splitlines()[-1:]
                part = {"crash": {f"wrong: ended with {done.returncode} at {last}": 1}}
            else:
                part = json.loads(done.stdout)
            for what, outcomes in part.items():
                total.setdefault(what, Counter()).update(outcomes)
            left, number = left - each, number + 1
        result[kind] = {what: dict(outcomes) for what, outcomes in sorted(total.items())}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--print", action="store_true", help="Print the outcomes instead of recording them.")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        folder, kind, count, seed = args.child
        print(json.dumps(child(Path(folder), kind, int(count), int(seed))))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_fastkd(Path(folder))
        write_foreign(Path(folder) / "images", Path(folder) / "foreign.beton")
        outcomes = children(Path(folder), args.count, args.seed)
    totals: Counter = Counter()
    for kind in outcomes.values():
        for results in kind.values():
            for result, number in results.items():
                totals[result.split(":")[0]] += number
    result = {"damaged": sum(totals.values()), "totals": dict(totals), "outcomes": outcomes}
    if args.print:
        print(json.dumps(result))
    else:
        measure.save("damaged_betons", result)
    sys.exit(bool(totals["wrong"]))


if __name__ == "__main__":
    main()
