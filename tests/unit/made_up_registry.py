"""Jobs and producers in etcd as tests need them: made up in one process, though each is said to be another one."""

import subprocess
import zlib
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from mpistream.control.coordination import Coordination, Registration
from mpistream.control.process_identity import _machine, _start
from mpistream.control.registry import AggregatorEntry, GroupEntry, ProducerEntry, Registry
from mpistream.model.geometry import SECTORS
from mpistream.model.routing_table import RankEndpoints

LEASE_SECONDS = 2


class OtherProcess:
    """A process that does nothing: others are said to live and die with it. A context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(["sleep", "300"])
        self.identity = f"{_machine()}/{self._process.pid}/{_start(self._process.pid)}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(timeout=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()


class RegistryOf(Registry):
    """The registry as another process uses it."""

    def __init__(self, coordination: Coordination, process: str, lease_seconds: int = LEASE_SECONDS) -> None:
        super().__init__(coordination, lease_seconds)
        self._process = process

    def _value(self, entry: GroupEntry | ProducerEntry | AggregatorEntry) -> dict[str, Any]:
        return {**asdict(entry), "process": self._process}

    def register_group(self, entry: GroupEntry) -> Registration:
        return self._etcd.register(f"groups/{entry.job}/{entry.group}", self._value(entry), self.lease_seconds)

    def register_producer(self, entry: ProducerEntry) -> Registration:
        return self._etcd.register(f"producers/{entry.producer_id}", self._value(entry), self.lease_seconds)

    def update_producer(self, registration: Registration, entry: ProducerEntry) -> None:
        registration.update(self._value(entry))

    def take_conductor(self, job: str, host: str, pid: int, on_lost: Any) -> Registration | None:
        value = {"job": job, "host": host, "pid": pid, "process": self._process}
        return self._etcd.take_role("conductor", value, self.lease_seconds, on_lost)


def ranks_of(job: str, ranks: int = 2, groups: int = 1, process: str = "") -> tuple[RankEndpoints, ...]:
    """Incarnations differ from job to job."""
    first = zlib.crc32(job.encode())
    return tuple(
        RankEndpoints(
            rank,
            rank * groups // ranks,
            "node",
            100 + rank,
            first + rank,
            f"tcp://{job}:{rank}",
            "tcp://a",
            job,
            process,
        )
        for rank in range(ranks)
    )


def vanish(registration: Registration) -> None:
    """As if the process had died or was stopped: nothing is withdrawn, and nothing is kept alive any more."""
    registration._closed.set()
    if registration._thread.is_alive():
        registration._thread.join(timeout=10)
    registration._client.close()


class MadeUpProducers:
    """The producers of some sectors, registered in etcd."""

    def __init__(self, etcd: Coordination, process: str, sectors: range = range(SECTORS)) -> None:
        self._registry = RegistryOf(etcd, process)
        self._entries = {sector: ProducerEntry(sector, sector, "camera", 7, 5) for sector in sectors}
        self._registrations = {
            sector: self._registry.register_producer(entry) for sector, entry in self._entries.items()
        }

    def follow(self, version: int, *sectors: int) -> None:
        """They go by this version of the routing table from now on: ``sectors``, or all."""
        for sector in sectors or self._entries:
            entry = ProducerEntry(sector, sector, "camera", 7, 5, table=version)
            self._registry.update_producer(self._registrations[sector], entry)

    def end(self, *sectors: int) -> None:
        for sector in sectors or list(self._registrations):
            self._registrations.pop(sector).close()
            del self._entries[sector]
