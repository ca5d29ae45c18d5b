"""Two commands started at once to write one output, again and again, for every command that writes.

Claim: of two equal commands both end well with the one result, or the later one says that another process is at it; of two
different ones exactly one has its result there, and the other has one line; never two successes with one result lost, never
a damaged file, never a trace of the loser. The start of the second is drawn within the time that the first takes; half of the
pairs start together.

    python -m benchmarks.cli.concurrent_starts --starts 100
"""

import argparse
import csv
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import measure
from fastkd.report.cells import TIMES

TRAIN = "train x.beton --mask k.h5 --alpha 0 --model resnet8 --views center --epochs 1 --device cpu"
# Of each command: what it writes, and two lines that differ in what they make of it.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "build-beton": (
        "y.beton",
        "build-beton digits: --mode raw --out y.beton",
        "build-beton digits: --mode jpg --out y.beton",
    ),
    "score": (
        "s.h5",
        "score x.beton --method el2n --model t/model.safetensors --device cpu --out s.h5",
        "score x.beton --method margin --model t/model.safetensors --device cpu --out s.h5",
    ),
    "import-scores": (
        "i.h5",
        "import-scores x.beton v.npy --higher hard --out i.h5",
        "import-scores x.beton v.npy --higher easy --out i.h5",
    ),
    "prune": ("m.h5", "prune x.beton --keep 0.3 --out m.h5", "prune x.beton --keep 0.5 --out m.h5"),
    "cache-logits": (
        "l.h5",
        "cache-logits x.beton --mask k.h5 --teacher t/model.safetensors --views center --device cpu --out l.h5",
        "cache-logits x.beton --mask k.h5 --teacher t5/model.safetensors --views center --device cpu --out l.h5",
    ),
    "train": ("run", f"{TRAIN} --out run", f"{TRAIN} --lr 0.01 --out run"),
    "merge": ("j.h5", "merge a.h5 b.h5 --out j.h5", "merge c.h5 --out j.h5"),
    "report": ("r.html", "report . --out r.html", "report t --out r.html"),
    "inspect": (
        "g.png",
        "inspect k.h5 --beton x.beton --gallery g.png",
        "inspect k.h5 --beton x.beton --count 5 --gallery g.png",
    ),
    "verify": (
        "z.beton.json",
        "verify z.beton --write-manifest",
        "verify z.beton --write-manifest --label-field second",
    ),
    "sweep": ("D", "sweep one.toml --out D", "sweep two.toml --out D"),
}
LEFT, REPLACED = "whole, left as it is", "made anew; the old one was made with"
OF_DATA = ("build-beton", "import-scores", "prune", "inspect", "verify")  # need neither a teacher nor a store
SUITE = """
[data]
train = "x.beton"
val = "v.beton"
[train]
model = "resnet8"
source = "labels"
views = "center"
epochs = 1
[matrix]
prune.keep = [0.05]
train.lr = [{lr}]
"""


def prepare(folder: Path, commands: list[str]) -> None:
    """The inputs of some commands."""
    np.save(folder / "v.npy", np.arange(1438.0))
    for name, lr in (("one", 0.1), ("two", 0.01)):
        (folder / f"{name}.toml").write_text(SUITE.format(lr=lr))
    write_foreign_beton(folder / "z.beton")
    data = ["build-beton digits: --out x.beton", "prune x.beton --keep 0.1 --seed 7 --out k.h5"]
    cache = "cache-logits x.beton --mask k.h5 --views center --device cpu"
    trained = [
        "build-beton digits: --split test --out v.beton",
        *(f"{TRAIN} --seed {seed} --val v.beton --out {name}" for name, seed in (("t", 0), ("t5", 5))),
        f"{cache} --teacher t/model.safetensors --batch-size 64 --shard 1/2 --out a.h5",
        f"{cache} --teacher t/model.safetensors --batch-size 64 --shard 2/2 --out b.h5",
        f"{cache} --teacher t5/model.safetensors --out c.h5",
    ]
    for line in data + ([] if set(commands) <= set(OF_DATA) else trained):
        subprocess.run([sys.executable, "-m", "fastkd", *line.split()], cwd=folder, check=True, capture_output=True)


def write_foreign_beton(path: Path) -> None:
    """A beton without a manifest, of which two fields may be the label."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField(), "second": IntField()}
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (1000, 32, 32, 3), np.uint8)
    samples = [(picture, number % 10, number % 7) for number, picture in enumerate(pictures)]
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(samples)


def start(folder: Path, command: str, which: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "fastkd", *COMMANDS[command][1 + which].split()],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def content(path: Path) -> dict[str, object]:
    """What a result is by, by name: a file's bytes; of a run its weights; of a sweep the lines of its tables but for times."""
    if path.is_file():
        return {path.name: path.read_bytes()}
    weights = path / "model.safetensors"
    if weights.is_file():
        return {weights.name: weights.read_bytes()}
    return {table.name: lines_without_times(table) for table in path.glob("*.csv")}


def lines_without_times(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return [{name: value for name, value in line.items() if name not in TIMES} for line in csv.DictReader(file)]


def clear(folder: Path, before: set[str]) -> list[str]:
    """Takes away what was written since; returns the names of it."""
    new = sorted({path.name for path in folder.iterdir()} - before)
    for name in new:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    return new


def results_of(folder: Path, command: str, before: set[str]) -> tuple[list[dict[str, object]], float]:
    """What each of the two lines makes when it is alone, and how long the first takes."""
    found, seconds = [], 0.0
    out = folder / COMMANDS[command][0]
    for which in (0, 1):
        begin = time.monotonic()
        process = start(folder, command, which)
        if process.wait():
            raise RuntimeError(f"{command}: {process.communicate()[1]}")
        seconds = seconds or time.monotonic() - begin
        found.append(content(out))
        clear(folder, before)
    return found, seconds


def start_at_once(folder: Path, command: str, num_starts: int, rng: random.Random) -> dict[str, int]:
    """Half of the starts are of two equal lines, half of two different ones; counts what they came to."""
    before = {path.name for path in folder.iterdir()}
    expected, seconds = results_of(folder, command, before)
    counts = {"both_well": 0, "one_refused": 0, "wrong": 0}
    for number in range(num_starts):
        pair = (0, number % 2)
        first = start(folder, command, pair[0])
        time.sleep(rng.random() * seconds if number % 4 < 2 else 0)
        second = start(folder, command, pair[1])
        said = [process.communicate()[1] for process in (first, second)]
        codes = [process.returncode for process in (first, second)]
        out = folder / COMMANDS[command][0]
        winners = [which for which, code in zip(pair, codes, strict=True) if code == 0]
        lines = [text.splitlines() for text, code in zip(said, codes, strict=True) if code]
        there = content(out)
        # Of two manifests, one after the other: the later command leaves the earlier's, or puts its own in its place, and says so.
        made = {
            which: text for which, text, code in zip(pair, said, codes, strict=True) if code == 0 and LEFT not in text
        }
        there_at_last = [which for which, text in made.items() if REPLACED in text] or list(made)
        sound = (
            set(codes) <= {0, 1}
            and len(winners) >= 1
            and all(expected[which].items() <= there.items() for which in there_at_last)
            and all(
                sum("error:" in line for line in one) == 1 and not any("Traceback" in line for line in one)
                for one in lines
            )
        )
        left = clear(folder, before)
        sound &= set(left) <= {out.name, f"{out.name}.json"}
        counts["wrong" if not sound else "both_well" if len(winners) == 2 else "one_refused"] += 1
        if not sound:
            print(command, pair, codes, said, left, file=sys.stderr)
    return counts


def campaign(folder: Path, commands: list[str], num_starts: int, seed: int) -> dict[str, dict[str, int]]:
    """The counts of each command."""
    prepare(folder, commands)
    return {command: start_at_once(folder, command, num_starts, random.Random(seed)) for command in commands}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=100, help="pairs a command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default=",".join(COMMANDS), help="those to start, joined by commas")
    parser.add_argument("--name", default="concurrent_starts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(Path(folder), args.commands.split(","), args.starts, args.seed)
    assert all(counts["wrong"] == 0 for counts in found.values()), found
    measure.save(args.name, {"pairs_a_command": args.starts, "seed": args.seed, "commands": found})


if __name__ == "__main__":
    main()
