"""One Slurm with four nodes for all tests; when they are done nothing of it may be left."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import NODES, Cluster
from tests.system.command_line import CommandLine, nothing_is_left


@pytest.fixture(scope="session")
def slurm_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("slurm")
    with nothing_is_left(str(folder)):
        yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def slurm_testbed(slurm_place: Path) -> Iterator[Cluster]:
    """The testbed that all tests share. Whoever needs it idle takes ``cluster``."""
    cli = CommandLine(slurm_place)
    cli.run("testbed", "slurm", "up", "--nodes", len(NODES)).succeeded()
    yield Cluster(slurm_place / "testbed", cli)
    cli.run("testbed", "slurm", "down").succeeded()


@pytest.fixture
def cluster(slurm_testbed: Cluster) -> Iterator[Cluster]:
    """The testbed, idle before and after each test."""
    yield slurm_testbed
    slurm_testbed.tidy_up()
