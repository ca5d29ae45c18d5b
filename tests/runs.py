"""Runs of training, and folders of them."""

from pathlib import Path
from typing import Any

from stores import save_teacher

from fastkd.dist import World
from fastkd.train.resume import save_resume
from fastkd.train.run_folder import claim_folder, write_json

RECIPE = {"model": "resnet8", "epochs": 2, "alpha": 0.5, "tau": 4.0, "lr": 0.05, "seed": 0}


def make_run(
    out: Path,
    top1: float | None = 60.0,
    *,
    inputs: dict[str, str] | None = None,
    views: dict[str, Any] | None = None,
    num_kept: int = 100,
    norm: dict | None = None,
    ranks: int = 1,
    **recipe: Any,
) -> Path:
    """The folder of a finished run from a store."""
    params = {
        "recipe": RECIPE | recipe,
        "views": {"kind": "crop-flip", "size": 32, "num_seeds": 3} | (views or {}),
        "norm": norm or {"mean": [0.5] * 3, "std": [0.5] * 3, "size": None},
        "num_kept": num_kept,
        "fraction": num_kept / 1000,
        "ranks": ranks,
    }
    inputs = {"beton": "b" * 32, "val": "e" * 32, "mask": "m" * 32, "logits": "l" * 32, "teacher": "t" * 32} | (
        inputs or {}
    )
    claim_folder(out, {"inputs": inputs, "params": params}, World())
    save_teacher(out / "model.safetensors")
    save_resume(out / "resume.pt", {"epoch": 2})
    result = {"epochs": 2, "val_top1": top1, "val_top5": top1 and 95.0, "images_per_s": 900.0, "data_wait_percent": 3.0}
    write_json(out / "result.json", result)
    return out
