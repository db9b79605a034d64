"""Deployments that faults are brought into: what all have in common, and a testbed with its supervisor."""

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from mpistream.launch.local import MPI_ENVIRONMENT
from tests.faults.etcd_view import EtcdView
from tests.faults.processes import Process, processes_of

SECTORS = 4
LEASE_SECONDS = 3
STALL_SECONDS = 5.0
START_SECONDS = 90.0
STOP_SECONDS = 40.0
_RESTART_PAUSE_SECONDS = 0.5
_TURN_SECONDS = 0.05

SETTINGS = f"""
[stream]
patience_seconds = 120.0
absent_seconds = 60.0
[watchdog]
stall_seconds = {STALL_SECONDS}
"""


class Deployment(ABC):
    """Everything of it lies under ``folder``, which marks its processes. A context manager."""

    #: what is registered when all of it is there
    ranks: int
    jobs: int
    prefix: str
    config: Path

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fault_points = folder / "fault-points"
        self.troubles: list[str] = []
        for place in (folder / "tmp", self.fault_points):
            place.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **os.environ,
            **MPI_ENVIRONMENT,
            "TMPDIR": str(folder / "tmp"),
            "MPISTREAM_TESTBED": str(folder / "testbed"),
            "MPISTREAM_FAULT_POINTS": str(self.fault_points),
        }

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...

    @abstractmethod
    def tend(self) -> None:
        """What somebody has to do who looks after the deployment: called many times a second."""

    @property
    @abstractmethod
    def logs(self) -> list[Path]: ...

    @property
    @abstractmethod
    def view(self) -> EtcdView: ...

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "mpistream", *map(str, arguments)]

    def start_command(self, words: list[str], log: Path) -> "subprocess.Popen[bytes]":
        """In a session of its own; it gets SIGTERM should the harness die first. Output is added to ``log``."""
        with log.open("ab") as output:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "--", *words],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start_scan(self, source: str, output: Path, options: tuple[str, ...], log: Path) -> "subprocess.Popen[bytes]":
        scan = self.command("testbed", "scan", "--source", source, "--output", output, "--json", *options)
        return self.start_command([*scan, *self._scan_target()], log)

    def _scan_target(self) -> list[str]:
        return ["--config", str(self.config)]

    def processes(self, role: str | None = None) -> list[Process]:
        """Those of a role, all that have one without it. Where a job has one rank, that is both leader and rank."""
        if role == "rank" and self.ranks == self.jobs:
            role = "leader"
        found = processes_of(str(self.folder))
        return [process for process in found if process.role and role in (None, process.role)]

    def is_whole(self) -> bool:
        """Every process is registered and alive, and all producers have adopted a table of all ranks."""
        stored = self.view.read("producers/", "aggregators/", "groups/", "routing/", "conductor")
        if stored is None:
            return False
        producers, groups = stored.below("producers/"), stored.below("groups/").values()
        ranks = [rank for group in groups for rank in group["ranks"]]
        tables = {int(version): table for version, table in stored.below("routing/").items()}
        if not tables or len(producers) != SECTORS or len(stored.below("aggregators/")) != 1:
            return False
        latest = max(tables)
        entries = [*producers.values(), *stored.below("aggregators/").values(), *ranks]
        return (
            len(ranks) == self.ranks
            and {rank["incarnation"] for rank in tables[latest]["ranks"]} == {rank["incarnation"] for rank in ranks}
            and any(key.startswith("conductor") for key in stored.values)
            and all(entry.get("table", latest) == latest for entry in producers.values())
            and {entry["pid"] for entry in entries} <= {process.pid for process in self.processes()}
        )

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Raises TimeoutError; tends the deployment meanwhile."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} did not come about within {seconds:g} s; logs: {self.folder}")
            self.tend()
            time.sleep(_TURN_SECONDS)

    def wait_until_whole(self, seconds: float = START_SECONDS) -> None:
        self.wait(self.is_whole, seconds, "a deployment that is whole")

    def kill_all(self) -> list[str]:
        """Ends whatever is left; the command lines of what was."""
        left = self.processes()
        for process in left:
            process.send(signal.SIGKILL)
        return [process.command for process in left]

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_until_whole()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


class TestbedDeployment(Deployment):
    """`mpistream testbed up`, whose supervisor starts again what has died; `up` is repeated when that one has."""

    __test__ = False  # no test class, whatever its name begins with
    prefix = "/testbed/"
    jobs = 1

    def __init__(self, folder: Path, ranks: int) -> None:
        super().__init__(folder)
        self.ranks = ranks
        self.config = folder / "testbed" / "mpistream.toml"
        self._base = folder / "base.toml"
        self._base.write_text(f"[etcd]\nlease_seconds = {LEASE_SECONDS}\n{SETTINGS}")
        self._starting: subprocess.Popen[bytes] | None = None
        self._is_wanted = False
        self._view: tuple[str, EtcdView] | None = None

    @property
    def logs(self) -> list[Path]:
        return sorted(self.folder.rglob("*.log"))

    @property
    def view(self) -> EtcdView:
        text = self.config.read_text() if self.config.exists() else ""
        if self._view is None or self._view[0] != text:
            lines = [line for line in text.splitlines() if line.startswith("endpoints")]
            self._view = text, EtcdView([lines[0].split('"')[1]] if lines else [], self.prefix)
        return self._view[1]

    def _scan_target(self) -> list[str]:
        return []

    def start(self) -> None:
        """Without what an earlier testbed has left unfinished."""
        self._is_wanted = True
        self._up("--fresh")

    def _up(self, *options: str) -> None:
        command = self.command("testbed", "up", "--groups", self.ranks, "--ranks-per-group", 1, *options)
        self._starting = self.start_command([*command, "--config", str(self._base)], self.folder / "up.log")

    def tend(self) -> None:
        if self._starting is not None:
            status = self._starting.poll()
            if status is None:
                return
            if status:
                self.troubles.append(f"testbed up exited with {status}; see {self.folder / 'up.log'}")
            self._starting = None
        if self._is_wanted and not self.processes("supervisor"):
            self._up()

    def stop(self) -> None:
        self._is_wanted = False
        log = self.folder / "up.log"
        if self._starting is not None:
            self._starting.wait(START_SECONDS)
        try:
            if self.start_command(self.command("testbed", "down"), log).wait(STOP_SECONDS):
                self.troubles.append(f"testbed down failed; see {log}")
        except subprocess.TimeoutExpired:
            self.troubles.append("testbed down did not end")
