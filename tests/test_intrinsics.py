"""Where compiled code is kept: a process that can write nowhere still works."""

import os
import resource
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
def full(tmp_path):
    """A folder of 64 KiB, less than compiled code takes."""
    (tmp_path / "full").mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path / "full"]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed")
    yield tmp_path / "full"
    subprocess.run(["umount", tmp_path / "full"], check=True)


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


def summed(folder: Path, *, most_bytes: int = resource.RLIM_INFINITY, code: str = SUM) -> str:
    """What a process prints that keeps compiled code in a folder, in files of so many bytes at most."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"NUMBA_CACHE_DIR": str(folder)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_code_that_may_not_be_saved_is_run_all_the_same(tmp_path):
    assert summed(tmp_path / "code", most_bytes=1000) == summed(tmp_path / "other")
    assert [path for path in (tmp_path / "code").rglob("*") if path.is_file()] == []
    assert list((tmp_path / "other").rglob("*.nbc"))


def test_code_that_fills_the_disk_is_run_all_the_same(full, tmp_path):
    assert summed(full) == summed(tmp_path / "other")
    assert not list(full.rglob("*.tmp.*"))


def test_code_that_an_older_source_left_is_not_taken_for_what_could_not_be_saved(tmp_path):
    """Numba numbers the files of code, and writes which is which before the code."""
    source = tmp_path / "source.py"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import source; print(source.number(0))"
    for number, most_bytes in ((1, resource.RLIM_INFINITY), (2, 2000), (2, resource.RLIM_INFINITY)):
        source.write_text(
            f"from fastkd.intrinsics import njit\n\n@njit(cache=True)\ndef number(i):\n    return i + {number}\n"
        )
        os.utime(source, (number, number))
        assert summed(tmp_path / "code", most_bytes=most_bytes, code=code) == f"{number}\n"
