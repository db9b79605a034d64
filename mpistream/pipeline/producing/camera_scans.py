"""What a scan that the camera has begun to send becomes: the one that a batch job expects, or a scan of the session
that is open; announced once.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpistream.control.camera_registry import CameraRegistry
from mpistream.control.expected_scans import ExpectedScan
from mpistream.control.session_registry import SessionRegistry
from mpistream.model.config import Config
from mpistream.model.errors import ConfigError, CoordinationError, EtcdUnreachable, MpistreamError
from mpistream.model.protocol import Encoding
from mpistream.model.scan import CountingParameters, Durability, ScanRecord
from mpistream.model.session import ReferenceKind, Session, referred_name
from mpistream.pipeline.courier import Courier

_SCHEME = "camera:"
_NO_SESSION = "no session is open: start one with mpistream session start"

#: How the scans of a session are counted, its references by name resolved. Raises MpistreamError.
CountingOf = Callable[[SessionRegistry, Session], CountingParameters]


@dataclass(frozen=True)
class Opening:
    """What the first messages of a scan tell. ``generation``: the first scan of this number is 1, the next one 2."""

    scan_number: int
    generation: int
    rows: int
    columns: int
    first_frame: int


@dataclass(frozen=True)
class CameraScans:
    """Announces the camera's scans. All four producers try; what etcd takes first is the scan of them all."""

    config: Config
    sessions: SessionRegistry
    registry: CameraRegistry
    counting_of: CountingOf

    def announce(self, opening: Opening) -> str:
        """Why the scan cannot be announced; empty where it is, by this process or by another one.

        Raises EtcdUnreachable where it is to be tried again.
        """
        try:
            if self._announce_expected(opening):
                return ""
            session = self._open_session()
            if session is None:
                return _NO_SESSION
            counting = self.counting_of(self.sessions, session)
            if not self.registry.announce(opening.generation, record_of(opening, session, counting, self.config)):
                return _NO_SESSION  # it was stopped at this moment
        except EtcdUnreachable:
            raise
        except (MpistreamError, CoordinationError) as error:
            return f"{error.message}; {error.remedy}" if error.remedy else error.message
        return ""

    def _announce_expected(self, opening: Opening) -> bool:
        """As the first of those that are expected; one that has been taken or withdrawn meanwhile is passed over, and
        so is one of a session that was stopped.
        """
        return any(
            self.registry.announce(opening.generation, expected_record(opening, expected, self.config), expected)
            for expected in self.registry.expected.waiting()
        )

    def _open_session(self) -> Session | None:
        """The one that was started last of those that are not stopped."""
        for session in reversed(list(self.sessions.sessions().values())):
            if self.sessions.session_stop(session.name) is None:
                return session
        return None


@dataclass(frozen=True)
class CameraAnnouncer:
    """What a producer has to tell etcd of the camera's scans, by its courier. ``on_refusal`` is called there."""

    scans: CameraScans
    sector: int
    courier: Courier
    on_refusal: Callable[[Opening, str], None]

    def announce(self, opening: Opening) -> None:
        def act() -> None:
            try:
                reason = self.scans.announce(opening)
            except EtcdUnreachable:
                raise
            except Exception as error:
                self.on_refusal(opening, repr(error))
                raise  # for the log
            if reason:
                self.on_refusal(opening, reason)

        self.courier.do(act)

    def write_ended(self, scan_number: int, generation: int, how: str) -> None:
        self.courier.do(lambda: self.scans.registry.write_ended(scan_number, generation, self.sector, how))


def record_of(opening: Opening, session: Session, counting: CountingParameters, config: Config) -> ScanRecord:
    """The record of a scan of ``session``. Whether its output can be written only the ranks can tell."""
    uid = uuid.uuid4()
    output = Path(session.folder) / f"scan_{opening.scan_number}_{uid.hex[:8]}.h5"
    journals = Path(config.journal.directory or session.folder) / f"{output.name}.journal.{uid.hex}"
    return ScanRecord(
        **_of_camera(opening, config),
        uid=uid,
        counting=counting,
        detectors=config.detectors.virtual,
        output=str(output),
        overwrite=False,
        journals=str(journals),
        durability=Durability(config.journal.durability),
        session=session.name,
        references=_references_of(session),
    )


def expected_record(opening: Opening, expected: ExpectedScan, config: Config) -> ScanRecord:
    """The record of a scan that a batch job expects: it has looked at everything that can be wrong with it."""
    return ScanRecord(
        **_of_camera(opening, config),
        uid=expected.uid,
        counting=expected.counting,
        detectors=expected.detectors,
        output=expected.output,
        overwrite=expected.overwrite,
        journals=expected.journals,
        durability=expected.durability,
        session=expected.session,
        labels=expected.labels,
        references=expected.references,
        recording=expected.recording,
    )


def _of_camera(opening: Opening, config: Config) -> dict[str, Any]:
    """What the camera says, and what the producers were told about it."""
    frames = opening.rows * opening.columns * config.camera.frames_per_position
    return {
        "scan_number": opening.scan_number,
        "rows": opening.rows,
        "columns": opening.columns,
        "source": _source(opening.scan_number, opening.generation, config),
        "encoding": Encoding(config.camera.layout),
        "first_frame": opening.first_frame,
        "last_frame": opening.first_frame + frames - 1,
        "block_frames": config.stream.block_frames,
        "direct": False,
        "announced_unix_seconds": time.time(),
    }


def _references_of(session: Session) -> dict[str, str]:
    """Those that its scans use by name: parameter -> name."""
    paths = {
        "dark": session.counting.dark,
        "pixel_mask": session.counting.pixel_mask,
        "thresholds": session.thresholds,
    }
    names = {parameter: referred_name(path or "") for parameter, path in paths.items()}
    return {parameter: name for parameter, name in names.items() if name is not None}


def _source(scan_number: int, generation: int, config: Config) -> str:
    camera = config.camera
    return (
        f"{_SCHEME}{scan_number}?generation={generation}"
        f"&version={camera.layout}&frames_per_position={camera.frames_per_position}"
    )


def is_of_camera(record: ScanRecord) -> bool:
    return record.source.startswith(_SCHEME)


def check_alike(record: ScanRecord, generation: int, config: Config) -> None:
    """Raises ConfigError where the producer that announced a scan was told something else about the camera."""
    if record.source != (own := _source(record.scan_number, generation, config)):
        raise ConfigError(
            f"the producers disagree about the camera: the scan was announced as {record.source}, here it is {own}",
            "give all four the same [camera], --camera-layout and --frames-per-position",
        )


def counting_of_session(sessions: SessionRegistry, session: Session) -> CountingParameters:
    """A session's own parameters. References by name become the paths under which the ranks see them."""
    counting = session.counting
    paths = {
        "dark": _path(sessions, ReferenceKind.DARK, counting.dark),
        "pixel_mask": _path(sessions, ReferenceKind.MASK, counting.pixel_mask),
    }
    return counting.model_copy(update=paths)


def _path(sessions: SessionRegistry, kind: ReferenceKind, path: str | None) -> str | None:
    name = referred_name(path or "")
    if name is None:
        return path
    reference = sessions.reference(kind, name)
    if reference is None:
        raise ConfigError(f"there is no {kind} reference {name!r}", "make it, or name another")
    return reference.path
