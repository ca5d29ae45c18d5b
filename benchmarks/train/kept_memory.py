"""Claim: training on photos is faster where glibc keeps the memory that a step frees, as the commands of fastkd ask it to.

Steps of a network on random images, each with its update, in a process of its own: with what glibc does by itself, and with
`keep_freed_memory`; interleaved, one thread, by time of the CPU, which has that of the pages that are cleared anew. The first steps
are not timed. The most memory of each is told, too.

    python -m benchmarks.train.kept_memory --model resnet18 --size 128 --batch-size 32
"""

import argparse
import json
import subprocess
import time

import torch
import torch.nn.functional as F

from benchmarks import measure
from fastkd.cli.common import keep_freed_memory
from fastkd.models.registry import create_model

WARMUP = 2


def steps(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of the CPU that a step takes in this process, and the most bytes that it held."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.kept:
        keep_freed_memory()
    network = create_model(args.model, 10).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
    begin = 0.0
    for number in range(WARMUP + args.steps):
        if number == WARMUP:
            begin = time.process_time()
        images = torch.rand(args.batch_size, 3, args.size, args.size).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(images), torch.zeros(len(images), dtype=torch.int64)).backward()
        optimizer.step()
    return {"step_s": (time.process_time() - begin) / args.steps, "peak_bytes": measure.peak_bytes()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="of this process alone, which a round runs")
    parser.add_argument("--kept", action="store_true", help="in it: with what is freed being kept")
    parser.add_argument("--name", default="kept_memory", help="of the result")
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(steps(args)))
        return
    settings = ("model", "size", "batch_size", "steps")
    words = [word for name in settings for word in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
    found: dict[str, list[dict[str, float]]] = {"as glibc does": [], "kept": []}

    def take(way: str) -> None:
        command = measure.script(__spec__.name, *words, "--alone", *(["--kept"] if way == "kept" else []))
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[way].append(json.loads(done.stdout))

    measure.interleave({way: lambda way=way: take(way) for way in found}, rounds=args.rounds, warmup=0)
    taken = {
        name: {way: [one[name] for one in rounds] for way, rounds in found.items()} for name in ("step_s", "peak_bytes")
    }
    measure.save(
        args.name,
        {
            "speed": measure.ratios(taken["step_s"], "kept", "as glibc does"),
            "step_cpu_s": {way: measure.summary(values) for way, values in taken["step_s"].items()},
            "peak_bytes": {way: measure.summary(values) for way, values in taken["peak_bytes"].items()},
            "rounds": args.rounds,
            **{name: getattr(args, name) for name in settings},
        },
    )


if __name__ == "__main__":
    main()
