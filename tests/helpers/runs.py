"""Runs of training, and folders of them."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastkd.data.beton.dataset import Dataset
from fastkd.data.views.draw import Views
from fastkd.feed.loader import Loader
from fastkd.prune.masks.mask import Mask
from fastkd.train.recipe import Recipe
from fastkd.train.resume import load_resume, save_resume
from fastkd.train.run_folder import claim_folder, file_checksum, plain_result, write_json, write_result
from fastkd.train.student import train
from helpers.stores import NORM, VIEWS, save_teacher

RECIPE = {
    "kd": "kd",
    "beta": 1.0,
    "momentum": 0.9,
    "model": "resnet8",
    "epochs": 2,
    "alpha": 0.5,
    "tau": 4.0,
    "lr": 0.05,
    "seed": 0,
}


def make_run(
    out: Path,
    top1: float | None = 60.0,
    *,
    inputs: dict[str, str] | None = None,
    views: dict[str, Any] | None = None,
    num_kept: int = 100,
    norm: dict | None = None,
    ranks: int = 1,
    mask: dict[str, Any] | None = None,
    teacher: dict[str, Any] | None = None,
    logits: dict[str, Any] | None = None,
    version: int = 2,
    rule: str | None = None,
    **recipe: Any,
) -> Path:
    """The folder of a finished run from a store; an input of None is left out. mask, teacher, logits: entries of `about`."""
    params = {
        "recipe": RECIPE | recipe,
        "views": {"kind": "crop-flip", "size": 32, "num_seeds": 3} | (views or {}),
        "norm": norm or {"mean": [0.5] * 3, "std": [0.5] * 3, "size": None},
        "num_kept": num_kept,
        "fraction": num_kept / 1000,
        "ranks": ranks,
        **({"alpha_rule": rule} if rule else {}),
    }
    inputs = {"beton": "b" * 32, "val": "e" * 32, "mask": "m" * 32, "logits": "l" * 32, "teacher": "t" * 32} | (
        inputs or {}
    )
    inputs = {role: digest for role, digest in inputs.items() if digest is not None}
    about = {
        "mask": {
            "method": "random",
            "seed": 0,
            "keep": "0.1",
            "fraction": num_kept / 1000,
            "fingerprint": inputs["mask"],
        }
        | (mask or {}),
        "teacher": {"model": "resnet8", "fingerprint": inputs.get("teacher"), "val_top1": 70.0} | (teacher or {}),
        "logits": {"codec": "fp16", "num_seeds": 3} | (logits or {}) if "logits" in inputs else None,
    }
    head = claim_folder(out, {"inputs": inputs, "params": params}, {"about": about})
    save_teacher(out / "model.safetensors")
    place = {"epoch": 2, "step": 0, "rows": [], "num_written": 0, "accuracy": {}, "jsonl": None, "csv": None}
    save_resume(out / "resume.pt", place | {"run": head["fingerprint"]})
    result = {"epochs": 2, "val_top1": top1, "val_top5": top1 and 95.0, "images_per_s": 900.0, "data_wait_percent": 3.0}
    for name in ("metrics.jsonl", "metrics.csv"):
        (out / name).write_text(f"{top1}\n")
    files = ("metrics.jsonl", "metrics.csv", "model.safetensors")
    write_result(out, head, result, {name: file_checksum(out / name) for name in files})
    return out if version > 1 else as_version_1(out)


def as_version_1(out: Path) -> Path:
    """Makes of a run what the version before wrote: without checksums, and without what the run was made from."""
    head = json.loads((out / "run.json").read_text())
    head = {name: head[name] for name in ("fastkd_kind", "fingerprint", "inputs", "params")} | {"format_version": 1}
    write_json(out / "run.json", head)
    if (out / "result.json").exists():
        write_json(out / "result.json", plain_result(json.loads((out / "result.json").read_text())))
    for path in (out / "resume.pt", out / "resume-previous.pt"):
        if path.exists():
            state = load_resume(path)
            places = {name: state[name]["size_bytes"] for name in ("jsonl", "csv") if state[name]}
            save_resume(path, {name: value for name, value in state.items() if name != "run"} | places)
    return out


RATES = ("images_per_s", "data_wait_percent", "step_percent")


@functools.cache
def loader_of(dataset: Dataset, mask: Mask, logits: Path | None, **options: Any) -> Loader:
    """One loader for all runs that want the same, as none remembers anything."""
    return Loader(dataset, VIEWS, mask=mask, logits=logits, shuffle=True, num_workers=1, **options)


@functools.cache
def validation(dataset: Dataset) -> Loader:
    return Loader(dataset, Views("center", 32), batch_size=200, num_workers=1)


def run(
    out: Path,
    dataset: Dataset,
    mask: Mask,
    *,
    logits: Path | None = None,
    options: dict[str, Any] | None = None,
    **recipe,
) -> dict[str, Any]:
    """Trains a resnet8 for two short epochs, unless told otherwise."""
    recipe = Recipe(**{"model": "resnet8", "epochs": 2, "batch_size": 48} | recipe)
    cut = {name: getattr(recipe, name) for name in ("batch_size", "seed", "drop_last")}
    loader = loader_of(dataset, mask, logits if recipe.alpha > 0 else None, **cut)
    options = {"norm": NORM, "inputs": {"beton": dataset.fingerprint}, "params": {}} | (options or {})
    return train(recipe, loader, out, **options)


def records(out: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the rates, which no two runs share."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in RATES} for line in lines if kind in (None, line["kind"])]


def step_losses(out: Path) -> list[float]:
    return [line["loss"] for line in records(out, "step")]


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def interrupt_after(num_steps: int) -> Callable[[int, int], None]:
    """A `progress` that stops a run once so many steps are done."""

    def progress(done: int, total: int) -> None:
        if done == num_steps:
            raise KeyboardInterrupt

    return progress
