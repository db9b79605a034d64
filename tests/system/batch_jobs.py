"""A microscope for batch jobs: etcd, four producers and an aggregator, without an MPI job; and `job run` beside it."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mpistream.control.registry import Registry
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.announcement import ScanRequest, announce, draft_scan
from mpistream.launch.cluster.services import Services
from mpistream.launch.local import MPI_ENVIRONMENT, mpiexec
from mpistream.model.config import Config
from mpistream.model.scan import CountingParameters
from mpistream.model.session import BatchJob, Session, SessionStop
from mpistream.pipeline.process import connect_etcd, open_registry
from tests.system.command_line import CommandLine, wait_until
from tests.system.sector_writer import BACKGROUND, XRAY

RANKS = 2
COUNTING = CountingParameters(background=BACKGROUND, xray=XRAY)
_MPISTREAM = (sys.executable, "-m", "mpistream")
THRESHOLDS = ("--background", BACKGROUND, "--xray", XRAY)


@dataclass
class Microscope:
    """``config`` is the file that all its processes share."""

    cli: CommandLine
    config: Path
    registry: Registry
    sessions: SessionRegistry

    def start_session(self, name: str, folder: Path) -> None:
        assert self.sessions.start_session(Session(name=name, folder=str(folder), started_unix_seconds=time.time()))

    def stop_session(self, name: str) -> None:
        self.sessions.stop_session(name, SessionStop(since_unix_seconds=time.time(), reason="that was all"))

    @property
    def consume(self) -> tuple[str, ...]:
        """The command of an MPI job."""
        return (mpiexec(), "-n", str(RANKS), *_MPISTREAM, "consume", "--config", str(self.config))

    def job_run(self, mode: str, *options: object, command: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
        """Started; its output is read at its end."""
        return self.cli.start("job", "run", mode, "--config", self.config, *options, "--", *(command or self.consume))

    def announce(self, source: str, output: Path, session: str = "") -> str:
        """The scan's uid; as somebody at the microscope does it, once an MPI job is there."""
        config = Config.load(self.config)
        draft, _ = draft_scan(ScanRequest(source, output, COUNTING, session=session), config)
        wait_until(self.registry.groups, 60, "an MPI job")
        return str(announce(self.registry, draft).uid)

    def states(self) -> dict[str, str]:
        return {str(uid): str(status.state) for uid, status in self.registry.scans().items()}

    def wait_for_state(self, uid: str, *states: str) -> None:
        wait_until(lambda: self.states()[uid] in states, 90, f"state {' or '.join(states)}")

    def job_of(self, process: "subprocess.Popen[str]") -> BatchJob:
        """Its record."""
        (job,) = [job for job in self.sessions.batch_jobs() if job.scheduled == f"local-{process.pid}"]
        return job


@contextmanager
def microscope(folder: Path) -> Iterator[Microscope]:
    cli = CommandLine(folder)
    cli.environment.update(MPI_ENVIRONMENT)
    services = Services(folder)
    try:
        endpoint = services.start_etcd("127.0.0.1")
        config = folder / "mpistream.toml"
        config.write_text(
            f'deployment = "scope"\n[etcd]\nendpoints = ["{endpoint}"]\nlease_seconds = 3\n'
            "[stream]\npatience_seconds = 60.0\n[ranks]\nranks_per_group = 2\n"
        )
        services.start_camera(config, "127.0.0.1")
        loaded = Config.load(config)
        with connect_etcd(loaded) as etcd:
            registry = open_registry(loaded, etcd)
            wait_until(lambda: len(registry.producers()) == 4 and registry.aggregators(), 60, "the microscope")
            yield Microscope(cli, config, registry, SessionRegistry(etcd))
    finally:
        services.close()
