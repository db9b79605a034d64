"""Scans that a batch job announces itself, or expects of the camera: once, however often the job begins, and followed
to their ends.
"""

import time
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from mpistream.control.run_state import ScanState
from mpistream.launch.absence import check_present
from mpistream.launch.announcement import ScanRequest, announce, draft_scan
from mpistream.launch.cluster.batch_run import BatchRun
from mpistream.launch.cluster.record import say
from mpistream.launch.cluster.series_sources import CAMERA
from mpistream.launch.inspection import KnownScan
from mpistream.launch.scan_follower import ScanEnd, ScanFollower
from mpistream.model.errors import EtcdUnreachable, ScanFailed
from mpistream.model.scan import ScanRecord

_PRESENT_SECONDS = 600.0  # producers may be started after the job, and an MPI job that died is started again
_LOOK_SECONDS = 1.0


class NotBegun(ScanFailed):
    """The camera has not begun the scan that was expected, and none that it begins will be that one."""


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
    """Announces a scan, once everything that it needs is there; one of the camera is expected from then on.

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
    if request.source == CAMERA:
        return _expect(run, request)
    draft, notes = draft_scan(request, run.config)
    for note in notes:
        say(f"note: {note}")
    wait_until_served(run, request.direct)
    record = run.persist(lambda: announce(run.registry, draft))
    say(f"scan {record.uid} is announced: {record.source} -> {record.output}")
    return record.uid


def _expect(run: BatchRun, request: ScanRequest) -> UUID:
    """The uid that the camera's next scan will have, or the next but so many as are expected already."""
    scan, notes = run.expecting.draft(request, run.config, run.allocation.ends_by_unix_seconds())
    for note in notes:
        say(f"note: {note}")
    wait_until_served(run)
    run.persist(lambda: run.expecting.expect(scan))
    say(f"waiting for the camera's next scan: it becomes scan {scan.uid} -> {scan.output}")
    return scan.uid


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
    """Until the scan has ended with a dataset. Raises ScanFailed where it has none, NotBegun as ``_begun`` does."""
    record = _begun(run, uid)
    follower = ScanFollower(run.registry, record, run.config, say, run.turn)
    return follower.follow(lambda state, progress: None)


def _begun(run: BatchRun, uid: UUID) -> ScanRecord:
    """The scan's record. One that is expected of the camera is waited for as long as the job lasts, etcd away or not.

    Raises NotBegun where its session is stopped before.
    """
    record, said = run.persist(lambda: run.registry.record(uid)), ""
    while record is None:
        is_stopped = run.session_stopped  # no scan has become this one since
        with suppress(EtcdUnreachable):
            record = run.registry.record(uid)
            if record is None and is_stopped:
                raise NotBegun(
                    f"session {run.order.session} was stopped before the camera began the scan",
                    "start another one: mpistream session start",
                )
            run.expecting.keep(uid)
            if (deaf := _deaf_producers(run)) and deaf != said:
                said = deaf
                say(f"waiting: {deaf}")
        if record is None:
            _wait_for_news(run, uid)
    return record


def _wait_for_news(run: BatchRun, uid: UUID) -> None:
    """Of the scan; but not for long."""
    looked = time.monotonic()
    run.turn()
    run.wait_until(lambda: uid in run.book.scans or time.monotonic() - looked > _LOOK_SECONDS)


def _deaf_producers(run: BatchRun) -> str:
    """Which producers do not listen to the camera, and what to do; empty where all of them do."""
    statuses = run.registry.statuses("producers")
    sectors = [
        str(producer.sector)
        for producer in run.registry.producers()
        if "camera_messages" not in statuses.get(str(producer.producer_id), {"camera_messages": 0})
    ]
    if not sectors:
        return ""
    return (
        f"no producer of sector {', '.join(sectors)} listens to the camera; "
        "start it with --camera tcp://HOST:PORT (docs/camera.md)"
    )
