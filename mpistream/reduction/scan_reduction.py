"""One scan on one rank: blocks in, counted blocks out."""

import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mpistream.model.counted_block import CountedBlock, JournaledBlock
from mpistream.model.electron_events import ElectronEvents
from mpistream.model.frame_sums import FrameSums
from mpistream.model.geometry import FRAME_SHAPE, SECTORS
from mpistream.model.protocol import BlockHeader
from mpistream.model.scan import ScanRecord, Thresholds
from mpistream.reduction.calibration import SampleStatistics, sample_block
from mpistream.reduction.electron_counting import ElectronCounter
from mpistream.reduction.frame_assembly import AssembledBlock, FrameAssembly
from mpistream.reduction.reference_images import References


@dataclass
class ScanReduction:
    """Counts the assembled blocks of a scan; until the thresholds are known it holds them.

    What it holds is bounded by the producers' windows: a block is acknowledged only when it is counted and journaled.
    ``sample`` is what the thresholds were calibrated from; only rank 0 has it.
    """

    record: ScanRecord
    assembly: FrameAssembly
    references: References
    sample: SampleStatistics | None = None
    seconds_counting: float = 0.0
    first_block_unix_seconds: float = 0.0
    last_block_unix_seconds: float = 0.0
    _thresholds: Thresholds | None = None
    _counter: ElectronCounter | None = None
    _held: list[AssembledBlock] = field(default_factory=list)

    @classmethod
    def prepare(cls, record: ScanRecord) -> "ScanReduction":
        """Loads what counting needs. Raises ReferenceImageError."""
        return cls(record, FrameAssembly(record), References.load(record.counting))

    @property
    def blocks_held(self) -> int:
        """Blocks that wait for the thresholds."""
        return len(self._held)

    @property
    def has_thresholds(self) -> bool:
        return self._counter is not None

    @property
    def annuli(self) -> int:
        """On how many virtual detectors the electrons of each frame are counted."""
        return len(self.record.detectors.known_masks(FRAME_SHAPE))

    @property
    def thresholds(self) -> Thresholds:
        """What was counted with."""
        assert self._thresholds is not None, "nothing is counted before the thresholds are known"
        return self._thresholds

    @property
    def diffraction_sum(self) -> npt.NDArray[np.uint32]:
        """uint32[frame rows, frame columns]: the electrons on each pixel, of all frames counted so far."""
        return self._counter.diffraction_sum if self._counter is not None else np.zeros(FRAME_SHAPE, np.uint32)

    def assemble(self, header: BlockHeader, payload: memoryview) -> AssembledBlock | None:
        """Takes one sector's message; returns its block when that is complete. Raises ProtocolError."""
        block = self.assembly.add(header, payload)
        if block is not None:
            self.last_block_unix_seconds = time.time()
            self.first_block_unix_seconds = self.first_block_unix_seconds or self.last_block_unix_seconds
        return block

    def sample_block(self, block: AssembledBlock) -> bytes | None:
        """Statistics of the block's complete frames, where the scan's thresholds are calibrated and need them."""
        if self._counter or self.record.counting.thresholds_are_given or block.block not in self.record.sample_blocks:
            return None
        complete = block.sector_addresses[block.missing_sectors == 0]
        used = self.references
        return sample_block(complete, self.record.encoding.layout, used.dark, used.gain, used.pixel_mask).to_bytes()

    def set_thresholds(self, thresholds: Thresholds, sample: SampleStatistics | None = None) -> list[AssembledBlock]:
        """From now on blocks are counted; returns those that were held, to be counted now."""
        counting = self.record.counting
        self._thresholds, self.sample = thresholds, sample
        self._counter = ElectronCounter(
            self.record.encoding.layout,
            thresholds.background,
            thresholds.xray,
            self.references.dark,
            self.references.gain,
            pixel_mask=self.references.pixel_mask,
            row_dark=counting.row_dark,
            row_dark_level=thresholds.row_dark_level,
            centroids=counting.centroids,
            annuli=self.record.detectors.known_masks(FRAME_SHAPE),
        )
        held, self._held = self._held, []
        return held

    def count(self, block: AssembledBlock) -> JournaledBlock | None:
        """Counts a block; None where it is held until the thresholds are known."""
        if self._counter is None:
            self._held.append(block)
            return None
        return self._count(block, self._counter)

    def _count(self, block: AssembledBlock, counter: ElectronCounter) -> CountedBlock:
        started = time.monotonic()
        counted = counter.count_block(block.sector_addresses)
        self.seconds_counting += time.monotonic() - started
        events = ElectronEvents.from_counts(
            block.scan_position,
            block.frame_number,
            block.missing_sectors,
            counted.counts,
            counted.indices,
            counted.centroids,
        )
        sums = FrameSums(counted.moments.astype(np.uint32), counted.annuli.astype(np.uint32))
        return CountedBlock(
            block.block,
            sum(1 << header.sector for header in block.headers),
            frames_present(block),
            block.frames_rejected,
            block.raw_bytes,
            events,
            sums,
        )


def frames_present(block: AssembledBlock) -> tuple[int, int, int, int]:
    """Per sector, the bit map that its message carried; 0 where none came."""
    present = [0] * SECTORS
    for header in block.headers:
        present[header.sector] = header.frames_present
    return present[0], present[1], present[2], present[3]
