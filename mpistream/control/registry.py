"""What stands in etcd: keys, who writes them, and their values as typed objects. docs/control.md lists them."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar
from uuid import UUID

from mpistream.control.coordination import Change, Coordination, Registration, Watch
from mpistream.control.run_state import ScanState, ScanStatus, check_transition
from mpistream.model.errors import CoordinationError, MpistreamError
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.model.scan import ScanRecord, ScanSummary, SectorEnd, Thresholds

_log = logging.getLogger(__name__)

_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class GroupEntry:
    """A rank group: the ranks of one MPI job that share a node (or a fixed number of them on a testbed)."""

    job: str
    group: int
    host: str
    ranks: tuple[RankEndpoints, ...]


@dataclass(frozen=True)
class ProducerEntry:
    """A producer: it sends one sector."""

    producer_id: int
    sector: int
    host: str
    pid: int
    incarnation: int


@dataclass(frozen=True)
class AggregatorEntry:
    """An aggregator: where producers push blocks, and where they hear acknowledgements."""

    name: str
    host: str
    pid: int
    data_endpoint: str
    answer_endpoint: str


def _group_entry(value: Any) -> GroupEntry:
    ranks = tuple(RankEndpoints(**rank) for rank in value["ranks"])
    return GroupEntry(value["job"], value["group"], value["host"], ranks)


class Registry:
    """The keys of one deployment."""

    def __init__(self, coordination: Coordination, lease_seconds: int) -> None:
        self._etcd = coordination
        self.lease_seconds = lease_seconds

    # processes, leased

    def register_group(self, entry: GroupEntry) -> Registration:
        return self._etcd.register(f"groups/{entry.job}/{entry.group}", asdict(entry), self.lease_seconds)

    def register_producer(self, entry: ProducerEntry) -> Registration:
        return self._etcd.register(f"producers/{entry.producer_id}", asdict(entry), self.lease_seconds)

    def register_aggregator(self, entry: AggregatorEntry) -> Registration:
        return self._etcd.register(f"aggregators/{entry.name}", asdict(entry), self.lease_seconds)

    def groups(self) -> list[GroupEntry]:
        return self._entries("groups/", _group_entry)

    def producers(self) -> list[ProducerEntry]:
        return self._entries("producers/", lambda value: ProducerEntry(**value))

    def aggregators(self) -> list[AggregatorEntry]:
        return self._entries("aggregators/", lambda value: AggregatorEntry(**value))

    def _entries(self, key: str, parse: Callable[[Any], _Entry]) -> list[_Entry]:
        """What is registered below ``key``, in the order of the keys; what is no such entry is left out."""
        entries = []
        for name, value in sorted(self._etcd.get_prefix(key).items()):
            try:
                entries.append(parse(value))
            except (KeyError, TypeError) as error:
                _log.error("ignored %s%s in etcd: %r", key, name, error)
        return entries

    # routing tables: a history, each written once

    def publish_routing(self, job: str, ranks: tuple[RankEndpoints, ...]) -> RoutingTable:
        """Writes the next version of the routing table."""
        while True:
            table = RoutingTable(max(self._routing_versions(), default=0) + 1, job, ranks)
            if self._etcd.create(f"routing/{table.version}", table.to_json()):
                return table

    def routing(self, version: int) -> RoutingTable:
        value = self._etcd.get(f"routing/{version}")
        if value is None:
            raise CoordinationError(f"etcd holds no routing table of version {version}")
        return RoutingTable.from_json(value)

    def latest_routing(self) -> RoutingTable | None:
        versions = self._routing_versions()
        return self.routing(max(versions)) if versions else None

    def _routing_versions(self) -> list[int]:
        return [int(version) for version in self._etcd.get_prefix("routing/") if version.isdecimal()]

    def watch_routing(self, on_table: Callable[[RoutingTable], None]) -> Watch:
        def changed(change: Change) -> None:
            if change[1] is not None:
                on_table(RoutingTable.from_json(change[1]))

        return self._etcd.watch("routing/", changed)

    # scans

    def announce(self, record: ScanRecord) -> None:
        """Writes a scan's immutable record and its first state."""
        key = f"scans/{record.uid}/"
        status = ScanStatus(ScanState.ANNOUNCED, time.time())
        if not (
            self._etcd.create(key + "state", status.to_json())
            and self._etcd.create(key + "record", record.model_dump(mode="json"))
        ):
            raise CoordinationError(f"scan {record.uid} was announced before")

    def record(self, uid: UUID) -> ScanRecord | None:
        value = self._etcd.get(f"scans/{uid}/record")
        return None if value is None else ScanRecord.model_validate(value)

    def status(self, uid: UUID) -> ScanStatus:
        value = self._etcd.get(f"scans/{uid}/state")
        if value is None:
            raise CoordinationError(f"etcd knows no scan {uid}")
        return ScanStatus.from_json(value)

    def is_streaming(self) -> bool:
        """Whether any scan of the deployment streams."""
        states = [value for key, value in self._etcd.get_prefix("scans/").items() if key.endswith("/state")]
        return any(isinstance(state, dict) and state.get("state") == ScanState.STREAMING for state in states)

    def set_state(self, uid: UUID, state: ScanState, error: MpistreamError | None = None) -> bool:
        """Takes a scan to its next state; False where somebody else has just ended it."""
        old = self.status(uid)
        if old.state is state:
            return True  # an earlier attempt was carried out, though its answer never came
        if old.state.is_final:
            return False
        check_transition(old.state, state)
        new = ScanStatus(state, time.time(), error.message if error else "", error.remedy if error else "")
        return self._etcd.replace(f"scans/{uid}/state", old.to_json(), new.to_json())

    def write_end(self, uid: UUID, end: SectorEnd) -> None:
        self._etcd.create(f"scans/{uid}/ends/{end.sector}", end.model_dump(mode="json"))

    def write_fault(self, uid: UUID, who: str, error: MpistreamError) -> None:
        self._etcd.put(f"scans/{uid}/faults/{who}", {"message": error.message, "remedy": error.remedy})

    def request_abort(self, uid: UUID, reason: str) -> None:
        self._etcd.put(f"scans/{uid}/abort", {"reason": reason})

    def write_thresholds(self, uid: UUID, thresholds: Thresholds) -> None:
        self._etcd.create(f"scans/{uid}/thresholds", thresholds.model_dump(mode="json"))

    def write_progress(self, uid: UUID, progress: dict[str, int]) -> None:
        self._etcd.put(f"progress/{uid}", progress)

    def write_summary(self, uid: UUID, summary: ScanSummary) -> None:
        self._etcd.create(f"scans/{uid}/summary", summary.model_dump(mode="json"))

    def summary(self, uid: UUID) -> ScanSummary | None:
        value = self._etcd.get(f"scans/{uid}/summary")
        return None if value is None else ScanSummary.model_validate(value)

    def watch_scans(self, on_change: Callable[[Change], None]) -> Watch:
        """Reports ``<uid>/record``, ``<uid>/state``, ``<uid>/ends/<sector>``, ``<uid>/faults/<who>``, ..."""
        return self._etcd.watch("scans/", on_change)

    def progress(self, uid: UUID) -> dict[str, int]:
        """Running totals over all ranks: frames, electrons, blocks, raw_bytes. Empty before the first."""
        return self._etcd.get(f"progress/{uid}") or {}

    def watch_scan(self, uid: UUID, on_change: Callable[[Change], None]) -> Watch:
        return self._etcd.watch(f"scans/{uid}/", on_change)

    # a job's end

    def request_stop(self, job: str) -> None:
        self._etcd.put(f"jobs/{job}/stop", {"since_unix_seconds": time.time()})

    def watch_stop(self, job: str, on_stop: Callable[[], None]) -> Watch:
        def changed(change: Change) -> None:
            if change[0] == "stop" and change[1] is not None:
                on_stop()

        return self._etcd.watch(f"jobs/{job}/", changed)
