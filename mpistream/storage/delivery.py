"""Which sectors of which frames there are, for comparison with what the producers say they sent: frame by frame.

What is known of a frame is one byte, a mark: bit s is set where a record of sector s came, HAS_ROW where the frame has
a row in the dataset. Marks of different rows of the dataset are put together by OR.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from mpistream.model.counted_block import JournaledBlock
from mpistream.model.geometry import ALL_SECTORS, SECTORS
from mpistream.model.h5_layout import REJECTED_DTYPE
from mpistream.model.protocol import blocks_digest
from mpistream.model.scan import SectorEnd

HAS_ROW = 1 << SECTORS

Marks = npt.NDArray[np.uint8]


def rejected_records(blocks: Iterable[JournaledBlock], block_frames: int) -> npt.NDArray[np.void]:
    """REJECTED_DTYPE[n]: the records of these blocks that count as missing because they were bad."""
    rows = [
        (block.block * block_frames + bit, sector)
        for block in blocks
        if block.records_rejected
        for sector, rejected in enumerate(block.frames_rejected)
        for bit in range(block_frames)
        if rejected >> bit & 1
    ]
    return np.array(rows, REJECTED_DTYPE)


def frames_of(blocks: range, block_frames: int) -> range:
    """The frame numbers of consecutive blocks."""
    return range(blocks.start * block_frames, blocks.stop * block_frames)


def mark_rows(
    marks: Marks, frames: range, frame_number: npt.NDArray[np.uint64], missing_sectors: npt.NDArray[np.uint8]
) -> None:
    """Enters rows of the dataset, each of another frame, into the marks of ``frames``; leaves out all other frames."""
    inside = (frame_number >= frames.start) & (frame_number < frames.stop)
    index = (frame_number[inside] - np.uint64(frames.start)).astype(np.intp)
    marks[index] |= ~missing_sectors[inside] & np.uint8(ALL_SECTORS) | np.uint8(HAS_ROW)


def mark_rejected(marks: Marks, frames: range, rejected: npt.NDArray[np.void]) -> int:
    """Enters records that came and were bad; of how many there is a mark already, which must not be."""
    number = rejected["frame_number"]
    inside = (number >= frames.start) & (number < frames.stop) & (rejected["sector"] < SECTORS)
    index = (number[inside] - np.uint64(frames.start)).astype(np.intp)
    bits = np.uint8(1) << rejected["sector"][inside]
    both = int(np.count_nonzero(marks[index] & bits))
    np.bitwise_or.at(marks, index, bits)
    return both


class SectorTotals:
    """Per sector, the records that the marks of a scan tell of, and their digest as producers compute it."""

    def __init__(self) -> None:
        self.rows = 0
        self.records = [0] * SECTORS
        self._digests = [0] * SECTORS

    def add(self, marks: Marks, blocks: range, block_frames: int) -> None:
        """``marks`` are those of all frames of ``blocks``. Each block is added once."""
        self.rows += int(np.count_nonzero(marks & HAS_ROW))
        for sector in range(SECTORS):
            present = (marks >> sector & 1).reshape(-1, block_frames)
            self.records[sector] += int(np.count_nonzero(present))
            packed = np.packbits(present, axis=1, bitorder="little")
            bit_maps = np.zeros((len(blocks), 8), np.uint8)
            bit_maps[:, : packed.shape[1]] = packed
            digest = blocks_digest(sector, blocks, bit_maps.reshape(-1).view("<u8"))
            self._digests[sector] = (self._digests[sector] + digest) % (1 << 64)

    def is_as_sent(self, end: SectorEnd) -> bool | None:
        """None where nobody knows what was sent: the producer was gone, or does not know itself."""
        return None if end.cut or end.digest is None else end.digest == self._digests[end.sector]

    def contradiction(self, end: SectorEnd) -> str:
        """What there is instead of what was sent, where ``is_as_sent`` says no."""
        there = self.records[end.sector]
        return f"{there} records are there, its producer sent {'others' if there == end.records else end.records}"
