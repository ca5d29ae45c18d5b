"""Claim: a cold epoch over a tenth of a beton reads that tenth and little more.

The photos of ZIP, COPIES times over, kept as they are in a full beton; a random tenth of them as a mask; and the beton
that `build-beton --mask` copies out for it. Each epoch runs in a process of its own after the page cache of the file was
dropped (posix_fadvise DONTNEED); what it read is the difference in /proc/self/io. Beside it the same loader without
reading ahead, and FFCV's own with the same samples. The ceiling is reading the kept samples with O_DIRECT by four threads,
decoding nothing. Asserted in each run: the batches hold the kept samples, and on the part no more than 1.3 times their
bytes and a page a batch was read.

    python -m benchmarks.data.cold_reads imagenet-500.zip
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import measure
from benchmarks.data.photos import some
from fastkd.data.beton.build import build_beton, build_part
from fastkd.data.beton.dataset import open_dataset
from fastkd.data.beton.encode import WriteOptions
from fastkd.data.sources.open import open_source
from fastkd.prune.masks.mask import random_order, save_mask

BATCH = 32

CHILD = """
import json, mmap, os, sys, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import fastkd.data.loader
from fastkd import Loader, Views
from fastkd.data.beton.dataset import open_dataset
from fastkd.prune.masks.mask import Mask
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader as FFCV, OrderOption

def read_bytes():
    return int(next(line for line in open("/proc/self/io") if line.startswith("read_bytes")).split()[1])

what, path, mask, batch = sys.argv[1], sys.argv[2], Mask.load(sys.argv[3]), int(sys.argv[4])
ids = mask.sample_ids
dataset = open_dataset(path)
if what == "ffcv":
    pipelines = {"image": [RandomResizedCropRGBImageDecoder((224, 224))]}
    loader = FFCV(path, batch_size=batch, num_workers=1, order=OrderOption.RANDOM, os_cache=True, indices=np.sort(ids),
                  drop_last=False, pipelines=pipelines)
    next(iter(loader))  # compiles
elif what != "direct":
    if what.endswith("without"):
        fastkd.data.loader.is_cold = lambda beton, ids: False
    loader = Loader(dataset, Views("rrc", 224), mask=mask, batch_size=batch, shuffle=True, num_workers=1,
                    order="pages" if "pages" in what else "shuffle")
    next(loader.run([(ids[:1], 0)]))
starts, sizes = dataset.beton.ptrs[ids].tolist(), dataset.beton.sizes[ids].tolist()
dataset.beton.mapping.madvise(mmap.MADV_DONTNEED)
file = os.open(path, os.O_RDONLY)
os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
before, begin = read_bytes(), time.perf_counter()
if what == "direct":
    direct, size = os.open(path, os.O_RDONLY | os.O_DIRECT), os.path.getsize(path)
    def one(start, length):
        first, end = start // 4096 * 4096, -(-(start + length) // 4096) * 4096
        os.preadv(direct, [mmap.mmap(-1, end - first)], first)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, starts, sizes))
elif what == "ffcv":
    assert sum(len(labels) for _, labels in loader) == len(ids)
else:
    seen = np.concatenate([b.sample_ids.numpy() for b in loader.epoch(0)])
    assert sorted(seen) == sorted(ids)
print(json.dumps({"seconds": time.perf_counter() - begin, "read_bytes": read_bytes() - before}), flush=True)
os._exit(0)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--folder", help="On the disk to be measured.  [default: a temporary folder]")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    source = open_source(args.source)
    source = some(source, [*range(len(source))] * args.copies)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        full, part, mask = (Path(folder) / name for name in ("full.beton", "part.beton", "m.h5"))
        build_beton(source, full, WriteOptions(mode="keep", max_size=500))
        dataset = open_dataset(full)
        ids = random_order(dataset.beton.labels, 0)[: len(source) // 10]
        save_mask(mask, ids, num_samples=len(source), beton_fingerprint=dataset.fingerprint, params={})
        build_part(dataset.beton, ids, part, full_fingerprint=dataset.fingerprint)
        kept_bytes, page_size = int(dataset.beton.sizes[ids].sum()), dataset.beton.page_size
        del dataset
        runs = {
            "part, pages": ("pages", part),
            "full, pages": ("pages", full),
            "full, shuffle": ("shuffle", full),
            "full, pages, without reading ahead": ("pages without", full),
            "full, shuffle, without reading ahead": ("shuffle without", full),
            "full, FFCV": ("ffcv", full),
            "full, O_DIRECT": ("direct", full),
            "part, O_DIRECT": ("direct", part),
        }
        found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
        for round_number in range(-1, args.rounds):
            for name, (what, path) in runs.items():
                command = [sys.executable, "-c", CHILD, what, str(path), str(mask), str(BATCH)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                if round_number >= 0:
                    found[name].append(json.loads(done.stdout.splitlines()[-1]))
    allowed = 1.3 * kept_bytes + page_size * -(-len(ids) // BATCH)
    assert all(one["read_bytes"] <= allowed for one in found["part, pages"])
    result = {
        name: {
            "read_over_kept_bytes": measure.summary([one["read_bytes"] / kept_bytes for one in ones]),
            "seconds": measure.summary([one["seconds"] for one in ones]),
        }
        for name, ones in found.items()
    }
    sizes = {"kept_bytes": kept_bytes, "kept": len(ids), "images": len(source), "page_bytes": page_size, "batch": BATCH}
    measure.save("cold_reads", {"epochs": result, **sizes, "rounds": args.rounds})


if __name__ == "__main__":
    main()
