"""What became of a session: its scans in order, and the batch jobs that serve it. Read from etcd alone."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

from mpistream.control.registry import Registry
from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.inspection import KnownScan, read_scans
from mpistream.launch.sessions import find_session
from mpistream.model.errors import ScanFailed
from mpistream.model.scan import ScanRecord, ScanSummary
from mpistream.model.session import BatchJob, Session, SessionStop

_TURN_SECONDS = 0.25


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
    """A session, everything that was announced in it, and its batch jobs in the order of their submission."""

    session: Session
    stop: SessionStop | None
    scans: tuple[SessionScan, ...]
    jobs: tuple[BatchJob, ...]

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


def show_session(sessions: SessionRegistry, registry: Registry, name: str) -> SessionView:
    """Raises ConfigError for a session that is not known."""
    return _view(sessions, registry, find_session(sessions, name), read_scans(registry))


def list_sessions(sessions: SessionRegistry, registry: Registry) -> list[SessionView]:
    """All of them, the oldest first."""
    scans = read_scans(registry)
    return [_view(sessions, registry, session, scans) for session in sessions.sessions().values()]


def _view(
    sessions: SessionRegistry, registry: Registry, session: Session, known: Mapping[UUID, KnownScan]
) -> SessionView:
    records = [scan.facts.record for scan in known.values() if scan.facts.record is not None]
    own = sorted((record.announced_unix_seconds, record.uid) for record in records if record.session == session.name)
    return SessionView(
        session,
        sessions.session_stop(session.name),
        tuple(_scan(registry, number, known[uid]) for number, (_, uid) in enumerate(own, 1)),
        tuple(job for job in sessions.batch_jobs() if job.session == session.name),
    )


def _scan(registry: Registry, number: int, known: KnownScan) -> SessionScan:
    facts, summary = known.facts, known.summary
    assert facts.record is not None
    assert facts.status is not None
    progress = summary.counters.model_dump() if summary else registry.progress(facts.uid)
    cut = {sector: end.cut for sector, end in sorted(facts.ends.items()) if end.cut}
    return SessionScan(number, facts.record, facts.status, progress, cut, summary)


def wait_until_over(
    look: Callable[[], SessionView], patience_seconds: float, say: Callable[[SessionView], object]
) -> SessionView:
    """Returns when no scan of a session is unfinished and no batch job serves it. ``say`` is told when that changes.

    Raises ScanFailed after ``patience_seconds``: what is under way goes on all the same.
    """
    deadline, said = time.monotonic() + patience_seconds, None
    while (view := look()).unfinished or view.serving:
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
    return view
