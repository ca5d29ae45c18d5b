"""The lab of the campaigns of faults: the lines of commands that make whole files of every kind, small ones, in a folder."""

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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
