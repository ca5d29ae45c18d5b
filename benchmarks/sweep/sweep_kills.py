"""A sweep that is killed at random moments and started again has the table of one that was not, byte for byte but for times.

Claim: SIGKILL to the whole tree of a sweep's processes, ten times at moments drawn within the time that it takes, then the same
command again until it is done; the same with two jobs at once; two shards side by side in one folder; and, where Slurm is, an array
of jobs of which one is killed and one is sent back into the queue. The table of each is the undisturbed one's.

    python -m benchmarks.sweep.sweep_kills --kills 10
"""

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import measure
from fastkd.report.cells import TIMES

SUITE = """
[data]
source = "digits:"

[teacher.big]
model = "resnet8"
epochs = 2
lr = 0.1
views = "center"
val-every = 2

[train]
model = "resnet8"
epochs = 2
batch-size = 16
views = "center"
val-every = 2

[matrix]
prune.keep = [0.05, 0.1]
prune.method = ["random", "el2n"]
train.alpha = [0, 0.5]
"""


def start(folder: Path, *options: object, suite: str = SUITE) -> "subprocess.Popen[bytes]":
    """The sweep, in processes of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "s.toml").write_text(suite)
    words = [sys.executable, "-m", "fastkd", "sweep", "s.toml", "--out", "D", *map(str, options)]
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(words, cwd=folder, stdout=said, stderr=said, start_new_session=True)


def finish(folder: Path, *options: object) -> None:
    """Runs the sweep to its end."""
    code = start(folder, *options).wait()
    if code:
        raise RuntimeError(f"exit code {code}: {(folder / 'said.txt').read_text()}")


def table(folder: Path) -> list[dict[str, str]]:
    """The lines of the table without times."""
    with (folder / "D" / "s.csv").open(newline="") as file:
        return [{name: value for name, value in line.items() if name not in TIMES} for line in csv.DictReader(file)]


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and to all that it and these have started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ProcessLookupError):
            continue
    tree = [pid]
    for one in tree:
        tree += [child for child, parent in parents.items() if parent == one]
    for one in tree:
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            continue


def killed_and_finished(folder: Path, moments: list[float], *options: object) -> int:
    """Starts and kills at each of the moments, seconds after a start, and then lets it end; returns the kills that hit."""
    hits = 0
    for seconds in moments:
        process = start(folder, *options)
        time.sleep(seconds)
        hits += process.poll() is None
        kill_tree(process.pid)
        process.wait()
    finish(folder, *options)
    return hits


def sharded(folder: Path) -> None:
    """Two shards side by side."""
    first, second = (start(folder, "--jobs", 1, "--shard", f"{index}/2") for index in (1, 2))
    if first.wait() or second.wait():
        raise RuntimeError((folder / "said.txt").read_text())


def under_slurm(folder: Path) -> dict[str, int]:
    """By Slurm, one task killed and one that gets SIGTERM, which it is requeued for; then the same command for what the kill left."""
    finish(folder, "--executor", "slurm")
    killed = requeued = 0
    while _queue():
        for line in _processes("fastkd train"):
            pid = int(line.split()[0])
            if "/runs/" in line and not killed:
                os.kill(pid, signal.SIGKILL)
                killed += 1
            elif "/runs/" in line and not requeued:
                os.kill(pid, signal.SIGTERM)
                requeued += 1
        time.sleep(0.2)
    finish(folder, "--executor", "slurm")
    while _queue():
        time.sleep(1)
    return {"killed": killed, "requeued": requeued}


def _queue() -> str:
    return subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout.strip()


def _processes(words: str) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if words in line and "bash" not in line and " -c " not in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="sweep_kills")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        begin = time.monotonic()
        finish(root / "undisturbed", "--jobs", 1)
        seconds = time.monotonic() - begin
        expected = table(root / "undisturbed")
        found: dict[str, object] = {"seconds_undisturbed": seconds, "runs": len(expected)}
        for label, jobs in (("one_job", 1), ("two_jobs", 2)):
            moments = [rng.random() * seconds / 2 for _ in range(args.kills)]
            found[f"kills_{label}"] = killed_and_finished(root / label, moments, "--jobs", jobs)
            assert table(root / label) == expected, label
        sharded(root / "shards")
        assert table(root / "shards") == expected
        if shutil.which("sbatch") and "SLURM_CONF" in os.environ:
            found["slurm"] = under_slurm(root / "slurm")
            assert table(root / "slurm") == expected
    measure.save(args.name, found)


if __name__ == "__main__":
    main()
