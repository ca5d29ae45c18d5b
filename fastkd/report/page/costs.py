"""What some runs cost, by what their folders say: time, logits on disk, passes of the teacher."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastkd.errors import DiskError, FastKDError
from fastkd.models.checkpoint import read_checkpoint
from fastkd.report.compare import Group
from fastkd.store.codec import make_codec


class Costs(NamedTuple):
    """seconds: of training, by the runs' rates. live_forwards: samples that teachers would pass were they live in every run.
    taken_forwards: those that the stores took, of rows that these runs read; with those of runs whose teacher was live.
    store_bytes: of these rows; None where a run does not say of how many classes. num_stores: how many stores were read."""

    seconds: float
    live_forwards: int
    taken_forwards: int
    store_bytes: int | None
    num_stores: int


def costs_of(groups: Sequence[Group]) -> Costs:
    """What the runs of some groups cost."""
    seconds = sum(run["seconds"] or 0.0 for group in groups for run in group.runs)
    live = taken = 0
    rows: dict[str, int] = defaultdict(int)
    row_bytes: dict[str, int | None] = {}
    for group in groups:
        if group.source == "labels":
            continue
        for run in group.runs:
            live += group.epochs * group.num_kept
            store = run["fingerprints"].get("logits")
            if store is None:
                taken += group.epochs * group.num_kept
                continue
            views = group.facts.get("views.num_seeds", 1)
            rows[store] = max(rows[store], group.num_kept * views)
            if store not in row_bytes:
                row_bytes[store] = _row_bytes(Path(run["path"]), group.facts.get("logits.codec"))
    sizes = [count * size for store, count in rows.items() if (size := row_bytes[store]) is not None]
    size = sum(sizes) if len(sizes) == len(rows) else None
    return Costs(seconds, live, taken + sum(rows.values()), size, len(rows))


def _row_bytes(run: Path, codec: object) -> int | None:
    """Bytes of a row of logits; None where the run's checkpoint does not say of how many classes it is."""
    try:
        num_classes = read_checkpoint(run / "model.safetensors").meta.get("num_classes")
    except DiskError:
        raise
    except FastKDError:
        return None
    if not isinstance(num_classes, int) or not isinstance(codec, str):
        return None
    return make_codec(codec, num_classes).row_bytes
