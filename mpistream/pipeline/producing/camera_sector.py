"""One scan of the camera in one sector, from its first message, or the news that others have had one, to its end."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from mpistream.acquisition.block_supply import LiveBlocks
from mpistream.acquisition.camera_end import SectorEndDetector
from mpistream.acquisition.camera_messages import CameraHeader
from mpistream.acquisition.camera_range import FirstFrame
from mpistream.acquisition.camera_source import CameraSectorSource, Outcome
from mpistream.model.scan import ScanRecord
from mpistream.pipeline.producing.camera_scans import Opening

_log = logging.getLogger(__name__)


@dataclass
class CameraCounts:
    """Messages since this process began: all that came, and of them those that are in no scan's dataset.

    bad          damaged, of another sector, or impossible
    late         of a scan that had ended here
    unclaimed    of scans that were not announced, since no session was open, or that were over: ended by request
    dropped      of scans whose announcement took so long that there was no room for more
    """

    messages: int = 0
    bad: int = 0
    late: int = 0
    unclaimed: int = 0
    dropped: int = 0


@dataclass(eq=False)
class CameraSector:
    """``uid`` is None until etcd has told of the scan.

    Until it is prepared its messages wait, as long as there is room for them; then they go to ``source``, from where
    ``supply`` takes them block by block. ``refused`` says why nobody wants them.
    """

    scan_number: int
    generation: int
    rows: int
    columns: int
    end: SectorEndDetector
    first_frame: FirstFrame
    has_room: Callable[[], bool]
    counts: CameraCounts
    uid: UUID | None = None
    source: CameraSectorSource | None = None
    supply: LiveBlocks | None = None
    is_asked_for: bool = False
    is_streamed: bool = False  # a stream has taken the supply over, and closes it
    has_ended: bool = False
    refused: str = ""
    _waiting: list[tuple[CameraHeader, memoryview]] = field(default_factory=list)

    @property
    def opening(self) -> Opening:
        return Opening(self.scan_number, self.generation, self.rows, self.columns, self.first_frame.number)

    @property
    def is_complete(self) -> bool:
        return self.source is not None and self.source.is_complete

    def take(self, header: CameraHeader, pixels: memoryview, now: float) -> None:
        if header.scan_shape != (self.rows, self.columns):
            self.counts.bad += 1
            return
        self.end.heard(header.thread_id, now)
        if self.refused:
            self.counts.unclaimed += 1
        elif self.source is None:
            self._keep(header, pixels)
        else:
            self._offer(self.source, header, pixels)

    def _offer(self, source: CameraSectorSource, header: CameraHeader, pixels: memoryview) -> None:
        outcome = source.offer(header, pixels)
        self.end.frame_came(header.thread_id, header.frames_this_thread, outcome is not Outcome.DUPLICATE)

    def _keep(self, header: CameraHeader, pixels: memoryview) -> None:
        self.first_frame.narrow(header)
        if self.has_room():
            self._waiting.append((header, pixels))
        else:
            self.counts.dropped += 1

    @property
    def messages_waiting(self) -> int:
        return len(self._waiting)

    def prepare(self, record: ScanRecord, source: CameraSectorSource, supply: LiveBlocks) -> None:
        """What came so far, and what will come, becomes blocks."""
        self.supply, self.source = supply, source
        waiting, self._waiting = self._waiting, []
        for header, pixels in waiting:
            self._offer(source, header, pixels)
        if self.has_ended:
            source.end()

    def refuse(self, reason: str) -> None:
        """Nobody wants what comes."""
        self.refused = reason
        self.counts.unclaimed += len(self._waiting)
        self._waiting.clear()

    def look_for_end(self, now: float, others_have_ended: bool) -> str:
        """How it has ended just now; empty otherwise. One that waits to be announced has not ended."""
        if self.has_ended or (self.source is None and not self.refused):
            return ""
        how = self.end.how_ended(now, self.is_complete, others_have_ended)
        if how:
            self.finish()
        return how

    def finish(self) -> None:
        """Nothing more is waited for."""
        self.has_ended = True
        if self.source is not None:
            self.source.end()

    def let_go(self, is_over: bool) -> None:
        """Nobody wants what it holds any more; ``is_over`` as in ``BlockSupply.close``."""
        if self.supply is not None and not self.is_streamed:
            self.supply.close(is_over)
        self.supply = None
        self._waiting.clear()
