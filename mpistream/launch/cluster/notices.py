"""What a batch job is told while it runs: by signals, by its time limit, by who stops its session."""

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self
from uuid import UUID

from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.cluster.allocation import Allocation
from mpistream.launch.cluster.course import HANDOVER_SECONDS, Rules, time_is_short
from mpistream.launch.cluster.record import JobRecord, say
from mpistream.model.errors import CoordinationError
from mpistream.model.session import BatchJobState

_SESSION_SECONDS = 1.0
#: The program hears of a scan's end later than who counts the scans in hand; then it may be done.
_HEARS_SECONDS = 2.0
#: Why a job was warned: who looks for a signal that did not come must be able to tell.
_SLURM_SAYS = "Slurm says that the time limit is near"
_OWN_CLOCK = "by the job's own clock the time limit is near"
_ASKED = "it was asked to end after the scan in hand"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Signals:
    """Signals are noted, and end nothing by themselves, as long as this is entered.

    told     to end at once: SIGTERM, SIGINT
    drained  to end after the scan in hand, for good: SIGUSR2
    warning  why only the scan in hand is to be finished, in words: SIGUSR1, SIGUSR2; empty without one
    """

    def __init__(self) -> None:
        self.told = self.drained = False
        self.warning = ""
        self._handled: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._handled = {number: signal.signal(number, self._signalled) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._handled.items():
            signal.signal(number, handler)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self.told = True
            return
        self.drained |= number == signal.SIGUSR2
        self.warning = _ASKED if self.drained else _SLURM_SAYS


class Notices:
    """``sessions`` is None, or ``session`` empty, where the job serves none."""

    def __init__(
        self,
        signals: Signals,
        sessions: SessionRegistry | None,
        session: str,
        rules: Rules,
        allocation: Allocation,
        record: JobRecord,
    ) -> None:
        self.session_stopped = False
        self._signals = signals
        self._sessions = sessions
        self._session = session
        self._rules = rules
        self._allocation = allocation
        self._record = record
        self._session_asked = 0.0
        self._warned: float | None = None
        self._in_hand: frozenset[UUID] = frozenset()
        self._had_in_hand = 0.0

    @property
    def seconds_left(self) -> float | None:
        """Of the time limit; None where it is not known, or there is none."""
        ends_by = self._allocation.ends_by_unix_seconds()
        return None if ends_by is None else ends_by - time.time()

    @property
    def warned_seconds(self) -> float | None:
        """Since the job was warned; None: it was not."""
        return None if self._warned is None else time.monotonic() - self._warned

    def look(self, begun: Callable[[], set[UUID]]) -> None:
        """To be called several times a second. ``begun``: what is under way; asked once, when the job is warned."""
        self._look_at_session()
        self._record.update(ends_by_unix_seconds=self._allocation.ends_by_unix_seconds())
        near = _OWN_CLOCK if time_is_short(self.seconds_left, self._rules) else ""
        if self._warned is None and (why := self._signals.warning or near):
            self._warn(why, frozenset(begun()))

    def _warn(self, why: str, in_hand: frozenset[UUID]) -> None:
        """Once, by a signal or by the job itself: what has begun by then is in hand."""
        self._warned = self._had_in_hand = time.monotonic()
        self._in_hand = in_hand
        left = self.seconds_left
        seconds = self._rules.finish_seconds if left is None else max(0.0, left - HANDOVER_SECONDS)
        waits = f"; scans in hand: {len(in_hand)}, which have {seconds:.0f} s to end" if in_hand else ""
        say(f"{why}{waits}")
        self._record.update(state=BatchJobState.FINISHING, reason=why)

    def has_in_hand(self, begun: set[UUID], is_working: bool) -> bool:
        """Whether something that had begun when the job was warned has not ended, or only just now."""
        if self._in_hand & begun or is_working:
            self._had_in_hand = time.monotonic()
        return self._warned is not None and time.monotonic() - self._had_in_hand < _HEARS_SECONDS

    def _look_at_session(self) -> None:
        if self._sessions is None or self.session_stopped or not self._session:
            return
        if time.monotonic() - self._session_asked < _SESSION_SECONDS:
            return
        self._session_asked = time.monotonic()
        try:
            stop = self._sessions.session_stop(self._session)
        except CoordinationError:
            return  # as soon as etcd answers
        if stop is not None:
            self.session_stopped = True
            say(f"session {self._session} is stopped{': ' + stop.reason if stop.reason else ''}")
