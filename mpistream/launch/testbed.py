"""A whole deployment on this machine, as real processes: etcd, producers, an aggregator, an MPI job."""

import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from mpistream.control.coordination import Coordination
from mpistream.control.registry import Registry
from mpistream.launch.local import MPI_ENVIRONMENT, etcd_command, free_port, is_free, mpiexec
from mpistream.launch.processes import Child
from mpistream.launch.supervision import Program, SupervisedProgram
from mpistream.launch.testbed_folder import ProcessEntry, TestbedFolder
from mpistream.model.config import Config, EtcdConfig, RanksConfig
from mpistream.model.errors import CoordinationError, MpistreamError, ScanFailed
from mpistream.model.geometry import SECTORS

_log = logging.getLogger(__name__)

_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_TURN_SECONDS = 0.05
LOCAL_HOST = "127.0.0.1"


class Testbed:
    """The processes of one deployment; their configuration, logs and etcd's data lie in ``folder``.

    A context manager: entering starts everything and waits until it is registered, leaving ends it all. Where the
    folder still has the configuration and etcd's data of an earlier testbed, its scans go on. ``say`` is told of every
    process that ended and was started again. Without groups there is no MPI job; what runs is reached at ``host``.
    """

    __test__ = False  # no test class, whatever its name begins with

    def __init__(
        self,
        folder: TestbedFolder,
        groups: int,
        ranks_per_group: int,
        with_aggregator: bool = True,
        base: Config | None = None,
        say: Callable[[str], None] = _log.warning,
        host: str = LOCAL_HOST,
    ) -> None:
        self.folder = folder
        self.unfinished: tuple[str, ...] = ()
        self._ranks = groups * ranks_per_group
        self._with_aggregator = with_aggregator
        self._say = say
        self._host = host
        kept = kept_config(folder)
        self._client_port, self._peer_port = _client_port(kept, host), free_port()
        base = base or kept or Config()
        self.config = base.model_copy(
            update={
                "deployment": "testbed",
                "etcd": EtcdConfig(
                    endpoints=[f"{host}:{self._client_port}"],
                    timeout_seconds=base.etcd.timeout_seconds,
                    lease_seconds=base.etcd.lease_seconds,
                ),
                "ranks": RanksConfig.model_validate({**base.ranks.model_dump(), "ranks_per_group": ranks_per_group}),
            }
        )
        self._programs: list[SupervisedProgram] = []
        self._coordination: Coordination | None = None

    @property
    def registry(self) -> Registry:
        assert self._coordination is not None, "the testbed is not running"
        return Registry(self._coordination, self.config.etcd.lease_seconds)

    def __enter__(self) -> Self:
        self.folder.logs.mkdir(parents=True, exist_ok=True)
        self.folder.write_config(self.config.to_toml())
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

    def _start(self, role: str, name: str, command: list[str], processes: int = 1) -> None:
        log = self.folder.logs / f"{name}.log"
        environment = {**MPI_ENVIRONMENT, **self.folder.environment}
        program = Program(role, name, tuple(command), log, environment, processes)
        self._programs.append(SupervisedProgram(program))

    def _start_etcd(self) -> None:
        self._start("etcd", "etcd", etcd_command(self.folder.etcd, self._client_port, self._peer_port, self._host))
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
        config = ["--config", str(self.folder.config_path)]
        for sector in range(SECTORS):
            command = [*mpistream, "produce", *config, "--sector", str(sector)]
            self._start("producer", f"producer-{sector}", command)
        if self._with_aggregator:
            at = ["--host", self._host] if self._host != LOCAL_HOST else []
            self._start("aggregator", "aggregator", [*mpistream, "aggregate", *config, *at])
        if not self._ranks:
            return
        command = [mpiexec(), "-n", str(self._ranks), *mpistream, "consume", *config]
        self._start("mpiexec", "consumers", command, processes=1 + self._ranks)

    def _children(self, *roles: str) -> list[Child]:
        return [program.child for program in self._programs if program.child.role in roles]

    def _all_registered(self) -> bool:
        """Those that run now: etcd may still know processes of an earlier testbed that have died."""
        registry = self.registry
        table = registry.latest_routing()
        pids = {entry.pid for entry in registry.producers()} | {entry.pid for entry in registry.aggregators()}
        ranks = [rank for group in registry.groups() for rank in group.ranks if self._is_ours(rank.pid)]
        return (
            (table is not None or not self._ranks)
            and {child.pid for child in self._children("producer", "aggregator")} <= pids
            and len(ranks) == self._ranks
            and (table is None or {rank.incarnation for rank in ranks} <= table.incarnations)
        )

    def _is_ours(self, rank_pid: int) -> bool:
        with suppress(ProcessLookupError):
            return os.getsid(rank_pid) in {child.pid for child in self._children("mpiexec")}
        return False

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        """Raises ScanFailed naming a process that has ended meanwhile, with its last words."""
        deadline = time.monotonic() + _START_SECONDS
        while not condition():
            for program in self._programs:
                self._look_after(program)
            if time.monotonic() > deadline:
                raise ScanFailed(
                    f"the testbed's processes did not {what} within {_START_SECONDS:g} s", f"logs: {self.folder.logs}"
                )
            time.sleep(_TURN_SECONDS)

    def _look_after(self, program: SupervisedProgram) -> None:
        """While everything starts: what was killed is started again, what cannot run is an error."""
        if not program.child.was_killed:
            program.child.check_running()
        elif news := program.turn():
            self._say(news)

    def supervise(self) -> bool:
        """Starts again what has ended; whether anything has. To be called several times a second.

        Raises ScanFailed naming a process that cannot live, once everything else has been looked after.
        """
        failure, changed = None, False
        for program in self._programs:
            try:
                if news := program.turn():
                    changed = True
                    self._say(news)
            except MpistreamError as error:
                failure = error
        if failure is not None:
            raise failure
        return changed

    @property
    def cannot_live(self) -> tuple[str, ...]:
        """Processes that have ended too soon too often, and how."""
        return tuple(program.cannot_live for program in self._programs if program.cannot_live)

    def unregistered_processes(self) -> tuple[ProcessEntry, ...]:
        """What runs and is in no registry."""
        endpoint = {"etcd": self.config.etcd.endpoints[0]}
        children = self._children("etcd", "mpiexec")
        return tuple(
            ProcessEntry(child.role, child.name, child.pid, endpoint.get(child.role, "")) for child in children
        )

    def stop(self) -> None:
        """Ends every process: by request, then by force. Nothing is left, whatever state it was in."""
        asked = self._ask_job_to_end()
        for child in self._children("producer", "aggregator"):
            child.ask_to_end()
        deadline = time.monotonic() + _STOP_SECONDS
        for child in [program.child for program in reversed(self._programs)]:
            if child.role == "etcd":
                self.unfinished = self._unfinished_scans()
            if child.role == "etcd" or (child.role == "mpiexec" and not asked):
                child.ask_to_end()
            child.end(max(1.0, deadline - time.monotonic()))
        self._programs.clear()
        if self._coordination is not None:
            self._coordination.close()
            self._coordination = None

    def _ask_job_to_end(self) -> bool:
        """Asks the MPI job to end through etcd. False where it could not be asked."""
        if self._coordination is None or not all(child.is_running for child in self._children("etcd")):
            return False
        try:
            ours = {g.job for g in self.registry.groups() if any(self._is_ours(rank.pid) for rank in g.ranks)}
            for job in ours:
                self.registry.request_stop(job)
            return bool(ours)
        except MpistreamError as error:
            print(f"mpistream: the MPI job could not be asked to end: {error}", file=sys.stderr)
            return False

    def _unfinished_scans(self) -> tuple[str, ...]:
        """The scans that have not ended; those that were known last where etcd does not answer."""
        if self._coordination is None:
            return ()
        try:
            return tuple(str(uid) for uid, status in self.registry.scans().items() if not status.state.is_final)
        except MpistreamError as error:
            print(f"mpistream: it is not known which scans are unfinished: {error.message}", file=sys.stderr)
            return ("unknown",)


def kept_config(folder: TestbedFolder) -> Config | None:
    """That of an earlier testbed there."""
    return Config.load(folder.config_path) if folder.config_path.exists() else None


def _client_port(kept: Config | None, host: str) -> int:
    """The port at which an earlier testbed's etcd was, if it is still free: whoever follows a scan goes on there."""
    if kept is not None:
        port = int(kept.etcd.endpoints[0].rpartition(":")[2])
        if is_free(port, host):
            return port
    return free_port()


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
