"""One epoch after the other: `for batch in loader`, and the place from which an interrupted one goes on."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from fastkd.arguments import as_whole
from fastkd.data.batch import Batch
from fastkd.data.order import PAGES_BATCHES, batch_ids, epoch_order, num_batches
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.errors import MismatchError, OptionError
from fastkd.fingerprint import fingerprint


class Epochs(ABC):
    """Which samples are in which batch of which epoch, and what iterates over them.

    ids: int64 (n,), the kept samples. shuffle, seed: how each epoch orders them; pages: the page of the file in which each
    lies, for an order by pages. global_batch: samples a batch on all ranks of `world`; drop_last: leave out one that is not full.
    """

    ids: np.ndarray
    views: Views
    shuffle: bool
    seed: int
    pages: np.ndarray | None
    global_batch: int
    drop_last: bool
    world: World
    # Epoch and batch that the next iteration begins with; those after what the latest one has handed out.
    _next: tuple[int, int] = (0, 0)
    _now: tuple[int, int] | None = None

    @abstractmethod
    def epoch(self, epoch: int, *, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from one on."""

    def __len__(self) -> int:
        """Batches an epoch."""
        return num_batches(len(self.ids), global_batch=self.global_batch, drop_last=self.drop_last)

    @property
    def batch_size(self) -> int:
        """Samples a batch on this rank, at the most."""
        return -(-self.global_batch // self.world.size)

    @property
    def num_samples(self) -> int:
        """Samples of an epoch, on all ranks together: those that are kept, less what `drop_last` leaves out."""
        return len(self) * self.global_batch if self.drop_last else len(self.ids)

    @cached_property
    def batches_fingerprint(self) -> str:
        """What decides which samples are in which batch: 32 hexadecimal digits."""
        how = [f"{self.global_batch} {self.drop_last} {self.seed if self.shuffle else 'in turn'}"]
        return fingerprint([self.ids, *how, *([] if self.pages is None else [self.pages])])

    def jobs(self, epoch: int, *, start_batch: int = 0) -> Iterator[tuple[np.ndarray, int]]:
        """What `run` is given for an epoch: sample_ids and aug_seed of each batch of this rank."""
        epoch, start_batch = as_whole(epoch, "epoch", 0), as_whole(start_batch, "start_batch", 0)
        group = PAGES_BATCHES * self.global_batch
        order = epoch_order(self.ids, epoch=epoch, shuffle=self.shuffle, seed=self.seed, pages=self.pages, group=group)
        parts = (
            batch_ids(order, b, global_batch=self.global_batch, rank=self.world.rank, size=self.world.size)
            for b in range(start_batch, len(self))
        )
        return ((part, epoch % self.views.num_seeds) for part in parts)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the next epoch: of 0, then 1, …; of the one that `set_epoch` says; or, after `load_state_dict`, the rest
        of the one that was interrupted. A loop that is left early does not make the next one begin in its middle."""
        epoch, start = self._next
        self._next, self._now = (epoch + 1, 0), (epoch, start)
        return self._counted(epoch, start)

    def _counted(self, epoch: int, start: int) -> Iterator[Batch]:
        for number, batch in enumerate(self.epoch(epoch, start_batch=start), start + 1):
            self._now = epoch, number
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch, 0, 1, …, the next iteration is; the one after it is the next one."""
        self._next, self._now = (as_whole(epoch, "epoch", 0), 0), None

    def state_dict(self) -> dict[str, Any]:
        """The place after the batch that was handed out last, as plain values that any file keeps: epoch, batch, and `batches`, a
        fingerprint of what decides which samples are in which batch. It is the same on all ranks, and serves any number of
        them that share one global batch."""
        epoch, batch = self._now or self._next
        if batch >= len(self):
            epoch, batch = epoch + 1, 0
        return {"epoch": epoch, "batch": batch, "batches": self.batches_fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where a state was taken: the next iteration gives the rest of that epoch, the one after it the epoch after.

        Raises:
            OptionError: a state that `state_dict` did not make, or a batch that the epoch does not have.
            MismatchError: a state of a loader with other samples in its batches: another mask, seed, order or batch size.
        """
        if not isinstance(state, Mapping) or set(state) != {"epoch", "batch", "batches"}:
            found = f"keys {', '.join(map(str, state))}" if isinstance(state, Mapping) else repr(state)[:60]
            raise OptionError(f"a loader's state has {found}, expected epoch, batch and batches, of `state_dict`")
        if state["batches"] != self.batches_fingerprint:
            raise MismatchError(
                f"a loader's state is of batches {state['batches']}, this loader's are {self.batches_fingerprint}: make it with the mask, "
                f"batch size, shuffle, seed, order and drop_last that the state was taken with"
            )
        epoch = as_whole(state["epoch"], "epoch of a loader's state", 0)
        self._next = epoch, as_whole(state["batch"], "batch of a loader's state", 0, len(self) - 1)
        self._now = None
