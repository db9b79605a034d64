"""What a Slurm testbed writes into its folder. tests/slurm lets the real Slurm read it."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mpistream.launch.cluster.slurm_testbed import environment_of
from mpistream.launch.cluster.slurm_testbed_files import (
    JOBS_OF_A_START,
    RANK_ENVIRONMENT,
    SlurmDescription,
    SlurmFolder,
)
from mpistream.launch.testbed_folder import TestbedFolder
from mpistream.model.errors import MpistreamError

NODES = {"c1": "10.0.0.10", "c2": "10.0.0.11"}


@pytest.mark.parametrize("own_mounts", [True, False])
def test_a_folder_is_made_anew(tmp_path: Path, own_mounts: bool) -> None:
    slurm = SlurmFolder(TestbedFolder(tmp_path))
    slurm.make(SlurmDescription("10.0.0.1", NODES, not own_mounts), 1234)
    slurm.killed("c1").touch()
    description = SlurmDescription("10.0.0.1", NODES, own_mounts)
    slurm.make(description, 1235)
    assert slurm.description() == replace(description, first_job=1 + JOBS_OF_A_START)
    assert not slurm.killed("c1").exists()
    configuration = Path(environment_of(tmp_path)["SLURM_CONF"]).read_text().splitlines()
    assert {
        "SlurmctldPort=1235",
        "FirstJobId=10001",
        "NodeName=c1 NodeAddr=10.0.0.10",
        "NodeName=c2 NodeAddr=10.0.0.11",
    } <= set(configuration)
    assert slurm.key.stat().st_mode & 0o777 == 0o600
    prolog = subprocess.run([slurm.path / "task_prolog"], capture_output=True, text=True, check=True, timeout=20)
    given = dict(line.removeprefix("export ").split("=", 1) for line in prolog.stdout.splitlines())
    assert given.items() >= RANK_ENVIRONMENT.items()
    assert ("OMPI_MCA_btl" in given) is not own_mounts


def test_a_path_that_is_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    folder = TestbedFolder(tmp_path / ("deep/" * 30))
    with pytest.raises(MpistreamError, match="too long") as refused:
        SlurmFolder(folder).make(SlurmDescription("10.0.0.1", NODES, True), 1234)
    assert "--folder" in refused.value.remedy


def test_a_folder_without_slurm_is_told(tmp_path: Path) -> None:
    with pytest.raises(MpistreamError, match="no Slurm testbed"):
        SlurmFolder(TestbedFolder(tmp_path)).description()
