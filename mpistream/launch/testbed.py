"""A whole deployment on this machine, as real processes: etcd, producers, an aggregator, an MPI job."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from mpistream.control.coordination import Coordination
from mpistream.control.registry import Registry
from mpistream.control.run_state import ScanState
from mpistream.launch.local import MPI_ENVIRONMENT, etcd_command, free_port, mpiexec
from mpistream.launch.processes import Child, kill_pid, start_child
from mpistream.model.config import Config, EtcdConfig, RanksConfig
from mpistream.model.errors import CoordinationError, MpistreamError, ScanFailed
from mpistream.model.geometry import SECTORS

_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_TURN_SECONDS = 0.05


@dataclass(frozen=True)
class ProcessEntry:
    """One process of a testbed, as ``mpistream testbed ps`` lists it."""

    role: str
    name: str
    pid: int
    endpoint: str


class Testbed:
    """The processes of one deployment under ``folder``: their configuration, logs and etcd's data lie there.

    A context manager: entering starts everything and waits until it is registered, leaving ends it all.
    """

    __test__ = False  # no test class, whatever its name begins with

    def __init__(
        self, folder: Path, groups: int, ranks_per_group: int, with_aggregator: bool = True, base: Config | None = None
    ) -> None:
        self.folder = folder
        self._groups = groups
        self._ranks = groups * ranks_per_group
        self._with_aggregator = with_aggregator
        self._client_port, self._peer_port = free_port(), free_port()
        base = base or Config()
        self.config = base.model_copy(
            update={
                "deployment": "testbed",
                "etcd": EtcdConfig(
                    endpoints=[f"127.0.0.1:{self._client_port}"],
                    timeout_seconds=base.etcd.timeout_seconds,
                    lease_seconds=base.etcd.lease_seconds,
                ),
                "ranks": RanksConfig.model_validate({**base.ranks.model_dump(), "ranks_per_group": ranks_per_group}),
            }
        )
        self._children: list[Child] = []
        self._coordination: Coordination | None = None

    @property
    def config_path(self) -> Path:
        return self.folder / "mpistream.toml"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def registry(self) -> Registry:
        assert self._coordination is not None, "the testbed is not running"
        return Registry(self._coordination, self.config.etcd.lease_seconds)

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        self.config_path.write_text(self.config.to_toml())
        try:
            self._start_etcd()
            self._start_processes()
            self._wait(self._all_registered, "register")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self, role: str, name: str, command: list[str]) -> None:
        log = self.logs / f"{name}.log"
        self._children.append(start_child(role, name, command, log, MPI_ENVIRONMENT))

    def _start_etcd(self) -> None:
        command = etcd_command(self.folder / "etcd", self._client_port, self._peer_port)
        self._start("etcd", "etcd", command)
        self._wait(self._etcd_answers, "answer")

    def _etcd_answers(self) -> bool:
        coordination = Coordination(self.config.etcd.endpoints, self.config.etcd_prefix, timeout_seconds=1.0)
        try:
            coordination.check()
        except CoordinationError:
            return False
        else:
            etcd = self.config.etcd
            self._coordination = Coordination(etcd.endpoints, self.config.etcd_prefix, etcd.timeout_seconds)
            return True
        finally:
            coordination.close()

    def _start_processes(self) -> None:
        mpistream = [sys.executable, "-m", "mpistream"]
        config = ["--config", str(self.config_path)]
        for sector in range(SECTORS):
            command = [*mpistream, "produce", *config, "--sector", str(sector)]
            self._start("producer", f"producer-{sector}", command)
        if self._with_aggregator:
            self._start("aggregator", "aggregator", [*mpistream, "aggregate", *config])
        command = [mpiexec(), "-n", str(self._ranks), *mpistream, "consume", *config]
        self._start("mpiexec", "consumers", command)

    def _all_registered(self) -> bool:
        registry = self.registry
        table = registry.latest_routing()
        return (
            table is not None
            and len(registry.groups()) == self._groups
            and len(registry.producers()) == SECTORS
            and len(registry.aggregators()) == int(self._with_aggregator)
        )

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not condition():
            self.check_alive()
            if time.monotonic() > deadline:
                raise ScanFailed(
                    f"the testbed's processes did not {what} within {_START_SECONDS:g} s", f"logs: {self.logs}"
                )
            time.sleep(_TURN_SECONDS)

    def check_alive(self, state: ScanState | None = None) -> None:
        """Raises ScanFailed naming a process that has ended, with its last words. A dataset is written without those
        that send.
        """
        for child in self._children:
            if state is not ScanState.ASSEMBLING or child.role in ("etcd", "mpiexec"):
                child.check_running()

    def processes(self) -> list[ProcessEntry]:
        """What runs, with the endpoints under which each is reached."""
        return [
            ProcessEntry("etcd", "etcd", self._children[0].pid, self.config.etcd.endpoints[0]),
            *registered_processes(self.registry),
            *(
                ProcessEntry(child.role, child.name, child.pid, "")
                for child in self._children
                if child.role == "mpiexec"
            ),
        ]

    def stop(self) -> None:
        """Ends every process: by request, then by force. Nothing is left, whatever state it was in."""
        rank_pids = self._request_end()
        for child in self._children:
            if child.role not in ("etcd", "mpiexec"):
                child.ask_to_end()
        deadline = time.monotonic() + _STOP_SECONDS
        for child in reversed(self._children):
            if child.role == "etcd" or (child.role == "mpiexec" and not rank_pids):
                child.ask_to_end()
            child.end(max(1.0, deadline - time.monotonic()))
        for pid in rank_pids:
            kill_pid(pid, patience_seconds=1.0)
        self._children.clear()
        if self._coordination is not None:
            self._coordination.close()
            self._coordination = None

    def _request_end(self) -> list[int]:
        """Asks the MPI job to end through etcd; the pids of its ranks, none where it could not be asked."""
        if self._coordination is None or not all(c.is_running for c in self._children if c.role == "etcd"):
            return []
        try:
            table = self.registry.latest_routing()
            if table is None:
                return []
            self.registry.request_stop(table.job)
            return [rank.pid for rank in table.ranks]
        except MpistreamError as error:
            print(f"mpistream: the MPI job could not be asked to end: {error}", file=sys.stderr)
            return []


def registered_processes(registry: Registry) -> list[ProcessEntry]:
    """The processes of a deployment as etcd knows them."""
    entries = [
        ProcessEntry("producer", f"producer-{producer.producer_id}", producer.pid, "")
        for producer in registry.producers()
    ]
    entries += [
        ProcessEntry("aggregator", aggregator.name, aggregator.pid, aggregator.data_endpoint)
        for aggregator in registry.aggregators()
    ]
    entries += [
        ProcessEntry("consumer", f"group-{group.group}-rank-{rank.rank}", rank.pid, rank.data_endpoint)
        for group in registry.groups()
        for rank in group.ranks
    ]
    return sorted(entries, key=lambda entry: (entry.role, entry.name))
