"""Follows an announced scan to its end."""

import logging
import time
from collections.abc import Callable

from mpistream.control.coordination import Change
from mpistream.control.registry import Registry
from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.model.errors import CoordinationError, EtcdUnreachable, MpistreamError, ScanFailed
from mpistream.model.geometry import SECTORS
from mpistream.model.scan import ScanRecord, ScanSummary
from mpistream.pipeline.process import persist
from mpistream.transport.mailbox import Mailbox

_log = logging.getLogger(__name__)

_TURN_SECONDS = 0.25
_ABORT_SECONDS = 2.0


class ScanFollower:
    """Follows one announced scan. ``check_alive`` raises ScanFailed when a process that the scan needs is gone."""

    def __init__(self, registry: Registry, record: ScanRecord, patience_seconds: float) -> None:
        self._registry = registry
        self._record = record
        self._patience_seconds = patience_seconds
        self._news: Mailbox[Change] = Mailbox()
        self._etcd_is_away = False

    def follow(
        self, check_alive: Callable[[ScanState], None], on_progress: Callable[[ScanState, dict[str, int]], None]
    ) -> ScanSummary:
        """Returns when the dataset has its final name. Raises ScanFailed when the scan ends otherwise, and when
        nothing moves for ``patience_seconds``; an interrupt aborts the scan first.
        """
        watch = self._registry.watch_scan(self._record.uid, self._news.put)
        try:
            return self._follow(check_alive, on_progress)
        except KeyboardInterrupt:
            self._end(ScanFailed("interrupted by the user"))
            raise
        except ScanFailed as error:
            self._end(error)
            raise
        finally:
            watch.close()
            self._news.close()

    def _follow(
        self, check_alive: Callable[[ScanState], None], on_progress: Callable[[ScanState, dict[str, int]], None]
    ) -> ScanSummary:
        state = ScanState.ANNOUNCED
        progress: dict[str, int] = {}
        moved = time.monotonic()
        while True:
            for key, value in self._news.wait(_TURN_SECONDS):
                if key == "state" and value is not None:
                    status = ScanStatus.from_json(value)
                    state, moved = status.state, time.monotonic()
                    if state.is_final:
                        return self._ended(status)
            check_alive(state)
            latest = self._latest_progress(progress)
            if latest != progress:
                progress, moved = latest, time.monotonic()
            on_progress(state, progress)
            if state is ScanState.ASSEMBLING or time.monotonic() - moved < self._patience_seconds:
                continue  # the job itself limits how long it writes
            if state is ScanState.ANNOUNCED and self._others_stream():
                moved = time.monotonic()  # scans stream one after the other
            else:
                raise ScanFailed(
                    f"the scan made no progress for {self._patience_seconds:g} s",
                    "look into the logs; [stream] patience_seconds sets this limit",
                )

    def _latest_progress(self, before: dict[str, int]) -> dict[str, int]:
        """While etcd is away the stream goes on; only it cannot be seen."""
        try:
            latest = self._registry.progress(self._record.uid)
        except EtcdUnreachable as error:
            if not self._etcd_is_away:
                _log.warning("waiting: %s", error.message)
            self._etcd_is_away = True
            return before
        self._etcd_is_away = False
        return latest

    def _others_stream(self) -> bool:
        try:
            return self._registry.is_streaming()
        except EtcdUnreachable:
            return False

    def _ended(self, status: ScanStatus) -> ScanSummary:
        summary = persist(lambda: self._registry.summary(self._record.uid), self._patience_seconds)
        if summary is None:
            raise ScanFailed(status.reason or f"the scan ended {status.state}", status.remedy)
        return summary

    def _end(self, error: MpistreamError) -> None:
        """Ends the scan for all: asks the job to, and does it in its place where the job is gone."""
        try:
            self._registry.request_abort(self._record.uid, error.message)
            deadline = time.monotonic() + _ABORT_SECONDS
            while time.monotonic() < deadline:
                state = self._registry.status(self._record.uid).state
                if state.is_final:
                    return
                if state is ScanState.ASSEMBLING and not job_has_ended(self._registry, self._record):
                    return  # a dataset that is being written is finished
                time.sleep(0.05)
            self._registry.set_state(self._record.uid, ScanState.ABORTED, error)
        except CoordinationError as unreachable:
            _log.error("the scan could not be aborted: %s", unreachable)


class RegistrationCheck:
    """Whether the processes that a scan needs are registered in etcd.

    A lease may run out by mistake and be taken anew: only what stays away for longer than that is taken for dead.
    While etcd itself is away, nothing is known.
    """

    def __init__(self, registry: Registry, record: ScanRecord) -> None:
        self._registry = registry
        self._record = record
        self._absent_since: float | None = None

    def __call__(self, state: ScanState) -> None:
        """Raises ScanFailed when a process is gone."""
        try:
            self._check(state)
        except EtcdUnreachable:
            self._absent_since = None
        except ScanFailed:
            now = time.monotonic()
            self._absent_since = self._absent_since or now
            if now - self._absent_since > self._registry.lease_seconds + 2:
                raise
        else:
            self._absent_since = None

    def _check(self, state: ScanState) -> None:
        registry = self._registry
        if job_has_ended(registry, self._record):
            raise ScanFailed(
                "the MPI job that counts this scan has ended", "look into the consumers' log; start it again"
            )
        if state is not ScanState.ASSEMBLING:
            check_senders(registry, self._record.direct)


def job_has_ended(registry: Registry, record: ScanRecord) -> bool:
    job = registry.routing(record.routing_version).job
    return not any(group.job == job for group in registry.groups())


def check_senders(registry: Registry, direct: bool) -> None:
    """Raises ScanFailed unless all producers, and an aggregator where one is needed, are registered."""
    absent = set(range(SECTORS)) - {producer.sector for producer in registry.producers()}
    if absent:
        raise ScanFailed(
            f"no producer is registered for sector {', '.join(map(str, sorted(absent)))}",
            "start one for each sector: mpistream produce --sector N; if one has ended, its log says why",
        )
    if not direct and not registry.aggregators():
        raise ScanFailed("no aggregator is registered", "start one (mpistream aggregate), or stream with --direct")
