"""Kinds of artefacts that `damaged_artefacts` damages: which files of the lab they are, and what reads a copy of each in `copy/`."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cli.lab import CPU, RUN, SIDE, call

Value = Any
CHANGING = ("images_per_s", "data_wait_percent", "step_percent", "size_bytes", "notes", "done_percent", "teacher_top1")
"""Of results: rates, and what damage may change without that anything is read as else: the size of the file, and how much of
a store is filled, where flags are cleared."""


def result_of(line: str) -> dict[str, Any]:
    """The result of a command; without what depends on the moment."""
    from fastkd.errors import CorruptError

    code, text = call(f"{line} --json")
    found: dict[str, Any] = json.loads(text)
    if code:
        assert found["problems"]
        raise CorruptError("; ".join(found["problems"]))
    return {name: value for name, value in found.items() if name not in CHANGING}


def written(line: str, out: str) -> Value:
    """The bytes of what a command writes."""
    shutil.rmtree("out", ignore_errors=True)
    os.mkdir("out")
    call(f"{line} --out out/{out}")
    return Path("out", out).read_bytes()


def trained() -> Value:
    result = result_of(f"{RUN} --out copy/run")
    return [result, Path("copy/run/model.safetensors").read_bytes()]


def loaded(*, logits: bool) -> Value:
    """What a loader gives of a mask, or of a store beside one."""
    from fastkd.data.views.draw import Views
    from fastkd.feed.loader import Loader

    mask, more = ("m.h5", {"logits": "copy/l.h5", "embeddings": True}) if logits else ("copy/m.h5", {"logits": None})
    loader = Loader(
        "x.beton", None if logits else Views("crop-flip", SIDE, 2), mask=mask, batch_size=16, num_workers=1, **more
    )
    found = []
    for batch in [batch for epoch in range(2) for batch in loader.epoch(epoch)]:
        parts = [batch.images, batch.labels, batch.sample_ids, batch.logits, getattr(batch, "embeddings", None)]
        found.append([None if part is None else part.numpy().tobytes() for part in parts])
    return [*found, None if loader.weights is None else loader.weights.numpy().tobytes()]


def merged() -> Value:
    """Tables and records of the store that is merged of a shard."""
    from fastkd.store.tables import read_tables

    written("merge copy/a.h5 b.h5", "l.h5")
    tables = read_tables("out/l.h5")
    arrays = (tables.sample_ids, tables.done, tables.top1, tables.probes, tables.probe_crc32c)
    records = [tables.map_records(output)[..., : output.codec.payload_bytes + 4] for output in tables.outputs]
    return [tables.header, tables.about, *(array.tobytes() for array in (*arrays, *records))]


def inspected(name: str) -> list[Callable[[], Value]]:
    return [lambda: result_of(f"inspect copy/{name}"), lambda: result_of(f"verify copy/{name}")]


# Kind → the file or folder, another of its kind, what of the folder is damaged, and what reads it.
KINDS: dict[str, tuple[str, str, tuple[str, ...], list[Callable[[], Value]]]] = {
    "mask": (
        "m.h5",
        "m5.h5",
        (),
        [
            *inspected("m.h5"),
            lambda: loaded(logits=False),
            lambda: written("prune x.beton --method complement --mask copy/m.h5", "c.h5"),
            lambda: result_of("plan x.beton --num-seeds 2 --mask copy/m.h5 --images-per-s 1"),
        ],
    ),
    "scores": (
        "t/scores.h5",
        "t5/scores.h5",
        (),
        [
            *inspected("scores.h5"),
            lambda: written("prune x.beton --keep 0.3 --method scores --score el2n --scores copy/scores.h5", "c.h5"),
            lambda: result_of("inspect t5/scores.h5 --compare copy/scores.h5 --score el2n"),
        ],
    ),
    "features": (
        "f.h5",
        "f5.h5",
        (),
        [
            *inspected("f.h5"),
            lambda: written("prune x.beton --keep 0.3 --method moderate --features copy/f.h5", "c.h5"),
        ],
    ),
    "store": (
        "l.h5",
        "l5.h5",
        (),
        [
            *inspected("l.h5"),
            lambda: loaded(logits=True),
            lambda: written("score x.beton --method el2n --logits copy/l.h5", "s.h5"),
        ],
    ),
    "shard": (
        "a.h5",
        "a5.h5",
        (),
        [lambda: result_of("inspect copy/a.h5"), merged],
    ),
    "finished run": (
        "run",
        "run5",
        (
            "run.json",
            "run.json",
            "result.json",
            "result.json",
            "metrics.jsonl",
            "metrics.csv",
            "model.safetensors",
            "resume.pt",
        ),
        [
            *inspected("run"),
            lambda: result_of("report copy --out out/r.html"),
            lambda: result_of(f"evaluate x.beton --model copy/run {CPU}"),
            trained,
        ],
    ),
    "stopped run": (
        "stopped",
        "stopped5",
        ("run.json", "resume.pt", "resume.pt", "resume-previous.pt", "metrics.jsonl", "metrics.csv"),
        [*inspected("run"), trained],
    ),
}
