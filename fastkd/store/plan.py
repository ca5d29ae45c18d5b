"""What a logit store will take, and when it pays, before anything is spent."""

from dataclasses import asdict, dataclass
from typing import Any

from fastkd.errors import OptionError
from fastkd.store.codec import Codec
from fastkd.store.filling import store_bytes
from fastkd.store.tables import embedding_codec


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Costs of a store and of doing without.

    size_bytes: of the file, to the byte. row_bytes: of a record; embedding_row_bytes: of an embedding's, 0 without.
    store_forwards: images that the teacher sees to fill it; live_forwards: that a live teacher sees in `num_students`
    runs. break_even_students: the fewest students with which the store takes fewer forwards than a live teacher.
    epoch_bytes: read by a student in an epoch.
    """

    num_rows: int
    num_seeds: int
    num_classes: int
    codec: str
    row_bytes: int
    embedding_dim: int
    embedding_row_bytes: int
    size_bytes: int
    epochs: int
    num_students: int
    store_forwards: int
    live_forwards: int
    break_even_students: int
    epoch_bytes: int

    def hours(self, images_per_s: float) -> dict[str, float]:
        """Teacher hours at a rate: with the store, and live."""
        return {
            "store_hours": self.store_forwards / images_per_s / 3600,
            "live_hours": self.live_forwards / images_per_s / 3600,
        }

    def describe(self) -> dict[str, Any]:
        """All of it by name."""
        return asdict(self)


def make_plan(
    *,
    num_rows: int,
    num_seeds: int,
    codec: Codec,
    epochs: int,
    num_students: int = 1,
    block_rows: int = 256,
    num_probes: int = 256,
    embedding_dim: int = 0,
) -> Plan:
    """The plan of a store.

    Args:
        num_rows: kept samples. num_seeds: views of each, K. epochs, num_students: of the runs that will read it.
        block_rows, num_probes: as `create_store`. embedding_dim: values of the teacher's embedding; 0 for logits alone.

    Raises:
        OptionError: a number below 1.
    """
    for name, value in (("samples", num_rows), ("seeds", num_seeds), ("epochs", epochs), ("students", num_students)):
        if value < 1:
            raise OptionError(f"{value} {name}, expected at least 1")
    embedding = embedding_codec({"dim": embedding_dim}) if embedding_dim else None
    embedding_row_bytes = embedding.row_bytes if embedding is not None else 0
    return Plan(
        num_rows=num_rows,
        num_seeds=num_seeds,
        num_classes=codec.num_classes,
        codec=codec.name,
        row_bytes=codec.row_bytes,
        embedding_dim=embedding_dim,
        embedding_row_bytes=embedding_row_bytes,
        size_bytes=store_bytes(num_seeds, num_rows, codec, block_rows, num_probes, embedding=embedding),
        epochs=epochs,
        num_students=num_students,
        store_forwards=num_rows * num_seeds,
        live_forwards=num_rows * epochs * num_students,
        break_even_students=num_seeds // epochs + 1,
        epoch_bytes=num_rows * (codec.row_bytes + embedding_row_bytes),
    )
