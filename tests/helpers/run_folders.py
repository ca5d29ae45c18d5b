"""Folders of runs: all that is in one, and a file of another run in the place of its own."""

import shutil
from pathlib import Path


def listing(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's bytes and time of change, and the folder's time."""
    files = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    return files | {"": (b"", folder.stat().st_mtime_ns)}


def of_another_run(path: Path, other: Path) -> None:
    """Puts the file of the same name of another run there."""
    shutil.copy(other / path.name, path)
