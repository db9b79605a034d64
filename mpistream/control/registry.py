"""What stands in etcd: keys, who writes them, and their values as typed objects. docs/control.md lists them."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar
from uuid import UUID

from mpistream.control.coordination import Change, Coordination, Registration, Watch
from mpistream.control.expected_scans import ExpectedScans
from mpistream.control.process_identity import this_process
from mpistream.control.run_state import TRANSITIONS, ScanState, ScanStatus, keeps_journals
from mpistream.model.errors import CoordinationError, MpistreamError
from mpistream.model.job_share import JobShare
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.model.scan import ScanRecord, ScanSummary, SectorEnd, Thresholds

_log = logging.getLogger(__name__)

_Entry = TypeVar("_Entry")

_CONDUCTOR = "conductor"


@dataclass(frozen=True)
class GroupEntry:
    """A rank group: the ranks of one MPI job that share a node (or a fixed number of them on a testbed).

    ``groups`` is how many the job has; ``process`` tells the first rank of the group from every other process.
    ``batch_job`` is the scheduler's number of the job that the MPI job is part of; empty without one.
    """

    job: str
    group: int
    groups: int
    host: str
    ranks: tuple[RankEndpoints, ...]
    process: str = ""
    batch_job: str = ""


@dataclass(frozen=True)
class ProducerEntry:
    """A producer: it sends one sector. ``table`` is the version of the routing table that it goes by: it refuses
    acknowledgements of ranks that are not in it. 0: none yet.
    """

    producer_id: int
    sector: int
    host: str
    pid: int
    incarnation: int
    table: int = 0
    process: str = ""


@dataclass(frozen=True)
class AggregatorEntry:
    """An aggregator: where producers push blocks, and where they hear acknowledgements."""

    name: str
    host: str
    pid: int
    data_endpoint: str
    answer_endpoint: str
    incarnation: int = 0
    process: str = ""


def _group_entry(value: Any) -> GroupEntry:
    ranks = tuple(RankEndpoints(**rank) for rank in value["ranks"])
    return GroupEntry(**{**value, "ranks": ranks})


def _value(entry: GroupEntry | ProducerEntry | AggregatorEntry) -> dict[str, Any]:
    return {**asdict(entry), "process": this_process()}


class Registry:
    """The keys of one deployment."""

    def __init__(self, coordination: Coordination, lease_seconds: int) -> None:
        self._etcd = coordination
        self.lease_seconds = lease_seconds
        self.expected = ExpectedScans(coordination)

    # processes, leased

    def register_group(self, entry: GroupEntry) -> Registration:
        return self._etcd.register(f"groups/{entry.job}/{entry.group}", _value(entry), self.lease_seconds)

    def register_producer(self, entry: ProducerEntry) -> Registration:
        return self._etcd.register(f"producers/{entry.producer_id}", _value(entry), self.lease_seconds)

    def update_producer(self, registration: Registration, entry: ProducerEntry) -> None:
        """Raises EtcdUnreachable; the entry is then written with the next refresh of the lease that needs it."""
        registration.update(_value(entry))

    def register_aggregator(self, entry: AggregatorEntry) -> Registration:
        return self._etcd.register(f"aggregators/{entry.name}", _value(entry), self.lease_seconds)

    def groups(self) -> list[GroupEntry]:
        return self._entries("groups/", _group_entry)

    def producers(self) -> list[ProducerEntry]:
        return self._entries("producers/", lambda value: ProducerEntry(**value))

    def aggregators(self) -> list[AggregatorEntry]:
        return self._entries("aggregators/", lambda value: AggregatorEntry(**value))

    def watch_aggregators(self, on_change: Callable[[], None]) -> Watch:
        return self._etcd.watch("aggregators/", lambda change: on_change())

    def watch_groups(self, on_change: Callable[[], None]) -> Watch:
        return self._etcd.watch("groups/", lambda change: on_change())

    def watch_producers(self, on_change: Callable[[], None]) -> Watch:
        return self._etcd.watch("producers/", lambda change: on_change())

    def _entries(self, key: str, parse: Callable[[Any], _Entry]) -> list[_Entry]:
        """What is registered below ``key``, in the order of the keys; what is no such entry is left out."""
        entries = []
        for name, value in sorted(self._etcd.get_prefix(key).items()):
            try:
                entries.append(parse(value))
            except (KeyError, TypeError) as error:
                _log.error("ignored %s%s in etcd: %r", key, name, error)
        return entries

    # the job that conducts

    def take_conductor(self, job: str, host: str, pid: int, on_lost: Callable[[], None]) -> Registration | None:
        """None while another job conducts."""
        value = {"job": job, "host": host, "pid": pid, "process": this_process()}
        return self._etcd.take_role(_CONDUCTOR, value, self.lease_seconds, on_lost)

    def conductor(self) -> str | None:
        """The job that conducts."""
        value = self._etcd.get(_CONDUCTOR)
        return None if value is None else str(value["job"])

    def watch_conductor(self, on_change: Callable[[], None]) -> Watch:
        return self._etcd.watch(_CONDUCTOR, lambda change: on_change())

    # routing tables: a history, each written once, by the conducting job

    def publish_routing(self, role: Registration, ranks: tuple[RankEndpoints, ...]) -> RoutingTable | None:
        """Writes the next version of the routing table; None where the job conducts no longer."""
        while True:
            version = max(self._routing_versions(), default=0) + 1
            table = RoutingTable(version, role.value["job"], ranks)
            key = f"routing/{version}"
            if self._etcd.write_while(_CONDUCTOR, role.value, key, table.to_json()):
                return table
            if self._etcd.get(_CONDUCTOR) != role.value:
                return None
            if self._etcd.get(key) == table.to_json():
                return table  # an earlier attempt was carried out, though its answer never came

    def routing(self, version: int) -> RoutingTable:
        value = self._etcd.get(f"routing/{version}")
        if value is None:
            raise CoordinationError(f"etcd holds no routing table of version {version}")
        return RoutingTable.from_json(value)

    def latest_routing(self) -> RoutingTable | None:
        for version in sorted(self._routing_versions(), reverse=True):
            try:
                return self.routing(version)
            except (ValueError, KeyError, TypeError) as error:
                _log.error("ignored routing/%d in etcd: %r", version, error)
        return None

    def _routing_versions(self) -> list[int]:
        return [int(version) for version in self._etcd.get_prefix("routing/") if version.isdecimal()]

    def watch_routing(self, on_table: Callable[[RoutingTable], None]) -> Watch:
        def changed(change: Change) -> None:
            if change[1] is not None:
                on_table(RoutingTable.from_json(change[1]))

        return self._etcd.watch("routing/", changed)

    # scans: what is fixed

    def announce(self, record: ScanRecord) -> None:
        """Writes a scan's immutable record and its first state; again for the same record changes nothing.

        Raises CoordinationError where its session has been stopped.
        """
        key, value = f"scans/{record.uid}/", record.model_dump(mode="json")
        status = ScanStatus(ScanState.ANNOUNCED, time.time())
        stop = [f"sessions/{record.session}/stop"] if record.session else []
        if self._etcd.create_all({key + "state": status.to_json(), key + "record": value}, without=stop):
            return
        there = self._etcd.get(key + "record")
        if there is None and stop:
            raise CoordinationError(f"session {record.session} has been stopped", "start another: mpistream session")
        if there != value:
            raise CoordinationError(f"scan {record.uid} was announced before")

    def record(self, uid: UUID) -> ScanRecord | None:
        value = self._etcd.get(f"scans/{uid}/record")
        return None if value is None else ScanRecord.model_validate(value)

    def write_end(self, uid: UUID, end: SectorEnd) -> bool:
        """False where there is another end of this sector: it was cut, or an earlier start of the producer wrote it.

        One that cuts the sector takes the place of the producer's own.
        """
        key, value = f"scans/{uid}/ends/{end.sector}", end.model_dump(mode="json")
        if self._etcd.create(key, value):
            return True
        there = self._etcd.get(key)
        cuts = bool(end.cut) and there is not None and not there["cut"]
        return there == value or (cuts and self._etcd.replace(key, there, value))

    def ends(self, uid: UUID) -> dict[int, SectorEnd]:
        values = self._etcd.get_prefix(f"scans/{uid}/ends/").values()
        return {end.sector: end for end in map(SectorEnd.model_validate, values)}

    def write_thresholds(self, uid: UUID, thresholds: Thresholds) -> Thresholds:
        """Those that hold: they are pinned once."""
        key = f"scans/{uid}/thresholds"
        self._etcd.create(key, thresholds.model_dump(mode="json"))
        return Thresholds.model_validate(self._etcd.get(key))

    def write_summary(self, uid: UUID, summary: ScanSummary) -> None:
        self._etcd.create(f"scans/{uid}/summary", summary.model_dump(mode="json"))

    def summary(self, uid: UUID) -> ScanSummary | None:
        value = self._etcd.get(f"scans/{uid}/summary")
        return None if value is None else ScanSummary.model_validate(value)

    # scans: what changes

    def scans(self) -> dict[UUID, ScanStatus]:
        """Every scan that etcd knows, in the order of the last change of their states."""
        found = {}
        for key, value in self._etcd.get_prefix("scans/").items():
            if key.endswith("/state"):
                try:
                    found[UUID(key.removesuffix("/state"))] = ScanStatus.from_json(value)
                except (ValueError, KeyError, TypeError) as error:
                    _log.error("ignored scans/%s in etcd: %r", key, error)
        return dict(sorted(found.items(), key=lambda item: item[1].since_unix_seconds))

    def status(self, uid: UUID) -> ScanStatus:
        value = self._etcd.get(f"scans/{uid}/state")
        if value is None:
            raise CoordinationError(f"etcd knows no scan {uid}")
        return ScanStatus.from_json(value)

    def set_state(
        self, uid: UUID, state: ScanState, error: MpistreamError | None = None, role: Registration | None = None
    ) -> bool:
        """Takes a scan to its next state, or gives a reason for the one it is in.

        False where it has been ended, or where the job that holds ``role`` conducts no longer.
        """
        old = self.status(uid)
        reasons = (error.message, error.remedy) if error else ("", "")
        if old.state is state and (old.reason, old.remedy) == reasons:
            return True  # an earlier attempt was carried out, though its answer never came
        if old.state.is_final:
            return False
        if old.state is not state and state not in TRANSITIONS[old.state]:
            return False  # decided from what has been overtaken
        since = old.since_unix_seconds if old.state is state else time.time()
        new = ScanStatus(state, since, *reasons, keeps_journals=keeps_journals(old.state, state))
        key = f"scans/{uid}/state"
        if role is not None:
            return self._etcd.write_while(_CONDUCTOR, role.value, key, new.to_json(), old.to_json())
        return self._etcd.replace(key, old.to_json(), new.to_json())

    def write_fault(self, uid: UUID, who: str, error: MpistreamError) -> None:
        self._etcd.put(f"scans/{uid}/faults/{who}", {"message": error.message, "remedy": error.remedy})

    def request_abort(self, uid: UUID, reason: str, keep: bool = False) -> None:
        """``keep``: what has arrived becomes a dataset."""
        self._etcd.put(f"scans/{uid}/abort", {"reason": reason, "keep": keep})

    def redirect(self, uid: UUID, output: str) -> None:
        """Another place for the dataset of a scan that is not finished."""
        self._etcd.put(f"scans/{uid}/output", {"output": output})

    def watch_scans(self, on_change: Callable[[Change], None]) -> Watch:
        """Reports ``<uid>/record``, ``<uid>/state``, ``<uid>/ends/<sector>``, ``<uid>/shares/<job>``, ..."""
        return self._etcd.watch("scans/", on_change)

    def scan_keys(self) -> dict[str, Any]:
        """All that ``watch_scans`` would report, as it stands now."""
        return self._etcd.get_prefix("scans/")

    def watch_scan(self, uid: UUID, on_change: Callable[[Change], None]) -> Watch:
        return self._etcd.watch(f"scans/{uid}/", on_change)

    # what each job has of a scan

    def write_share(self, uid: UUID, share: JobShare, before: JobShare | None) -> bool:
        """Replaces ``before`` (None: nothing); False where something else stands there: another job has sealed it."""
        key, value = f"scans/{uid}/shares/{share.job}", share.to_json()
        written = self._etcd.replace(key, before.to_json(), value) if before else self._etcd.create(key, value)
        return written or self._etcd.get(key) == value

    def share_to_seal(self, uid: UUID, job: str) -> Any:
        """What stands there, to be compared when it is sealed; None where there is nothing to seal."""
        value = self._etcd.get(f"scans/{uid}/shares/{job}")
        return None if value is None or value["sealed"] else value

    def seal_share(self, uid: UUID, share: JobShare, before: Any, role: Registration) -> bool:
        """Writes the share of a lost job for good: it cannot write again.

        ``before`` stood there when its journals were looked at. False where something else does by now, or where the
        job of ``role`` conducts no longer.
        """
        key = f"scans/{uid}/shares/{share.job}"
        return self._etcd.write_while(_CONDUCTOR, role.value, key, share.to_json(), before)

    def shares(self, uid: UUID) -> dict[str, JobShare]:
        found = {}
        for job, value in self._etcd.get_prefix(f"scans/{uid}/shares/").items():
            try:
                found[job] = JobShare.from_json(value)
            except (ValueError, KeyError, TypeError) as error:
                _log.error("ignored scans/%s/shares/%s in etcd: %r", uid, job, error)
        return found

    def delete_shares(self, uid: UUID) -> None:
        """Once the scan has ended and its journals are gone."""
        self._etcd.delete_prefix(f"scans/{uid}/shares/")

    # for people who watch: best effort

    def write_progress(self, uid: UUID, progress: dict[str, int]) -> None:
        self._etcd.put(f"progress/{uid}", progress)

    def progress(self, uid: UUID) -> dict[str, int]:
        """Running totals over all ranks: frames, electrons, blocks, raw_bytes. Empty before the first."""
        return self._etcd.get(f"progress/{uid}") or {}

    def write_status(self, kind: str, name: str, value: Mapping[str, Any]) -> None:
        """``kind``: producers, aggregators or jobs. What a process says about itself, for ``mpistream status``."""
        self._etcd.put(f"status/{kind}/{name}", {**value, "unix_seconds": time.time()})

    def statuses(self, kind: str) -> dict[str, dict[str, Any]]:
        return self._etcd.get_prefix(f"status/{kind}/")

    def delete_status(self, kind: str, name: str) -> None:
        self._etcd.delete(f"status/{kind}/{name}")

    # a job's end

    def request_stop(self, job: str) -> None:
        self._etcd.put(f"jobs/{job}/stop", {"since_unix_seconds": time.time()})

    def watch_stop(self, job: str, on_stop: Callable[[], None]) -> Watch:
        def changed(change: Change) -> None:
            if change[0] == "stop" and change[1] is not None:
                on_stop()

        return self._etcd.watch(f"jobs/{job}/", changed)
