"""What a deployment does at the moment, read from etcd alone: for `mpistream status` and `mpistream scan list`."""

import time
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from mpistream.control.expected_scans import ExpectedScan
from mpistream.control.registry import AggregatorEntry, ProducerEntry, Registry
from mpistream.control.run_state import ScanState
from mpistream.control.scan_facts import ScanFacts
from mpistream.model.config import Config
from mpistream.model.errors import CoordinationError
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.model.scan import ScanSummary

_RATE_SECONDS = 1.0

Numbers = dict[str, Any]


@dataclass(frozen=True)
class ScanView:
    """One scan. ``progress`` are running totals; of a scan that has ended, those of its dataset, if there is one.

    cut       sector -> why nothing more is waited for
    problems  job -> why it cannot go on for the moment
    blocks    how many there are; ``blocks_journaled``: how many are counted and safe; None once the scan has ended
    rates     per second, over the last second: frames, raw_bytes; only while it streams
    """

    uid: UUID
    state: ScanState
    since_unix_seconds: float
    reason: str
    remedy: str
    announced_unix_seconds: float
    source: str
    output: str
    frames: int
    progress: Numbers
    blocks: int
    blocks_journaled: int | None = None
    ends: tuple[int, ...] = ()
    cut: dict[int, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    complete: bool | None = None
    rates: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RankView:
    """A rank. ``silent_seconds``: since its leader heard of it; ``scans``: its totals by uid; ``cores``: those that it
    may use.
    """

    rank: int
    group: int
    host: str
    pid: int
    endpoint: str
    silent_seconds: float | None
    scans: dict[str, Numbers]
    cores: str = ""


@dataclass(frozen=True)
class JobView:
    """A registered MPI job. ``age_seconds``: since its leader wrote what is known of its ranks; ``batch_job``: the
    scheduler's number of the job that it is part of, empty without one.
    """

    job: str
    conducts: bool
    is_routed_to: bool
    groups: int
    groups_registered: int
    ranks: tuple[RankView, ...]
    age_seconds: float | None
    batch_job: str = ""


@dataclass(frozen=True)
class ProcessView:
    """A registered producer or aggregator. ``status`` is what it said last, ``age_seconds`` ago."""

    name: str
    host: str
    pid: int
    status: Numbers
    age_seconds: float | None


@dataclass(frozen=True)
class DeploymentView:
    """Everything at one moment. ``scans``: those that have not ended, and before them the last one that has;
    ``expected``: what batch jobs expect of the camera, the next one first.
    """

    deployment: str
    etcd: tuple[str, ...]
    conductor: str | None
    table: RoutingTable | None
    scans: tuple[ScanView, ...]
    jobs: tuple[JobView, ...]
    producers: tuple[ProcessView, ...]
    aggregators: tuple[ProcessView, ...]
    expected: tuple[ExpectedScan, ...] = ()


def look(registry: Registry, config: Config) -> DeploymentView:
    """Takes a second while a scan streams. Raises EtcdUnreachable."""
    scans = list_scans(registry)
    shown = [scan for scan in scans if scan.state.is_final][-1:] + [scan for scan in scans if not scan.state.is_final]
    table, conductor = registry.latest_routing(), registry.conductor()
    return DeploymentView(
        config.deployment,
        tuple(config.etcd.endpoints),
        conductor,
        table,
        tuple(_with_rates(registry, shown)),
        tuple(_jobs(registry, table, conductor)),
        tuple(_processes(registry, "producers", registry.producers())),
        tuple(_processes(registry, "aggregators", registry.aggregators())),
        tuple(registry.expected.waiting()),
    )


def list_scans(registry: Registry) -> list[ScanView]:
    """Every scan that etcd knows, the one announced last at the end."""
    views = [_scan_view(registry, found) for found in read_scans(registry).values()]
    return sorted(views, key=lambda view: view.announced_unix_seconds)


@dataclass
class KnownScan:
    """All that stands in etcd of one scan but its progress."""

    facts: ScanFacts
    summary: ScanSummary | None = None


def read_scans(registry: Registry) -> dict[UUID, KnownScan]:
    """The scans with their keys as they stand at one moment. What is no key of a scan is left out."""
    found: dict[UUID, KnownScan] = {}
    for key, value in registry.scan_keys().items():
        uid_text, _, what = key.partition("/")
        try:
            uid = UUID(uid_text)
            scan = found.setdefault(uid, KnownScan(ScanFacts(uid)))
            if what == "summary":
                scan.summary = ScanSummary.model_validate(value)
            else:
                scan.facts.take(what, value)
        except (ValueError, KeyError, TypeError):
            continue  # written by hand, or by another release
    return {uid: scan for uid, scan in found.items() if scan.facts.record and scan.facts.status}


def find_scan(registry: Registry, which: str) -> KnownScan:
    """A scan by its uid, by the beginning of it, or the one that was announced last: "latest".

    Raises CoordinationError where there is no such scan, or several.
    """
    scans = list(read_scans(registry).values())
    if which == "latest":
        found = sorted(scans, key=_announced)[-1:]
    else:
        wanted = which.lower().replace("-", "")
        found = [scan for scan in scans if wanted and scan.facts.uid.hex.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} scans whose uid begins with {which}" if found else f"no scan {which}"
    raise CoordinationError(f"this deployment knows {what}", "see mpistream scan list")


def _announced(scan: KnownScan) -> float:
    return scan.facts.record.announced_unix_seconds if scan.facts.record else 0.0


def _scan_view(registry: Registry, scan: KnownScan) -> ScanView:
    facts, summary = scan.facts, scan.summary
    record, status = facts.record, facts.status
    assert record is not None
    assert status is not None
    return ScanView(
        facts.uid,
        status.state,
        status.since_unix_seconds,
        status.reason,
        status.remedy,
        record.announced_unix_seconds,
        record.source,
        summary.dataset if summary else facts.target,
        record.last_frame - record.first_frame + 1,
        summary.counters.model_dump() if summary else registry.progress(facts.uid),
        len(record.block_range),
        len(facts.blocks_journaled) if facts.is_unfinished else None,
        tuple(sorted(facts.ends)),
        {sector: end.cut for sector, end in sorted(facts.ends.items()) if end.cut},
        {job: share.problem for job, share in sorted(facts.shares.items()) if share.problem and not share.sealed},
        summary.complete if summary else None,
    )


def _with_rates(registry: Registry, scans: list[ScanView]) -> list[ScanView]:
    """From the change of the running totals within a second."""
    if not any(scan.state is ScanState.STREAMING for scan in scans):
        return scans
    before, began = {scan.uid: registry.progress(scan.uid) for scan in scans}, time.monotonic()
    time.sleep(_RATE_SECONDS)
    now, seconds = {scan.uid: registry.progress(scan.uid) for scan in scans}, time.monotonic() - began

    def with_rates(scan: ScanView) -> ScanView:
        older, newer = before[scan.uid], now[scan.uid]
        rates = {name: (newer.get(name, 0) - older.get(name, 0)) / seconds for name in ("frames", "raw_bytes")}
        return replace(scan, progress=newer, rates=rates)

    return [with_rates(scan) if scan.state is ScanState.STREAMING else scan for scan in scans]


def _jobs(registry: Registry, table: RoutingTable | None, conductor: str | None) -> list[JobView]:
    statuses = registry.statuses("jobs")
    groups = registry.groups()
    views = []
    for job in sorted({group.job for group in groups}):
        status, of_job = statuses.get(job, {}), [group for group in groups if group.job == job]
        ranks = [_rank(rank, status) for group in of_job for rank in group.ranks]
        routed = table is not None and job in table.jobs
        views.append(
            JobView(
                job,
                job == conductor,
                routed,
                of_job[0].groups,
                len(of_job),
                tuple(ranks),
                _age_seconds(status),
                of_job[0].batch_job,
            )
        )
    return views


def _rank(rank: RankEndpoints, status: Numbers) -> RankView:
    said: Numbers = next((said for said in status.get("ranks", []) if said.get("rank") == rank.rank), {})
    return RankView(
        rank.rank,
        rank.group,
        rank.host,
        rank.pid,
        rank.data_endpoint,
        said.get("silent_seconds"),
        said.get("scans", {}),
        rank.cores,
    )


def _processes(
    registry: Registry, kind: str, entries: list[ProducerEntry] | list[AggregatorEntry]
) -> list[ProcessView]:
    statuses = registry.statuses(kind)
    views = []
    for entry in entries:
        name = entry.name if isinstance(entry, AggregatorEntry) else str(entry.producer_id)
        status = dict(statuses.get(name, {}))
        if isinstance(entry, ProducerEntry):
            status |= {"sector": entry.sector, "table": entry.table}
        views.append(ProcessView(name, entry.host, entry.pid, status, _age_seconds(status)))
    return views


def _age_seconds(status: Numbers) -> float | None:
    """Hosts' clocks differ: never below 0. None where nothing was said yet."""
    written = status.get("unix_seconds")
    return None if written is None else round(max(0.0, time.time() - written), 2)
