"""Sessions of many scans: started, stopped, and what one of their scans is by default."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from mpistream.control.registry import Registry
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.absence import absent_groups, wait_until_present
from mpistream.launch.announcement import ScanRequest, check_no_names
from mpistream.launch.cluster.job_view import JobView, Scheduler, view_jobs, waits
from mpistream.launch.inspection import read_scans
from mpistream.launch.references import check_unchanged, find_reference, known_sessions, resolve_references
from mpistream.launch.reuse import with_saved_thresholds
from mpistream.model.errors import ConfigError, ScanFailed, StorageError
from mpistream.model.scan import CountingParameters
from mpistream.model.session import (
    ReferenceKind,
    Session,
    SessionStop,
    check_name,
    referred_name,
)
from mpistream.pipeline.producing.camera_scans import counting_of_session
from mpistream.reduction.reference_images import References

#: Parameters by which thresholds are given, and those by which they are found.
_GIVEN = ("background", "xray", "row_dark_level", "thresholds_from")
_CALIBRATION = ("sample_frames", "background_sigmas", "xray_sigmas")

Labels = Mapping[str, str | int | float]


def start_session(
    registry: SessionRegistry, name: str, folder: Path, counting: CountingParameters, thresholds: Path | None = None
) -> tuple[Session, tuple[str, ...]]:
    """The session, and notes for the user. What is wrong with its defaults is found here, not at its first scan.

    Raises ConfigError for the name, StorageError for the folder, and MpistreamError for whatever does not go together.
    """
    check_name("a session", name)
    _check_folder(folder)
    session = Session(
        name=name,
        folder=str(folder.absolute()),
        counting=counting,
        thresholds=None if thresholds is None else _absolute(thresholds),
        started_unix_seconds=time.time(),
    )
    notes = _check_defaults(registry, session)
    if not registry.start_session(session):
        raise ConfigError(
            f"there is a session {name} already",
            f"a name is used once: take another, or go on with this one: mpistream session show {name}",
        )
    return session, notes


def _absolute(path: Path) -> str:
    return str(path) if referred_name(str(path)) is not None else str(path.absolute())


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise StorageError(f"the folder for datasets {folder} does not exist", f"make it: mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"the folder for datasets {folder} is not writable", "change its permissions, or another")


def _check_defaults(registry: SessionRegistry, session: Session) -> tuple[str, ...]:
    counting, thresholds = scan_defaults(session)
    request = ScanRequest("", Path(session.folder), CountingParameters(**counting), thresholds=thresholds)
    resolved = resolve_references(registry, request)
    check_no_names(resolved.counting.gain)
    References.load(resolved.counting)
    return with_saved_thresholds(resolved.counting, resolved.thresholds)[1] if resolved.thresholds else ()


def find_session(registry: SessionRegistry, name: str) -> Session:
    """Raises ConfigError for a session that is not known."""
    check_name("a session", name)
    session = registry.session(name)
    if session is None:
        raise ConfigError(f"there is no session {name}", known_sessions(registry))
    return session


def open_session(registry: SessionRegistry, name: str) -> Session:
    """Raises ConfigError for a session that is not known, ScanFailed for one that takes no more scans."""
    session = find_session(registry, name)
    stop = registry.session_stop(name)
    if stop is not None:
        others = [other for other in registry.sessions() if registry.session_stop(other) is None]
        raise ScanFailed(
            f"session {name} has been stopped" + (f": {stop.reason}" if stop.reason else ""),
            f"these take scans: {', '.join(others)}" if others else "start another: mpistream session start",
        )
    return session


def stop_session(registry: SessionRegistry, name: str, reason: str) -> SessionStop:
    """From now on the session takes no more scans; the stop that holds is the first one. Raises ConfigError."""
    find_session(registry, name)
    registry.stop_session(name, SessionStop(since_unix_seconds=time.time(), reason=reason))
    stop = registry.session_stop(name)
    assert stop is not None
    return stop


def scan_defaults(session: Session, given: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Path | None]:
    """Counting parameters and the file of the thresholds for a scan: those ``given`` (``thresholds`` among them), the
    session's for all others. Of the session's, those are left out that do not go with what is given.
    """
    given = given or {}
    defaults = session.counting.model_dump(exclude_defaults=True)
    if session.thresholds is not None:
        defaults["thresholds"] = Path(session.thresholds)
    superseded: set[str] = set()
    if given.keys() & {"background", "xray"}:
        superseded |= {"thresholds", "thresholds_from", *_CALIBRATION}
    if "thresholds" in given:
        superseded |= {*_GIVEN, *_CALIBRATION}
    if given.keys() & set(_CALIBRATION):
        superseded |= {"thresholds", *_GIVEN}
    if "dark" in given:
        superseded |= {"row_dark", "row_dark_level"}
    if "row_dark" in given:
        superseded |= {"dark"}
    merged = {name: value for name, value in defaults.items() if name not in superseded} | dict(given)
    return merged, merged.pop("thresholds", None)


def camera_counting(registry: SessionRegistry, session: Session) -> CountingParameters:
    """How the scans of a session are counted that the camera announces by sending them.

    Of the files, only that of the thresholds is read: the ranks check the others, which a producer's host may not see.
    Raises ConfigError for a name that is not known, and for what does not go together; StorageError for the file.
    """
    counting = counting_of_session(registry, session)
    if session.thresholds is None:
        return counting
    counting = CountingParameters(**counting.model_dump(exclude_defaults=True))  # in etcd every parameter has a value
    name = referred_name(session.thresholds)
    path = (
        Path(session.thresholds)
        if name is None
        else check_unchanged(find_reference(registry, ReferenceKind.THRESHOLDS, name))
    )
    return with_saved_thresholds(counting, path)[0]


def session_request(
    sessions: SessionRegistry,
    registry: Registry,
    name: str,
    source: str,
    counting: CountingParameters | None = None,
    thresholds: Path | None = None,
    *,
    output: Path | None = None,
    labels: Labels | None = None,
    overwrite: bool = False,
    direct: bool = False,
) -> ScanRequest:
    """A scan of a session. Without ``counting`` its defaults, ``thresholds`` included; without ``output`` a name in its
    folder: of the scan's place in the session and its uid.

    Raises ConfigError where there is no such session, ScanFailed where it has been stopped; and as resolve_references.
    """
    session = open_session(sessions, name)
    if counting is None:
        defaults, thresholds = scan_defaults(session)
        counting = CountingParameters(**defaults)
    uid = uuid4()
    place = 1 + sum(scan.facts.record.session == name for scan in read_scans(registry).values() if scan.facts.record)
    request = ScanRequest(
        source,
        output or Path(session.folder) / f"scan_{place:04}_{uid.hex[:8]}.h5",
        counting,
        overwrite,
        direct,
        thresholds,
        session=name,
        labels=labels or {},
        uid=uid,
    )
    return resolve_references(sessions, request)


def wait_until_served(
    sessions: SessionRegistry,
    registry: Registry,
    name: str,
    direct: bool,
    patience_seconds: float,
    scheduler: Scheduler | None = None,
) -> None:
    """Raises ScanFailed where what a scan of the session needs is not registered within ``patience_seconds``.

    ``scheduler`` is asked what has become of batch jobs that do not serve it.
    """
    try:
        wait_until_present(registry, direct, patience_seconds)
    except ScanFailed as error:
        if absent_groups(registry):
            raise _unserved(name, serving_jobs(sessions, name, scheduler)) from error
        raise


def serving_jobs(registry: SessionRegistry, name: str, scheduler: Scheduler | None = None) -> list[JobView]:
    """The batch jobs of a session that have not ended."""
    views = view_jobs(registry, scheduler, socket.gethostname())
    return [view for view in views if view.job.session == name and not view.is_over]


def _unserved(name: str, jobs: list[JobView]) -> ScanFailed:
    submit = f"mpistream job submit live --session {name} --site SITE, or mpiexec -n 4 mpistream consume"
    message = f"no MPI job serves session {name}: no rank group is registered"
    waiting = [view.job.scheduled for view in jobs if waits(view)]
    if waiting:
        message += f"; batch job {', '.join(waiting)} has not begun"
        return ScanFailed(message, f"wait for it: mpistream session show {name}; or start another: {submit}")
    running = [f"{view.job.scheduled} is {view.state}" for view in jobs]
    if running:
        message += f"; batch job {', '.join(running)}, its ranks are not there"
        return ScanFailed(message, f"see its log: mpistream session show {name}; or start another: {submit}")
    return ScanFailed(message, f"submit or start one: {submit}")
