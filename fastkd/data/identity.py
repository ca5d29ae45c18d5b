"""What the pixels of views follow from: in words, and as checksums of some views that other machines make again."""

from typing import Any

import numpy as np

from fastkd.data.beton.read import Beton
from fastkd.data.loader import ViewLoader
from fastkd.data.views.draw import Views
from fastkd.data.views.mix import kept_digest
from fastkd.data.views.pixels import PIXELS
from fastkd.hashing import crc32c, draw_below

NUM_PROBES = 256


def center_views(beton: Beton, size: int, *, crop_ratio: float = 0.875, version: int | None = None) -> Views:
    """The `center` views of a beton, of the newest version unless one is asked for.

    Where all images have the output size, which every version takes whole, they are of version 1: what was made by that is
    the same job still.
    """
    ids = beton.sample_ids
    whole = bool((beton.heights[ids] == size).all() and (beton.widths[ids] == size).all())
    return Views("center", size, crop_ratio=crop_ratio, version=1 if whole else version)


def view_identity(views: Views, ids: np.ndarray) -> dict[str, Any]:
    """What the pixels of a view follow from, besides the beton; part of a store's identity.

    Args:
        ids: int64 (n,), the kept samples, in any order: mixed views have their partners among them.
    """
    kept = {} if views.mix is None else {"kept": kept_digest(ids)}
    return {"views": views.identity(), "pixels": PIXELS, **kept}


def choose_probes(sample_ids: np.ndarray, num_seeds: int) -> np.ndarray:
    """Up to 256 views of some samples, drawn by hash: int64 (P, 2), pairs (sample_id, aug_seed), ordered by seed."""
    num_ids = len(sample_ids)
    pairs = {
        (int(sample_ids[draw_below(i, num_ids, 0, num_ids)]), draw_below(i, num_ids, 1, num_seeds))
        for i in range(NUM_PROBES)
    }
    return np.array(sorted(pairs, key=lambda pair: pair[::-1]), np.int64)


def probe_checksums(beton: Beton, views: Views, probes: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """CRC32C of the pixels (uint8, H×W×3) of each probe view: uint32 (P,).

    Args:
        ids: int64 (n,), the kept samples, which mixed views have their partners among.

    Raises:
        CorruptError: a probe's image does not decode.
        OptionError: a part of a beton that lacks samples that views are mixed with.
    """
    if views.mix is None:
        ids = np.unique(probes[:, 0])
    if not len(probes):
        return np.zeros(0, np.uint32)
    loader = ViewLoader(beton, views, ids=ids)
    batches = loader.run((probes[i : i + 1, 0], int(probes[i, 1])) for i in range(len(probes)))
    return np.array([crc32c(batch.images.permute(0, 2, 3, 1).reshape(-1).numpy()) for batch in batches], np.uint32)
