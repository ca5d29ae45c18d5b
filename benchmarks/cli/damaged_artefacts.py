"""Claim: no damage of a mask, score or feature file, logit store or run hangs, fills memory, ends in an internal error or is read as else.

COUNT damaged copies, each in a way of its own drawn by seed (`damages.py`: bytes, cuts, splices of two files, HDF5 and JSON edited,
hostile HDF5, and contents sealed again with right fingerprints), each read by the commands that read such a file, in a process
that an alarm ends after 10 s. Each call is held to the memory of the same one on a whole file and 200 MB, and what it accepts to
the whole file's values. An outcome is

    refused    an error of fastkd's by a reader, in one line that names the file, or `verify` lists its problems
    harmless   every reader gives the whole file's values
    another    sealed again, it reads as what it now says
    wrong      anything else: a crash, a hang, more memory, another exception, other values

    python -m benchmarks.cli.damaged_artefacts --count 10_000
"""

import argparse
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import measure
from benchmarks.cli.damages import ways_of

HANGS_AFTER_S, MOST_BYTES, EACH = 10, 200 << 20, 250
NUM_IMAGES, SIDE = 60, 16
CPU = "--device cpu --num-workers 1"
RUN = f"train x.beton --mask m.h5 --logits l.h5 --model resnet8 --epochs 3 --batch-size 10 --val x.beton {CPU}"
DATA = (
    "build-beton images --mode raw --out x.beton",
    "prune x.beton --keep 0.5 --weights inverse-class --out m.h5",
    "prune x.beton --keep 0.5 --seed 5 --weights inverse-class --out m5.h5",
)
TRAIN = f"train x.beton --alpha 0 --model resnet8 --views center --epochs 3 --batch-size 20 --record el2n,dual --dual-window 2 {CPU}"
CACHE = f"cache-logits x.beton --mask m.h5 --num-seeds 2 --outputs logits,embedding --batch-size 8 {CPU}"
LAB = (
    *DATA,
    f"{TRAIN} --out t",
    f"{TRAIN} --seed 5 --out t5",
    f"score x.beton --method moderate --model t --features-out f.h5 --out s0.h5 {CPU}",
    f"score x.beton --method moderate --model t5 --features-out f5.h5 --out s05.h5 {CPU}",
    f"{CACHE} --teacher t --out l.h5",
    f"{CACHE} --teacher t5 --out l5.h5",
    f"{CACHE} --teacher t --shard 1/2 --out a.h5",
    f"{CACHE} --teacher t --shard 2/2 --out b.h5",
    f"{CACHE} --teacher t5 --shard 1/2 --out a5.h5",
    f"{RUN} --out run",
    f"{RUN} --seed 5 --out run5",
)
CHANGING = ("images_per_s", "data_wait_percent", "step_percent", "size_bytes", "notes", "done_percent", "teacher_top1")
"""Of results: rates, and what damage may change without that anything is read as else: the size of the file, and how much of
a store is filled, where flags are cleared."""
Value = Any


def call(line: str) -> tuple[int, str]:
    """A command in this process: its exit code, and what it prints on stdout; errors come as exceptions."""
    from fastkd.cli import cli

    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        try:
            cli.main(line.split(), prog_name="fastkd", standalone_mode=False)
        except SystemExit as end:
            return int(end.code or 0), out.getvalue()
    return 0, out.getvalue()


def result_of(line: str) -> dict[str, Any]:
    """The result of a command; without what depends on the moment."""
    from fastkd.errors import CorruptError

    code, text = call(f"{line} --json")
    found: dict[str, Any] = json.loads(text)
    if code:
        assert found["problems"]
        raise CorruptError("; ".join(found["problems"]))
    return {name: value for name, value in found.items() if name not in CHANGING}


def written(line: str, out: str) -> Value:
    """The bytes of what a command writes."""
    shutil.rmtree("out", ignore_errors=True)
    os.mkdir("out")
    call(f"{line} --out out/{out}")
    return Path("out", out).read_bytes()


def trained() -> Value:
    result = result_of(f"{RUN} --out copy/run")
    return [result, Path("copy/run/model.safetensors").read_bytes()]


def loaded(*, logits: bool) -> Value:
    """What a loader gives of a mask, or of a store beside one."""
    from fastkd.data.views.draw import Views
    from fastkd.feed.loader import Loader

    mask, more = ("m.h5", {"logits": "copy/l.h5", "embeddings": True}) if logits else ("copy/m.h5", {"logits": None})
    loader = Loader(
        "x.beton", None if logits else Views("crop-flip", SIDE, 2), mask=mask, batch_size=16, num_workers=1, **more
    )
    found = []
    for batch in [batch for epoch in range(2) for batch in loader.epoch(epoch)]:
        parts = [batch.images, batch.labels, batch.sample_ids, batch.logits, getattr(batch, "embeddings", None)]
        found.append([None if part is None else part.numpy().tobytes() for part in parts])
    return [*found, None if loader.weights is None else loader.weights.numpy().tobytes()]


def merged() -> Value:
    """Tables and records of the store that is merged of a shard."""
    from fastkd.store.tables import read_tables

    written("merge copy/a.h5 b.h5", "l.h5")
    tables = read_tables("out/l.h5")
    arrays = (tables.sample_ids, tables.done, tables.top1, tables.probes, tables.probe_crc32c)
    records = [tables.map_records(output)[..., : output.codec.payload_bytes + 4] for output in tables.outputs]
    return [tables.header, tables.about, *(array.tobytes() for array in (*arrays, *records))]


def inspected(name: str) -> list[Callable[[], Value]]:
    return [lambda: result_of(f"inspect copy/{name}"), lambda: result_of(f"verify copy/{name}")]


# Kind → the file or folder, another of its kind, what of the folder is damaged, and what reads it.
KINDS: dict[str, tuple[str, str, tuple[str, ...], list[Callable[[], Value]]]] = {
    "mask": (
        "m.h5",
        "m5.h5",
        (),
        [
            *inspected("m.h5"),
            lambda: loaded(logits=False),
            lambda: written("prune x.beton --method complement --mask copy/m.h5", "c.h5"),
            lambda: result_of("plan x.beton --num-seeds 2 --mask copy/m.h5 --images-per-s 1"),
        ],
    ),
    "scores": (
        "t/scores.h5",
        "t5/scores.h5",
        (),
        [
            *inspected("scores.h5"),
            lambda: written("prune x.beton --keep 0.3 --method scores --score el2n --scores copy/scores.h5", "c.h5"),
            lambda: result_of("inspect t5/scores.h5 --compare copy/scores.h5 --score el2n"),
        ],
    ),
    "features": (
        "f.h5",
        "f5.h5",
        (),
        [
            *inspected("f.h5"),
            lambda: written("prune x.beton --keep 0.3 --method moderate --features copy/f.h5", "c.h5"),
        ],
    ),
    "store": (
        "l.h5",
        "l5.h5",
        (),
        [
            *inspected("l.h5"),
            lambda: loaded(logits=True),
            lambda: written("score x.beton --method el2n --logits copy/l.h5", "s.h5"),
        ],
    ),
    "shard": (
        "a.h5",
        "a5.h5",
        (),
        [lambda: result_of("inspect copy/a.h5"), merged],
    ),
    "finished run": (
        "run",
        "run5",
        (
            "run.json",
            "run.json",
            "result.json",
            "result.json",
            "metrics.jsonl",
            "metrics.csv",
            "model.safetensors",
            "resume.pt",
        ),
        [
            *inspected("run"),
            lambda: result_of("report copy --out out/r.html"),
            lambda: result_of(f"evaluate x.beton --model copy/run {CPU}"),
            trained,
        ],
    ),
    "stopped run": (
        "stopped",
        "stopped5",
        ("run.json", "resume.pt", "resume.pt", "resume-previous.pt", "metrics.jsonl", "metrics.csv"),
        [*inspected("run"), trained],
    ),
}
SHARES = {"mask": 20, "scores": 20, "features": 10, "store": 18, "shard": 10, "finished run": 12, "stopped run": 10}
"""Of a hundred copies."""


def prepare(folder: Path, lines: tuple[str, ...] = LAB) -> None:
    """The whole files, in the working folder; lines: DATA for those that no network is needed for."""
    for i in range(NUM_IMAGES):
        coarse = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        (folder / "images" / "abc"[i % 3]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((SIDE, SIDE)).save(folder / "images" / "abc"[i % 3] / f"{i:02}.png")
    for line in lines:
        code, text = call(line)
        assert code == 0, (line, text)
    for name, more in (("stopped", ""), ("stopped5", "--seed 5")) if lines == LAB else ():
        stop(f"{RUN} {more} --out {name}/run", after=2)
    for name in ("out", "copy"):
        (folder / name).mkdir()


def stop(line: str, after: int) -> None:
    """A run in a process of its own that ends as if killed once so many states are written."""
    pid = os.fork()
    if pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        return
    from fastkd.train.parts.states import Checkpoints

    save, count = Checkpoints.save, iter(range(1, after + 1))

    def save_and_end(self: Checkpoints, position: dict[str, Any]) -> None:
        save(self, position)
        if next(count) == after:
            self.finish()
            os._exit(9)

    Checkpoints.save = save_and_end  # type: ignore[method-assign]
    try:
        call(line)
    finally:
        os._exit(1)


def memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def measured(read: Callable[[], Value]) -> tuple[Value, int]:
    """What a call gives, or its error, and the most memory above what there was before."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = memory("VmRSS")
    try:
        value: Value = read()
    except Exception as error:
        value = error
    return value, memory("VmHWM") - before


def place(kind: str, rng: np.random.Generator | None) -> tuple[str, bool]:
    """A copy of the whole file, damaged unless there is no generator; what was done to it, and whether it is sealed again."""
    whole, other, parts, _ = KINDS[kind]
    shutil.rmtree("copy")
    os.mkdir("copy")
    if not parts:
        copy = Path("copy", Path(whole).name)
        shutil.copy(whole, copy)
    else:
        shutil.copytree(Path(whole, "run") if whole == "stopped" else whole, "copy/run")
    if rng is None:
        return "", False
    name = str(rng.choice(parts)) if parts else ""
    copy = Path("copy/run", name) if parts else copy
    its = Path(other, "run" if other == "stopped5" else "", name) if parts else Path(other)
    if parts and rng.random() < 0.05:
        copy.unlink()
        return f"{name} missing", name == "result.json"  # without it a run is one that is not finished
    if parts and rng.random() < 0.05:
        shutil.copy(its, copy)
        return f"{name} of the other", name == "run.json"  # which says itself whose the folder is
    ways = ways_of(copy)
    way = ways[int(rng.integers(len(ways)))]
    is_sealed = way(copy, its, rng)
    is_sealed |= copy.read_bytes() == its.read_bytes()  # which is then whole
    return f"{name} {way.__name__}".strip(), is_sealed


def judge(value: Value, peak: int, whole: Value, whole_peak: int, is_sealed: bool) -> str:
    """What a call on a damaged copy came to."""
    from fastkd.errors import FastKDError

    if peak > whole_peak + MOST_BYTES:
        return f"wrong: {peak - whole_peak:,} bytes more than for a whole file"
    if isinstance(value, FastKDError):
        is_clear = (is_sealed or "copy" in str(value)) and "\n" not in str(value)
        return "refused" if is_clear else f"wrong: says {value}"
    if isinstance(value, Exception):
        return f"wrong: {type(value).__name__}: {' '.join(str(value).split())[:200]}"
    return "harmless" if value == whole else "another" if is_sealed else "wrong: other values"


def work(kind: str, first: int, end: int, seed: int) -> None:
    """Damages and reads the copies first … end-1, and prints a line for each; what the parent reads."""
    sys.path.append(str(measure.ROOT / "tests"))  # for the hostile forms that the tests know
    readers = KINDS[kind][3]
    wholes = []
    for read in readers:
        for _ in range(2):  # the first call loads what reads
            place(kind, None)
            value, peak = measured(read)
            if isinstance(value, Exception):
                raise value
        wholes.append((value, peak))
    for number in range(first, end):
        what, is_sealed = place(kind, np.random.default_rng([seed, sorted(KINDS).index(kind), number]))
        print(json.dumps([number, what, None, 0, 0]), flush=True)
        results, longest, most = [], 0.0, 0
        for at, (read, (whole, whole_peak)) in enumerate(zip(readers, wholes, strict=True)):
            signal.alarm(HANGS_AFTER_S)
            begin = time.monotonic()
            value, peak = measured(read)
            signal.alarm(0)
            longest, most = max(longest, time.monotonic() - begin), max(most, peak - whole_peak)
            result = judge(value, peak, whole, whole_peak, is_sealed)
            results.append(f"{result} (reader {at})" if result.startswith("wrong") else result)
        if results[0].startswith("wrong: other values") and set(results[1:]) == {"refused"}:
            results[0] = "refused"  # `inspect` reads the tables of a store alone, here whole ones of the other store
        order = ("wrong", "refused", "another", "harmless")
        worst = min(results, key=lambda result: order.index(result.split(":")[0]))
        print(json.dumps([number, what, worst, round(longest, 2), most]), flush=True)


def campaign(folder: Path, kind: str, count: int, seed: int, ends: float = math.inf) -> dict[str, Any]:
    """Outcomes of damaged copies of a kind by what was done; processes that end go on behind the copy that ended them.

    One that the alarm ended is tried once more: the machine may have been busy with something else. ends: the time, of
    `time.monotonic`, after which no process is started any more.
    """
    outcomes: dict[str, Counter] = {}
    wrong, at, longest, most, tried = [], 0, 0.0, 0, -1
    while at < count and time.monotonic() < ends:
        end = min(at + EACH, count)
        command = measure.script(__spec__.name, "--worker", kind, at, end, seed)
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        what, begun = "the start", at
        for line in done.stdout.splitlines():
            number, what, outcome, seconds, peak = json.loads(line)
            begun = number
            if outcome is not None:
                outcomes.setdefault(what, Counter())[outcome.split(":")[0]] += 1
                if outcome.startswith("wrong"):
                    wrong.append([number, what, outcome])
                at, longest, most = number + 1, max(longest, seconds), max(most, peak)
        if at < end and done.returncode == -signal.SIGALRM and tried != begun:
            tried = begun
        elif at < end:
            outcomes.setdefault(what, Counter())["wrong"] += 1
            wrong.append([begun, what, f"the process ended with {done.returncode}: {done.stderr.strip()[-900:]}"])
            at = begun + 1
    totals = sum(outcomes.values(), Counter())
    return {
        "copies": at,
        "totals": dict(totals),
        "longest_s": longest,
        "most_bytes_above_whole": most,
        "outcomes": {what: dict(found) for what, found in sorted(outcomes.items())},
        "wrong": wrong,
    }


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        kind, first, end, seed = sys.argv[2:]
        work(kind, int(first), int(end), int(seed))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="those to damage, joined by commas")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no process is started after them")
    parser.add_argument("--jobs", type=int, default=1, help="kinds at once")
    parser.add_argument("--print", action="store_true", help="Print the outcomes instead of recording them.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        lab, kinds = Path(name, "lab"), args.kinds.split(",")
        lab.mkdir()
        os.chdir(lab)
        prepare(lab)
        for kind in kinds:
            shutil.copytree(lab, Path(name, kind))
        with ThreadPoolExecutor(args.jobs) as pool:
            counts = [args.count * SHARES[kind] // 100 for kind in kinds]
            each = (
                [Path(name, kind) for kind in kinds],
                kinds,
                counts,
                [args.seed] * len(kinds),
                [time.monotonic() + 60 * args.minutes] * len(kinds),
            )
            found = dict(zip(kinds, pool.map(campaign, *each), strict=True))
    result = {"copies": sum(one["copies"] for one in found.values()), "seed": args.seed, "kinds": found}
    if args.print:
        print(json.dumps(result, indent=1))
    else:
        measure.save("damaged_artefacts", result)
    sys.exit(any(one["wrong"] for one in found.values()))


if __name__ == "__main__":
    main()
