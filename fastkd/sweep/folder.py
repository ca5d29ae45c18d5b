"""The folder of sweeps: which suites were run in it, and what none of them names any more."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastkd.errors import BusyError, FormatError
from fastkd.sweep.graph import Plan
from fastkd.sweep.local import log_path
from fastkd.writing import atomic_path

PLACES = ("data", "teachers", "scores", "masks", "stores", "runs", "galleries")
"""The folders of outputs."""

_PATIENCE_S = 30.0


def remember(plan: Plan, asked: dict[str, Any]) -> None:
    """Keeps what a suite said, by its name, for `--gc`. Shards that start at one moment take turns.

    Args:
        asked: `text`, `where`, `scale` and `sets`, as `read_suite` takes them.

    Raises:
        BusyError: somebody else does not end writing it.
    """
    path = plan.folder / "suites" / f"{plan.suite.name}.json"
    path.parent.mkdir(exist_ok=True)
    text = json.dumps({"name": plan.suite.name, **asked}, indent=1) + "\n"
    ends = time.monotonic() + _PATIENCE_S
    while not path.exists() or path.read_text(encoding="utf-8") != text:
        try:
            with atomic_path(path) as partial:
                partial.write_text(text, encoding="utf-8")
            return
        except BusyError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.02)


def left_over(folder: Path, plan_of: Callable[[dict[str, Any]], Plan]) -> list[dict[str, Any]]:
    """Outputs that no suite of a folder names any more: path and bytes, in the order of their paths.

    Args:
        plan_of: the plan of what `remember` kept.

    Raises:
        FormatError: what is kept of a suite is damaged.
        OptionError, NotFoundError: a suite that can no longer be planned.
    """
    named: set[Path] = set()
    for path in sorted((folder / "suites").glob("*.json")):
        try:
            asked = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FormatError(f"{path}: damaged ({error}): remove it, or run its suite again") from None
        plan = plan_of(asked)
        for job in plan.jobs.values():
            named |= {job.path, log_path(plan, job), job.path.with_name(f"{job.path.name}.json")}
            if "also" in job.about:
                named.add(Path(job.about["also"]))
    return [{"path": str(path), "size_bytes": _size(path)} for path in _outputs(folder) if path not in named]


def _outputs(folder: Path) -> Iterator[Path]:
    for place in PLACES:
        for path in sorted((folder / place).glob("*/*" if place == "stores" else "*")):
            if not path.name.startswith("."):
                yield path
    yield from sorted((folder / "logs").glob("*.log"))


def _size(path: Path) -> int:
    return sum(one.stat().st_size for one in ([path] if path.is_file() else path.rglob("*")) if one.is_file())
