"""Claim: masks of 100 million samples take a few copies of the scores' time, and less than 8 bytes a sample.

Synthetic scores and labels; each job against the plain numpy way of doing it, interleaved, and as a multiple of one
`np.copy` of the scores, the ceiling. Most of `algebra` is reading and writing the sample_ids themselves, 8 bytes each, which
numpy has to do as well; its row has the bytes a second beside np.copy's, and what that leaves to gain. Asserted in the same
run: both ways keep the same samples. The peak of memory beyond scores and labels is measured in a process of its own. Each
job also runs in a fresh process at ImageNet's N = 1,281,167, from its start to its end.

    python -m benchmarks.prune.prune_scale --samples 100000000
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import measure

IMAGENET = 1_281_167
JOBS = ("random", "top", "algebra", "save-load")
ENOUGH = 5
"""Times as fast as numpy; a job below it says why."""


def make(num_samples: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """labels int64 (N,) and scores float32 (N,)."""
    rng = np.random.default_rng(0)
    return rng.integers(0, num_classes, num_samples), rng.standard_normal(num_samples, np.float32)


@functools.cache
def two_masks(num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """The sample_ids of two masks that keep a seventh each."""
    return np.arange(0, num_samples, 7), np.arange(3, num_samples, 7)


def ours(job: str, labels: np.ndarray, scores: np.ndarray, num_kept: int, folder: Path) -> np.ndarray:
    """The job by fastkd; sample_ids, sorted where the order is no part of the job."""
    from fastkd.prune.masks.bitmap import bitmap_of, pack_ids
    from fastkd.prune.masks.mask import Mask, save_mask
    from fastkd.prune.select.levels import select_level

    num_samples = len(labels)
    if job == "random":
        return select_level(labels, num_kept, balance="equal", seed=1)
    if job == "top":
        return select_level(labels, num_kept, scores=scores, balance="equal", seed=1)
    one, other = two_masks(num_samples)
    if job == "algebra":
        a, b = pack_ids(one, num_samples), pack_ids(other, num_samples)
        return bitmap_of((a.bits | b.bits) & ~(a.bits & b.bits), num_samples).ids()
    save_mask(folder / "m.h5", one, num_samples=num_samples, beton_fingerprint="0" * 32, params={})
    return Mask.load(folder / "m.h5").sample_ids


def plain(job: str, labels: np.ndarray, scores: np.ndarray, num_kept: int, folder: Path) -> np.ndarray:
    """The job as one writes it with numpy: sort by class and score, number the ranks; boolean arrays; np.save."""
    num_samples, num_classes = len(labels), int(labels.max()) + 1
    if job in ("random", "top"):
        keys = np.random.default_rng(1).random(num_samples, np.float32) if job == "random" else -scores
        order = np.lexsort((keys, labels))
        counts = np.bincount(labels, minlength=num_classes)
        rank = np.arange(num_samples) - np.repeat(np.cumsum(counts) - counts, counts)
        return order[np.argsort(rank, kind="stable")[:num_kept]]
    one, other = two_masks(num_samples)
    if job == "algebra":
        a, b = np.zeros(num_samples, bool), np.zeros(num_samples, bool)
        a[one], b[other] = True, True
        return np.flatnonzero((a | b) & ~(a & b))
    np.save(folder / "m.npy", one)
    found = np.load(folder / "m.npy")
    assert len(np.unique(found)) == len(found)  # what a mask promises
    return found


def check(job: str, labels: np.ndarray, scores: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """Both ways keep the same."""
    assert len(a) == len(b)
    if job in ("algebra", "save-load"):
        assert np.array_equal(a, b)
        return
    counts = [np.bincount(labels[ids], minlength=int(labels.max()) + 1) for ids in (a, b)]
    assert np.abs(counts[0] - counts[1]).max() <= 1
    if job == "top":  # the odd sample of a round goes to classes by draw here, by number there
        lowest = [np.full(len(counts[0]), np.inf, np.float32) for _ in range(2)]
        for ids, low in zip((a, b), lowest, strict=True):
            np.minimum.at(low, labels[ids], scores[ids])
        same = counts[0] == counts[1]
        assert np.array_equal(lowest[0][same], lowest[1][same])


def bytes_moved(job: str, num_samples: int) -> int | None:
    """The least that a job has to read and write in memory, where that bounds it: the sample_ids, 8 B each, once; the
    bitmaps, N/8 B each, five times."""
    if job != "algebra":
        return None
    one, other = two_masks(num_samples)
    return 8 * 2 * (len(one) + len(other)) + 5 * num_samples // 8


def limit(job: str, num_samples: int, times: dict[str, list[float]], speed: float) -> dict[str, object]:
    """Bytes a second of a job that memory bounds beside those of np.copy; where it is less than 5 times as fast as numpy,
    how fast it could be if it moved its bytes as np.copy does."""
    moved = bytes_moved(job, num_samples)
    if moved is None:
        return {}
    seconds = {way: statistics.median(taken) for way, taken in times.items()}
    rates = {"fastkd": moved / seconds["fastkd"], "np.copy": 2 * 4 * num_samples / seconds["copy"]}
    possible = seconds["numpy"] * rates["np.copy"] / moved
    found: dict[str, object] = {"bytes_moved": moved, "bytes_per_s": rates, "most_possible_over_numpy": possible}
    if speed < ENOUGH:
        found["why_below_5_times_numpy"] = (
            f"at least {moved / num_samples:.1f} B a sample are moved, nearly all of them sample_ids that come in and go out "
            f"whatever the set is kept in; at np.copy's bytes a second that would be {possible:.1f} times numpy, and it "
            f"reaches {rates['fastkd'] / rates['np.copy']:.2f} of that rate"
        )
    return found


def peak_bytes_a_sample(job: str, num_samples: int, num_classes: int, share: float) -> float:
    """The peak of resident memory of one job beyond labels, scores and libraries, in a process of its own."""
    command = measure.script(__spec__.name, "--peak-of", job, "--samples", num_samples)
    done = subprocess.run(
        [*command, "--classes", str(num_classes), "--keep", str(share)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def report_peak(job: str, num_samples: int, num_classes: int, share: float) -> None:
    labels, scores = make(num_samples, num_classes)
    with tempfile.TemporaryDirectory() as folder:
        ours(job, labels[:1000] % 10, scores[:1000], 100, Path(folder))  # compiled code and libraries
        two_masks(num_samples)  # what those jobs start from
        status = Path("/proc/self/status").read_text()
        before = int(status.split("VmRSS:")[1].split()[0]) * 1024
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        ours(job, labels, scores, round(share * num_samples), Path(folder))
        peak = measure.peak_bytes()
    print((peak - before) / num_samples)


def fresh_process_s(job: str) -> tuple[float, float]:
    """Seconds, and seconds of CPU, of a process that does one job of ImageNet's size: start, imports, job and end, but
    not the making of labels and scores."""
    begin = time.perf_counter()
    done = subprocess.run(measure.script(__spec__.name, "--once", job), capture_output=True, text=True, check=True)
    wall = time.perf_counter() - begin
    making, making_cpu, busy = (float(word) for word in done.stdout.split())
    return wall - making, busy - making_cpu


def report_once(job: str) -> None:
    begin, busy = time.perf_counter(), time.process_time()
    labels, scores = make(IMAGENET, 1000)
    two_masks(IMAGENET)
    print(time.perf_counter() - begin, time.process_time() - busy)
    with tempfile.TemporaryDirectory() as folder:
        ours(job, labels, scores, IMAGENET // 10, Path(folder))
    print(time.process_time())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-of", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--once", choices=JOBS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        report_peak(args.peak_of, args.samples, args.classes, args.keep)
        return
    if args.once:
        report_once(args.once)
        return
    num_kept = round(args.keep * args.samples)
    peaks = {job: peak_bytes_a_sample(job, args.samples, args.classes, args.keep) for job in JOBS}
    for job in JOBS:
        fresh_process_s(job)  # reads the libraries from the disk
    imagenet = {job: list(zip(*(fresh_process_s(job) for _ in range(5)), strict=True)) for job in JOBS}
    labels, scores = make(args.samples, args.classes)
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for job in JOBS:
            found: dict[str, np.ndarray] = {}

            def run(way: Callable[..., np.ndarray], job: str = job, found: dict = found) -> None:
                found[way.__name__] = way(job, labels, scores, num_kept, folder)

            ways = {
                "copy": lambda: np.copy(scores),
                "fastkd": lambda run=run: run(ours),
                "numpy": lambda run=run: run(plain),
            }
            seconds = measure.interleave(ways, rounds=args.rounds, warmup=0)
            check(job, labels, scores, found["ours"], found["plain"])
            speed = measure.ratios(seconds, "fastkd", "numpy")
            rows[job] = {
                "speed_over_numpy": speed,
                **limit(job, args.samples, seconds, speed["median"]),
                "copies_of_the_scores": measure.ratios(seconds, "copy", "fastkd"),
                "seconds": {way: measure.summary(times) for way, times in seconds.items()},
                "peak_bytes_a_sample": peaks[job],
                "imagenet_s_with_imports": measure.summary(imagenet[job][0]),
                "imagenet_cpu_s_with_imports": measure.summary(imagenet[job][1]),
            }
            print(job, json.dumps(rows[job]), file=sys.stderr, flush=True)
    measure.save(
        "prune_scale",
        {
            "samples": args.samples,
            "classes": args.classes,
            "keep": args.keep,
            "rounds": args.rounds,
            "jobs": rows,
        },
    )


if __name__ == "__main__":
    main()
