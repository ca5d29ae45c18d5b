"""What a logit store is made from."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastkd.data.beton.dataset import Dataset
from fastkd.data.identity import view_identity
from fastkd.data.views.draw import Views
from fastkd.errors import FastKDError, OptionError
from fastkd.feed.checks import views_of
from fastkd.feed.loader import kept_ids
from fastkd.models.classes import names_fingerprint
from fastkd.prune.masks.mask import Mask
from fastkd.store.codec import Codec, make_codec
from fastkd.store.tables import embedding_codec, read_tables
from fastkd.teacher.network import Embedding, Teacher
from fastkd.teacher.precision import PRECISIONS


def stored_center(*paths: Path) -> int | None:
    """The version of the `center` views of the first of some stores that is there and holds such; None where none does."""
    for path in paths:
        with suppress(FastKDError):  # what is no store is told by whoever fills or reads it
            views = views_of(read_tables(path))
            if views.kind == "center":
                return views.version
    return None


def stored_precision(*paths: Path) -> str | None:
    """The teacher's precision in the first of some stores that is there; None where none is."""
    for path in paths:
        with suppress(FastKDError):
            teacher = read_tables(path).header.params.get("teacher")
            precision = teacher.get("precision") if isinstance(teacher, dict) else None
            return precision if precision in PRECISIONS else None
    return None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoreRecipe:
    """What a store is made from, and how.

    views: their num_seeds is the store's K. mask: None for all samples. codec: `auto` or a name. block_rows: rows of a
    block, the teacher's batch. max_kl, tau: the most that the codec may lose on real rows, see `check_codec`; None for
    no limit. embedding: the teacher's, to be stored too. by_number: take classes by their numbers, whatever their names.
    """

    dataset: Dataset
    teacher: Teacher
    views: Views
    mask: Mask | None = None
    codec: str = "auto"
    block_rows: int = 256
    max_kl: float | None = None
    tau: float = 4.0
    embedding: Embedding | None = None
    by_number: bool = False

    def __post_init__(self) -> None:
        if self.block_rows < 1:
            raise OptionError(f"batch size {self.block_rows}, expected at least 1")
        if self.max_kl is not None and not self.max_kl > 0:
            raise OptionError(f"--max-kl {self.max_kl}, expected above 0")
        if not 0 < self.tau < float("inf"):
            raise OptionError(f"--tau {self.tau}, expected above 0")

    @property
    def row_codec(self) -> Codec:
        """The codec, chosen."""
        return make_codec(self.codec, self.dataset.num_classes)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, of all that is stored of it."""
        more = embedding_codec(self.embedding.describe()).row_bytes if self.embedding is not None else 0
        return self.row_codec.row_bytes + more

    @property
    def ids(self) -> np.ndarray:
        """int64 (R,), the kept samples in the order of the rows."""
        return kept_ids(self.dataset, self.mask)

    @property
    def inputs(self) -> dict[str, str]:
        """Fingerprints of what the store is made from."""
        found = {"beton": self.dataset.fingerprint, "teacher": self.teacher.fingerprint}
        return found if self.mask is None else found | {"mask": self.mask.header.fingerprint}

    @property
    def params(self) -> dict[str, Any]:
        """What the logits follow from, besides the inputs."""
        found = {**view_identity(self.views, self.ids), "teacher": self.teacher.identity()}
        if not self.by_number:
            found |= names_fingerprint(self.dataset.class_names)
        return found if self.embedding is None else found | {"embedding": self.embedding.describe()}

    @property
    def about(self) -> dict[str, Any]:
        """What else is known of where they come from; no part of the store's identity."""
        return {"teacher": self.teacher.about} if self.teacher.about else {}
