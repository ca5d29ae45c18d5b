"""Teachers: loading one with its own preprocessing, and filling a logit store with its logits."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastkd.data.views import Views
from fastkd.dist import World, even_split
from fastkd.errors import CorruptError, MismatchError, OptionError
from fastkd.feed import Dataset, Loader, choose_probes, kept_ids, probe_checksums, view_identity
from fastkd.models.registry import canonical_name, pretrained, weights_fingerprint
from fastkd.prune.mask import Mask
from fastkd.store.codec import check_encodable, make_codec
from fastkd.store.filling import StoreFiller, create_store, fill_lock
from fastkd.store.logit_store import StoreTables, read_tables
from fastkd.train.checkpoint import load_model
from fastkd.train.norm import Norm, norm_of, parse_norm

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Teacher:
    """A frozen network with its preprocessing.

    fingerprint: of its weights. norm: normalisation and input size. precision: fp32, bf16 or fp16 (autocast).
    """

    model: nn.Module
    name: str
    fingerprint: str
    norm: Norm
    precision: str
    device: torch.device

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of views: uint8 (B, 3, H, W) → float32 (B, C), rounded to float16, without gradients.

        The rounding (KL 5e-7 at τ = 1) makes a live teacher and an fp16 store the same teacher to the bit, not nearly the
        same: a young network's training multiplies a difference of 1e-5 a thousandfold within fifty steps.
        """
        dtype = PRECISIONS[self.precision]
        with torch.no_grad(), torch.autocast(self.device.type, dtype) if dtype else nullcontext(), _full_fp32():
            return self.model(self.norm(images.to(self.device, non_blocking=True))).half().float()

    def identity(self) -> dict[str, Any]:
        """What its logits follow from, besides weights and views; part of a store's identity."""
        return {"model": self.name, "precision": self.precision, **self.norm.describe()}


@contextmanager
def _full_fp32() -> Iterator[None]:
    """Convolutions in fp32 rather than TF32, so that logits do not depend on the kind of GPU more than they must."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def load_teacher(
    spec: str,
    *,
    model_name: str | None = None,
    norm: str | None = None,
    size: int | None = None,
    precision: str = "fp32",
    num_classes: int | None = None,
    device: torch.device | str = "cpu",
    options: tuple[str, str, str] = ("--teacher", "--teacher-model", "--teacher-norm"),
) -> Teacher:
    """Loads a teacher (or any network to evaluate).

    Args:
        spec: path of a checkpoint, or a torchvision / `timm:` name for published weights.
        model_name: the network, where the checkpoint does not say.
        norm: preset or `M,M,M/S,S,S`; None for what the checkpoint or the published weights say.
        size: input size in pixels; the view is resized to it. None for the view's own size.
        num_classes: the classes that it must have.
        options: the options that spec, model_name and norm came from, for messages.

    Raises:
        NotFoundError, FormatError, CorruptError, ModelError, MissingDependencyError: as `load_model`, `pretrained`.
        OptionError: an unknown precision; a checkpoint that does not say its normalisation, and none given.
    """
    if precision not in PRECISIONS:
        raise OptionError(f"precision {precision!r}, expected one of {', '.join(PRECISIONS)}")
    if Path(spec).exists() or "/" in spec or Path(spec).suffix:
        model, meta = load_model(spec, model_name, num_classes, name_option=options[1])
        found, name = norm_of(meta, size), canonical_name(str(model_name or meta["model"]))
    else:
        model, meta = pretrained(spec)
        found, name = Norm(meta["mean"], meta["std"], size), str(meta["model"])
        if num_classes not in (None, meta["num_classes"]):
            raise MismatchError(f"{options[0]} {spec}: {meta['num_classes']} classes, the data has {num_classes}")
    if norm is not None:
        found = parse_norm(norm, options[2], size)
    if found is None:
        raise OptionError(
            f"{spec}: does not say how its inputs were normalised: give {options[2]} cifar, imagenet or M,M,M/S,S,S"
        )
    device = torch.device(device)
    model = model.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    return Teacher(
        model=model, name=name, fingerprint=weights_fingerprint(model), norm=found, precision=precision, device=device
    )


def fill_store(
    path: str | Path,
    dataset: Dataset,
    teacher: Teacher,
    views: Views,
    *,
    mask: Mask | None = None,
    codec: str = "auto",
    block_rows: int = 256,
    num_workers: int = 0,
    world: World = World(),  # noqa: B008  (frozen)
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Fills a logit store, or goes on filling the one that is there.

    A block of the store is a batch of the teacher, whatever the number of ranks and wherever a run resumes, so that the
    same floats come out.

    Args:
        block_rows: rows of a block.
        progress: called with rows done and in all, this rank's.

    Returns:
        rows_written, rows_reused (found in the file), rows_per_s.

    Raises:
        MismatchError: the file there is another store, says in what; or it is finished.
        BusyError: another run fills it.
        CorruptError: the teacher gives NaN, infinity or a logit beyond ±65000; names the sample.
    """
    if block_rows < 1:
        raise OptionError(f"batch size {block_rows}, expected at least 1")
    path = Path(path)
    if world.is_main:
        _prepare(path, dataset, teacher, views, mask, codec, block_rows)
    _barrier(world)
    with fill_lock(path) if world.is_main else nullcontext():
        tables = read_tables(path)
        pending = np.argwhere(tables.done != 1)
        _barrier(world)  # all ranks have read the flags before the first of them writes one
        start, end = even_split(len(pending), world.rank, world.size)
        begin = time.perf_counter()
        written = _fill_blocks(tables, dataset, teacher, views, pending[start:end], num_workers, progress)
        seconds = time.perf_counter() - begin
        if world.size > 1:
            total = torch.tensor([written], device=teacher.device)
            dist.all_reduce(total)
            written = int(total)
    rows = tables.num_seeds * tables.num_rows
    return {"rows_written": written, "rows_reused": rows - written, "rows_per_s": written / max(seconds, 1e-9)}


def _prepare(
    path: Path, dataset: Dataset, teacher: Teacher, views: Views, mask: Mask | None, codec: str, block_rows: int
) -> None:
    """Makes the empty store, or checks that the one there is this one and unfinished."""
    ids = kept_ids(dataset, mask)
    inputs = {"beton": dataset.fingerprint, "teacher": teacher.fingerprint}
    if mask is not None:
        inputs["mask"] = mask.header.fingerprint
    params = {**view_identity(views), "teacher": teacher.identity()}
    chosen = make_codec(codec, dataset.num_classes)
    if not path.exists():
        probes = choose_probes(ids, views.num_seeds)
        create_store(
            path,
            sample_ids=ids,
            num_seeds=views.num_seeds,
            codec=chosen,
            block_rows=block_rows,
            inputs=inputs,
            params=params,
            probes=probes,
            probe_crc32c=probe_checksums(dataset.beton, views, probes),
        )
        return
    tables = read_tables(path)
    wanted = params | {"codec": chosen.name, "num_seeds": views.num_seeds, "block_rows": block_rows}
    found = tables.header.params
    differs = [
        f"{name} {found.get(name)} (asked for {value})" for name, value in wanted.items() if found.get(name) != value
    ]
    differs += [
        f"{name} {tables.header.inputs.get(name, 'none')[:12]} (asked for {inputs.get(name, 'none')[:12]})"
        for name in sorted({*inputs, *tables.header.inputs})
        if tables.header.inputs.get(name) != inputs.get(name)
    ]
    if differs:
        raise MismatchError(f"{path}: another store is there; it differs in {'; '.join(differs)}; choose another --out")
    if (tables.done == 1).all():
        raise MismatchError(
            f"{path}: this store is finished, nothing is left to compute; choose another --out for another one"
        )


def _fill_blocks(
    tables: StoreTables,
    dataset: Dataset,
    teacher: Teacher,
    views: Views,
    blocks: np.ndarray,
    num_workers: int,
    progress: Callable[[int, int], None],
) -> int:
    """Computes and writes the given blocks, (aug_seed, block) pairs; returns the rows written."""
    filler = StoreFiller(tables)
    try:
        jobs = [(filler.block_ids(int(block)), int(seed)) for seed, block in blocks]
        total = sum(len(ids) for ids, _ in jobs)
        loader = Loader(dataset, views, mask=tables.sample_ids, num_workers=num_workers, device=teacher.device)
        done = 0
        for (seed, block), batch in zip(blocks, loader.run(jobs), strict=True):
            logits = teacher(batch.images).cpu().numpy()
            if logits.shape[1] != tables.codec.num_classes:
                raise MismatchError(
                    f"the teacher has {logits.shape[1]} outputs, the data {tables.codec.num_classes} classes"
                )
            bad = np.flatnonzero(check_encodable(logits))
            if len(bad):
                raise CorruptError(
                    f"the teacher's logits of sample {int(batch.sample_ids[bad[0]])}, aug_seed {seed} are not finite numbers within "
                    f"±65000; check its weights, normalisation and precision"
                )
            filler.write(int(seed), int(block), logits)
            done += len(batch)
            progress(done, total)
        filler.flush()
        return done
    finally:
        filler.close()


def _barrier(world: World) -> None:
    if world.size > 1:
        dist.barrier()
