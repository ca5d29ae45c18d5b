"""Two commands started at once to write one output, again and again, for every command that writes.

Claim: of two equal commands both end well with the one result, or the later one says that another process is at it; of two
different ones exactly one has its result there, and the other has one line; never two successes with one result lost, never
a damaged file, never a trace of the loser. The start of the second is drawn within the time that the first takes.

    python -m benchmarks.cli.concurrent_starts --starts 100
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import measure

# Of each command: what it writes, and two lines that differ in what they make of it.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "build-beton": ("y.beton", "build-beton digits: --mode raw", "build-beton digits: --mode jpg"),
    "score": (
        "s.h5",
        "score x.beton --method el2n --model t/model.safetensors",
        "score x.beton --method margin --model t/model.safetensors",
    ),
    "import-scores": ("i.h5", "import-scores x.beton v.npy --higher hard", "import-scores x.beton v.npy --higher easy"),
    "prune": ("m.h5", "prune x.beton --keep 0.3", "prune x.beton --keep 0.5"),
    "cache-logits": (
        "l.h5",
        "cache-logits x.beton --mask k.h5 --teacher t/model.safetensors --views center",
        "cache-logits x.beton --mask k.h5 --teacher t5/model.safetensors --views center",
    ),
    "train": (
        "run",
        "train x.beton --mask k.h5 --alpha 0 --model resnet8 --views center --epochs 1",
        "train x.beton --mask k.h5 --alpha 0 --model resnet8 --views center --epochs 1 --lr 0.01",
    ),
    "merge": ("j.h5", "merge a.h5 b.h5", "merge c.h5"),
    "report": ("r.html", "report .", "report t"),
    "inspect": ("g.png", "inspect k.h5 --beton x.beton --gallery", "inspect k.h5 --beton x.beton --count 5 --gallery"),
}
ON_CPU = ("score", "cache-logits", "train")
OF_DATA = ("build-beton", "import-scores", "prune", "inspect")  # need neither a teacher nor a store


def prepare(folder: Path, commands: list[str]) -> None:
    """The inputs of some commands."""
    np.save(folder / "v.npy", np.arange(1438.0))
    data = ["build-beton digits: --out x.beton", "prune x.beton --keep 0.1 --seed 7 --out k.h5"]
    cache = "cache-logits x.beton --mask k.h5 --views center --device cpu"
    trained = [
        "build-beton digits: --split test --out v.beton",
        *(
            f"train x.beton --mask k.h5 --alpha 0 --model resnet8 --views center --epochs 1 --seed {seed} --val v.beton "
            f"--device cpu --out {name}"
            for name, seed in (("t", 0), ("t5", 5))
        ),
        f"{cache} --teacher t/model.safetensors --batch-size 64 --shard 1/2 --out a.h5",
        f"{cache} --teacher t/model.safetensors --batch-size 64 --shard 2/2 --out b.h5",
        f"{cache} --teacher t5/model.safetensors --out c.h5",
    ]
    for line in data + ([] if set(commands) <= set(OF_DATA) else trained):
        subprocess.run([sys.executable, "-m", "fastkd", *line.split()], cwd=folder, check=True, capture_output=True)


def start(folder: Path, command: str, which: int) -> subprocess.Popen:
    out, *lines = COMMANDS[command]
    line = lines[which].split()
    words = [*line, out] if line[-1] == "--gallery" else [*line, "--out", out]
    words += ["--device", "cpu"] if command in ON_CPU else []
    return subprocess.Popen(
        [sys.executable, "-m", "fastkd", *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def content(path: Path) -> bytes:
    """What a result is by: the bytes of a file; of a run its weights."""
    return (path / "model.safetensors").read_bytes() if path.is_dir() else path.read_bytes()


def clear(folder: Path, before: set[str]) -> list[str]:
    """Takes away what was written since; returns the names of it."""
    new = sorted({path.name for path in folder.iterdir()} - before)
    for name in new:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    return new


def results_of(folder: Path, command: str, before: set[str]) -> tuple[list[bytes], float]:
    """What each of the two lines makes when it is alone, and how long the first takes."""
    found, seconds = [], 0.0
    for which in (0, 1):
        begin = time.monotonic()
        process = start(folder, command, which)
        if process.wait():
            raise RuntimeError(f"{command}: {process.communicate()[1]}")
        seconds = seconds or time.monotonic() - begin
        found.append(content(folder / COMMANDS[command][0]))
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
        time.sleep(rng.random() * seconds)
        second = start(folder, command, pair[1])
        said = [process.communicate()[1] for process in (first, second)]
        codes = [process.returncode for process in (first, second)]
        out = folder / COMMANDS[command][0]
        winners = [which for which, code in zip(pair, codes, strict=True) if code == 0]
        lines = [text.splitlines() for text, code in zip(said, codes, strict=True) if code]
        sound = (
            set(codes) <= {0, 1}
            and len(set(winners)) == 1
            and content(out) == expected[winners[0]]
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
