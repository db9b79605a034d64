"""A source that can be read at any time, replayed at a chosen rate."""

import time
from collections.abc import Callable

from mpistream.acquisition.sector_source import SectorSource


class PacedSectorSource:
    """Frame i of a scan is there i / rate seconds after the scan began. Nothing is lost: what is there stays.

    See ``sector_source.SectorSource``.
    """

    is_live = False

    def __init__(
        self,
        source: SectorSource,
        frames_per_second: float,
        frames: range,
        started_unix_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``frames`` are the numbers of the first to the last frame."""
        self._source = source
        self._rate = frames_per_second
        self._frames = frames
        self._started = started_unix_seconds
        self._clock = clock
        self.sector = source.sector
        self.sectors_duplicate = source.sectors_duplicate
        self.sectors_rejected = source.sectors_rejected
        self.frames_lost = source.frames_lost

    def read_block(self, block: int, block_frames: int, buffer: memoryview) -> int:
        return self._source.read_block(block, block_frames, buffer)

    def frames_present(self, block: int, block_frames: int) -> int | None:
        return self._source.frames_present(block, block_frames)

    def seconds_until(self, block: int, block_frames: int) -> float:
        last = min((block + 1) * block_frames, self._frames.stop) - 1 - self._frames.start
        return max(0.0, self._started + last / self._rate - self._clock())

    def close(self) -> None:
        self._source.close()
