"""Sessions and batch jobs of the Slurm testbed, as a user has them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from mpistream.control.registry import Registry
from mpistream.control.session_registry import SessionRegistry
from mpistream.model.config import Config
from mpistream.pipeline.process import connect_etcd, open_registry
from tests.slurm.cluster import Cluster
from tests.system.command_line import wait_until
from tests.system.datasets import same_bytes

THRESHOLDS = ("--background", 60, "--xray", 2000)
END_SECONDS = 120


@dataclass(frozen=True)
class StartedScan:
    session: "Session"
    uid: UUID

    @property
    def dataset(self) -> Path:
        record = self.session.registry.record(self.uid)
        assert record is not None
        return Path(record.output)

    def state(self) -> str:
        return str(self.session.registry.status(self.uid).state)


@dataclass(frozen=True)
class Session:
    """``folder`` is its own; scripts and logs of its jobs lie in ``folder/jobs``."""

    cluster: Cluster
    folder: Path
    name: str
    registry: Registry
    sessions: SessionRegistry

    def submit(self, mode: str, *options: object) -> str:
        """The number of the submitted job."""
        arguments = ("--site", "testbed", "--session", self.name, "--folder", self.cluster.folder, *options, "--json")
        return str(self.cluster.cli.run("job", "submit", mode, *arguments).last_json["job"])

    def start_scan(self, source: str) -> StartedScan:
        before = set(self.registry.scans())
        self.cluster.cli.run(
            *("scan", "start", "--session", self.name, "--source", source, *THRESHOLDS),
            *("--no-wait", "--folder", self.cluster.folder),
        ).succeeded()
        (uid,) = set(self.registry.scans()) - before
        return StartedScan(self, uid)

    def groups(self, number: str) -> int:
        """How many rank groups of a batch job are registered."""
        return sum(group.batch_job == number for group in self.registry.groups())

    def frames(self, scan: StartedScan) -> int:
        return self.registry.progress(scan.uid).get("frames", 0)

    def ended(self, scans: list[StartedScan]) -> int:
        states = self.registry.scans()
        return sum(states[scan.uid].state.is_final for scan in scans)

    def stop(self) -> None:
        self.cluster.cli.run("session", "stop", self.name, "--folder", self.cluster.folder).succeeded()

    def job(self, number: str) -> dict[str, Any]:
        """As `job show` has it."""
        shown = self.cluster.cli.run("job", "show", number, "--folder", self.cluster.folder, "--json").succeeded()
        return dict(json.loads(shown.stdout))

    def wait_for_end(self, number: str) -> dict[str, Any]:
        """The job's record, once neither it nor Slurm has it any more."""
        wait_until(
            lambda: number not in self.cluster.jobs(), END_SECONDS, f"the end of job {number}: {self.log(number)}"
        )
        return self.job(number)

    def log(self, number: str) -> str:
        """Empty before it has begun."""
        return "".join(path.read_text(errors="replace") for path in self.folder.glob(f"jobs/*-{number}.log"))


def is_like_testbed_run(scan: StartedScan, source: str, folder: Path) -> bool:
    here = folder / f"{scan.uid}.h5"
    scan.session.cluster.cli.run("testbed", "run", "--source", source, *THRESHOLDS, "--output", here).succeeded()
    return same_bytes(scan.dataset, here)


def started_session(cluster: Cluster, folder: Path, name: str) -> Session:
    """A session of that name and a number: names are used once."""
    etcd = connect_etcd(Config.load(cluster.config))
    sessions = SessionRegistry(etcd)
    unused = f"{name}-{len(sessions.sessions())}"
    datasets = folder / "datasets"
    datasets.mkdir()
    cluster.cli.run("session", "start", unused, "--datasets", datasets, "--folder", cluster.folder).succeeded()
    return Session(cluster, datasets, unused, open_registry(Config.load(cluster.config), etcd), sessions)
