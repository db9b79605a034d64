"""One Slurm with four nodes for all tests; when they are done nothing of it may be left."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import NODES, Cluster
from tests.system.command_line import CommandLine, nothing_is_left


@pytest.fixture(scope="package")
def slurm_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("slurm")
    with nothing_is_left(str(folder)):
        yield folder
    shutil.rmtree(folder)


def _why_not() -> str:
    """Why no Slurm can run here; "" where one can."""
    probe = ["unshare", "--net", "--uts", "--ipc", "true"]
    if os.geteuid() != 0:
        return "the nodes are namespaces, which need root"
    return "" if subprocess.run(probe, capture_output=True).returncode == 0 else "namespaces cannot be made here"


@pytest.fixture(scope="package")
def slurm_testbed(slurm_place: Path) -> Iterator[Cluster]:
    """The testbed that all tests share. Whoever needs it idle takes ``cluster``."""
    if reason := _why_not():
        pytest.skip(reason)
    cli = CommandLine(slurm_place)
    cli.run("testbed", "slurm", "up", "--nodes", len(NODES)).succeeded()
    yield Cluster(slurm_place / "testbed", cli)
    cli.run("testbed", "slurm", "down").succeeded()


@pytest.fixture
def cluster(slurm_testbed: Cluster) -> Iterator[Cluster]:
    """The testbed, idle before and after each test."""
    yield slurm_testbed
    slurm_testbed.tidy_up()
