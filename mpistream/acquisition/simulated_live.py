"""A simulated camera that does not wait for those who read it."""

import math
import time
from collections.abc import Callable

from mpistream.acquisition.simulation_options import SimulationOptions
from mpistream.acquisition.simulator import SimulatedSectorSource


class LiveSectorSource(SimulatedSectorSource):
    """Frame i is there i / rate seconds after the scan began, and written over when ``ring`` more have come.

    See ``sector_source.SectorSource``. Which frames there are depends on when they are read; a block
    must not be read before it is there.
    """

    is_live = True

    def __init__(
        self,
        options: SimulationOptions,
        sector: int,
        started_unix_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``options.live`` is the rate in frames per second."""
        super().__init__(options, sector)
        if not options.live:
            raise ValueError("a live camera has a rate")
        self.frames_lost = 0
        self._rate = options.live
        self._started = started_unix_seconds
        self._clock = clock

    def frames_present(self, block: int, block_frames: int) -> int | None:
        return None

    def seconds_until(self, block: int, block_frames: int) -> float:
        options = self._simulator.options
        last = min((block + 1) * block_frames - 1 - options.first_frame, options.frames - 1)
        return max(0.0, self._started + last / self._rate - self._clock())

    def _is_there(self, index: int) -> bool:
        options = self._simulator.options
        newest = math.floor(min((self._clock() - self._started) * self._rate, options.frames - 1))
        is_there = newest - options.ring < index
        self.frames_lost += not is_there
        return is_there
