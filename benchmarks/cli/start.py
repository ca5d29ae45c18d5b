"""Claim: of the time that `fastkd train` takes to its first batch, a sixth is fastkd's and FFCV's; the rest is what torch and Numba import.

In a process of its own each round: the parts one after the other, by time of the CPU of that process. What others import is imported
before what fastkd's modules and calls take is measured: torch; Numba, h5py, OpenCV and SciPy, of which FFCV wants the last two;
`torch._dynamo`, which torch's optimisers import when the first is made, whether anything is compiled or not; Numba's functions of arrays,
which it imports when it first calls compiled code. BETON is of small images of one size. FFCV's own import, which compiles,
is part of fastkd's here: fastkd replaces what of it compiles.

    python -m benchmarks.cli.start train.beton
"""

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measure


def parts(beton: Path) -> dict[str, float]:
    """Seconds of the CPU that each part takes in this process, which has imported none of it."""
    found: dict[str, float] = {}

    def timed(name: str, do: Callable[[], Any]) -> Any:
        begin = time.process_time()
        result = do()
        found[name] = found.get(name, 0.0) + time.process_time() - begin
        return result

    def others() -> None:
        import cv2
        import h5py
        import numba
        import scipy.sparse

        assert cv2
        assert h5py
        assert numba
        assert scipy.sparse

    def numbas() -> None:
        from numba.core.registry import cpu_target

        cpu_target.target_context.refresh()
        cpu_target.typing_context.refresh()

    def own_modules() -> None:
        import fastkd.cli.train
        import fastkd.train.student

        assert fastkd.cli.train

    timed("fastkd", lambda: __import__("fastkd.cli"))
    timed("torch", lambda: __import__("torch"))
    timed("numba, h5py, cv2, scipy", others)
    timed("fastkd", own_modules)
    timed("torch._dynamo", lambda: __import__("torch._dynamo"))
    timed("numba's arrays", numbas)

    from fastkd.feed.loader import Loader
    from fastkd.models.registry import create_model
    from fastkd.train.parts.optimizer import make_optimizer
    from fastkd.train.recipe import Recipe

    recipe = Recipe(model="resnet8")
    model = timed("fastkd", lambda: create_model(recipe.model, 10))
    timed("fastkd", lambda: make_optimizer(recipe, model.parameters(), fused=False))
    loader = timed("fastkd", lambda: Loader(beton, "crop-flip", batch_size=64, shuffle=True, num_workers=1))
    timed("fastkd", lambda: next(iter(loader.epoch(0))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("beton", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", action="store_true", help="of this process alone, which a round runs")
    parser.add_argument("--name", default="start", help="of the result")
    args = parser.parse_args()
    if args.parts:
        print(json.dumps(parts(args.beton)))
        return
    command = measure.script(__spec__.name, args.beton, "--parts")
    rounds = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(args.rounds + 1)
    ][1:]  # the first one compiles
    whole = [sum(one.values()) for one in rounds]
    shares = [100 * one["fastkd"] / all_s for one, all_s in zip(rounds, whole, strict=True)]
    measure.save(
        args.name,
        {
            "cpu_s": {name: measure.summary([one[name] for one in rounds]) for name in rounds[0]},
            "cpu_s_in_all": measure.summary(whole),
            "fastkds_percent": measure.summary(shares),
            "rounds": args.rounds,
        },
    )


if __name__ == "__main__":
    main()
