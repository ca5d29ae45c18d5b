"""What wheels and source distributions are made of, and what a machine is told that lacks what the build needs."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fastkd

ROOT = Path(__file__).parents[1]


def setup(*words: str | Path, **environment: str) -> subprocess.CompletedProcess:
    """What `setup.py` comes to."""
    command, env = [sys.executable, "setup.py", "--quiet", *map(str, words)], os.environ | environment
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_a_source_distribution_has_every_file_of_the_repository(tmp_path):
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not in a clone")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert setup("egg_info", "--egg-base", tmp_path).returncode == 0
    found = (tmp_path / "fastkd.egg-info/SOURCES.txt").read_text(encoding="utf-8").split("\n")
    assert set(listed) - set(found) == set()


def test_a_wheel_has_every_file_of_the_package_but_the_sources_in_c(tmp_path):
    assert setup("build_py", "--build-lib", tmp_path).returncode == 0
    built = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    own = (path for path in (ROOT / "fastkd").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert built == {path.relative_to(ROOT) for path in own if path.suffix not in {".cpp", ".h", ".so"}}


def test_the_version_is_said_in_one_place_and_taken_from_there():
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert content["project"]["dynamic"] == ["version"]
    assert setup("--version").stdout == f"{fastkd.__version__}\n"


@pytest.mark.parametrize("lacks", ["a C++ compiler (/nonexistent)", "libjpeg-turbo with its headers"])
def test_what_the_build_needs_and_does_not_find_is_said_in_a_line(tmp_path, lacks):
    (tmp_path / "jpeglib.h").write_text("#error hidden\n")
    hidden = {"CC": "/nonexistent", "CXX": "/nonexistent"} if "compiler" in lacks else {"CPATH": str(tmp_path)}
    done = setup(
        *("build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path), PKG_CONFIG_LIBDIR="/nonexistent", **hidden
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: fastkd's decoder needs {lacks}, found none that works; apt install ")
    assert len(done.stderr.splitlines()) == 1


def test_conda_and_docker_get_what_the_set_up_script_would_install():
    script = (ROOT / "tools/setup").read_text(encoding="utf-8")
    of_debian = set(re.findall(r"\|\|\s+echo ([a-z0-9+-]+)", script))
    of_conda = set(re.search(r"conda-forge ([a-z -]+)", script)[1].split())
    assert (len(of_debian), len(of_conda)) == (5, 4)
    assert of_debian <= set((ROOT / "Dockerfile").read_text(encoding="utf-8").split("FROM")[1].split())
    assert of_conda <= set(
        re.findall(r"^  - (\S+)", (ROOT / "environment.yml").read_text(encoding="utf-8"), re.MULTILINE)
    )
