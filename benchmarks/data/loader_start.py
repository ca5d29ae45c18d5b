"""Claim: a loader over 1.28 M samples starts in under half a second and 150 MB, and a large batch of photos in under 1 GB.

A beton of NUM samples with the tables and the manifest of a real one, and holes where its images would lie, is opened and
a Loader made, in processes of their own, beside FFCV's `Loader` over the same file; the time and the memory above what
the imports take. The ceiling is reading the tables. Then the peak memory of batches of 1,024 views (rrc 224) out of
photos of 500 pixels a side, above import, once more beside FFCV's; of that, what is the process's own, as the peak has the
mapped pages of the beton in it, which are the page cache's and differ from machine to machine.

    python -m benchmarks.data.loader_start
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, FieldDescType, HeaderType, get_metadata_type
from PIL import Image

from benchmarks import measure
from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.beton.manifest import manifest_text
from fastkd.data.beton.read import manifest_path, open_beton
from fastkd.data.sources.open import open_source

PAGE = 8 * 2**20
IMAGE_BYTES = 110_000

CHILD = """
import json, resource, sys, time

def peak():
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

def own():
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

what, path, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
if what == "fastkd":
    import fastkd
    from fastkd import Loader, Views
    make = lambda: Loader(path, Views("rrc", 224, 50), batch_size=batch or 128, shuffle=True, num_workers=1)
    batches = lambda loader: loader.epoch(0)
elif what == "tables":
    make = lambda: sum(open(path, "rb").read(64 * 2**20)[::4096])
else:
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.fields.basics import IntDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor, ToTorchImage
    pipelines = {"image": [RandomResizedCropRGBImageDecoder((224, 224)), ToTensor(), ToTorchImage()],
                 "label": [IntDecoder(), ToTensor()]}
    make = lambda: Loader(path, batch_size=batch or 128, num_workers=1, order=OrderOption.RANDOM, os_cache=True,
                          drop_last=False, pipelines=pipelines)
    batches = iter
before, own_before, begin = resident(), own(), time.perf_counter()
loader = make()
seconds, after = time.perf_counter() - begin, resident()
most = own()
if batch:
    for images, *_ in ((b.images,) if what == "fastkd" else b for b in batches(loader)):
        assert images.shape[1:] == (3, 224, 224)
        most = max(most, own())
memory = {"resident_bytes": after - before, "peak_bytes": peak() - before, "own_bytes": most - own_before}
print(json.dumps({"seconds": seconds, **memory}))
"""


def write_tables(path: Path, num_samples: int) -> None:
    """A beton of the size of ImageNet without its pixels, and a manifest as build-beton writes it."""
    fields = [RGBImageField(), IntField()]
    rows = np.zeros(num_samples, get_metadata_type(fields))
    ids = np.arange(num_samples)
    first = -(-(24 + 2 * 1041 + rows.nbytes) // PAGE) * PAGE
    per_page = PAGE // IMAGE_BYTES
    ptrs = first + ids // per_page * PAGE + ids % per_page * IMAGE_BYTES
    rows["f0"]["width"], rows["f0"]["height"], rows["f0"]["data_ptr"] = 500, 375, ptrs
    rows["f1"] = ids * 1000 // num_samples
    table = np.zeros(num_samples, ALLOC_TABLE_TYPE)
    table["sample_id"], table["ptr"], table["size"] = ids, ptrs, IMAGE_BYTES
    header, descriptions = np.zeros(1, HeaderType), np.zeros(2, FieldDescType)
    header["version"], header["num_fields"], header["page_size"] = CURRENT_VERSION, 2, PAGE
    header["num_samples"], header["alloc_table_ptr"] = num_samples, ptrs[-1] // PAGE * PAGE + PAGE
    for row, name, kind in zip(descriptions, (b"image", b"label"), (2, 1), strict=True):
        row["type_id"], row["name"][: len(name)] = kind, np.frombuffer(name, np.uint8)
    with path.open("wb") as file:
        file.write(header.tobytes() + descriptions.tobytes() + rows.tobytes())
        file.seek(int(header["alloc_table_ptr"][0]))
        file.write(table.tobytes())
    beton = open_beton(path)
    manifest = {
        "fastkd_kind": "beton",
        "format_version": 1,
        "fingerprint": "0" * 32,
        "num_samples": num_samples,
        "size_bytes": beton.size_bytes,
        "tables_crc32": beton.tables_crc32,
        "class_names": [f"n{i:08}" for i in range(1000)],
        "names": [f"n{i * 1000 // num_samples:08}/n{i:08}_{i}.JPEG" for i in range(num_samples)],
        "payload_crc32": [i * 2654435761 % 2**32 for i in range(num_samples)],
    }
    manifest_path(path).write_text(manifest_text(manifest), encoding="utf-8")


def photos(path: Path, folder: Path, num: int) -> None:
    """A beton of noisy pictures of 500×500."""
    (folder / "a").mkdir(parents=True)
    for i in range(num):
        coarse = np.random.default_rng(i).integers(0, 256, (60, 60, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((500, 500)).save(folder / f"a/{i}.jpg", quality=90)
    build_beton(open_source(str(folder)), path, WriteOptions(mode="keep"), num_workers=1)


def child(what: str, path: Path, batch: int = 0) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, what, str(path), str(batch)], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=1_281_167)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tables, large = Path(folder) / "tables.beton", Path(folder) / "photos.beton"
        write_tables(tables, args.num)
        photos(large, Path(folder) / "images", 3 * 1024)
        starts: dict[str, list[dict[str, float]]] = {"fastkd": [], "ffcv": [], "tables": []}
        for round_number in range(-1, args.rounds):
            for what, found in starts.items():
                one = child(what, tables)
                if round_number >= 0:
                    found.append(one)
        batches = {what: child(what, large, 1024) for what in ("fastkd", "ffcv")}
    measure.save(
        "loader_start",
        {
            "start": {
                what: {
                    key: measure.summary([one[key] for one in found])
                    for key in ("seconds", "resident_bytes", "peak_bytes")
                }
                for what, found in starts.items()
            },
            "with_batches_of_1024": {
                what: {key: found[key] for key in ("peak_bytes", "own_bytes")} for what, found in batches.items()
            },
            "samples": args.num,
            "rounds": args.rounds,
        },
    )


if __name__ == "__main__":
    main()
