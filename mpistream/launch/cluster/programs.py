"""What a batch job does in the modes of one scan or of any, and what all modes have in common.

docs/modes.md describes them. A program is a function of the run: it returns when the mode has done what it is for.
"""

from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from mpistream.control.run_state import ScanState
from mpistream.launch.announcement import ScanRequest
from mpistream.launch.cluster.batch_run import DONE, NOT_WHOLE, BatchRun, ProgramEnd
from mpistream.launch.cluster.scan_work import announce_scan, follow_scan
from mpistream.launch.references import known_sessions, resolve_references
from mpistream.launch.scan_follower import ScanEnd, in_words
from mpistream.launch.sessions import scan_defaults
from mpistream.model.errors import ConfigError, MpistreamError, ScanFailed
from mpistream.model.scan import CountingParameters
from mpistream.model.session import Session


@dataclass(frozen=True)
class Scans:
    """What the scans of a program have in common. ``output`` is one dataset, or a folder of them, absolute.

    What ``counting`` does not set, and ``thresholds`` where that is None, is as the session has it.
    """

    source: str
    output: Path
    counting: CountingParameters = field(default_factory=CountingParameters)
    overwrite: bool = False
    thresholds: Path | None = None
    recording: bool = False


def request_scan(run: BatchRun, scans: Scans, source: str, output: Path, **labels: int | float) -> ScanRequest:
    """Raises MpistreamError for a reference that is not known, or has changed."""
    counting, thresholds = scans.counting, scans.thresholds
    session = session_of(run)
    if session is not None and not scans.recording:
        given = counting.model_dump(exclude_unset=True) | ({"thresholds": thresholds} if thresholds else {})
        values, thresholds = scan_defaults(session, given)
        counting = CountingParameters(**values)
    request = ScanRequest(
        source,
        output,
        counting,
        overwrite=scans.overwrite,
        thresholds=thresholds,
        session=run.order.session,
        labels={**labels, "batch_job": run.allocation.number},
        recording=scans.recording,
    )
    return run.persist(lambda: resolve_references(run.sessions, request))


def session_of(run: BatchRun) -> Session | None:
    name = run.order.session
    return run.persist(lambda: run.sessions.session(name)) if name else None


def needed_session(run: BatchRun) -> Session:
    """Raises ConfigError where the session was never started: nothing would ever be announced in it."""
    if not run.order.session:
        raise ConfigError(f"mode {run.order.mode} needs a session", "give --session NAME")
    session = session_of(run)
    if session is None:
        raise ConfigError(f"there is no session {run.order.session}", known_sessions(run.sessions))
    return session


def live(run: BatchRun) -> ProgramEnd:
    """Serves whatever scans are announced, until the session is stopped and its scans have ended."""
    needed_session(run)
    before = _ended_scans(run)
    run.wait_until(lambda: run.session_stopped and not run.book.unfinished(run.order.session))
    return ProgramEnd(f"session {run.order.session} was stopped; scans served: {len(_ended_scans(run) - before)}")


def _ended_scans(run: BatchRun) -> set[UUID]:
    return {scan.facts.uid for scan in run.book.of_session(run.order.session) if not scan.facts.is_unfinished}


def single(run: BatchRun, scans: Scans | None) -> ProgramEnd:
    """One scan: the one that is given, counted, recorded or replayed; or else the next one of the session."""
    uid = (
        _next_of_session(run)
        if scans is None
        else announce_scan(run, request_scan(run, scans, scans.source, scans.output))
    )
    end = follow_scan(run, uid)
    text = f"{end.summary.dataset}, {end.summary.counters.frames} frames"
    if is_whole(end):
        return ProgramEnd(text)
    return ProgramEnd(f"{text}, {end.status.state}: {in_words(end.status)}", NOT_WHOLE)


def is_whole(end: ScanEnd) -> bool:
    return end.status.state is ScanState.COMMITTED


def _next_of_session(run: BatchRun) -> UUID:
    session = needed_session(run).name
    before = _ended_scans(run)
    if run.allocation.restarts:  # what it served before, and another job may have finished meanwhile, is its scan
        before = {uid for uid in before if _ended_unix_seconds(run, uid) < run.first_begun_unix_seconds}
    run.wait_until(lambda: run.session_stopped or any(_since(run, before)))
    for uid in _since(run, before):
        return uid
    raise ScanFailed(
        f"session {session} was stopped before a scan was announced", "start another one: mpistream session start"
    )


def _ended_unix_seconds(run: BatchRun, uid: UUID) -> float:
    status = run.book.scans[uid].facts.status
    return status.since_unix_seconds if status else 0.0


def _since(run: BatchRun, before: set[UUID]) -> list[UUID]:
    """The first one first."""
    return [scan.facts.uid for scan in run.book.of_session(run.order.session) if scan.facts.uid not in before]


def filebased(run: BatchRun) -> ProgramEnd:
    """The command itself counts, from files."""
    step = run.wait_until_command_ended()
    if step.exit_status not in (DONE, NOT_WHOLE):
        raise MpistreamError(step.how, "its last words stand in the job's log, and in mpistream job show")
    return ProgramEnd(step.last_lines[-1] if step.last_lines else "the command has ended", step.exit_status or DONE)
