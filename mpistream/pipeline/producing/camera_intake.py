"""Where the camera's own processes push the messages of one sector: sorted by scans, which thereby begin and end."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from mpistream.acquisition.block_supply import LiveBlocks, SendWindow
from mpistream.acquisition.camera_choice import LATE, is_forgotten, scan_of
from mpistream.acquisition.camera_end import SectorEndDetector
from mpistream.acquisition.camera_messages import CameraHeader
from mpistream.acquisition.camera_range import FirstFrame
from mpistream.acquisition.camera_source import CameraSectorSource
from mpistream.acquisition.spill import Spill, spill_path
from mpistream.control.camera_registry import CameraGeneration, CameraGenerations
from mpistream.control.coordination import Change
from mpistream.model.config import Config
from mpistream.model.errors import ProtocolError
from mpistream.model.geometry import RECORD_BYTES
from mpistream.model.scan import ScanRecord
from mpistream.pipeline.producing.camera_scans import CameraAnnouncer, Opening, check_alike
from mpistream.pipeline.producing.camera_sector import CameraCounts, CameraSector
from mpistream.pipeline.producing.scan_book import ScanBook
from mpistream.transport.sockets import DataInlet

_log = logging.getLogger(__name__)

#: So long the first messages of a scan are looked at for the number of its first frame.
_OPENING_SECONDS = 0.1
#: A longer pause of this process itself is no silence of the camera.
_LONGEST_LOOK_SECONDS = 1.5
_LOGGED_BAD = 20


class CameraIntake:
    """The scans that the camera sends to the producer of one sector."""

    def __init__(
        self,
        config: Config,
        sector: int,
        inlet: DataInlet,
        announcer: CameraAnnouncer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = CameraCounts()
        self._config = config
        self._sector = sector
        self._inlet = inlet
        self._announcer = announcer
        self._clock = clock
        self._looked = clock()
        self._slept = 0.0
        self._generations = CameraGenerations()
        self._unjoined: dict[tuple[int, int], CameraGeneration] = {}
        self._scans: list[CameraSector] = []  # in the order in which they began
        self._is_drained = True
        self._problem = ""

    # messages

    def receive(self) -> bool:
        """Takes in as many messages as a block has frames; False where there was none."""
        now = self._now()
        received = 0
        for packed, pixels in self._inlet.receive(self._config.stream.block_frames):
            received += 1
            self.counts.messages += 1
            try:
                header = CameraHeader.unpack(packed)
                header.check(self._sector, self._config.camera.frames_per_position, pixels.nbytes)
            except ProtocolError as error:
                self._refuse_message(error)
            else:
                self._take(header, pixels, now)
        self._is_drained = received < self._config.stream.block_frames
        return received > 0

    def _now(self) -> float:
        """Seconds in which this process looked: while it was stopped, the camera was not silent."""
        clock = self._clock()
        self._slept += max(0.0, clock - self._looked - _LONGEST_LOOK_SECONDS)
        self._looked = clock
        return clock - self._slept

    def _refuse_message(self, error: ProtocolError) -> None:
        self.counts.bad += 1
        if self.counts.bad <= _LOGGED_BAD:
            last = "; further ones are only counted" if self.counts.bad == _LOGGED_BAD else ""
            _log.error("refused a message of the camera: %s%s", error.message, last)

    def _take(self, header: CameraHeader, pixels: memoryview, now: float) -> None:
        scan = scan_of(header.scan_number, self._scans, now)
        if scan == LATE or (not isinstance(scan, CameraSector) and self._ended_just_now(header.scan_number)):
            self.counts.late += 1
            return
        if not isinstance(scan, CameraSector):
            scan = self._begin(header, now)
        scan.take(header, pixels, now)
        for earlier in self._scans[: self._scans.index(scan)]:
            earlier.end.thread_left(header.thread_id)

    def _ended_just_now(self, scan_number: int) -> bool:
        """According to an earlier start of this process."""
        known = self._generations.latest(scan_number)
        if known is None or any(scan.scan_number == scan_number for scan in self._scans):
            return False
        ended = known.ended.get(self._sector)
        return ended is not None and time.time() - ended < self._config.camera.silence_seconds

    def _begin(self, header: CameraHeader, now: float) -> CameraSector:
        known = self._generations.latest(header.scan_number)
        scan = self._new_scan(header.scan_number, 1, header.rows, header.columns, now)
        if known is not None and (known.scan_number, known.generation) in self._unjoined:
            del self._unjoined[known.scan_number, known.generation]
            scan.uid, scan.generation = known.uid, known.generation
        elif known is not None:
            scan.generation = known.generation + 1
        _log.info("the camera began to send scan %d, %d x %d positions", scan.scan_number, scan.rows, scan.columns)
        return scan

    def _new_scan(self, scan_number: int, generation: int, rows: int, columns: int, now: float) -> CameraSector:
        camera = self._config.camera
        end = SectorEndDetector(camera.silence_seconds, self._config.stream.absent_seconds, now)
        first_frame = FirstFrame(camera.frames_per_position)
        scan = CameraSector(scan_number, generation, rows, columns, end, first_frame, self._has_room, self.counts)
        self._scans.append(scan)
        return scan

    def _has_room(self) -> bool:
        """For messages of scans that etcd does not know of yet."""
        return sum(scan.messages_waiting for scan in self._scans) < self._config.camera.reorder_frames

    # what etcd says

    def take_change(self, change: Change) -> None:
        known = self._generations.take(change)
        if known is not None and known.uid is not None and not self._is_joined(known.uid):
            self._unjoined[known.scan_number, known.generation] = known

    def _is_joined(self, uid: UUID) -> bool:
        return any(scan.uid == uid for scan in self._scans)

    def refused(self, opening: Opening, reason: str) -> None:
        """The scan could not be announced."""
        for scan in self._scans:
            is_meant = (scan.scan_number, scan.generation) == (opening.scan_number, opening.generation)
            if is_meant and scan.uid is None and not scan.refused:
                self._problem = f"scan {opening.scan_number} of the camera is dropped: {reason}"
                _log.error("%s", self._problem)
                scan.refuse(reason)

    def follow(self, book: ScanBook) -> None:
        """Takes part in the scans that etcd knows of, lets go of those that are over."""
        now = self._now()
        for key, known in sorted(self._unjoined.items()):
            assert known.uid is not None
            facts = book.get(known.uid)
            if known.uid in book.over:
                del self._unjoined[key]
            elif facts is not None and facts.record is not None:
                del self._unjoined[key]
                self._join(known, facts.record, now)
        for scan in self._scans:
            if scan.uid is None and not scan.refused:
                scan.uid = self._uid_if_over(scan, book)
            if scan.uid in book.over and not scan.refused:
                scan.refuse("it is over")
                scan.let_go(is_over=True)
        self._scans = [scan for place, scan in enumerate(self._scans) if not self._is_done_with(place, scan, now)]

    def _uid_if_over(self, scan: CameraSector, book: ScanBook) -> UUID | None:
        """Of a scan that others announced, and that was over before its news came here."""
        known = self._generations.get(scan.scan_number, scan.generation)
        return known.uid if known is not None and known.uid in book.over else None

    def _join(self, known: CameraGeneration, record: ScanRecord, now: float) -> None:
        of_number = [scan for scan in self._scans if scan.scan_number == known.scan_number]
        earlier = [scan for scan in of_number if scan.generation <= known.generation and not scan.has_ended]
        waiting = [scan for scan in earlier if scan.uid is None and not scan.refused]
        scan = waiting[-1] if waiting else self._new_scan(known.scan_number, 0, record.rows, record.columns, now)
        scan.uid, scan.generation = known.uid, known.generation
        scan.rows, scan.columns = record.rows, record.columns
        self._problem = ""
        for before in earlier:
            if before is not scan:
                self._finish(before, "its number is used again")
        if any(other.generation > known.generation for other in of_number):
            self._scans.remove(scan)
            self._scans.insert(0, scan)  # the one that began last is that of its number
            self._finish(scan, "its number is used again")
        elif self._sector in known.ended:
            scan.finish()

    def _ask_for(self, scan: CameraSector, now: float) -> None:
        is_due = scan.first_frame.is_settled or now - scan.end.began > _OPENING_SECONDS
        if is_due and not scan.is_asked_for:
            scan.is_asked_for = True
            self._announcer.announce(scan.opening)

    def look(self) -> None:
        """Announces what has begun; says what has ended, unless messages wait."""
        now = self._now()
        for scan in self._scans:
            if scan.uid is None:
                self._ask_for(scan, now)
        for scan in self._scans if self._is_drained else ():
            known = self._generations.get(scan.scan_number, scan.generation)
            others_have_ended = known is not None and bool(known.ended)
            if how := scan.look_for_end(now, others_have_ended):
                self._say_ended(scan, how)

    def _finish(self, scan: CameraSector, how: str) -> None:
        scan.finish()
        self._say_ended(scan, how)

    def _say_ended(self, scan: CameraSector, how: str) -> None:
        if scan.source is not None:
            came = f"{scan.source.frames_came} of {scan.source.frames} frames"
            _log.info("scan %s, sector %d has ended with %s: %s", scan.uid, self._sector, came, how)
        if scan.uid is not None:
            self._announcer.write_ended(scan.scan_number, scan.generation, how)

    def _is_done_with(self, place: int, scan: CameraSector, now: float) -> bool:
        return (scan.uid is None or bool(scan.refused)) and is_forgotten(place, self._scans, now)

    # blocks

    def to_prepare(self, book: ScanBook) -> list[ScanRecord]:
        """The records of scans whose messages can become blocks."""
        found = []
        for scan in self._scans:
            facts = book.get(scan.uid) if scan.uid is not None and scan.source is None and not scan.refused else None
            if facts is not None and facts.record is not None:
                found.append(facts.record)
        return found

    def prepare(self, record: ScanRecord) -> bool:
        """Raises ConfigError, SourceError; then the messages of this scan are dropped."""
        scan = self._scan(record.uid)
        try:
            check_alike(record, scan.generation, self._config)
            source = CameraSectorSource(record, self._sector, self._config.camera.reorder_frames)
            scan.prepare(record, source, self._supply(record, source))
        except BaseException:
            scan.refuse("it cannot be taken here")
            raise
        return True

    def _supply(self, record: ScanRecord, source: CameraSectorSource) -> LiveBlocks:
        """All scans that are not streamed yet have one window together."""
        stream = self._config.stream
        window = SendWindow(stream.producer_blocks(record.block_frames), record.block_frames * RECORD_BYTES)
        window.held_elsewhere = lambda: self._waiting_blocks() - len(window)
        spill = None
        if stream.spill_directory:
            path = spill_path(Path(stream.spill_directory), record.uid, self._sector)
            spill = Spill(path, self._sector, stream.spill_bytes)
        return LiveBlocks(record, source, window, spill)

    def _waiting_blocks(self) -> int:
        return sum(len(scan.supply.window) for scan in self._scans if scan.supply is not None and not scan.is_streamed)

    def capture(self) -> None:
        """Takes the blocks that are there of scans that are not streamed yet."""
        for scan in self._scans:
            if scan.supply is not None and not scan.is_streamed:
                while scan.supply.capture(lambda block: False):
                    pass

    def has(self, uid: UUID) -> bool:
        """Whether it can be streamed."""
        return any(scan.uid == uid and scan.source is not None for scan in self._scans)

    def stream(self, record: ScanRecord) -> tuple[CameraSectorSource, LiveBlocks]:
        """Hands over what a scan has: from now on it has a window of its own, and its stream captures and closes."""
        scan = self._scan(record.uid)
        assert scan.source is not None
        assert scan.supply is not None
        scan.is_streamed = True
        scan.supply.window.held_elsewhere = lambda: 0
        return scan.source, scan.supply

    def _scan(self, uid: UUID) -> CameraSector:
        return next(scan for scan in self._scans if scan.uid == uid)

    def close(self) -> None:
        """This process ends; what is spilled stays for its next start."""
        for scan in self._scans:
            scan.let_go(is_over=False)

    # for people

    @property
    def seconds_until_look(self) -> float:
        """When an end may have come without a message."""
        return min((scan.end.settling_seconds for scan in self._scans if not scan.has_ended), default=1.0)

    def status(self) -> dict[str, int | str]:
        """``camera_problem``: why scans are dropped, until one is not."""
        counts = {f"camera_{name}": count for name, count in vars(self.counts).items()}
        return {**counts, "camera_problem": self._problem}
