"""The thread of rank 0 that leads the job: it alone hears of scans from etcd and tells etcd how they go."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from mpistream.control.conductor import Conductor
from mpistream.control.coordination import Change
from mpistream.control.registry import Registry
from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.model.errors import CoordinationError, EtcdUnreachable, MpistreamError, ScanFailed
from mpistream.model.job_messages import JobMessage, JobMessageKind
from mpistream.model.routing_table import RoutingTable
from mpistream.model.scan import ScanRecord, ScanSummary, SectorEnd, Thresholds
from mpistream.pipeline.process import persist
from mpistream.reduction.calibration import fit_sample
from mpistream.storage.placement import remove_partial
from mpistream.transport.mailbox import Mailbox

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_PROGRESS_SECONDS = 0.25
_REGISTRATION_SECONDS = 0.5


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


News = Change | JobMessage | Assembled | AssemblyFailed


class JobLeader:
    """Joins the conductor's decisions with etcd and the ranks.

    While etcd is away it keeps trying for ``patience_seconds``; the ranks go on counting meanwhile.
    """

    def __init__(
        self,
        registry: Registry,
        table: RoutingTable,
        tell_ranks: Callable[[JobMessage], None],
        patience_seconds: float,
        abort: Callable[[BaseException], None],
    ) -> None:
        self.news: Mailbox[News] = Mailbox()
        self._registry = registry
        self._table = table
        self._tell = tell_ranks
        self._patience_seconds = patience_seconds
        self._abort = abort
        self._conductor = Conductor(len(table.ranks), fit_sample, self)
        self._progress: dict[str, dict[int, dict[str, int]]] = {}
        self._progress_written = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leader", daemon=True)

    def start(self) -> None:
        self._scans = self._registry.watch_scans(self.news.put)
        stop = JobMessage(JobMessageKind.STOP, 0)
        self._job = self._registry.watch_stop(self._table.job, lambda: self.news.put(stop))
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._scans.close()
        self._job.close()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self.news.wait_into(self._take, timeout_seconds=1.0)
        except BaseException as error:
            self._abort(error)

    def _take(self, news: News) -> None:
        match news:
            case JobMessage(kind=JobMessageKind.HEARTBEAT):
                self._note_progress(news)
            case JobMessage(kind=JobMessageKind.STOP):
                self._tell(JobMessage(JobMessageKind.STOP, 0))
            case JobMessage():
                self._conductor.told(news)
            case Assembled(uid, summary):
                self._conductor.assembled(uid, summary)
            case AssemblyFailed(uid, error):
                self._conductor.assembly_failed(uid, error)
            case (key, value) if value is not None:
                try:
                    self._take_change(key, value)
                except EtcdUnreachable:
                    raise
                except (ValueError, KeyError, TypeError, CoordinationError) as error:
                    # written by hand, or by another release: no reason to end a job
                    _log.error("ignored %s in etcd: %r", key, error)

    def _take_change(self, key: str, value: Any) -> None:
        uid_text, _, what = key.partition("/")
        uid = UUID(uid_text)
        if what == "record":
            self._take_record(ScanRecord.model_validate(value))
        elif what == "state":
            status = ScanStatus.from_json(value)
            if status.state.is_final:
                self._conductor.failed(uid, ScanFailed(status.reason, status.remedy))
        elif what.startswith("ends/"):
            self._conductor.ended(uid, SectorEnd.model_validate(value))
        elif what.startswith("faults/"):
            self._conductor.failed(uid, ScanFailed(value["message"], value["remedy"]))
        elif what == "abort":
            self._conductor.aborted(uid, ScanFailed(value["reason"]))

    def _take_record(self, record: ScanRecord) -> None:
        """A scan of this job is taken on; one whose job is gone can only be ended."""
        if self._persist(lambda: self._registry.status(record.uid)).state.is_final:
            return
        if record.routing_version == self._table.version:
            _log.info("scan %s: %s, %s", record.uid, record.scan_shape, record.source)
            self._conductor.announced(record)
        elif not self._is_served_elsewhere(record):
            error = ScanFailed("the MPI job that counted this scan has ended", "run the scan again")
            self.set_state(record.uid, ScanState.FAILED, error)
            remove_partial(Path(record.output), record.uid.hex)

    def _is_served_elsewhere(self, record: ScanRecord) -> bool:
        """A job that merely lost its lease for a moment registers again."""
        job = self._persist(lambda: self._registry.routing(record.routing_version)).job
        deadline = time.monotonic() + self._registry.lease_seconds + 2
        while not any(group.job == job for group in self._persist(self._registry.groups)):
            if time.monotonic() > deadline:
                return False
            if self._closed.wait(_REGISTRATION_SECONDS):
                return True  # not known; another job will see to it
        return True

    def _note_progress(self, message: JobMessage) -> None:
        for uid, numbers in message.fields["progress"].items():
            self._progress.setdefault(uid, {})[message.rank] = numbers
        now = time.monotonic()
        if now - self._progress_written < _PROGRESS_SECONDS or not self._progress:
            return
        self._progress_written = now
        running = {str(uid) for uid in self._conductor.unfinished}
        for uid in list(self._progress):
            ranks = self._progress[uid].values()
            total = {name: sum(numbers[name] for numbers in ranks) for name in next(iter(ranks))}
            self._write_progress(UUID(uid), total)
            if uid not in running:
                del self._progress[uid]

    def _write_progress(self, uid: UUID, total: dict[str, int]) -> None:
        """What nobody could see while etcd was away is not made up for."""
        try:
            self._registry.write_progress(uid, total)
        except EtcdUnreachable as error:
            _log.debug("progress not written: %s", error.message)

    # what the conductor decides

    def tell_ranks(self, kind: JobMessageKind, fields: dict[str, Any], binary: bytes = b"") -> None:
        self._tell(JobMessage(kind, 0, fields, binary))

    def set_state(self, uid: UUID, state: ScanState, error: MpistreamError | None = None) -> bool:
        _log.info("scan %s: %s%s", uid, state, f" ({error.message})" if error else "")
        return self._persist(lambda: self._registry.set_state(uid, state, error))

    def write_thresholds(self, uid: UUID, thresholds: Thresholds) -> None:
        self._persist(lambda: self._registry.write_thresholds(uid, thresholds))

    def write_summary(self, uid: UUID, summary: ScanSummary) -> None:
        self._persist(lambda: self._registry.write_summary(uid, summary))

    def _persist(self, action: Callable[[], _T]) -> _T:
        return persist(action, self._patience_seconds)
