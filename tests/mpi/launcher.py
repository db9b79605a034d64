"""Runs the MPI programs of the tests, and ends whatever they leave behind."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

from mpistream.launch.local import MPI_ENVIRONMENT, mpiexec

ROOT = Path(__file__).parents[2]


def run_mpi(ranks: int, module: str, *arguments: object, seconds: float = 90) -> str:
    """What ``mpiexec -n ranks python -m module arguments`` prints. Fails with it if a rank fails or time runs out.

    mpi4py's runner aborts the whole job on one rank's exception; otherwise the other ranks would wait for it.
    """
    command = [mpiexec(), "-n", str(ranks), sys.executable, "-m", "mpi4py", "-m", module]
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **MPI_ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _kill_family(process.pid)
        output, _ = process.communicate()
        raise AssertionError(f"{module} on {ranks} ranks did not end within {seconds} s\n{output}") from None
    assert process.returncode == 0, f"{module} on {ranks} ranks ended with {process.returncode}\n{output}"
    return output


def _kill_family(pid: int) -> None:
    """mpiexec puts its ranks into process groups of their own, so the tree is walked."""
    parent = psutil.Process(pid)
    family = [*parent.children(recursive=True), parent]
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=5)
