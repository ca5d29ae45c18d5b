"""Where compiled code is kept: a process that can write nowhere still works."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import fastkd
from fastkd.intrinsics import own_folder

SUM = "from fastkd.hashing import crc32c; import numpy as np, numba; print(crc32c(np.arange(9, dtype=np.uint8)))"


@pytest.fixture
def closed(tmp_path):
    """Starts Python on a copy of the package beside whose files nothing can be kept, and without a home; root, too, is held
    off by files that stand where the folders would be."""
    package = shutil.copytree(
        Path(fastkd.__file__).parent, tmp_path / "site" / "fastkd", ignore=shutil.ignore_patterns("__pycache__")
    )
    for folder in (package, *(path for path in package.rglob("*") if path.is_dir())):
        (folder / "__pycache__").touch()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    environment |= {"PYTHONPATH": str(package.parent), "HOME": "/dev/null", "TMPDIR": str(temporary)}

    def run() -> str:
        command = [sys.executable, "-c", SUM]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return temporary, run


def test_without_a_place_beside_the_source_or_at_home_compiled_code_is_kept_in_a_folder_of_the_users_own(closed):
    temporary, run = closed
    first = run()
    (own,) = temporary.iterdir()
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    kept = {path: path.stat().st_mtime_ns for path in own.rglob("*.nbc")}
    assert kept
    assert run() == first
    assert {path: path.stat().st_mtime_ns for path in own.rglob("*.nbc")} == kept  # found again


def test_without_any_place_it_is_compiled_anew(closed):
    temporary, run = closed
    own = temporary / f"fastkd-compiled-{os.getuid()}"
    own.touch()
    assert run() == str(int(run())) + "\n"
    assert own.read_bytes() == b""


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = own_folder()
    assert own == tmp_path / f"fastkd-compiled-{os.getuid()}"
    own.chmod(0o770)
    assert own_folder() is None
    own.rmdir()
    own.symlink_to(tmp_path)
    assert own_folder() is None
