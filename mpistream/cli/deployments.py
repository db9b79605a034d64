"""The running deployment that a command is about."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mpistream.cli.options import running_config
from mpistream.control.registry import Registry
from mpistream.control.session_registry import SessionRegistry
from mpistream.model.config import Config
from mpistream.pipeline.process import connect_etcd, open_registry


@dataclass(frozen=True)
class RunningDeployment:
    """What stands in its etcd, typed."""

    config: Config
    registry: Registry
    sessions: SessionRegistry


@contextmanager
def running_deployment(folder: Path | None, config: Path | None) -> Iterator[RunningDeployment]:
    """That of `testbed up` in ``folder``; with ``config`` the one that the file describes. Raises CoordinationError."""
    loaded = running_config(folder, config)
    with connect_etcd(loaded) as etcd:
        yield RunningDeployment(loaded, open_registry(loaded, etcd), SessionRegistry(etcd))
