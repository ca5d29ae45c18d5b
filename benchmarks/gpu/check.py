"""Claim: fastkd does on this machine's GPUs what it does on a CPU, nothing waits in a step, and the figures are these.

What is checked, each in a process of its own: training steps with every flag, on one rank and on as many as there are GPUs,
where an operation that waits for the GPU raises (`steps.py`); stored against live logits, the loader against its decode
limit, how long training waits for data, filling against the teacher's forward alone, resident data, and the rates of
training on labels, from a store and with a live teacher (`figures.py`). One JSON has all of it; what is in it already and
was made on the same machine with the same versions is not done again. What no GPU is there for is owed, by name.

    tools/gpu-check                                  all of it, within 8 minutes on one GPU
    tools/gpu-check --checks steps,data-wait/bf16    some of it
    tools/gpu-check --device cpu                     its own form for a CPU, which says nothing of GPUs
    FASTKD_PHOTOS=photos.zip tools/gpu-check         with real photos, which take longer to decode than drawn ones
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.gpu.figures import FIGURES
from benchmarks.gpu.steps import FLAGS, ONE_RANK
from fastkd.writing import atomic_path

LIMIT_S = 300
"""How long a check may take."""
ON_GPUS = "operations that wait for a GPU, in the steps of every flag"


def names_of(num_ranks: int) -> list[str]:
    """All checks, by name; those of steps end with the number of ranks."""
    ranks = sorted({1, num_ranks})
    steps = [f"steps/{flag}/{size}" for size in ranks for flag in FLAGS if size == 1 or flag not in ONE_RANK]
    return [*steps, *FIGURES]


def chosen(names: Iterable[str], asked: str | None) -> list[str]:
    """Those that are asked for: `steps` stands for all below it, `steps/ema` for those of that flag."""
    names = list(names)
    if asked is None:
        return names
    parts = asked.split(",")
    unknown = [part for part in parts if not any(is_below(name, part) for name in names)]
    if unknown:
        raise SystemExit(f"gpu-check: --checks {unknown[0]}: expected some of {', '.join(names)}")
    return [name for name in names if any(is_below(name, part) for part in parts)]


def is_below(name: str, part: str) -> bool:
    return f"{name}/".startswith(f"{part}/")


def run(command: list[str], limit_s: float, look: Callable[[], bool] = lambda: False) -> str | None:
    """Runs a check in its own process; None where it ended well, else the last lines that it said.

    look: called now and then; True where the process has done one thing and begins the next, with the whole time for it.
    """
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=measure.ROOT, stdout=said, stderr=said, start_new_session=True)
        begin = time.monotonic()
        try:
            while process.poll() is None and time.monotonic() - begin < limit_s:
                time.sleep(0.1)
                begin = time.monotonic() if look() else begin
            code = f"longer than {limit_s:.0f} s" if process.poll() is None else process.returncode
        finally:
            end(process)
        look()
        said.seek(0)
        last = [line for line in said.read().splitlines() if line.strip()][-12:]
    return None if code == 0 else "\n".join([f"ended with {code}:", *last])


def end(process: subprocess.Popen) -> None:
    """Ends a process and what it started, where it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, 9)
        process.wait()


def run_steps(flags: list[str], size: int, folder: Path, device: str, keep: Callable[[str, dict], None]) -> None:
    """Runs flags on so many ranks; after one that fails, the rest in new processes."""
    out = folder / f"steps-{size}.jsonl"
    left = list(flags)
    begin = time.perf_counter()

    def took() -> dict[str, float]:
        nonlocal begin
        before, begin = begin, time.perf_counter()
        return {"seconds": round(begin - before, 1)}

    def look() -> bool:
        lines = out.read_text().splitlines(keepends=True) if out.exists() else []
        new = [json.loads(line) for line in lines if line.endswith("\n")]
        new = [(flag, found) for flag, found in new if flag in left]
        for flag, found in new:
            left.remove(flag)
            keep(f"steps/{flag}/{size}", {"ok": True, **found, **took()})
        return bool(new)

    while left:
        out.unlink(missing_ok=True)
        start = ["torch.distributed.run", "--standalone", f"--nproc-per-node={size}", "-m"] if size > 1 else []
        words = [sys.executable, "-m", *start, "benchmarks.gpu.steps", str(folder), device, str(out), ",".join(left)]
        error = run(words, LIMIT_S, look)
        if left:
            keep(f"steps/{left.pop(0)}/{size}", {"ok": False, "error": error or "ended without a result", **took()})


def run_figure(name: str, form: str, folder: Path) -> dict[str, Any]:
    """Runs one of FIGURES."""
    out = folder / "figure.json"
    out.unlink(missing_ok=True)
    begin = time.perf_counter()
    error = run([sys.executable, "-m", "benchmarks.gpu.figures", name, form, str(folder), str(out)], LIMIT_S)
    seconds = {"seconds": round(time.perf_counter() - begin, 1)}
    return {"ok": False, "error": error} | seconds if error else {"ok": True, **json.loads(out.read_text()), **seconds}


def owed(device: str, num_gpus: int) -> dict[str, str]:
    """What this machine cannot say: check → why."""
    if device == "cpu":
        why = "ran on a CPU" if num_gpus else "no GPU here"
        return {ON_GPUS: why} | dict.fromkeys(names_of(2), why)
    several = [name for name in names_of(2) if name.endswith("/2")]
    return dict.fromkeys(several, "needs two GPUs, one is here") if num_gpus == 1 else {}


def load(path: Path, head: dict[str, Any]) -> dict[str, Any]:
    """The report that is there, where it is of this machine and these versions; else a new one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if {name: found[name] for name in head} == head:
            return dict(found)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {**head, "owed": {}, "checks": {}}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--checks", help="some of them, joined by commas; all where left out")
    parser.add_argument("--list", action="store_true", help="print the names of the checks, and end")
    parser.add_argument("--again", action="store_true", help="do again what is done")
    parser.add_argument("--smallest", action="store_true", help="on a CPU: that it works, as fast as can be")
    parser.add_argument("--folder", type=Path, help="where the data that it makes are kept; a temporary one else")
    parser.add_argument("--out", type=Path, help="the report  [benchmarks/results/gpu_check.json, gpu_check_cpu.json]")
    args = parser.parse_args(arguments)
    on_cpu = args.device == "cpu"
    if args.smallest and not on_cpu:
        parser.error("--smallest is of --device cpu")
    num_gpus = torch.cuda.device_count()
    names = names_of(2 if on_cpu or not num_gpus else num_gpus)
    if args.list:
        print("\n".join(names))
        return 0
    form = "smallest" if args.smallest else args.device
    out = args.out or measure.RESULTS / ("gpu_check_cpu.json" if on_cpu else "gpu_check.json")
    gpus = [] if on_cpu else [torch.cuda.get_device_name(i) for i in range(num_gpus)]
    head = {"benchmark": "gpu_check", "form": form, "gpus": gpus, "machine": measure.machine()}
    report = load(out, head)
    report["owed"] = owed(args.device, num_gpus)

    def save() -> None:
        with atomic_path(out) as partial:
            partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    def keep(name: str, found: dict[str, Any]) -> None:
        report["checks"][name] = found
        print(f"gpu-check: {name}: {'ok' if found['ok'] else found['error']}", file=sys.stderr, flush=True)
        save()

    wanted = chosen(names, args.checks)
    if not on_cpu and not num_gpus:
        report["owed"] = dict.fromkeys([ON_GPUS, *names_of(1), *names_of(2)], "no GPU here")
        wanted = []
    is_done = {name for name in wanted if report["checks"].get(name, {}).get("ok") and not args.again}
    left = [name for name in wanted if name not in is_done]
    with tempfile.TemporaryDirectory() as made:
        folder = args.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        for size in sorted({int(name.split("/")[2]) for name in left if name.startswith("steps/")}):
            flags = [name.split("/")[1] for name in left if name.startswith("steps/") and name.endswith(f"/{size}")]
            run_steps(flags, size, folder, args.device, keep)
        for name in left:
            if name in FIGURES:
                keep(name, run_figure(name, form, folder))
    save()
    print(json.dumps(report, indent=1))
    return int(any(not report["checks"][name]["ok"] for name in wanted))


if __name__ == "__main__":
    sys.exit(main())
