"""A store's rows, read into memory while an epoch goes on."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress

from fastkd.data.batch import Batch
from fastkd.store.logit_store import LogitStore


def asking_ahead(
    batches: Iterator[Batch], store: LogitStore, planes: Iterable[int], num_rows: int, *, embeddings: bool
) -> Iterator[Batch]:
    """The same batches, while a thread has the first rows of some planes of a store read into memory, one plane after the other.

    Not by the caller, whom a slow disk would stop, nor by a loader's worker, which has views to make.
    """
    is_over = threading.Event()

    def ask() -> None:
        with suppress(
            OSError
        ):  # a file system that takes no advice, or a file that has gone: rows are read as they come
            for aug_seed in planes:
                store.prefetch(aug_seed, num_rows, embeddings=embeddings, is_over=is_over.is_set)

    thread = threading.Thread(target=ask, name="fastkd-loader-ahead", daemon=True)
    thread.start()
    try:
        yield from batches
    finally:
        is_over.set()
        thread.join()
