"""How fast a teacher fills a store on this machine."""

import time
from collections import deque
from itertools import count

from fastkd.feed.loader import Loader, kept_ids
from fastkd.teacher.blocks import Outputs, start_teacher
from fastkd.teacher.recipe import StoreRecipe

SECONDS = 10.0
"""How long is measured, after a first batch that does not count."""


def measure_fill_rate(recipe: StoreRecipe, *, num_workers: int = 0) -> float:
    """Images a second that the teacher gets through, decoding included; nothing is written. As in a fill, the next batch is at
    the teacher while one is waited for.

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
    started: deque[tuple[int, Outputs]] = deque()
    for batch in loader.run(jobs):
        started.append((len(batch), start_teacher(recipe, batch.images)))
        if len(started) == 1:
            continue
        num_done, outputs = started.popleft()
        outputs()
        now = time.perf_counter()
        if num_images < 0:
            begin, num_images = now, 0
            continue
        num_images += num_done
        if now - begin >= SECONDS:
            break
    return num_images / (now - begin)
