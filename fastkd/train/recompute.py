"""Checking a logit store against what it was made from: some of its rows are computed again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fastkd.artefact import require_input
from fastkd.errors import CorruptError, MismatchError, OptionError
from fastkd.feed import Dataset, Loader, check_probes, view_identity, views_of
from fastkd.hashing import draw_below
from fastkd.store.codec import decode_rows
from fastkd.store.fidelity import kl_rows, through
from fastkd.store.logit_store import StoreTables
from fastkd.train.teacher import Teacher

MEAN_KL_LIMIT = {"fp32": 1e-5, "fp16": 1e-4, "bf16": 5e-3}
"""By the teacher's precision, nats at temperature 1: some times what another kind of processor changes."""
ROW_KL_LIMIT = 100
"""How many times the mean's limit a single row may differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recomputed:
    """What computing rows again has found. KL in nats at temperature 1, of the stored row from the new one's stored form.

    num_rows: rows compared. flips: rows whose top-1 class is another. problems: a line each; none where all is well.
    """

    num_rows: int
    mean_kl: float
    max_kl: float
    flips: int
    problems: list[str]


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
        MismatchError: a store of another beton, teacher, precision or view; probe views that have other pixels here.
        OptionError: no row is finished.
    """
    header = tables.header
    require_input(header, tables.path, "beton", dataset.fingerprint, dataset.beton.path)
    require_input(header, tables.path, "teacher", teacher.fingerprint, teacher.name)
    views = views_of(tables)
    for name, here in {**view_identity(views), "teacher": teacher.identity()}.items():
        if header.params.get(name) != here:
            raise MismatchError(f"{tables.path}: made with {name} {header.params.get(name)}, here it is {here}")
    check_probes(tables, dataset)
    chosen = _draw_rows(tables, num_rows)
    loader = Loader(dataset, views, mask=tables.sample_ids, num_workers=num_workers, device=teacher.device)
    records, losses, flips, worst = tables.map_records(), [], 0, (0.0, "")
    batches = loader.run((tables.sample_ids[rows], seed) for seed, rows in _jobs(chosen, tables.block_rows))
    for (seed, rows), batch in zip(_jobs(chosen, tables.block_rows), batches, strict=True):
        expected = through(tables.codec, teacher(batch.images).cpu().numpy())
        stored, good = decode_rows(tables.codec, records, seed * tables.num_rows + rows, tables.salt)
        if not good.all():
            bad = tables.sample_ids[rows[np.flatnonzero(~good)[0]]]
            raise CorruptError(f"{tables.path}: sample {bad}, aug_seed {seed}: the row does not match its checksum")
        loss = kl_rows(expected, stored, 1.0)
        flips += int(np.count_nonzero(expected.argmax(axis=1) != stored.argmax(axis=1)))
        worst = max(worst, (float(loss.max()), f"sample {tables.sample_ids[rows[loss.argmax()]]}, aug_seed {seed}"))
        losses.append(loss)
        progress(sum(len(done) for done in losses), len(chosen))
    mean, limit = float(np.concatenate(losses).mean()), MEAN_KL_LIMIT[teacher.precision]
    problems = []
    if not mean <= limit:
        problems.append(f"{len(chosen)} rows computed again: mean KL {mean:.1e} nats, expected at most {limit:.0e}")
    if not worst[0] <= ROW_KL_LIMIT * limit:
        problems.append(f"{worst[1]}: KL {worst[0]:.1e} nats, expected at most {ROW_KL_LIMIT * limit:.0e}")
    return Recomputed(num_rows=len(chosen), mean_kl=mean, max_kl=worst[0], flips=flips, problems=problems)


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
