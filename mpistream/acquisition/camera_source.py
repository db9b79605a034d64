"""One sector of one scan as the camera's threads push it: messages in whatever order they come, blocks out in order."""

import math
from enum import Enum, auto

from mpistream.acquisition.camera_messages import CameraHeader
from mpistream.model.geometry import HEADER_BYTES, RECORD_BYTES
from mpistream.model.scan import ScanRecord


class Outcome(Enum):
    TAKEN = auto()
    DUPLICATE = auto()
    REJECTED = auto()


class CameraSectorSource:
    """See ``mpistream.acquisition.source.SectorSource``. Messages are kept as they came until their block is read.

    A block is read when it has all of its frames, when a frame ``reorder_frames`` behind it has come, or when the scan
    has ended: so no more than ``reorder_frames`` frames and two blocks wait. Blocks are to be read in ascending order;
    a frame that comes after its block was read is rejected.

    frames_lost  frames of the blocks read so far that had not come
    """

    is_live = True

    def __init__(self, record: ScanRecord, sector: int, reorder_frames: int) -> None:
        self.sector = sector
        self.sectors_duplicate = 0
        self.sectors_rejected = 0
        self.frames_lost = 0
        self.frames = record.last_frame - record.first_frame + 1
        self.frames_came = 0
        self._record = record
        self._reorder_frames = reorder_frames
        self._came = bytearray(self.frames)
        self._waiting: dict[int, dict[int, tuple[bytes, memoryview]]] = {}  # block -> frame -> header, pixels
        self._next_block = record.block_range.start
        self._newest = record.first_frame
        self._has_ended = False

    @property
    def is_complete(self) -> bool:
        return self.frames_came == self.frames

    def offer(self, header: CameraHeader, pixels: memoryview) -> Outcome:
        """Takes a message that was checked, if it belongs to this scan and comes in time."""
        record, frame = self._record, header.frame_number
        fits = header.scan_number == record.scan_number and header.scan_shape == (record.rows, record.columns)
        if not fits or not record.first_frame <= frame <= record.last_frame:
            return self._reject()
        if self._came[frame - record.first_frame]:
            self.sectors_duplicate += 1
            return Outcome.DUPLICATE
        block = frame // record.block_frames
        if self._has_ended or block < self._next_block:
            return self._reject()
        self._came[frame - record.first_frame] = 1
        self.frames_came += 1
        self._newest = max(self._newest, frame)
        self._waiting.setdefault(block, {})[frame] = header.record_header(), pixels
        return Outcome.TAKEN

    def _reject(self) -> Outcome:
        self.sectors_rejected += 1
        return Outcome.REJECTED

    def end(self) -> None:
        """Nothing more comes."""
        self._has_ended = True

    def read_block(self, block: int, block_frames: int, buffer: memoryview) -> int:
        frames_present, written = 0, 0
        self._forget_before(block)
        self._next_block = block + 1
        for frame, (header, pixels) in sorted(self._waiting.pop(block, {}).items()):
            frames_present |= 1 << (frame - block * block_frames)
            buffer[written : written + HEADER_BYTES] = header
            buffer[written + HEADER_BYTES : written + RECORD_BYTES] = pixels
            written += RECORD_BYTES
        self.frames_lost += self._frames_of(block) - frames_present.bit_count()
        return frames_present

    def _forget_before(self, block: int) -> None:
        for skipped in range(self._next_block, block):
            self._waiting.pop(skipped, None)
        self._next_block = max(self._next_block, block)

    def _frames_of(self, block: int) -> int:
        """How many frames of the scan are in a block."""
        record = self._record
        first, last = block * record.block_frames, (block + 1) * record.block_frames - 1
        return min(last, record.last_frame) - max(first, record.first_frame) + 1

    def frames_present(self, block: int, block_frames: int) -> int | None:
        return None

    def seconds_until(self, block: int, block_frames: int) -> float:
        """Infinite where it depends on what comes. Those before ``block`` are not asked for any more."""
        self._forget_before(block)
        is_there = (
            self._has_ended
            or len(self._waiting.get(block, ())) == self._frames_of(block)
            or self._newest >= (block + 1) * block_frames - 1 + self._reorder_frames
        )
        return 0.0 if is_there else math.inf

    def close(self) -> None:
        self._has_ended = True
        self._waiting.clear()
