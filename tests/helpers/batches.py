"""What a loader hands out, in a form to compare."""

from collections.abc import Iterable

from fastkd.data.batch import Batch


def pixels(batches: Iterable[Batch]) -> dict[int, bytes]:
    """The view of each sample by its sample_id; no sample may come twice."""
    seen: dict[int, bytes] = {}
    for batch in batches:
        for sample_id, image in zip(batch.sample_ids.tolist(), batch.images.permute(0, 2, 3, 1), strict=True):
            assert sample_id not in seen
            seen[sample_id] = image.numpy().tobytes()
    return seen


def ids_of(batches: Iterable[Batch]) -> list[int]:
    return [i for batch in batches for i in batch.sample_ids.tolist()]
