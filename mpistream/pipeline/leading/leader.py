"""The thread of rank 0 that leads the job: it alone hears of scans from etcd and tells etcd how they go.

Every turn looks at the facts and does what they ask for, so an attempt that failed because etcd was away is simply made
again. What concerns all jobs is done by one of them: deployment.py, conducting.py.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from mpistream.control.coordination import Change, Watch
from mpistream.control.registry import Registry
from mpistream.control.run_state import ScanState
from mpistream.control.scan_facts import ScanFacts
from mpistream.model.config import Config
from mpistream.model.errors import CoordinationError, EtcdUnreachable, MpistreamError, ScanFailed
from mpistream.model.job_messages import JobMessage, JobMessageKind
from mpistream.model.job_share import JobShare
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.model.scan import ScanSummary
from mpistream.pipeline.leading.conducting import Conducting
from mpistream.pipeline.leading.deployment import Deployment
from mpistream.pipeline.leading.job_scan import JobScan
from mpistream.transport.mailbox import Mailbox

_log = logging.getLogger(__name__)

_TURN_SECONDS = 0.25
_IDLE_TURN_SECONDS = 1.0
_STATUS_SECONDS = 1.0
_IDLE_STATUS_SECONDS = 3.0


class DeclaredDead(MpistreamError):
    """Another job has sealed this job's journals: whatever it counts from now on counts for nothing."""


@dataclass(frozen=True)
class Assembled:
    """From the main thread: a dataset has its final name."""

    uid: UUID
    summary: ScanSummary


@dataclass(frozen=True)
class AssemblyFailed:
    """From the main thread: a dataset could not be written."""

    uid: UUID
    error: MpistreamError


@dataclass(frozen=True)
class Look:
    """Something has changed in etcd that is to be read there."""


News = Change | JobMessage | Assembled | AssemblyFailed | RoutingTable | Look


class JobLeader:
    """Joins what the ranks say with what stands in etcd.

    While etcd is away it keeps trying for ``patience_seconds``; the ranks go on counting meanwhile.
    """

    def __init__(
        self,
        registry: Registry,
        config: Config,
        job: str,
        ranks: tuple[RankEndpoints, ...],
        tell_ranks: Callable[[JobMessage], None],
        abort: Callable[[BaseException], None],
    ) -> None:
        self.news: Mailbox[News] = Mailbox()
        self._registry = registry
        self._job = job
        self._ranks = ranks
        self._tell = tell_ranks
        self._patience_seconds = config.stream.patience_seconds
        self._abort = abort
        self._scans: dict[UUID, JobScan] = {}
        self._deployment = Deployment(registry, config, job, ranks[0], self._look, self._catch_up)
        self._conducting = Conducting(registry, self._deployment, ranks[0].incarnation, self.tell_ranks)
        self._over: set[UUID] = set()
        self._heard: dict[int, float] = {}
        self._table_version = 0
        self._status_written = 0.0
        self._away_since: float | None = None
        self._closed = threading.Event()
        self._watches: list[Watch] = []
        self._thread = threading.Thread(target=self._run, name="leader", daemon=True)

    def start(self) -> None:
        registry = self._registry
        stop = JobMessage(JobMessageKind.STOP, 0)
        self._watches = [
            registry.watch_scans(self.news.put),
            registry.watch_routing(self.news.put),
            registry.watch_groups(self._look),
            registry.watch_producers(self._look),
            registry.watch_conductor(self._look),
            registry.watch_stop(self._job, lambda: self.news.put(stop)),
        ]
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._look()
        for watch in self._watches:
            watch.close()
        self._thread.join(timeout=5)
        self._deployment.close()
        with contextlib.suppress(EtcdUnreachable):
            self._registry.delete_status("jobs", self._job)

    def _look(self) -> None:
        self.news.put(Look())

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self.news.wait_into(self._take, _TURN_SECONDS if self._scans else _IDLE_TURN_SECONDS)
                try:
                    self._turn()
                    self._away_since = None
                except EtcdUnreachable as error:
                    self._wait_for_etcd(error)
        except BaseException as error:
            self._abort(error)

    def _wait_for_etcd(self, error: EtcdUnreachable) -> None:
        now = time.monotonic()
        if self._away_since is None:
            _log.warning("trying again: %s", error.message)
            self._away_since = now
        self._deployment.etcd_was_away()
        if now - self._away_since > self._patience_seconds:
            raise error

    def _take(self, news: News) -> None:
        now = time.monotonic()
        match news:
            case JobMessage(kind=JobMessageKind.HEARTBEAT):
                self._heard[news.rank] = now
            case JobMessage(kind=JobMessageKind.STOP):
                self._tell(JobMessage(JobMessageKind.STOP, 0))
            case JobMessage():
                if (scan := self._scans.get(UUID(news.fields["uid"]))) is not None:
                    scan.told(news, now)
            case Assembled(uid, summary):
                if (scan := self._scans.get(uid)) is not None:
                    scan.assembling, scan.summary = False, summary
            case AssemblyFailed(uid, error):
                if (scan := self._scans.get(uid)) is not None:
                    scan.assembly_failed(error, now)
            case RoutingTable():
                if news.version > self._table_version:
                    self._table_version = news.version
                    self.tell_ranks(JobMessageKind.TABLE, {"table": news.to_json()})
            case Look():
                self._deployment.look()
            case (key, value):
                try:
                    self._take_change(key, value)
                except (ValueError, KeyError, TypeError, CoordinationError) as error:
                    # written by hand, or by another release: no reason to end a job
                    _log.error("ignored scans/%s in etcd: %r", key, error)

    def _catch_up(self) -> None:
        """Everything that stands in etcd about scans, without waiting for the watch to tell."""
        for change in self._registry.scan_keys().items():
            self._take(change)

    def _take_change(self, key: str, value: Any) -> None:
        uid_text, _, what = key.partition("/")
        uid = UUID(uid_text)
        scan = self._scans.get(uid)
        if uid in self._over or (scan is None and value is None):
            return  # the last of a scan that is forgotten
        if scan is None:
            scan = self._scans[uid] = JobScan(ScanFacts(uid), self._job, len(self._ranks))
        if what == f"shares/{self._job}":
            self._check_not_sealed(None if value is None else JobShare.from_json(value))
            if value is None:
                scan.facts.shares.pop(self._job, None)  # the scan has been tidied up
        elif value is not None:
            scan.facts.take(what, value)
            if what.startswith("shares/"):
                self._deployment.look()
        elif what.startswith("shares/"):
            scan.facts.shares.pop(what.removeprefix("shares/"), None)

    def _check_not_sealed(self, share: JobShare | None) -> None:
        if share is not None and share.sealed:
            raise DeclaredDead(
                "this MPI job was taken for dead, and another one goes on in its place; ending it",
                "start it again if it is still wanted; it was stopped, or cut off from etcd, for longer than its lease",
            )

    def _turn(self) -> None:
        now = time.monotonic()
        for scan in list(self._scans.values()):
            self._serve(scan, now)
            if scan.facts.is_unfinished:
                self._write_share(scan, now)
        try:
            self._deployment.turn([scan.facts for scan in self._scans.values()], now)
        except EtcdUnreachable:
            raise
        except (ValueError, KeyError, TypeError, CoordinationError) as error:
            # written by hand, or by another release: no reason to end a job
            _log.error("something in etcd makes no sense: %r", error)
        self._conducting.turn(self._scans, now)
        self._forget_finished()
        self._write_status(now)

    def _write_share(self, scan: JobScan, now: float) -> None:
        for who, fault in scan.faults_to_write.items():
            self._registry.write_fault(scan.uid, who, ScanFailed(*fault))
            scan.facts.faults[who] = fault
        share = scan.share_to_write(now)
        if share is not None:
            if not self._registry.write_share(scan.uid, share, scan.written):
                # sealed; or written by an earlier attempt whose answer never came; or the scan has been tidied up
                scan.written = self._registry.shares(scan.uid).get(self._job, scan.written)
                self._check_not_sealed(scan.written)
                return
            scan.wrote(share, now)
            self._deployment.look()
        scan.use_latest_share()

    def _serve(self, scan: JobScan, now: float) -> None:
        """Tells the ranks what they need to know of a scan."""
        facts, uid = scan.facts, {"uid": str(scan.uid)}
        if not facts.is_unfinished:
            if scan.prepared:
                self.tell_ranks(JobMessageKind.DISCARD, {**uid, "keep": facts.keeps_journals})
                scan.prepared = False
            return
        assert facts.record is not None
        if scan.should_prepare(now):
            if not scan.prepared:
                _log.info("scan %s: %s, %s", facts.uid, facts.record.scan_shape, facts.record.source)
            self.tell_ranks(JobMessageKind.PREPARE, {"record": facts.record.model_dump(mode="json")})
            scan.prepared, scan.thresholds_told, scan.cut_told, scan.flush_told = True, False, frozenset(), False
        if facts.thresholds is not None and not scan.thresholds_told:
            fields = {**uid, "thresholds": facts.thresholds.model_dump(mode="json")}
            self.tell_ranks(JobMessageKind.THRESHOLDS, fields, scan.sample)
            scan.thresholds_told = True
        if facts.sectors_cut - scan.cut_told:
            self.tell_ranks(JobMessageKind.CUT, {**uid, "sectors": sorted(facts.sectors_cut)})
            scan.cut_told = facts.sectors_cut
        closing = facts.state in (ScanState.DRAINING, ScanState.ASSEMBLING)
        if facts.is_cut_short and closing and scan.thresholds_told and not scan.flush_told:
            self.tell_ranks(JobMessageKind.FLUSH, uid)
            scan.flush_told = True

    def _forget_finished(self) -> None:
        """A scan that has ended is forgotten once nothing is left of it to be tidied up."""
        for uid, scan in list(self._scans.items()):
            ended = scan.facts.state is not None and scan.facts.state.is_final
            if ended and not scan.facts.shares and not scan.prepared:
                del self._scans[uid]
                self._over.add(uid)

    def _write_status(self, now: float) -> None:
        """For people who watch: what nobody could see while etcd was away is not made up for."""
        if now - self._status_written < (_STATUS_SECONDS if self._scans else _IDLE_STATUS_SECONDS):
            return
        self._status_written = now
        ranks = [
            {
                "rank": rank.rank,
                "group": rank.group,
                "host": rank.host,
                "silent_seconds": round(now - self._heard.get(rank.rank, now), 2),
                "scans": {str(uid): scan.totals.get(rank.rank, {}) for uid, scan in self._scans.items()},
            }
            for rank in self._ranks
        ]
        self._registry.write_status("jobs", self._job, {"ranks": ranks, "conducts": self._deployment.role is not None})

    def tell_ranks(self, kind: JobMessageKind, fields: dict[str, Any], binary: bytes = b"") -> None:
        self._tell(JobMessage(kind, 0, fields, binary))
