"""What a batch job does, mode by mode: programs that read as the modes are described in docs/modes.md."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from mpistream.control.run_state import ScanState
from mpistream.launch.announcement import ScanRequest
from mpistream.launch.cluster.batch_run import DONE, FAILED, NOT_WHOLE, BatchRun, ProgramEnd
from mpistream.launch.cluster.record import say
from mpistream.launch.scan_follower import ScanEnd, in_words
from mpistream.model.errors import ConfigError, MpistreamError, ScanFailed
from mpistream.model.scan import CountingParameters

#: So many scans of a series are announced ahead of the one that streams: there is no gap between them.
AHEAD = 2


@dataclass(frozen=True)
class Scans:
    """What the scans of a program have in common. ``source`` may hold {index} and {tilt}."""

    source: str
    output: Path
    counting: CountingParameters
    overwrite: bool = False
    thresholds: Path | None = None


def _request(run: BatchRun, scans: Scans, source: str, output: Path, **labels: int | float) -> ScanRequest:
    return ScanRequest(
        source,
        output,
        scans.counting,
        overwrite=scans.overwrite,
        thresholds=scans.thresholds,
        session=run.order.session,
        labels=run.labels(**labels),
    )


def _end_of(end: ScanEnd) -> ProgramEnd:
    text = f"{end.summary.dataset}, {end.summary.counters.frames} frames"
    if end.status.state is ScanState.COMMITTED:
        return ProgramEnd(text)
    return ProgramEnd(f"{text}, {end.status.state}: {in_words(end.status)}", NOT_WHOLE)


def live(run: BatchRun) -> ProgramEnd:
    """Serves whatever scans are announced, until the session is stopped and its scans have ended."""
    _check_session(run)
    before = _finished(run)
    run.wait_until(lambda: run.session_stopped and not run.book.unfinished(run.order.session))
    return ProgramEnd(f"session {run.order.session} was stopped; scans that ended meanwhile: {_finished(run) - before}")


def _finished(run: BatchRun) -> int:
    scans = [scan for scan in run.book.scans.values() if scan.facts.record and not scan.facts.is_unfinished]
    return sum(scan.facts.record.session == run.order.session for scan in scans if scan.facts.record)


def _check_session(run: BatchRun) -> None:
    """Raises ConfigError where the session was never started: nothing would ever be announced in it."""
    if run.sessions.session(run.order.session) is None:
        known = ", ".join(run.sessions.sessions()) or "none"
        raise ConfigError(
            f"there is no session {run.order.session}; sessions that were started: {known}",
            f"start it: mpistream session start {run.order.session} --folder FOLDER",
        )


def single(run: BatchRun, scans: Scans | None) -> ProgramEnd:
    """One scan: the one that is given, or else the next one of the session."""
    if scans is not None:
        return _end_of(run.follow(run.announce(_request(run, scans, scans.source, scans.output))))
    _check_session(run)
    known = {uid for uid, scan in run.book.scans.items() if not scan.facts.is_unfinished}
    found: list[UUID] = []

    def is_announced() -> bool:
        scans_of_session = [
            scan
            for uid, scan in run.book.scans.items()
            if uid not in known and scan.facts.record and scan.facts.record.session == run.order.session
        ]
        found.extend(scan.facts.uid for scan in scans_of_session)
        return bool(found) or run.session_stopped

    run.wait_until(is_announced)
    if not found:
        raise ScanFailed(f"session {run.order.session} was stopped before a scan was announced", "start another one")
    return _end_of(run.follow(found[0]))


def replay(run: BatchRun, scans: Scans) -> ProgramEnd:
    """One scan of sector files or of a raw recording, sent by producers that the job has brought along."""
    return single(run, scans)


def timeseries(run: BatchRun, scans: Scans, number: int, interval_seconds: float) -> ProgramEnd:
    """Many scans, one file each."""
    run.wait_until_served()
    began = time.monotonic()
    width = len(str(number - 1))

    def requests() -> Iterator[ScanRequest]:
        for index in range(number):
            run.wait_until(lambda index=index: time.monotonic() - began >= index * interval_seconds)  # type: ignore[misc]
            output = scans.output / f"scan-{index:0{width}d}.h5"
            yield _request(run, scans, _filled(scans.source, index=index), output, time_index=index)

    ends = _one_behind_the_other(run, requests(), AHEAD)
    return _end_of_all(ends, number, scans.output)


def tomography(run: BatchRun, scans: Scans, tilts_degrees: Sequence[float]) -> ProgramEnd:
    """One scan per tilt angle: the next is announced when the last has ended, since the stage moves meanwhile."""
    width = len(str(len(tilts_degrees) - 1))

    def requests() -> Iterator[ScanRequest]:
        for index, tilt in enumerate(tilts_degrees):
            source = _filled(scans.source, index=index, tilt=tilt)
            output = scans.output / f"tilt-{index:0{width}d}.h5"
            yield _request(run, scans, source, output, tilt_index=index, tilt_degrees=tilt)

    ends = _one_behind_the_other(run, requests(), 0)
    return _end_of_all(ends, len(tilts_degrees), scans.output)


def filebased(run: BatchRun) -> ProgramEnd:
    """The command itself counts, from files."""
    step = run.wait_until_command_ended()
    if step.exit_status not in (DONE, NOT_WHOLE):
        raise MpistreamError(step.how, "its last words stand in the job's log, and in mpistream job show")
    return ProgramEnd(step.last_lines[-1] if step.last_lines else "it has ended", step.exit_status)


def _one_behind_the_other(
    run: BatchRun, requests: Iterator[ScanRequest], ahead: int
) -> dict[int, ScanEnd | ScanFailed]:
    """Announces scans while those before are under way; a scan that fails does not end the series."""
    ends: dict[int, ScanEnd | ScanFailed] = {}
    announced: deque[tuple[int, UUID]] = deque()

    def follow_first() -> None:
        index, uid = announced.popleft()
        try:
            ends[index] = run.follow(uid)
        except ScanFailed as failure:
            say(f"scan {uid} has failed: {failure.message}; {failure.remedy}")
            ends[index] = failure

    for index, request in enumerate(requests):
        while len(announced) > ahead:
            follow_first()
        announced.append((index, run.announce(request)))
    while announced:
        follow_first()
    return ends


def _end_of_all(ends: dict[int, ScanEnd | ScanFailed], number: int, output: Path) -> ProgramEnd:
    datasets = [end for end in ends.values() if isinstance(end, ScanEnd)]
    whole = [end for end in datasets if end.status.state is ScanState.COMMITTED]
    text = f"{output}: {len(datasets)} of {number} scans have a dataset, {len(whole)} a complete one"
    if not datasets:
        return ProgramEnd(text, FAILED)
    return ProgramEnd(text, DONE if len(whole) == number else NOT_WHOLE)


def _filled(source: str, **values: float) -> str:
    """``source`` with {index} and {tilt} filled in; ``{index:03d}`` works as in Python. Raises ConfigError."""
    try:
        return source.format(**values)
    except (KeyError, ValueError, IndexError) as error:
        names = " and ".join(f"{{{name}}}" for name in values)
        raise ConfigError(f"the source {source!r} cannot be filled in: {error!r}", f"it may hold {names}") from None


def parse_tilts(text: str) -> tuple[float, ...]:
    """START:STOP:STEP in degrees, STOP included where it is met, or a list with commas. Raises ConfigError."""
    try:
        if ":" not in text:
            return tuple(float(part) for part in text.split(","))
        start, stop, step = (float(part) for part in text.split(":"))
        number = int((stop - start) / step + 1e-6) + 1
        if number < 1:
            raise ValueError("STEP leads away from STOP")
        return tuple(round(start + index * step, 6) for index in range(number))
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"--tilts {text} are no tilt angles: {error}", "for instance --tilts -60:60:2, or --tilts -60,-30,0,30,60"
        ) from None
