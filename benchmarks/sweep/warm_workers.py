"""What a smoke run costs in a warm worker beyond its training.

Claim: under 1.5 s a run from its start to its end, less the time of its epochs, once the worker is warm; beside the same command
in a process of its own, which pays imports and compiled code each time.

    python -m benchmarks.sweep.warm_workers --runs 9
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import measure
from fastkd.cli.sweep_run import WORKER
from fastkd.sweep.workers import Worker, wait_for_any

TRAIN = "train x.beton --mask m.h5 --alpha 0 --model resnet8 --views center --epochs 2 --batch-size 16 --val v.beton --val-every 2"


def beyond_training(out: Path, seconds: float) -> float:
    """Seconds of a run but for its epochs."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    num_kept = json.loads((out / "run.json").read_text())["params"]["num_kept"]
    return seconds - sum(num_kept / line["images_per_s"] for line in lines if line["kind"] == "epoch")


def in_worker(folder: Path, num_runs: int) -> tuple[list[float], list[float]]:
    """Of each run in one worker: seconds beyond training, and seconds of the CPU in all."""
    worker = Worker(WORKER, {"OMP_NUM_THREADS": "1"})
    found, cpu = [], []
    for number in range(num_runs):
        out = folder / f"w{number}"
        begin, before = time.monotonic(), _cpu_seconds(worker)
        worker.start([*TRAIN.split(), "--seed", str(number), "--out", str(out)], folder / "log.txt")
        while (ended := worker.poll()) is None:
            wait_for_any([worker], 1.0)
        assert ended.code == 0, ended
        found.append(beyond_training(out, time.monotonic() - begin))
        cpu.append(_cpu_seconds(worker) - before)
    worker.close()
    return found, cpu


def _cpu_seconds(worker: Worker) -> float:
    if worker.pid is None:
        return 0.0
    fields = Path(f"/proc/{worker.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def alone(folder: Path, num_runs: int) -> list[float]:
    """The same, each in a process of its own."""
    found = []
    for number in range(num_runs):
        out = folder / f"a{number}"
        words = [sys.executable, "-m", "fastkd", *TRAIN.split(), "--seed", str(number), "--out", str(out)]
        begin = time.monotonic()
        subprocess.run(words, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        found.append(beyond_training(out, time.monotonic() - begin))
        assert (out / "model.safetensors").read_bytes() == (folder / f"w{number}/model.safetensors").read_bytes()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--name", default="warm_workers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        for split, out in (("train", "x.beton"), ("test", "v.beton")):
            measure.fastkd("build-beton", "digits:", "--split", split, "--out", out)
        measure.fastkd("prune", "x.beton", "--keep", 0.1, "--out", "m.h5")
        warm, cpu = in_worker(Path(name), args.runs + 1)
        cold = alone(Path(name), max(2, args.runs // 3))
    result = {
        "seconds_beyond_training_warm": measure.summary(warm[1:]),
        "seconds_beyond_training_first": warm[0],
        "seconds_beyond_training_alone": measure.summary(cold),
        "cpu_seconds_warm": measure.summary(cpu[1:]),
        "load_average": os.getloadavg()[0],
    }
    measure.save(args.name, result)


if __name__ == "__main__":
    main()
