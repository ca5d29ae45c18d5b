"""Stores made for the tests, of random logits or over the views of a beton, and teachers to fill them."""

import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastkd.data.beton.dataset import Dataset
from fastkd.data.identity import choose_probes, probe_checksums, view_identity
from fastkd.data.views.draw import Views
from fastkd.models.checkpoint import save_weights
from fastkd.models.norm import Norm
from fastkd.models.registry import create_model
from fastkd.store.codec import make_codec
from fastkd.store.filling import StoreFiller, create_store
from fastkd.store.tables import read_tables
from fastkd.teacher.fill import fill_store
from fastkd.teacher.network import Teacher
from fastkd.teacher.recipe import StoreRecipe

torch.set_num_threads(1)  # threads would wait for each other on networks as small, and not come along in forks

IDS = np.random.default_rng(5).permutation(90)[:37]
VIEWS = Views("crop-flip", 32, 3)
NORM = Norm((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
"""Of the networks that `save_teacher` makes, and of their students."""


def random_logits(num_seeds: int, num_rows: int, num_classes: int, seed: int = 0) -> np.ndarray:
    """float32 (K, R, C), all of them float16 numbers."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 3, (num_seeds, num_rows, num_classes)).astype(np.float16).astype(np.float32)


def make_store(
    path: Path,
    logits: np.ndarray,
    sample_ids: np.ndarray = IDS,
    *,
    codec: str = "fp16",
    block_rows: int = 8,
    blocks: slice = slice(None),
    dataset: Dataset | None = None,
    views: Views = VIEWS,
    other_probes: int = 0,
    params: dict[str, Any] | None = None,
    embeddings: np.ndarray | None = None,
) -> Path:
    """Creates a store and fills it with `logits` (K, R, C), or with some `blocks` of every plane alone.

    With a `dataset` it belongs to these views of it; else to a beton that does not exist. `other_probes` of its probe
    views had other pixels where it was filled. `params` stand for what today's views and pixels are called.
    `embeddings` (K, R, D) are stored beside the logits.
    """
    params = params or view_identity(views, sample_ids)
    if embeddings is not None:
        params = params | {"embedding": {"layer": "fc:input", "dim": embeddings.shape[2]}}
    num_seeds, _, num_classes = logits.shape
    probes = choose_probes(sample_ids, num_seeds)[:20]
    checksums = (
        probe_checksums(dataset.beton, views, probes, sample_ids) if dataset else np.zeros(len(probes), np.uint32)
    )
    checksums[:other_probes] ^= 1
    create_store(
        path,
        sample_ids=sample_ids,
        num_seeds=num_seeds,
        codec=make_codec(codec, num_classes),
        block_rows=block_rows,
        inputs={"beton": dataset.fingerprint if dataset else "b" * 32, "teacher": "c" * 32},
        params=params,
        probes=probes,
        probe_crc32c=checksums,
    )
    fill(path, logits, blocks, embeddings=embeddings)
    return path


def cache(path: Path, dataset: Dataset, teacher: Teacher, views: Views, **options: Any) -> dict[str, Any]:
    """Fills a store with a teacher's logits, as `fastkd cache-logits` does; options of `StoreRecipe` and `fill_store`."""
    of_recipe = {field.name for field in fields(StoreRecipe)}
    made = {name: options.pop(name) for name in list(options) if name in of_recipe}
    return fill_store(path, StoreRecipe(dataset=dataset, teacher=teacher, views=views, **made), **options)


def fill(path: Path, logits: np.ndarray, blocks: slice = slice(None), *, embeddings: np.ndarray | None = None) -> None:
    """Writes blocks of every plane as `cache-logits` does."""
    tables = read_tables(path)
    filler = StoreFiller(tables)
    for aug_seed in range(tables.num_seeds):
        for block in range(tables.num_blocks)[blocks]:
            rows = slice(block * tables.block_rows, (block + 1) * tables.block_rows)
            more = None if embeddings is None else embeddings[aug_seed, rows]
            filler.write(aug_seed, block, logits[aug_seed, rows], embeddings_BD=more)
    filler.flush()
    filler.close()


def crc32c_by_the_polynomial(data: bytes) -> int:
    """CRC32C bit by bit, to check the one of the package by."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


class Slowed(torch.nn.Module):
    """A network that takes some seconds longer for each batch, and counts them."""

    def __init__(self, network: torch.nn.Module, seconds: float) -> None:
        super().__init__()
        self.network, self.seconds, self.num_batches = network, seconds, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        self.num_batches += 1
        return self.network(images)


def save_teacher(path: Path, *, num_classes: int = 10, seed: int = 0, name: str = "resnet8", **meta: object) -> Path:
    """A small network with seeded weights, as a checkpoint of fastkd's."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = create_model(name, num_classes)
    save_weights(path, model, {"model": name, "num_classes": num_classes, "norm": NORM.describe()} | meta)
    return path
