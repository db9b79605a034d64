"""Builds the extension modules: every ``ext/NAME.pyx`` becomes ``mpistream._ext.NAME``."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).parent

# Float results must be the same bits on every machine: no fused multiply-add, no reassociation.
COMPILE_ARGS = ["-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unused-parameter"]

extensions = [
    Extension(
        f"mpistream._ext.{source.stem}",
        [f"ext/{source.name}"],
        include_dirs=["ext"],
        depends=[f"ext/{header.name}" for header in sorted((ROOT / "ext").glob("*.h"))],
        extra_compile_args=COMPILE_ARGS,
    )
    for source in sorted((ROOT / "ext").glob("*.pyx"))
]

setup(ext_modules=cythonize(extensions, build_dir="build", language_level=3))
