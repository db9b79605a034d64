"""Builds the extension modules: every ``ext/NAME.pyx`` becomes ``mpistream._ext.NAME``. ``jobs/`` goes along."""

import shutil
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent

# Float results must be the same bits on every machine: no fused multiply-add, no reassociation.
COMPILE_ARGS = ["-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unused-parameter"]


class BuildWithJobs(build_py):
    """Job templates and site profiles lie in ``mpistream/jobs`` of an installed package.

    One installed with ``--editable`` finds them in the repository.
    """

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for path in self._jobs():
                target = Path(self.build_lib, "mpistream", path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / path, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        copied = [] if self.editable_mode else [str(Path(self.build_lib, "mpistream", path)) for path in self._jobs()]
        return super().get_outputs(include_bytecode) + copied

    def get_source_files(self) -> list[str]:
        return super().get_source_files() + [str(path) for path in self._jobs()]

    @staticmethod
    def _jobs() -> list[Path]:
        return [path.relative_to(ROOT) for path in sorted((ROOT / "jobs").rglob("*")) if path.is_file()]


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

setup(
    ext_modules=cythonize(extensions, build_dir="build", language_level=3),
    cmdclass={"build_py": BuildWithJobs},
)
