"""The one part that is compiled: `fastkd/data/views/_decoder.so`, a plain shared library; all else is in pyproject.toml."""

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


def pkg_config(option: str, package: str) -> list[str]:
    """Compiler options of a library; none where pkg-config is missing or does not know it."""
    if not shutil.which("pkg-config"):
        return []
    done = subprocess.run(["pkg-config", option, package], capture_output=True, text=True, check=False)
    return done.stdout.split()


class BuildLibrary(build_ext):
    """Builds libraries that are no Python modules: one file serves every version of Python."""

    def get_ext_filename(self, name: str) -> str:
        return name.replace(".", os.sep) + ".so"


views = Path("fastkd/data/views")
sources, headers = (sorted(map(str, views.rglob(f"*.{ending}"))) for ending in ("cpp", "h"))
decoder = Extension(
    "fastkd.data.views._decoder",
    sources=sources,
    depends=[*headers, "setup.py"],
    extra_compile_args=["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", *pkg_config("--cflags", "libjpeg")],
    extra_link_args=pkg_config("--libs", "libjpeg") or ["-ljpeg"],
    language="c++",
)

setup(ext_modules=[decoder], cmdclass={"build_ext": BuildLibrary})
