"""A block once it is counted: what a rank keeps, journals, and later brings to the dataset."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mpistream.model.electron_events import ElectronEvents
from mpistream.model.frame_sums import FrameSums
from mpistream.model.geometry import FRAME_SHAPE, SECTORS
from mpistream.model.virtual_images import diffraction_sum

#: Few enough that a copy of their events is small.
_BLOCKS_AT_A_TIME = 128


@dataclass(frozen=True, eq=False)
class JournaledBlock(ABC):
    """What came of one block, as a journal has it; what became of its pixels, its kinds add.

    sectors          bit s is set where a message of sector s came, an empty one included
    frames_present   per sector, the bit map that its message carried; 0 where none came
    frames_rejected  per sector, those of them whose records were bad: they count as missing
    """

    block: int
    sectors: int
    frames_present: tuple[int, int, int, int]
    frames_rejected: tuple[int, int, int, int]
    raw_bytes: int

    @property
    @abstractmethod
    def electrons(self) -> int:
        """Found in it."""

    @property
    @abstractmethod
    def missing_sectors(self) -> npt.NDArray[np.uint8]:
        """uint8[n]: of each frame of which at least one good record came, in ascending order of frame numbers."""

    @abstractmethod
    def checksum(self) -> int:
        """CRC-32 of all that must be the same whichever rank had the block."""

    @property
    def frames(self) -> int:
        """Frames of which at least one good record came."""
        return len(self.missing_sectors)

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

    def _head_checksum(self) -> int:
        head = np.array([self.block, self.sectors, *self.frames_present, *self.frames_rejected], "<u8")
        return zlib.crc32(head.tobytes())


@dataclass(frozen=True, eq=False)
class CountedBlock(JournaledBlock):
    """The electrons of one block.

    events, sums     of the frames of which at least one good record came, in ascending order of frame numbers
    """

    events: ElectronEvents
    sums: FrameSums

    @property
    def electrons(self) -> int:
        return len(self.events.indices)

    @property
    def missing_sectors(self) -> npt.NDArray[np.uint8]:
        return self.events.missing_sectors

    def checksum(self) -> int:
        crc = self._head_checksum()
        for array in arrays_of(self.events, self.sums):
            crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
        return crc


Kind = TypeVar("Kind", bound=JournaledBlock)


def of_kind(kind: type[Kind], blocks: Sequence[JournaledBlock]) -> list[Kind]:
    """The same blocks. Raises ValueError where one of them is of another kind, and so of another scan."""
    found = [block for block in blocks if isinstance(block, kind)]
    wrong = next((block for block in blocks if not isinstance(block, kind)), None)
    if wrong is not None:
        raise ValueError(f"block {wrong.block} is a {type(wrong).__name__}, not a {kind.__name__}")
    return found


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
