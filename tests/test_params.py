"""Artefacts whose header has a right fingerprint and says what makes no sense: one line from every command that reads them."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers.commands import fastkd

from fastkd.artefact import content_fingerprint, open_artefact
from fastkd.store.tables import store_fingerprint

WRONG: list[Any] = [None, "x", -1, 0, 1e308, 2**70, [], {}, [1], [[]], {"x": {}}, True, float("nan")]
CPU = "--device cpu --num-workers 1"
READERS = {
    "mask": ["prune {x} --method complement --mask {bad} --out {out}", "build-beton {x} --mask {bad} --out {out}"],
    "scores": ["prune {x} --keep 0.1 --method scores --score el2n --scores {bad} --out {out}"],
    "features": ["prune {x} --keep 0.1 --method moderate --features {bad} --out {out}"],
    "logit-store": [
        f"score {{x}} --method el2n --logits {{bad}} {CPU} --out {{out}}",
        f"verify {{bad}} --against {{x}} --teacher {{t}} --rows 2 {CPU}",
        f"train {{x}} --mask {{m}} --logits {{bad}} --model resnet8 --epochs 1 --batch-size 100 {CPU} --out {{out}}",
    ],
}


@pytest.fixture(scope="module")
def files(raw_beton, raw_mask, teacher_file, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("params")
    found = {"x": raw_beton, "m": raw_mask, "t": teacher_file, "mask": raw_mask}
    found |= {"scores": folder / "s.h5", "features": folder / "f.h5", "logit-store": folder / "l.h5"}
    lines = [
        f"score {{x}} --method moderate --method el2n --model {{t}} --features-out {{features}} --out {{scores}} {CPU}",
        f"cache-logits {{x}} --mask {{m}} --teacher {{t}} --num-seeds 1 --outputs logits,embedding --out {{logit-store}} {CPU}",
    ]
    for line in lines:
        outcome = fastkd(*line.format(**found).split())
        assert outcome.code == 0, outcome.err
    return found


def places(value: dict, path: tuple = ()) -> Iterator[tuple]:
    """All that a tree of JSON objects says, by its path."""
    for key, one in value.items():
        yield (*path, key)
        if isinstance(one, dict):
            yield from places(one, (*path, key))


def changed(head: dict, place: tuple, value: object, *, drop: bool = False) -> dict:
    found = copy.deepcopy(head)
    inner = found
    for key in place[:-1]:
        inner = inner[key]
    if drop:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return found


def rewritten(path: Path, to: Path, head: dict) -> Path:
    """A copy of an artefact whose header says something else, with the fingerprint that belongs to it."""
    shutil.copy(path, to)
    with h5py.File(to, "r+") as file:
        kind = bytes(file.attrs["fastkd_kind"]).decode()
        inputs, params = head["inputs"], head["params"]
        if kind == "logit-store":
            digest = store_fingerprint(
                inputs, params, *(file[name][:] for name in ("sample_ids", "probes", "probe_crc32c"))
            )
        else:
            arrays: dict[str, np.ndarray] = {}
            file.visititems(lambda name, one: arrays.update({name: one[:]}) if isinstance(one, h5py.Dataset) else None)
            digest = content_fingerprint(kind, inputs, params, arrays)
        texts = {"fingerprint": digest} | {
            name: json.dumps(head[name], sort_keys=True) for name in ("inputs", "params")
        }
        for name in ("about", "about_digest"):
            if name in file.attrs:
                del file.attrs[name]
        for name, text in texts.items():
            file.attrs[name] = np.bytes_(text.encode())
    return to


@pytest.mark.parametrize("kind", READERS)
def test_a_header_that_makes_no_sense_is_one_line_from_whoever_reads_it(kind, files, tmp_path):
    with open_artefact(files[kind], kind) as (_, header):
        head = {"inputs": header.inputs, "params": header.params}
    unclear = []
    for place in places(head):
        if len(place) == 1:
            continue
        heads = [changed(head, place, None, drop=True), *(changed(head, place, value) for value in WRONG)]
        for number, one in enumerate(heads):
            bad, out = rewritten(files[kind], tmp_path / "bad.h5", one), tmp_path / "out"
            lines = [*("inspect {bad} --json", "verify {bad}"), *READERS[kind][: None if number < 4 else 1]]
            for line in lines:
                outcome = fastkd(*line.format(**files, bad=bad, out=out).split())
                errors = [text for text in outcome.err.splitlines() if "error" in text]
                is_clear = outcome.code in (0, 1) and len(errors) <= 1 and "internal error" not in outcome.err
                if not is_clear or (line.endswith("--json") and "NaN" in outcome.out):
                    unclear.append((place, number, line, outcome.err[-300:]))
                shutil.rmtree(out, ignore_errors=True)
                out.unlink(missing_ok=True)
    assert unclear == []
