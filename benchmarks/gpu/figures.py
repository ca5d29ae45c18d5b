"""What the check measures besides steps: one figure or comparison a function. `check.py` starts this, a process for each.

python -m benchmarks.gpu.figures NAME FORM FOLDER OUT
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import measure
from benchmarks.gpu.forms import FORMS, Form, photos, real_photos, small_images
from benchmarks.store.loader_with_logits import fill_with_noise
from benchmarks.train import train_resident
from benchmarks.train.train_imagenet_gpu import DecodeLoop, check_loop, drawn
from benchmarks.train.train_rate import NORM, Pair, make_teacher, measure_pair
from fastkd.data.beton.dataset import Dataset
from fastkd.data.views.draw import Views
from fastkd.feed.loader import Loader, choose_views
from fastkd.store.fidelity import kl_rows
from fastkd.store.logit_store import LogitStore
from fastkd.teacher.fill import fill_store
from fastkd.teacher.network import Teacher
from fastkd.teacher.recipe import StoreRecipe
from fastkd.teacher.recompute import MEAN_KL_LIMIT
from fastkd.train.recipe import Recipe
from fastkd.train.student import train

BLOCK = 256


def wait_for_gpu(form: Form) -> None:
    if form.device == "cuda":
        torch.cuda.synchronize()


def seconds_of(function: Callable[[], Any], form: Form) -> float:
    """How long a call takes, with all that it started on the GPU."""
    wait_for_gpu(form)
    begin = time.perf_counter()
    function()
    wait_for_gpu(form)
    return time.perf_counter() - begin


def kinds(form: Form, folder: Path) -> Iterable[tuple[str, Dataset, Views, str]]:
    """Both kinds of data, with views of one seed and the teacher for them."""
    yield "small", small_images(form.small_images, folder), Views("crop-flip", 32, 1), form.small_teacher
    yield "photos", photos(form, folder), Views("rrc", form.photo_size, 1), form.photo_teacher


def stored_live(form: Form, folder: Path) -> dict[str, Any]:
    """Stored logits against those of the live teacher, in batches of other sizes and of other samples.

    digits: the largest difference in units of float16's last digit. equal: the part of logits that are the same.
    """
    found: dict[str, Any] = {}
    for name, dataset, views, network in kinds(form, folder):
        teacher = make_teacher(folder, network, dataset.num_classes, form.device)
        ids = dataset.beton.sample_ids[: 4 * BLOCK]
        path = folder / f"stored-live-{name}.h5"
        fill_store(path, StoreRecipe(dataset=dataset, teacher=teacher, views=views, codec="fp16", block_rows=BLOCK))
        store = LogitStore(path)
        found[name] = {}
        for size in (BLOCK, 64, 100):
            loader = Loader(dataset, views, mask=np.sort(ids), batch_size=size, shuffle=True, device=form.device)
            pairs = [(batch.sample_ids.cpu().numpy(), teacher(batch.images).cpu().numpy()) for batch in loader.epoch(0)]
            live = np.concatenate([logits for _, logits in pairs])
            stored = np.concatenate([store.read(some, 0) for some, _ in pairs])
            digit = np.spacing(np.maximum(np.abs(live), np.abs(stored)).astype(np.float16)).astype(np.float32)
            kl = float(kl_rows(live, stored, 1.0).mean())
            assert kl <= MEAN_KL_LIMIT["fp32"], (name, size, kl)
            digits = np.abs(live - stored) / digit
            found[name][f"batch {size}"] = {
                "digits": float(digits.max()),
                "equal": float((live == stored).mean()),
                "mean_kl": kl,
            }
    return found


def loader(form: Form, folder: Path) -> dict[str, Any]:
    """Images a second of the loader on all cores, and of a C loop on as many that only decodes and resizes."""
    dataset, views = photos(form, folder), Views("rrc", form.photo_size, 1)
    ids = np.random.default_rng(0).permutation(dataset.beton.num_samples)
    one = Loader(dataset, views, mask=ids, batch_size=form.batch_size, shuffle=True, drop_last=True)
    with tempfile.TemporaryDirectory() as made:
        loop = DecodeLoop(Path(made), dataset.beton, views, one.num_workers)
        check_loop(loop, one)
        prepared = [(some, drawn(loop, some, seed)) for some, seed in one.jobs(0)]
        ways = {"loader": lambda: sum(len(batch) for batch in one.epoch(0)), "limit": lambda: loop.epoch(prepared)}
        seconds = measure.interleave(ways, rounds=form.rounds)
    count = len(one) * form.batch_size
    return {
        "loader_over_limit": measure.ratios(seconds, "loader", "limit"),
        "images_per_s": {way: measure.summary([count / s for s in seconds[way]]) for way in ways},
        "workers": one.num_workers,
        "photos": "real" if real_photos() else "drawn",
    }


def data_wait(form: Form, folder: Path, amp: str, compiled: bool) -> dict[str, Any]:
    """How much of an epoch's time the GPU has nothing to do, on labels alone: of a second epoch, the first being a warm-up."""
    dataset, views = photos(form, folder), Views("rrc", form.photo_size, 2)
    ids = np.random.default_rng(0).permutation(dataset.beton.num_samples)[: form.steps * form.batch_size]
    common = {"batch_size": form.batch_size, "shuffle": True, "drop_last": True, "device": form.device}
    recipe = Recipe(model=form.photo_student, epochs=2, batch_size=form.batch_size, lr=0.01, alpha=0, amp=amp)
    with tempfile.TemporaryDirectory() as made:
        out = Path(made, "run")
        some = Loader(dataset, views, mask=ids, **common)
        train(recipe, some, out, norm=NORM, compiled=compiled, inputs={}, params={})
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    both = [line for line in lines if line["kind"] == "epoch"]  # with the rates of all epochs so far
    count = len(some) * form.batch_size
    ends = [(epoch + 1) * count / line["images_per_s"] for epoch, line in enumerate(both)]
    waits = [end * line["data_wait_percent"] for end, line in zip(ends, both, strict=True)]
    seconds = ends[1] - ends[0]
    return {"data_wait_percent": (waits[1] - waits[0]) / seconds, "images_per_s": count / seconds, "images": count}


def filling(form: Form, folder: Path) -> dict[str, Any]:
    """Rows a second into a store, of the teacher's forward alone on a batch that is there, and of the loader alone."""
    found: dict[str, Any] = {}
    for name, dataset, views, network in kinds(form, folder):
        teacher = make_teacher(folder, network, dataset.num_classes, form.device)
        rows = dataset.beton.num_samples
        size = min(BLOCK, rows)
        alone = Loader(dataset, views, batch_size=size, drop_last=True, device=form.device)
        batch = next(iter(alone.epoch(0)))
        passes = max(1, rows // size)
        repeat(teacher, batch.images, 2)
        forward = passes * size / seconds_of(lambda t=teacher, b=batch, n=passes: repeat(t, b.images, n), form)
        loading = passes * size / seconds_of(lambda one=alone: sum(len(b) for b in one.epoch(0)), form)
        recipe = StoreRecipe(dataset=dataset, teacher=teacher, views=views, block_rows=size)
        filled = fill_store(folder / f"filling-{name}.h5", recipe)["rows_per_s"]
        found[name] = {
            "rows_per_s": filled,
            "forward_alone_per_s": forward,
            "loader_alone_per_s": loading,
            "over_forward_alone": filled / forward,
            "over_the_slower": filled / min(forward, loading),
        }
    return found


def repeat(teacher: Teacher, images: torch.Tensor, count: int) -> None:
    """So many forward passes."""
    for _ in range(count):
        teacher(images)


def resident(form: Form, folder: Path) -> dict[str, Any]:
    """A student on data that stay on the device: equal batches and losses first, then the whole length on a GPU."""
    dataset = small_images(form.small_images, folder)
    ids = np.random.default_rng(0).permutation(dataset.beton.num_samples)[: form.resident_images]
    args = argparse.Namespace(
        model=form.small_student,
        epochs=form.resident_epochs,
        batch_size=64 if form.device == "cuda" else 8,
        steps=form.steps,
        rounds=form.rounds,
        num_workers=0,
        device=form.device,
        amp="off",
        compile=False,
    )
    store = folder / "resident.h5"
    fill_with_noise(store, dataset, choose_views(dataset, "crop-flip", num_seeds=4), "fp16", ids)
    paths = train_resident.Paths(args, dataset, store, folder)
    equal = train_resident.check(paths, ids, 1)
    run = train_resident.run_in_full if form.device == "cuda" else train_resident.extrapolate
    return {"equal": equal, "images": len(ids), "epochs": form.resident_epochs, **run(paths, ids)}


def ways(form: Form, folder: Path) -> dict[str, Any]:
    """Images a second on labels alone, from the store and with the live teacher, and what the networks allow."""
    found = {}
    for name, dataset, views, network in kinds(form, folder):
        student = form.small_student if name == "small" else form.photo_student
        count = min(20 * form.batch_size, dataset.beton.num_samples)
        pair = Pair(student, network, views.size, dataset.beton.path, count, min(form.batch_size, count))
        args = argparse.Namespace(device=form.device, num_workers=0, rounds=form.rounds)
        with tempfile.TemporaryDirectory() as made:
            found[name] = measure_pair(args, pair, Path(made))
    return found


FIGURES: dict[str, Callable[[Form, Path], dict[str, Any]]] = {
    "stored-live": stored_live,
    "loader": loader,
    "data-wait/fp32": lambda form, folder: data_wait(form, folder, "off", False),
    "data-wait/bf16": lambda form, folder: data_wait(form, folder, "bf16", False),
    "data-wait/fp32-compile": lambda form, folder: data_wait(form, folder, "off", True),
    "data-wait/bf16-compile": lambda form, folder: data_wait(form, folder, "bf16", True),
    "filling": filling,
    "resident": resident,
    "ways": ways,
}


def main() -> None:
    name, form, folder, out = sys.argv[1:]
    found = FIGURES[name](FORMS[form], Path(folder))
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
