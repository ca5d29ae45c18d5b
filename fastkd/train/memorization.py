"""Memorization: networks trained on random parts of the data, asked about all of it."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastkd.agree import share
from fastkd.artefact import Header, read_artefact, write_artefact
from fastkd.data.beton.dataset import Dataset
from fastkd.data.identity import center_views
from fastkd.data.views.draw import Views
from fastkd.dist import World, barrier, sum_over_ranks
from fastkd.errors import FormatError, MismatchError, OptionError
from fastkd.feed.loader import Loader
from fastkd.hashing import draw
from fastkd.models.checkpoint import load_model
from fastkd.models.norm import Norm
from fastkd.prune.masks.mask import random_order
from fastkd.prune.scores.formulas import memorization_scores
from fastkd.train.metrics import EVAL_BATCH, require_numbers
from fastkd.train.recipe import Recipe
from fastkd.train.student import train

KIND, FORMAT_VERSION = "memorization-trial", 1
_SUBSET_SEED = 5  # number of the draw


def score_memorization(
    dataset: Dataset,
    views: Views,
    recipe: Recipe,
    folder: Path,
    *,
    num_models: int,
    subset: float,
    min_count: int,
    norm: Norm,
    num_workers: int = 0,
    prefetch: int = 3,
    device: str = "cpu",
    world: World = World(),  # noqa: B008  (frozen)
    log: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Memorization scores by `num_models` networks, each trained on a random part of the samples.

    A finished network leaves a file in the folder, one that was stopped its run; the same call goes on from there, and
    one with more networks uses those that there are.

    Args:
        recipe: of each network, its seed aside; alpha 0.
        subset: the part of the samples that a network is trained on, between 0 and 1.
        min_count: see `memorization_scores`.
        progress: called with networks done and in all.

    Returns:
        float64 (N,), -1 … 1, high = memorized; NaN where undefined.

    Raises:
        OptionError: options out of range.
        MismatchError: the folder holds networks of another call.
    """
    num_samples = dataset.beton.num_samples
    size = round(subset * num_samples)
    if num_models < 2 or not 0 < subset < 1 or not 0 < size < num_samples or min_count < 1:
        raise OptionError(
            f"memorization by {num_models} networks on {subset} of {num_samples} samples, {min_count} at least: expected "
            f"2 or more networks, a part between 0 and 1, and 1 or more"
        )
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
    barrier(world)
    params = {
        "recipe": recipe.describe(),
        "subset": subset,
        "views": views.identity() | {"num_seeds": views.num_seeds},
        "norm": norm.describe(),
    }
    if (center := center_views(dataset.beton, views.size)).version != 1:
        params["center"] = center.identity()

    def trials() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for m in range(num_models):
            path = folder / f"{m:05}.h5"
            seed = int(draw(recipe.seed, m, _SUBSET_SEED) >> np.uint64(1))
            if not share(world, path.exists):
                log(f"memorization: network {m + 1} of {num_models}")
                ids = random_order(np.zeros(num_samples, np.int64), seed)[:size]
                run = folder / f"{m:05}"
                own = replace(recipe, seed=seed)
                correct = _one_network(dataset, views, own, run, ids, norm, num_workers, prefetch, device, world)
                if world.is_main:
                    _write_trial(path, dataset, params | {"network": m}, ids, correct)
                    shutil.rmtree(run)
                barrier(world)
            progress(m + 1, num_models)
            yield _read_trial(path, dataset, params | {"network": m})

    return memorization_scores(trials(), min_count)


def _one_network(
    dataset: Dataset,
    views: Views,
    recipe: Recipe,
    run: Path,
    ids: np.ndarray,
    norm: Norm,
    num_workers: int,
    prefetch: int,
    device: str,
    world: World,
) -> np.ndarray:
    """Trains on some samples, or goes on; returns which of all samples the network then has right: bool (N,)."""
    common: dict[str, Any] = {"num_workers": num_workers, "prefetch": prefetch, "device": device, "world": world}
    loader = Loader(dataset, views, mask=ids, batch_size=recipe.batch_size, shuffle=True, seed=recipe.seed, **common)
    train(
        recipe,
        loader,
        run,
        norm=norm,
        inputs={"beton": dataset.fingerprint},
        params={"num_kept": len(ids)},
        world=world,
    )
    barrier(world)
    model = load_model(run / "model.safetensors")[0].to(device).to(memory_format=torch.channels_last)
    correct = np.zeros(dataset.beton.num_samples, np.uint8)
    every = Loader(dataset, center_views(dataset.beton, views.size), batch_size=EVAL_BATCH, **common)
    with torch.inference_mode():
        for batch in every.epoch(0):
            if len(batch):
                logits = model(norm(batch.images))
                require_numbers(logits, batch.sample_ids)
                correct[batch.sample_ids.cpu().numpy()] = (logits.argmax(dim=1) == batch.labels).cpu().numpy()
    sum_over_ranks(correct, world)
    return correct.astype(bool)


def _write_trial(path: Path, dataset: Dataset, params: dict[str, Any], ids: np.ndarray, correct: np.ndarray) -> None:
    member = np.zeros(dataset.beton.num_samples, bool)
    member[ids] = True
    write_artefact(
        path,
        kind=KIND,
        format_version=FORMAT_VERSION,
        inputs={"beton": dataset.fingerprint},
        params=params,
        arrays={"member": np.packbits(member), "correct": np.packbits(correct)},
    )


def _read_trial(path: Path, dataset: Dataset, params: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    arrays = dict.fromkeys(("member", "correct"), ("u1", 1))
    header, found = read_artefact(path, kind=KIND, format_version=FORMAT_VERSION, arrays=arrays)
    _require_same(path, header, dataset, params)
    count = dataset.beton.num_samples
    if any(len(bits) != -(-count // 8) for bits in found.values()):
        raise FormatError(f"{path}: a network's answers on another number of samples than {count}; remove it")
    return np.unpackbits(found["member"], count=count), np.unpackbits(found["correct"], count=count)


def _require_same(path: Path, header: Header, dataset: Dataset, params: dict[str, Any]) -> None:
    if header.inputs != {"beton": dataset.fingerprint}:
        raise MismatchError(f"{path}: a network of another beton than {dataset.beton.path}; choose another --out")
    differs = [name for name, value in params.items() if header.params.get(name) != value]
    if differs:
        raise MismatchError(f"{path}: a network of another {differs[0]}; choose another --out, or ask for the same")
