"""A block once it is counted: what a rank keeps, journals, and later brings to the dataset."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpistream.model.electron_events import ElectronEvents
from mpistream.model.frame_sums import FrameSums
from mpistream.model.geometry import FRAME_SHAPE, SECTORS
from mpistream.model.virtual_images import diffraction_sum

#: Few enough that a copy of their events is small.
_BLOCKS_AT_A_TIME = 128


@dataclass(frozen=True, eq=False)
class CountedBlock:
    """The electrons of one block, and what came of it.

    sectors          bit s is set where a message of sector s came, an empty one included
    frames_present   per sector, the bit map that its message carried; 0 where none came
    frames_rejected  per sector, those of them whose records were bad: they count as missing
    events, sums     of the frames of which at least one good record came, in ascending order of frame numbers
    """

    block: int
    sectors: int
    frames_present: tuple[int, int, int, int]
    frames_rejected: tuple[int, int, int, int]
    raw_bytes: int
    events: ElectronEvents
    sums: FrameSums

    @property
    def records(self) -> int:
        """Good records in it: what tells the fuller of two versions of a block."""
        return sum(
            (present & ~rejected).bit_count()
            for present, rejected in zip(self.frames_present, self.frames_rejected, strict=True)
        )

    @property
    def records_rejected(self) -> int:
        return sum(rejected.bit_count() for rejected in self.frames_rejected)

    def checksum(self) -> int:
        """CRC-32 of all that must be the same whichever rank counted the block."""
        head = np.array([self.block, self.sectors, *self.frames_present, *self.frames_rejected], "<u8")
        crc = zlib.crc32(head.tobytes())
        for array in arrays_of(self.events, self.sums):
            crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
        return crc


def diffraction_sum_of(blocks: Sequence[CountedBlock]) -> npt.NDArray[np.uint32]:
    """uint32[frame rows, frame columns]: the electrons of these blocks on each pixel."""
    pattern = np.zeros(FRAME_SHAPE, np.uint32)
    for first in range(0, len(blocks), _BLOCKS_AT_A_TIME):
        indices = [block.events.indices for block in blocks[first : first + _BLOCKS_AT_A_TIME]]
        pattern += diffraction_sum(np.concatenate(indices), FRAME_SHAPE).astype(np.uint32)
    return pattern


def arrays_of(events: ElectronEvents, sums: FrameSums) -> list[npt.NDArray[Any]]:
    """The arrays of counted frames in a fixed order: those per frame, then those per electron."""
    arrays: list[npt.NDArray[Any]] = [events.scan_position, events.frame_number, events.missing_sectors, events.counts]
    arrays += [sums.moments, sums.annuli, events.indices]
    return arrays if events.centroids is None else [*arrays, events.centroids]


assert SECTORS == 4, "frames_present has one bit map per sector"
