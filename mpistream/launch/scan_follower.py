"""Follows an announced scan to its end, through failures of whatever serves it."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from mpistream.control.coordination import Change, Watch
from mpistream.control.registry import Registry
from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.launch.absence import Absence, AbsenceNotes, absent_groups, absent_senders
from mpistream.launch.scan_control import abort_unserved
from mpistream.model.config import Config
from mpistream.model.errors import CoordinationError, EtcdUnreachable, MpistreamError, ScanFailed
from mpistream.model.scan import ScanRecord, ScanSummary
from mpistream.transport.mailbox import Mailbox

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_TURN_SECONDS = 0.25
_LOOK_SECONDS = 1.0
_ABORT_SECONDS = 10.0

OnProgress = Callable[[ScanState, dict[str, int]], None]


@dataclass(frozen=True)
class ScanEnd:
    """How a scan ended that has a dataset: committed, incomplete, or aborted with what had arrived."""

    status: ScanStatus
    summary: ScanSummary


def in_words(status: ScanStatus) -> str:
    """Why a scan ended, or what it waits for, and what to do: one line."""
    return "; ".join(" ".join(text.split()) for text in (status.reason, status.remedy) if text)


def _nothing() -> None:
    """Nobody needs a turn, and the scan is announced already."""


class ScanFollower:
    """Follows one announced scan.

    Whatever dies meanwhile is waited for: ``say`` is told, in one line, what the scan waits for. ``turn`` is called
    several times a second; what it raises ends the following, not the scan.
    """

    def __init__(
        self,
        registry: Registry,
        record: ScanRecord,
        config: Config,
        say: Callable[[str], None] = _log.warning,
        turn: Callable[[], object] = _nothing,
    ) -> None:
        self._registry = registry
        self._record = record
        self._config = config
        self._say = say
        self._turn = turn
        self._news: Mailbox[Change] = Mailbox()
        self._status = ScanStatus(ScanState.ANNOUNCED, record.announced_unix_seconds)
        self._hindrances: dict[str, str] = {}
        self._said: set[str] = set()
        self._progress: dict[str, int] = {}
        self._absences: list[Absence] = []
        self._notes = AbsenceNotes(config.etcd.lease_seconds + 2)
        self._others: object = None
        self._etcd_is_away = False
        self._moved = self._looked = time.monotonic()

    def follow(self, on_progress: OnProgress, begin: Callable[[], object] = _nothing) -> ScanEnd:
        """Returns when the scan has ended with a dataset.

        Raises ScanFailed when it has ended without one, and when nothing moves for ``patience_seconds``: a scan that
        has begun is then left as it is, and goes on as soon as it can. An interrupt ends the scan without a dataset.
        ``begin`` announces the scan where it is not announced yet: then there is no moment at which an interrupt
        leaves it behind.
        """
        watch: Watch | None = None
        try:
            begin()
            watch = self._persist(lambda: self._registry.watch_scan(self._record.uid, self._news.put))
            return self._follow(on_progress)
        except KeyboardInterrupt:
            self._discard("interrupted by the user")
            raise
        finally:
            if watch is not None:
                watch.close()
            self._news.close()

    def _follow(self, on_progress: OnProgress) -> ScanEnd:
        while True:
            for key, value in self._news.wait(_TURN_SECONDS):
                self._moved = time.monotonic()
                if value is not None:
                    self._take(key, value)
            if self._status.state.is_final:
                return self._ended()
            self._turn()
            self._look()
            on_progress(self._status.state, self._progress)
            if time.monotonic() - self._moved > self._patience_seconds():
                raise self._gives_up()

    def _take(self, key: str, value: Any) -> None:
        if key == "state":
            status = ScanStatus.from_json(value)
            if not status.state.is_final:
                self._hinder("", in_words(status))
            self._status = status
        elif key.startswith("shares/"):
            job = key.removeprefix("shares/")
            self._hinder(job, "" if value.get("sealed") else str(value.get("problem", "")))

    def _hinder(self, who: str, why: str) -> None:
        """Says once what the scan waits for; ``who`` is the job that cannot go on, empty for the scan itself."""
        self._hindrances[who] = why
        if why and why not in self._said:
            self._said.add(why)
            self._say(f"waiting: {why}")

    def _look(self) -> None:
        """While etcd is away the stream goes on; only it cannot be seen."""
        try:
            self._progress = self._compare(self._progress, self._registry.progress(self._record.uid))
            if time.monotonic() - self._looked > _LOOK_SECONDS:
                self._looked = time.monotonic()
                self._absences = self._compare(self._absences, self._absent())
                self._others = self._compare(self._others, self._other_streams())
                for note in self._notes.look(self._absences):
                    self._say(note)
        except EtcdUnreachable as error:
            if not self._etcd_is_away:
                self._say(f"waiting: {error.message}")
            self._etcd_is_away = True
            self._notes.nothing_is_known()
        else:
            if self._etcd_is_away:
                self._say("etcd answers again")
            self._etcd_is_away = False

    def _compare(self, before: _T, now: _T) -> _T:
        """Whatever changes shows that something moves."""
        if before != now:
            self._moved = time.monotonic()
        return now

    def _absent(self) -> list[Absence]:
        """A dataset is written without those that send."""
        absences = absent_groups(self._registry)
        if self._status.state is not ScanState.ASSEMBLING:
            absences += absent_senders(self._registry, self._record.direct)
        return absences

    def _other_streams(self) -> object:
        """How far the scan has come for whose end this one waits: scans stream one after the other."""
        if self._status.state is not ScanState.ANNOUNCED:
            return None
        streaming = [uid for uid, status in self._registry.scans().items() if status.state is ScanState.STREAMING]
        return [(uid, self._registry.progress(uid)) for uid in streaming]

    def _patience_seconds(self) -> float:
        """The job itself limits how long it writes."""
        seconds = self._config.stream.patience_seconds
        writes = self._status.state is ScanState.ASSEMBLING and not self._status.reason and not self._absences
        return seconds + (self._config.watchdog.assembly_seconds if writes else 0)

    def _gives_up(self) -> ScanFailed:
        seconds, state = self._config.stream.patience_seconds, self._status.state
        why = [why for why in self._hindrances.values() if why] or [absence.message for absence in self._absences]
        if self._etcd_is_away:
            why = ["etcd is away"]
        message = f"the scan made no progress for {seconds:g} s" + (f": {'; '.join(why)}" if why else "")
        if state is ScanState.ANNOUNCED:
            self._discard(message)
            return ScanFailed(message, "look into the logs; [stream] patience_seconds sets this limit")
        return ScanFailed(
            message,
            f"it is {state} and goes on as soon as it can: see mpistream status; "
            f"to end it: mpistream scan abort {self._record.uid}",
        )

    def _ended(self) -> ScanEnd:
        summary = self._persist(lambda: self._registry.summary(self._record.uid))
        if summary is None:
            status = self._status
            raise ScanFailed(
                status.reason or f"the scan ended {status.state}", status.remedy or "there is no dataset; scan again"
            )
        return ScanEnd(self._status, summary)

    def _persist(self, action: Callable[[], _T]) -> _T:
        """Does ``action`` as soon as etcd answers. Raises EtcdUnreachable when it stays away."""
        deadline = time.monotonic() + self._config.stream.patience_seconds
        while True:
            try:
                return action()
            except EtcdUnreachable:
                if time.monotonic() > deadline:
                    raise
                self._turn()
                time.sleep(_TURN_SECONDS)

    def _discard(self, reason: str) -> None:
        """Ends the scan for all: asks the job to, and does it in its place where there is none."""
        uid = self._record.uid
        try:
            if self._registry.record(uid) is None:
                return  # it has not been announced
            self._registry.request_abort(uid, reason, keep=False)
            status = self._wait_for_end(reason)
            summary = self._registry.summary(uid) if status else None
        except CoordinationError as unreachable:
            self._say(f"the scan could not be aborted: {unreachable.message}")
            return
        if status is None:
            self._say(f"the MPI job has not ended the scan yet; see mpistream status (scan {uid})")
        elif summary is not None:
            self._say(f"the dataset was already there: {summary.dataset}")

    def _wait_for_end(self, reason: str) -> ScanStatus | None:
        """None where the scan has not ended within ``_ABORT_SECONDS``."""
        uid, begun = self._record.uid, time.monotonic()
        while (waited := time.monotonic() - begun) < _ABORT_SECONDS:
            with suppress(MpistreamError):
                self._turn()
            status = self._registry.status(uid)
            if status.state.is_final:
                return status
            abort_unserved(self._registry, uid, status, ScanFailed(reason), waited)
            time.sleep(0.05)
        return None
