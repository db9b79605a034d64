"""A block whose records are kept as they came: what a rank journals of a recording, beside the pixels in its file."""

import zlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mpistream.model.counted_block import JournaledBlock


@dataclass(frozen=True)
class PixelRun:
    """Pixels of successive frames of one sector. ``pixels``: of each frame, where they lie as they came."""

    sector: int
    first_frame: int
    pixels: tuple[memoryview, ...]


@dataclass(frozen=True, eq=False)
class RecordedBlock(JournaledBlock):
    """The records of one block. Arrays have a row per frame of which at least one good record came, in ascending order.

    scan_position  uint32[n]     row * columns + column of the probe
    frame_number   uint64[n]     as the camera numbered it
    missing        uint8[n]      bit s is set where sector s never came
    checksums      uint32[n, 4]  CRC-32 of each sector's pixels; 0 where it is missing
    pixels         those that are not in the recording's file yet: none is kept in memory once it is
    """

    scan_position: npt.NDArray[np.uint32]
    frame_number: npt.NDArray[np.uint64]
    missing: npt.NDArray[np.uint8]
    checksums: npt.NDArray[np.uint32]
    pixels: list[PixelRun] = field(default_factory=list)

    @property
    def electrons(self) -> int:
        """Nothing is counted."""
        return 0

    @property
    def missing_sectors(self) -> npt.NDArray[np.uint8]:
        return self.missing

    def checksum(self) -> int:
        crc = self._head_checksum()
        for array in (self.scan_position, self.frame_number, self.missing, self.checksums):
            crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
        return crc
