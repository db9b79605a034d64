"""One scan on one rank: blocks in, electron events out."""

import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mpistream.model.electron_events import ElectronEvents
from mpistream.model.geometry import FRAME_SHAPE
from mpistream.model.protocol import BlockHeader
from mpistream.model.scan import ScanRecord, Thresholds
from mpistream.model.scan_sums import ScanSums
from mpistream.model.virtual_images import VirtualDetectors
from mpistream.reduction.calibration import SampleStatistics, sample_block
from mpistream.reduction.electron_counting import ElectronCounter
from mpistream.reduction.frame_assembly import AssembledBlock, FrameAssembly
from mpistream.reduction.reference_images import load_pixel_mask, load_reference_image


@dataclass
class ScanReduction:
    """Counts the assembled blocks of a scan; until the thresholds are known it holds them.

    What it holds is bounded by the producers' windows: a block is acknowledged only when it is counted. ``sample`` is
    what the thresholds were calibrated from, ``sums`` is there once they are known.
    """

    record: ScanRecord
    blocks_expected: int
    assembly: FrameAssembly
    dark: npt.NDArray[np.float32] | None
    gain: npt.NDArray[np.float32] | None
    pixel_mask: npt.NDArray[np.bool_] | None
    detectors: VirtualDetectors
    sample: SampleStatistics | None = None
    frames: int = 0
    electrons: int = 0
    raw_bytes: int = 0
    seconds_counting: float = 0.0
    first_block_unix_seconds: float = 0.0
    last_block_unix_seconds: float = 0.0
    _thresholds: Thresholds | None = None
    _counter: ElectronCounter | None = None
    _sums: ScanSums | None = None
    _held: list[AssembledBlock] = field(default_factory=list)
    _counted: list[ElectronEvents] = field(default_factory=list)

    @classmethod
    def prepare(cls, record: ScanRecord, blocks_expected: int, detectors: VirtualDetectors) -> "ScanReduction":
        """Loads what counting needs. Raises ReferenceImageError."""
        counting = record.counting
        dark = load_reference_image(counting.dark, "dark") if counting.dark else None
        gain = load_reference_image(counting.gain, "gain") if counting.gain else None
        pixel_mask = load_pixel_mask(counting.pixel_mask) if counting.pixel_mask else None
        return cls(record, blocks_expected, FrameAssembly(record), dark, gain, pixel_mask, detectors)

    @property
    def blocks_counted(self) -> int:
        return len(self._counted)

    @property
    def is_drained(self) -> bool:
        """Every block that is routed to this rank has been counted."""
        return self.blocks_counted == self.blocks_expected

    @property
    def thresholds(self) -> Thresholds:
        """What was counted with."""
        assert self._thresholds is not None, "nothing is counted before the thresholds are known"
        return self._thresholds

    @property
    def sums(self) -> ScanSums:
        """What was added up while counting."""
        assert self._sums is not None, "nothing is counted before the thresholds are known"
        return self._sums

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
        return sample_block(complete, self.record.encoding.layout, self.dark, self.gain, self.pixel_mask).to_bytes()

    def set_thresholds(self, thresholds: Thresholds, sample: SampleStatistics | None = None) -> list[AssembledBlock]:
        """From now on blocks are counted; returns those that were held, to be counted now."""
        counting, center = self.record.counting, self.detectors.center
        # Around a center that is only known in the end, electrons are looked up when the dataset is written.
        annuli = self.detectors.masks(FRAME_SHAPE, center) if center is not None else ()
        self._thresholds, self.sample = thresholds, sample
        self._counter = ElectronCounter(
            self.record.encoding.layout,
            thresholds.background,
            thresholds.xray,
            self.dark,
            self.gain,
            pixel_mask=self.pixel_mask,
            row_dark=counting.row_dark,
            row_dark_level=thresholds.row_dark_level,
            centroids=counting.centroids,
            annuli=annuli,
        )
        scan_shape = (self.record.rows, self.record.columns)
        self._sums = ScanSums.zeros(scan_shape, len(annuli), self._counter.diffraction_sum)
        held, self._held = self._held, []
        return held

    def count(self, block: AssembledBlock) -> list[AssembledBlock]:
        """Counts a block, or holds it until the thresholds are known; returns the blocks that are counted now."""
        if self._counter is None:
            self._held.append(block)
            return []
        self._count(block, self._counter)
        return [block]

    def _count(self, block: AssembledBlock, counter: ElectronCounter) -> None:
        started = time.monotonic()
        counted = counter.count_block(block.sector_addresses)
        self.sums.add_frames(block.scan_position, counted.counts, counted.moments, counted.annuli)
        self.seconds_counting += time.monotonic() - started
        self._counted.append(
            ElectronEvents.from_counts(
                block.scan_position,
                block.frame_number,
                block.missing_sectors,
                counted.counts,
                counted.indices,
                counted.centroids,
            )
        )
        self.frames += len(counted.counts)
        self.electrons += len(counted.indices)
        self.raw_bytes += block.raw_bytes

    def progress(self) -> dict[str, int]:
        """This rank's share of the scan so far."""
        return {
            "frames": self.frames,
            "electrons": self.electrons,
            "blocks": self.blocks_counted,
            "raw_bytes": self.raw_bytes,
        }

    def take_events(self) -> ElectronEvents:
        """All that was counted on this rank, block by block. It is handed over: none of it is kept here."""
        counted, self._counted = self._counted, []
        return ElectronEvents.concatenate(counted)
