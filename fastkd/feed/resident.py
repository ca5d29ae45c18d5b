"""Data that live on the device: decoded once, then an epoch of views is cut there without the CPU's help.

The views are those of the loader, to the byte: their geometry comes from the same draws, as a table of all (aug_seed, sample),
and cutting at whole pixels moves bytes. Logits lie on the device too.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.distributed as dist

from fastkd.data.batch import Batch
from fastkd.data.loader import ViewLoader
from fastkd.data.views.draw import PAD, Views, boxes
from fastkd.data.views.mix import MIXUP
from fastkd.dist import even_split
from fastkd.errors import OptionError
from fastkd.feed.loader import Loader
from fastkd.store.logit_store import LogitStore

_SHARE = 0.5  # of the free memory, which `auto` leaves to the network
_DECODE_BATCH = 512
_CUT_BYTES = 2**26  # of pixels that are cut at once


class Resident:
    """A `Loader` whose images, labels, logits and embeddings lie on its device.

    Args:
        loader: says which samples, views, order, ranks and device; the ranks of a process group decode a part of the samples
            each, and give it to the others. store: its logits and embeddings, where it has some.

    Raises:
        OptionError: views or images that cannot be cut at whole pixels.
        CorruptError: as the loader.
    """

    def __init__(self, loader: Loader, store: LogitStore | None = None) -> None:
        reason = why_not(loader)
        if reason:
            raise OptionError(f"--resident on: {reason}; use --resident auto")
        self.loader, self.dataset, self.beton = loader, loader.dataset, loader.beton
        self.ids, self.views, self.logits, self.device = loader.ids, loader.views, loader.logits, loader.device
        self.weights, self.embeddings = loader.weights, loader.embeddings
        self.global_batch = loader.global_batch
        self._pixels = _decoded(loader)
        self._labels = torch.from_numpy(loader.beton.labels[self.ids].astype(np.int64)).to(self.device)
        self._sample_ids = torch.from_numpy(self.ids).to(self.device)
        self._boxes = torch.from_numpy(_geometry(loader)).to(self.device)
        self._logits = self._embeddings = None
        seeds = range(loader.views.num_seeds)
        if store is not None and loader.logits is not None:
            self._logits = _stacked((store.read(self.ids, seed) for seed in seeds), len(seeds), self.device)
        if store is not None and loader.embeddings is not None:  # float16 numbers, as the store has them
            planes = (store.read_embeddings(self.ids, seed).astype(np.float16) for seed in seeds)
            self._embeddings = _stacked(planes, len(seeds), self.device)
        self._rows = np.full(loader.beton.num_samples, -1, np.int64)
        self._rows[self.ids] = np.arange(len(self.ids))
        self._mixes = None if loader.views.mix is None else self._all_mixes()

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.loader)

    def describe(self) -> str:
        """Where the data lie, and the memory that takes, in words."""
        tables = (self._pixels, self._boxes, self._logits, self._embeddings, *(self._mixes or ()))
        size = sum(table.nbytes for table in tables if table is not None)
        return f"{len(self.ids):,} samples in memory of {self.device}, {size / 1e6:,.1f} MB"

    def epoch(self, epoch: int, *, start_batch: int = 0) -> Iterator[Batch]:
        """The batches that the loader would give, cut on the device."""
        jobs = list(self.loader.jobs(epoch, start_batch=start_batch))
        if not jobs:
            return
        aug_seed = jobs[0][1]
        rows = torch.from_numpy(self._rows[np.concatenate([ids for ids, _ in jobs])]).to(self.device)
        sizes = [len(ids) for ids, _ in jobs]
        for part, images in zip(rows.split(sizes), self._images(rows, sizes, aug_seed), strict=True):
            partner_labels, lam = None, None
            if self._mixes is not None:
                partners, _, lam = (table[aug_seed, part] for table in self._mixes)
                partner_labels = self._labels[partners]
            batch = Batch(
                images=images,
                partner_labels=partner_labels,
                lam=lam,
                labels=self._labels[part],
                sample_ids=self._sample_ids[part],
                logits=None if self._logits is None else self._logits[aug_seed, part],
                aug_seed=aug_seed,
                embeddings=None if self._embeddings is None else self._embeddings[aug_seed, part].float(),
            )
            yield self.loader.finished(batch)

    def _images(self, rows: torch.Tensor, sizes: list[int], aug_seed: int) -> Iterator[torch.Tensor]:
        """The images of batches of some sizes, cut for many batches at once: an epoch of small images is a dozen launches."""
        most, start = max(1, _CUT_BYTES // (3 * self.views.size**2)), 0
        while start < len(sizes):
            end = start + 1
            while end < len(sizes) and sum(sizes[start : end + 1]) <= most:
                end += 1
            group, rows = rows.split([sum(sizes[start:end]), len(rows) - sum(sizes[start:end])])
            images = self._cut(group, aug_seed)
            if self._mixes is not None:
                partners, regions, _ = (table[aug_seed, group] for table in self._mixes)
                images = self._blend(images, self._cut(partners, aug_seed), regions)
            yield from images.split(sizes[start:end])
            start = end

    def _cut(self, rows: torch.Tensor, aug_seed: int) -> torch.Tensor:
        """uint8 (B, 3, H, W), channels_last."""
        top, left, flip = self._boxes[aug_seed, rows].long().unbind(1)
        step = torch.arange(self.views.size, device=self.device)
        y = top[:, None] + step
        x = left[:, None] + torch.where(flip[:, None] > 0, self.views.size - 1 - step, step)
        return self._pixels[rows[:, None, None], y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)

    def _all_mixes(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What every view is mixed with: rows of partners int32 (K, n), regions int16 (K, n, 4), lam float32 (K, n)."""
        planes = [mixes for seed in range(self.views.num_seeds) if (mixes := self.loader.mixes(self.ids, seed))]
        rows = np.stack([self._rows[plane.partners] for plane in planes]).astype(np.int32)
        regions = np.stack([plane.regions for plane in planes]).astype(np.int16)
        lam = np.stack([plane.lam for plane in planes])
        rows_KN, regions_KN, lam_KN = (torch.from_numpy(table).to(self.device) for table in (rows, regions, lam))
        return rows_KN, regions_KN, lam_KN

    def _blend(self, own: torch.Tensor, other: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        """`mix.blend` of a batch, uint8 (B, 3, H, W)."""
        assert self.views.mix is not None
        if self.views.mix.code == MIXUP:
            w = regions[:, :1, None, None].int()
            mixed = w * own + (256 - w) * other + 128 >> 8
            return mixed.to(torch.uint8)
        top, left, bottom, right = regions[:, :, None].unbind(1)
        step = torch.arange(self.views.size, device=self.device)
        rows, columns = (step >= top) & (step < bottom), (step >= left) & (step < right)
        return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], other, own)


def why_not(loader: Loader) -> str | None:
    """Why the loader's views cannot be cut on the device; None where they can."""
    beton, ids, views = loader.beton, loader.ids, loader.views
    if views.kind == "rrc":
        return "rrc resizes, which only the decoder does to the byte"
    if (beton.heights[ids] != views.size).any() or (beton.widths[ids] != views.size).any():
        return f"the images are not all of {views.size}×{views.size} pixels"
    return None


def make_resident(loader: Loader, store: LogitStore | None, choice: str) -> "Loader | Resident":
    """The loader, or its data on the device.

    Args:
        choice: `on`; `off`; `auto`: on a GPU, where the views allow it and half of its free memory holds the data.

    Raises:
        OptionError: `on` with views that cannot be cut on the device.
    """
    if choice == "on":
        return Resident(loader, store)
    if choice == "off" or loader.device.type != "cuda" or why_not(loader):
        return loader
    side = loader.views.size + 2 * PAD
    row_bytes = (3 if loader.views.mix is None else 19) + 4 * (loader.logits.width if loader.logits is not None else 0)
    row_bytes += 2 * (loader.embeddings.width if loader.embeddings is not None else 0)
    needed = len(loader.ids) * (3 * side * side + loader.views.num_seeds * row_bytes)
    free, _ = torch.cuda.mem_get_info(loader.device)
    fits = torch.tensor(int(needed < _SHARE * free), device=loader.device)
    if _num_sharing(loader) > 1:  # ranks that decode together all do it, or none
        dist.all_reduce(fits, dist.ReduceOp.MIN)
    return Resident(loader, store) if fits.item() else loader


def _num_sharing(loader: Loader) -> int:
    """Ranks that decode a part of the samples each: those of the process group, where there is one."""
    return loader.world.size if dist.is_initialized() else 1


def _decoded(loader: Loader) -> torch.Tensor:
    """The whole images in a frame of zeros as wide as the views need it: uint8 (n, H, W, 3) on the loader's device, in the
    order of the ids. Nothing of that size exists besides it."""
    pad, side, num_ids = PAD if loader.views.kind == "crop-flip" else 0, loader.views.size, len(loader.ids)
    padded = side + 2 * pad
    pixels = torch.zeros((num_ids, padded, padded, 3), dtype=torch.uint8, device=loader.device)
    size = _num_sharing(loader)
    start, end = even_split(num_ids, loader.world.rank if size > 1 else 0, size)
    if end > start:
        own, views = loader.ids[start:end], Views("center", side)
        whole = ViewLoader(loader.beton, views, ids=own, num_workers=loader.num_workers, device=loader.device)
        for batch in whole.run((own[at : at + _DECODE_BATCH], 0) for at in range(0, len(own), _DECODE_BATCH)):
            images = batch.images.permute(0, 2, 3, 1)
            pixels[start : start + len(batch), pad : pad + side, pad : pad + side] = images
            start += len(batch)
    for rank in range(size if size > 1 else 0):
        first, last = even_split(num_ids, rank, size)
        if last > first:
            dist.broadcast(pixels[first:last], rank)
    return pixels


def _stacked(planes: Iterable[np.ndarray], num_planes: int, device: torch.device) -> torch.Tensor:
    """Arrays of one shape as one tensor on a device; nothing of its size exists besides it."""
    planes = iter(planes)
    first = torch.from_numpy(next(planes))
    out = torch.empty((num_planes, *first.shape), dtype=first.dtype, device=device)
    out[0] = first
    for number, plane in enumerate(planes, start=1):
        out[number] = torch.from_numpy(plane)
    return out


def _geometry(loader: Loader) -> np.ndarray:
    """Top, left and flip of every view: uint8 (K, n, 3)."""
    views, ids = loader.views, loader.ids
    heights, widths = loader.beton.heights[ids], loader.beton.widths[ids]
    tables = (boxes(views, ids, seed, heights, widths)[:, [0, 1, 4]] for seed in range(views.num_seeds))
    return np.stack([table.astype(np.uint8) for table in tables])
