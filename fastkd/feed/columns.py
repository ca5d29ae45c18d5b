"""What accompanies the samples: rows of a store, weights of a mask."""

import numpy as np
import torch

from fastkd.data.views.decode import Column
from fastkd.errors import MismatchError
from fastkd.prune.masks.mask import Mask
from fastkd.store.logit_store import LogitStore
from fastkd.store.tables import Output


def store_columns(
    store: LogitStore, ids: np.ndarray, num_samples: int, *, is_mixed: bool, embeddings: bool = False
) -> tuple[Column, Column | None]:
    """A store's logits as the loader takes them, and its embeddings where they are asked for.

    Args:
        is_mixed: whether its views are.

    Raises:
        MismatchError: samples among `ids` that the store does not hold, or embeddings that it does not; or that it has others
            too, which its views are mixed with.
    """
    rows = np.full(num_samples, -1, np.int32)
    rows[ids] = store.rows_of(ids)
    if is_mixed and len(ids) != store.tables.num_rows:
        raise MismatchError(
            f"{store.tables.path}: its views are mixed among all {store.tables.num_rows:,} samples that it holds, {len(ids):,} are "
            f"kept here; use the mask that it was made for, or make a store for this one"
        )

    def column(output: Output, records: np.ndarray) -> Column:
        codec = output.codec
        return Column(
            records=records,
            rows=rows,
            width=codec.num_classes,
            unpack=codec.unpack,
            salt=output.salt,
            source=store.tables.path,
        )

    logits = column(store.tables.outputs[0], store.records)
    return logits, column(*store.require_embeddings()) if embeddings else None


def weights_by_id(mask: object, device: torch.device | str) -> torch.Tensor | None:
    """A mask's weights by sample_id, float32 (N,), on a device; None for what has none."""
    if not isinstance(mask, Mask) or mask.weights is None:
        return None
    weights = torch.ones(mask.num_samples)
    weights[torch.from_numpy(mask.sample_ids)] = torch.from_numpy(mask.weights)
    return weights.to(device)
