"""What became of a session: its scans in order, and the batch jobs that serve it."""

import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

from mpistream.control.expected_scans import ExpectedScan
from mpistream.control.registry import Registry
from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.cluster.job_view import Scheduler, view_jobs
from mpistream.launch.inspection import KnownScan, read_scans
from mpistream.launch.sessions import find_session
from mpistream.model.errors import ScanFailed
from mpistream.model.scan import ScanRecord, ScanSummary
from mpistream.model.session import BatchJob, Session, SessionStop

_TURN_SECONDS = 0.25
#: How often a scheduler is asked while one waits.
_ASK_SECONDS = 10.0


@dataclass(frozen=True)
class SessionScan:
    """One scan. ``number``: its place in the session, from 1; the camera's, in the record, are used again.

    progress  running totals; of a scan that has a dataset, those of it
    cut       sector -> why nothing more of it was waited for
    summary   of the dataset, where there is one
    """

    number: int
    record: ScanRecord
    status: ScanStatus
    progress: Mapping[str, int]
    cut: Mapping[int, str]
    summary: ScanSummary | None


@dataclass(frozen=True)
class SessionView:
    """A session, everything that was announced in it, and its batch jobs in the order of their submission.

    ``expected``: what these expect of the camera, the next one first.
    """

    session: Session
    stop: SessionStop | None
    scans: tuple[SessionScan, ...]
    jobs: tuple[BatchJob, ...]
    expected: tuple[ExpectedScan, ...] = ()

    @property
    def states(self) -> dict[ScanState, int]:
        """How many scans are in each state, in the order of states; those that no scan is in are left out."""
        counted = Counter(scan.status.state for scan in self.scans)
        return {state: counted[state] for state in ScanState if counted[state]}

    @property
    def unfinished(self) -> tuple[SessionScan, ...]:
        return tuple(scan for scan in self.scans if not scan.status.state.is_final)

    @property
    def serving(self) -> tuple[BatchJob, ...]:
        """The batch jobs that have not ended."""
        return tuple(job for job in self.jobs if not job.state.is_final)


def show_session(
    sessions: SessionRegistry, registry: Registry, name: str, scheduler: Scheduler | None = None
) -> SessionView:
    """As view_jobs has the batch jobs. Raises ConfigError for a session that is not known."""
    session = find_session(sessions, name)
    return _view(sessions, registry, session, read_scans(registry), _batch_jobs(sessions, scheduler))


def list_sessions(
    sessions: SessionRegistry, registry: Registry, scheduler: Scheduler | None = None
) -> list[SessionView]:
    """All of them, the oldest first."""
    scans, jobs = read_scans(registry), _batch_jobs(sessions, scheduler)
    return [_view(sessions, registry, session, scans, jobs) for session in sessions.sessions().values()]


def _batch_jobs(sessions: SessionRegistry, scheduler: Scheduler | None) -> list[BatchJob]:
    return [view.job for view in view_jobs(sessions, scheduler, socket.gethostname())]


def _view(
    sessions: SessionRegistry,
    registry: Registry,
    session: Session,
    known: Mapping[UUID, KnownScan],
    jobs: list[BatchJob],
) -> SessionView:
    records = [scan.facts.record for scan in known.values() if scan.facts.record is not None]
    own = sorted((record.announced_unix_seconds, record.uid) for record in records if record.session == session.name)
    return SessionView(
        session,
        sessions.session_stop(session.name),
        tuple(_scan(registry, number, known[uid]) for number, (_, uid) in enumerate(own, 1)),
        tuple(job for job in jobs if job.session == session.name),
        tuple(scan for scan in registry.expected.waiting() if scan.session == session.name),
    )


def _scan(registry: Registry, number: int, known: KnownScan) -> SessionScan:
    facts, summary = known.facts, known.summary
    assert facts.record is not None
    assert facts.status is not None
    progress = summary.counters.model_dump() if summary else registry.progress(facts.uid)
    cut = {sector: end.cut for sector, end in sorted(facts.ends.items()) if end.cut}
    return SessionScan(number, facts.record, facts.status, progress, cut, summary)


def wait_until_over(
    look: Callable[[bool], SessionView], patience_seconds: float, say: Callable[[SessionView], object]
) -> SessionView:
    """Returns when no scan of a session is unfinished and no batch job serves it. ``say`` is told when that changes.
    ``look`` is told whether to ask the scheduler, too, which takes a while: now and then.

    Raises ScanFailed after ``patience_seconds``: what is under way goes on all the same.
    """
    began, said = time.monotonic(), None
    deadline, asks_at = began + patience_seconds, began
    while True:
        asks = time.monotonic() >= asks_at
        view = look(asks)
        if asks:
            asks_at = time.monotonic() + _ASK_SECONDS
        if not view.unfinished and not view.serving:
            return view
        if time.monotonic() > deadline:
            scans, jobs = len(view.unfinished), len(view.serving)
            raise ScanFailed(
                f"after {patience_seconds:g} s {scans} scan{'s' if scans != 1 else ''} of session {view.session.name} "
                f"{'are' if scans != 1 else 'is'} unfinished, and {jobs} batch job{'s' if jobs != 1 else ''} serve it",
                f"they go on; see mpistream session show {view.session.name}; to end a scan: mpistream scan abort UID",
            )
        if (left := (view.states, [(job.scheduled, job.state) for job in view.serving])) != said:
            said = left
            say(view)
        time.sleep(_TURN_SECONDS)
