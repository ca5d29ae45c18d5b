"""How fast a teacher fills a store on this machine."""

import time
from itertools import count

from fastkd.feed.loader import Loader, kept_ids
from fastkd.teacher.recipe import StoreRecipe

SECONDS = 10.0
"""How long is measured, after a first batch that does not count."""


def measure_fill_rate(recipe: StoreRecipe, *, num_workers: int = 0) -> float:
    """Images a second that the teacher gets through, decoding included; nothing is written.

    Returns:
        Images a second of one process on `recipe.teacher.device`.
    """
    ids, size = kept_ids(recipe.dataset, recipe.mask), recipe.block_rows
    starts = range(0, max(1, len(ids) - size + 1), size)
    loader = Loader(recipe.dataset, recipe.views, mask=ids, num_workers=num_workers, device=recipe.teacher.device)
    jobs = (
        (ids[start : start + size], seed) for _ in count() for seed in range(recipe.views.num_seeds) for start in starts
    )
    begin, num_images = 0.0, -1
    for batch in loader.run(jobs):
        recipe.teacher(batch.images).cpu()
        now = time.perf_counter()
        if num_images < 0:
            begin, num_images = now, 0
            continue
        num_images += len(batch)
        if now - begin >= SECONDS:
            break
    return num_images / (now - begin)
