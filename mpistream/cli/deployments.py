"""The running deployment that a command is about."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mpistream.cli.options import running_config
from mpistream.control.registry import Registry
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.cluster.slurm import Slurm
from mpistream.model.config import Config
from mpistream.pipeline.process import connect_etcd, open_registry


@dataclass(frozen=True)
class RunningDeployment:
    """What stands in its etcd, typed; and the Slurm that is reached from here: a testbed's own, where there is one."""

    config: Config
    registry: Registry
    sessions: SessionRegistry
    scheduler: Slurm


@contextmanager
def running_deployment(folder: Path | None, config: Path | None) -> Iterator[RunningDeployment]:
    """That of `testbed up` in ``folder``; with ``config`` the one that the file describes. Raises CoordinationError."""
    loaded = running_config(folder, config)
    with connect_etcd(loaded) as etcd:
        yield RunningDeployment(loaded, open_registry(loaded, etcd), SessionRegistry(etcd), _slurm(folder, config))


def _slurm(folder: Path | None, config: Path | None) -> Slurm:
    from mpistream.launch.cluster.slurm_testbed_files import SlurmFolder
    from mpistream.launch.supervisor import default_folder
    from mpistream.launch.testbed_folder import TestbedFolder

    if config is not None:
        return Slurm()
    return Slurm(SlurmFolder(TestbedFolder((folder or default_folder()).absolute())).environment)
