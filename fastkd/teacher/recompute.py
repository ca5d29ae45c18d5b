"""Checking a logit store against what it was made from: some of its rows are computed again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from fastkd.artefact import require_input
from fastkd.data.beton.dataset import Dataset
from fastkd.data.identity import view_identity
from fastkd.errors import MismatchError, OptionError
from fastkd.feed.checks import check_probes, views_of
from fastkd.feed.loader import Loader
from fastkd.hashing import draw_below
from fastkd.store.fidelity import kl_rows, through
from fastkd.store.logit_store import read_rows
from fastkd.store.tables import StoreTables
from fastkd.teacher.network import LiveTeacher, Teacher, embedding_of

MEAN_KL_LIMIT = {"fp32": 1e-5, "fp16": 1e-4, "bf16": 5e-3}
"""By the teacher's precision, nats at temperature 1: some times what another kind of processor changes."""
ROW_KL_LIMIT = 100
"""How many times the mean's limit a single row may differ."""
MEAN_ERROR_LIMIT = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2}
"""By the teacher's precision: ‖stored - new‖ / ‖new‖ of embeddings; float16 rounding alone differs by up to 5e-4."""
ROW_ERROR_LIMIT = 10
"""How many times the mean's limit a single embedding may differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recomputed:
    """What computing rows again has found. KL in nats at temperature 1, of the stored row from the new one's stored form.

    num_rows: rows compared. flips: rows whose top-1 class is another. problems: a line each; none where all is well.
    mean_embedding_error, max_embedding_error: ‖stored - new‖ / ‖new‖; None for a store without embeddings.
    """

    num_rows: int
    mean_kl: float
    max_kl: float
    flips: int
    problems: list[str]
    mean_embedding_error: float | None = None
    max_embedding_error: float | None = None


def recompute_rows(
    tables: StoreTables,
    dataset: Dataset,
    teacher: Teacher,
    *,
    num_rows: int = 1000,
    num_workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Recomputed:
    """Computes logits of some finished rows again, drawn by hash, and compares them with those stored.

    Raises:
        MismatchError: a store of another beton, teacher, precision, view or embedding; probe views that have other pixels
            here.
        OptionError: no row is finished.
    """
    header = tables.header
    require_input(header, tables.path, "beton", dataset.fingerprint, dataset.beton.path)
    require_input(header, tables.path, "teacher", teacher.fingerprint, teacher.name)
    views = views_of(tables)
    expected_params = {**view_identity(views, tables.sample_ids), "teacher": teacher.identity()}
    embedding = embedding_of(teacher, views.size) if tables.embeddings is not None else None
    if embedding is not None:
        expected_params["embedding"] = embedding.describe()
    for name, here in expected_params.items():
        if header.params.get(name) != here:
            raise MismatchError(f"{tables.path}: made with {name} {header.params.get(name)}, here it is {here}")
    check_probes(tables, dataset)
    chosen = _draw_rows(tables, num_rows)
    loader = Loader(dataset, views, mask=tables.sample_ids, num_workers=num_workers, device=teacher.device)
    live = LiveTeacher(teacher, None) if embedding is None else embedding.live
    mapped = [tables.map_records(output) for output in tables.outputs]
    losses, flips, worst = [], 0, (0.0, "")
    errors, worst_error = [], (0.0, "")
    batches = loader.run((tables.sample_ids[rows], seed) for seed, rows in _jobs(chosen, tables.block_rows))
    for (seed, rows), batch in zip(_jobs(chosen, tables.block_rows), batches, strict=True):
        logits, others = live(batch.images)
        expected = through(tables.codec, logits.cpu().numpy())
        ids, numbers = tables.sample_ids[rows], seed * tables.num_rows + rows
        stored, *embeddings = [
            read_rows(tables.path, output, records, numbers, ids, seed)
            for output, records in zip(tables.outputs, mapped, strict=True)
        ]
        for new, old in zip(others, embeddings, strict=True):
            error = _relative_error(new.cpu().numpy(), old)
            place = f"sample {ids[error.argmax()]}, aug_seed {seed}"
            worst_error = max(worst_error, (float(error.max()), place))
            errors.append(error)
        loss = kl_rows(expected, stored, 1.0)
        flips += int(np.count_nonzero(expected.argmax(axis=1) != stored.argmax(axis=1)))
        worst = max(worst, (float(loss.max()), f"sample {ids[loss.argmax()]}, aug_seed {seed}"))
        losses.append(loss)
        progress(sum(len(done) for done in losses), len(chosen))
    mean, limit = float(np.concatenate(losses).mean()), MEAN_KL_LIMIT[teacher.precision]
    problems = []
    if not mean <= limit:
        problems.append(f"{len(chosen)} rows computed again: mean KL {mean:.1e} nats, expected at most {limit:.0e}")
    if not worst[0] <= ROW_KL_LIMIT * limit:
        problems.append(f"{worst[1]}: KL {worst[0]:.1e} nats, expected at most {ROW_KL_LIMIT * limit:.0e}")
    found = Recomputed(num_rows=len(chosen), mean_kl=mean, max_kl=worst[0], flips=flips, problems=problems)
    if not errors:
        return found
    mean, limit = float(np.concatenate(errors).mean()), MEAN_ERROR_LIMIT[teacher.precision]
    if not mean <= limit:
        problems.append(f"{len(chosen)} embeddings computed again differ by {mean:.1e}, expected at most {limit:.0e}")
    if not worst_error[0] <= ROW_ERROR_LIMIT * limit:
        problems.append(
            f"{worst_error[1]}: the embedding differs by {worst_error[0]:.1e}, expected at most {ROW_ERROR_LIMIT * limit:.0e}"
        )
    return replace(found, mean_embedding_error=mean, max_embedding_error=worst_error[0])


def _relative_error(new_BD: np.ndarray, stored_BD: np.ndarray) -> np.ndarray:
    """‖stored - new‖ / ‖new‖ of each row, float64 (B,); two rows of zeros do not differ."""
    new, old = (x.astype(np.float64) for x in (new_BD, stored_BD))
    return np.linalg.norm(old - new, axis=1) / np.maximum(np.linalg.norm(new, axis=1), np.finfo(np.float32).tiny)


def _draw_rows(tables: StoreTables, num_rows: int) -> np.ndarray:
    """Up to num_rows distinct finished rows: int64 (n, 2), pairs (aug_seed, row) in that order."""
    blocks = np.argwhere(tables.done == 1)
    if not len(blocks):
        raise OptionError(f"{tables.path}: none of its blocks is filled yet, so nothing can be computed again")
    found = set()
    for i in range(num_rows):
        seed, block = blocks[draw_below(i, num_rows, 0, len(blocks))]
        rows = tables.block_rows_of(int(block))
        found.add((int(seed), rows.start + int(draw_below(i, num_rows, 1, rows.stop - rows.start))))
    return np.array(sorted(found), np.int64)


def _jobs(chosen: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    for seed in np.unique(chosen[:, 0]):
        rows = chosen[chosen[:, 0] == seed, 1]
        for start in range(0, len(rows), size):
            yield int(seed), rows[start : start + size]
