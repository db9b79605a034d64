"""A deployment of processes that the harness starts and tends itself, as on several hosts."""

import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from mpistream.launch.local import free_port, mpiexec
from tests.faults.deployment import LEASE_SECONDS, SECTORS, SETTINGS, START_SECONDS, STOP_SECONDS, Deployment
from tests.faults.etcd_view import EtcdView
from tests.faults.namespaces import Network
from tests.faults.processes import Process

_RESTART_PAUSE_SECONDS = 0.5


@dataclass
class _Tended:
    """A process that the harness starts again when it has ended, unless it is ``held``."""

    words: list[str]
    popen: "subprocess.Popen[bytes] | None" = None
    ended_at: float | None = None
    held: bool = False


@dataclass
class _Members:
    """Addresses of etcd's members: client and peer ports on one host."""

    host: str
    ports: list[tuple[int, int]] = field(default_factory=lambda: [(free_port(), free_port()) for _ in range(3)])

    @property
    def endpoints(self) -> list[str]:
        return [f"{self.host}:{client}" for client, _ in self.ports]

    def command(self, number: int, data: Path) -> list[str]:
        client, peer = (f"http://{self.host}:{port}" for port in self.ports[number])
        cluster = ",".join(f"m{index}=http://{self.host}:{port}" for index, (_, port) in enumerate(self.ports))
        options = {
            "--name": f"m{number}",
            "--data-dir": str(data),
            "--log-level": "warn",
            "--listen-client-urls": client,
            "--advertise-client-urls": client,
            "--listen-peer-urls": peer,
            "--initial-advertise-peer-urls": peer,
            "--initial-cluster": cluster,
        }
        return ["etcd", *(word for pair in options.items() for word in pair)]


class HandDeployment(Deployment):
    """Processes started one by one: three etcd members, two MPI jobs, and an aggregator that can misbehave.

    Producers, aggregator and jobs run in namespaces of ``network``, where one is given. What dies is started again with
    the same command.
    """

    prefix = "/faults/"
    jobs = 2

    def __init__(self, folder: Path, ranks_per_job: int, network: Network | None) -> None:
        super().__init__(folder)
        self.ranks = self.jobs * ranks_per_job
        self._ranks_per_job = ranks_per_job
        self.network = network
        self.config = folder / "mpistream.toml"
        self.chaos = folder / "chaos.json"
        self.environment["MPISTREAM_CHAOS"] = str(self.chaos)
        self._members = _Members(network.address if network else "127.0.0.1")
        self._view = EtcdView(self._members.endpoints, self.prefix)
        self._tended: dict[str, _Tended] = {}

    @property
    def view(self) -> EtcdView:
        return self._view

    @property
    def logs(self) -> list[Path]:
        return sorted(self.folder.glob("*.log"))

    def start(self) -> None:
        endpoints = ", ".join(f'"{endpoint}"' for endpoint in self._members.endpoints)
        self.config.write_text(
            f'deployment = "faults"\n[etcd]\nendpoints = [{endpoints}]\nlease_seconds = {LEASE_SECONDS}\n'
            f"timeout_seconds = 2.0\n{SETTINGS}[ranks]\nranks_per_group = 1\n"
        )
        for number in range(len(self._members.ports)):
            self._add(f"etcd-{number}", self._members.command(number, self.folder / f"etcd-{number}"))
        self.wait(self.view.answers, START_SECONDS, "an answer of etcd")
        config = ["--config", str(self.config)]
        for sector in range(SECTORS):
            self._add(f"producer-{sector}", self.command("produce", "--sector", sector, *config), "producers")
        aggregate = [sys.executable, "-m", "tests.faults.chaos", "aggregate", *config]
        self._add("aggregator", [*aggregate, *self._host("aggregator")], "aggregator")
        for job in range(self.jobs):
            consume = self.command("consume", *config, *self._host(f"job-{job}"))
            self._add(f"job-{job}", [mpiexec(), "-n", str(self._ranks_per_job), *consume], f"job-{job}")

    def _host(self, namespace: str) -> list[str]:
        return ["--host", self.network.address_of(namespace)] if self.network else []

    def _add(self, name: str, words: list[str], namespace: str = "") -> None:
        if self.network and namespace:
            words = [*self.network.entering(namespace), *words]
        self._tended[name] = _Tended(words)
        self._start(name)

    def _start(self, name: str) -> None:
        one = self._tended[name]
        one.popen, one.ended_at = self.start_command(one.words, self.folder / f"{name}.log"), None

    def tend(self) -> None:
        now = time.monotonic()
        for name, one in self._tended.items():
            if one.popen is not None and one.popen.poll() is None:
                continue
            one.ended_at = one.ended_at or now
            if not one.held and now > one.ended_at + _RESTART_PAUSE_SECONDS:
                self._start(name)

    def hold(self, kind: str, held: bool) -> None:
        """Whether what has died of this kind stays down."""
        for name, one in self._tended.items():
            if name.startswith(kind):
                one.held = held

    def etcd_leader(self) -> list[Process]:
        """The member that leads, while there is one."""
        endpoint = self.view.leader()
        return [process for process in self.processes("etcd") if f"http://{endpoint}" in process.command.split()]

    def stop(self) -> None:
        """In the order in which processes need one another."""
        for kinds in (("producer", "aggregator", "job"), ("etcd",)):
            chosen = [one.popen for name, one in self._tended.items() if name.startswith(kinds) and one.popen]
            for popen in chosen:
                if popen.poll() is None:
                    popen.send_signal(signal.SIGTERM)
            for popen in chosen:
                try:
                    popen.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    self.troubles.append(f"pid {popen.pid} did not end: {popen.args!r}")
        self._tended.clear()
