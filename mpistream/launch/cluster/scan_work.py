"""Scans that a batch job announces itself: announced once, however often the job begins, and followed to their ends."""

import time
from pathlib import Path
from uuid import UUID

from mpistream.control.run_state import ScanState
from mpistream.launch.absence import check_present
from mpistream.launch.announcement import ScanRequest, announce, draft_scan
from mpistream.launch.cluster.batch_run import BatchRun
from mpistream.launch.cluster.record import say
from mpistream.launch.inspection import KnownScan
from mpistream.launch.scan_follower import ScanEnd, ScanFollower
from mpistream.model.errors import EtcdUnreachable, ScanFailed

_PRESENT_SECONDS = 600.0  # producers may be started after the job, and an MPI job that died is started again


def wait_until_served(run: BatchRun, direct: bool = False) -> None:
    """Until whatever a scan needs is registered. Raises ScanFailed where that does not come about."""
    deadline, said = time.monotonic() + _PRESENT_SECONDS, ""
    while True:
        try:
            check_present(run.registry, direct)
            return
        except (ScanFailed, EtcdUnreachable) as error:
            if time.monotonic() > deadline:
                raise
            if error.message != said:
                said = error.message
                say(f"waiting: {said}")
        run.turn()


def announce_scan(run: BatchRun, request: ScanRequest) -> UUID:
    """Announces a scan, once everything that it needs is there.

    Or finds the one for the same output that an earlier run of this job has announced, unless that has failed, or that
    another job of the session has left unfinished.
    """
    if (known := known_scan(run, request.output)) is not None:
        facts = known.facts
        state = facts.status.state if facts.status else ScanState.ANNOUNCED
        say(f"scan {facts.uid} was announced for {request.output} before: it is {state}")
        return facts.uid
    if run.is_warned:
        run.wait_until(lambda: False)  # no other scan is begun; what is in hand ends, and with it the job
    if run.session_stopped:
        raise ScanFailed(f"session {run.order.session} was stopped", "start another one: mpistream session start")
    draft, notes = draft_scan(request, run.config)
    for note in notes:
        say(f"note: {note}")
    wait_until_served(run, request.direct)
    record = run.persist(lambda: announce(run.registry, draft))
    say(f"scan {record.uid} is announced: {record.source} -> {record.output}")
    return record.uid


def known_scan(run: BatchRun, output: Path) -> KnownScan | None:
    """The scan for ``output`` that ``announce_scan`` would find."""
    number, session, goes_on = run.allocation.number, run.order.session, run.allocation.restarts > 0
    for scan in reversed(run.book.announced()):
        facts = scan.facts
        if facts.record is None or facts.record.output != str(output.absolute()):
            continue
        # numbers of jobs and of processes are used again: the first run of a job has announced nothing before
        is_mine = goes_on and facts.record.labels.get("batch_job") == number
        is_taken_over = facts.is_unfinished and facts.record.session == session != ""
        if (is_mine and (facts.is_unfinished or scan.summary)) or is_taken_over:
            return scan
    return None


def follow_scan(run: BatchRun, uid: UUID) -> ScanEnd:
    """Until the scan has ended with a dataset. Raises ScanFailed where it has none."""
    record = run.persist(lambda: run.registry.record(uid))
    assert record is not None
    follower = ScanFollower(run.registry, record, run.config, say, run.turn)
    return follower.follow(lambda state, progress: None)
