"""The one part that is compiled: `fastkd/data/views/_decoder.so`, a plain shared library; all else is in pyproject.toml."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

_PROBE = (
    "#include <cstdio>\n#include <jpeglib.h>\njpeg_error_mgr *probe(jpeg_error_mgr *e) { return jpeg_std_error(e); }\n"
)
_WAY_OUT = "apt install g++ pkg-config libjpeg-dev, or: conda install -c conda-forge compilers pkg-config libjpeg-turbo"


def pkg_config(option: str, package: str) -> list[str]:
    """Compiler options of a library; none where pkg-config is missing or does not know it."""
    if not shutil.which("pkg-config"):
        return []
    done = subprocess.run(["pkg-config", option, package], capture_output=True, text=True, check=False)
    return done.stdout.split()


def missing(compiler: list[str], compile_args: list[str], link_args: list[str]) -> str | None:
    """What the decoder needs and this machine lacks; None where it can be compiled."""
    probes = {
        f"a C++ compiler ({compiler[0]})": ("int probe;\n", []),
        "libjpeg-turbo with its headers": (_PROBE, link_args),
    }
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        for what, (code, last) in probes.items():
            source.write_text(code)
            words = [*compiler, *compile_args, "-shared", source, "-o", f"{source}.so", *last]
            try:
                subprocess.run(words, capture_output=True, check=True)
            except (OSError, subprocess.CalledProcessError):
                return what
    return None


class BuildLibrary(build_ext):
    """Builds libraries that are no Python modules: one file serves every version of Python."""

    def get_ext_filename(self, name: str) -> str:
        return name.replace(".", os.sep) + ".so"

    def build_extensions(self) -> None:
        for extension in self.extensions:
            compiler = getattr(self.compiler, "compiler_so_cxx", self.compiler.compiler_so)
            lack = missing(compiler, extension.extra_compile_args, extension.extra_link_args)
            if lack is not None:
                raise SystemExit(f"error: fastkd's decoder needs {lack}, found none that works; {_WAY_OUT}")
        super().build_extensions()


class Wheel(bdist_wheel):
    """Names a wheel by what is in it: of Python all of version 3, of machines those of the library."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


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

setup(ext_modules=[decoder], cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel})
