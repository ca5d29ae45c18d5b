"""Runs that recorded scores, finished and stopped, whose folders tests copy; made once a session."""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.runs import interrupt_after, run, validation

from fastkd.scoring.recording import Record


@pytest.fixture(scope="session")
def options(dataset) -> dict:
    """Options that these runs share."""
    return {
        "record": Record(methods=("el2n",)),
        "val": validation(dataset),
        "val_every": 2,
        "inputs": {"beton": dataset.fingerprint},
        "params": {"num_kept": 200, "fraction": 1 / 3},
    }


@pytest.fixture(scope="session")
def finished(dataset, mask, teacher_store, options, tmp_path_factory) -> Path:
    """A finished run that recorded scores."""
    out = tmp_path_factory.mktemp("files") / "finished"
    run(out, dataset, mask, logits=teacher_store, options=options)
    return out


@pytest.fixture(scope="session")
def other(dataset, mask, teacher_store, options, tmp_path_factory) -> Path:
    """The same with another seed."""
    out = tmp_path_factory.mktemp("files") / "other"
    run(out, dataset, mask, logits=teacher_store, options=options, seed=1)
    return out


@pytest.fixture(scope="session")
def stopped(dataset, mask, teacher_store, options, tmp_path_factory) -> Path:
    """The first run, interrupted in its second epoch."""
    out = tmp_path_factory.mktemp("files") / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run(out, dataset, mask, logits=teacher_store, options=options | {"progress": interrupt_after(7)})
    return out


@pytest.fixture
def again(dataset, mask, teacher_store, options) -> Callable[..., dict]:
    """Tells the run of a folder again."""

    def tell(out: Path, log: Callable[[str], None] = lambda line: None, **recipe) -> dict:
        return run(out, dataset, mask, logits=teacher_store, options=options | {"log": log}, **recipe)

    return tell
