"""One scan on one rank: assemble -> count -> journal, then acknowledge."""

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpistream.model.block_set import BlockSet
from mpistream.model.counted_block import CountedBlock, JournaledBlock, diffraction_sum_of, of_kind
from mpistream.model.errors import StorageError
from mpistream.model.fault_points import reach
from mpistream.model.protocol import Ack, BlockHeader
from mpistream.model.recorded_block import RecordedBlock
from mpistream.model.scan import Durability, ScanRecord, Thresholds
from mpistream.reduction.calibration import SampleStatistics
from mpistream.reduction.frame_assembly import AssembledBlock
from mpistream.reduction.scan_recording import ScanRecording
from mpistream.reduction.scan_reduction import ScanReduction
from mpistream.storage.journal import JournalWriter
from mpistream.storage.recording_pixels import RecordingPixels

#: How often a journal that could not be written is tried again.
_RETRY_SECONDS = 1.0
#: How long the pixels of a recording are written before acknowledgements and signs of life get their turn.
_PIXELS_SECONDS = 0.2
#: What is added up over the blocks of a scan, in the order in which it is shown.
_SUMS = ("frames", "electrons", "raw_bytes", "frames_incomplete")


@dataclass
class RankScan:
    """What a rank has of a scan: blocks that are partly there, held, counted, journaled.

    A block is acknowledged once it is journaled, and again whenever it comes again. ``blocks`` are the journaled ones,
    kept in memory for the dataset until they are taken.
    """

    reduction: ScanReduction
    incarnation: int
    journal: JournalWriter | None
    pixels: RecordingPixels | None = None
    blocks: list[JournaledBlock] = field(default_factory=list)
    problem: str = ""
    _flushing: bool = False
    _flushed: bool = False
    _counted: list[tuple[tuple[BlockHeader, ...], JournaledBlock]] = field(default_factory=list)
    _acks: dict[tuple[int, bytes, int], list[int]] = field(default_factory=lambda: defaultdict(list))
    _fresh: list[int] = field(default_factory=list)
    _totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SUMS, 0))
    _reported: dict[str, Any] = field(default_factory=dict)
    _retry_at: float = 0.0

    def __post_init__(self) -> None:
        self._journaled = BlockSet(self.record.block_range)

    @classmethod
    def prepare(cls, record: ScanRecord, rank: int, incarnation: int) -> "RankScan":
        """Loads what counting needs and begins a journal. Raises ReferenceImageError, StorageError."""
        reduction = (ScanRecording if record.recording else ScanReduction).prepare(record)
        journal = None
        if record.durability is not Durability.NONE:
            path = Path(record.journals) / f"rank-{rank}-{incarnation}.journal"
            journal = JournalWriter.create(path, record.uid, incarnation, record.durability)
        return cls(reduction, incarnation, journal, RecordingPixels(record) if record.recording else None)

    @property
    def record(self) -> ScanRecord:
        return self.reduction.record

    def receive(self, header: BlockHeader, payload: memoryview) -> AssembledBlock | None:
        """Takes one sector's message; returns the block that it completes. Raises ProtocolError."""
        if header.block in self._journaled:
            self.reduction.assembly.blocks_repeated += 1
            self._owe_acknowledgement(header)
            return None
        return self.reduction.assemble(header, payload)

    def count(self, block: AssembledBlock) -> bytes | None:
        """Counts a block, or holds it until the thresholds are known; returns its part of the sample, if any."""
        statistics = self.reduction.sample_block(block)
        counted = self.reduction.count(block)
        if counted is not None:
            self._counted.append((block.headers, counted))
        return statistics

    def set_thresholds(self, thresholds: Thresholds, sample: SampleStatistics | None) -> list[AssembledBlock]:
        """From now on blocks are counted; returns those that were held."""
        return self.reduction.set_thresholds(thresholds, sample)

    def journal_counted(self, now: float) -> None:
        """Writes what has been counted since the last time to the journal, all at once. What cannot be written stays
        counted and unacknowledged, and is tried again.
        """
        if not self._counted or now < self._retry_at:
            return
        reach("rank.before-journal")
        try:
            ready = self._counted[: self._write_pixels()]
            if self.journal is not None:
                self.journal.append([counted for _, counted in ready])
        except StorageError as error:
            self.problem, self._retry_at = error.message, now + _RETRY_SECONDS
            return
        reach("rank.before-ack")
        self.problem = ""
        for headers, counted in ready:
            self._enter(counted)
            for header in headers:
                self._owe_acknowledgement(header)
        del self._counted[: len(ready)]

    def is_behind(self, now: float) -> bool:
        """Something that has come could be written, and there was no time for it yet."""
        return bool(self._counted) and now >= self._retry_at

    def _write_pixels(self) -> int:
        """How many of the counted blocks can be journaled: of a recording, those whose pixels are in its file."""
        if self.pixels is None:
            return len(self._counted)
        recorded = [block for _, block in self._counted if isinstance(block, RecordedBlock)]
        return self.pixels.write(recorded, _PIXELS_SECONDS)

    def _enter(self, counted: JournaledBlock) -> None:
        self.blocks.append(counted)
        self._fresh.append(counted.block)
        self._journaled.add([counted.block])
        self._totals["frames"] += counted.frames
        self._totals["electrons"] += counted.electrons
        self._totals["raw_bytes"] += counted.raw_bytes
        self._totals["frames_incomplete"] += int(np.count_nonzero(counted.missing_sectors))

    def _owe_acknowledgement(self, header: BlockHeader) -> None:
        self._acks[header.producer_id, header.scan_uid, header.producer_incarnation].append(header.block)

    def take_acknowledgements(self) -> list[Ack]:
        """What is to be told to the producers now: a few messages for many blocks."""
        acks = [
            Ack(producer_id, scan_uid, producer_incarnation, self.incarnation, tuple(blocks))
            for (producer_id, scan_uid, producer_incarnation), blocks in self._acks.items()
        ]
        self._acks.clear()
        return acks

    def flush(self) -> None:
        """From now on ``report`` says when all that had come is journaled."""
        self._flushing = True

    def nothing_came(self) -> None:
        """Nothing waits to be received."""
        idle = not self._counted and not self.reduction.blocks_held
        self._flushed = self._flushed or (self._flushing and idle)

    def report(self) -> tuple[dict[str, Any], bytes] | None:
        """What the leader does not know yet: a message's fields and the blocks newly journaled (u64)."""
        fields = {
            "bytes": self.journal.bytes if self.journal else 0,
            "totals": {
                **self._totals,
                "blocks_partial": self.reduction.assembly.blocks_partial,
                "blocks_held": self.reduction.blocks_held,
                "blocks_repeated": self.reduction.assembly.blocks_repeated,
            },
            "flushed": self._flushed,
            "problem": self.problem,
        }
        if fields == self._reported and not self._fresh:
            return None
        self._reported = fields
        fresh, self._fresh = np.array(self._fresh, "<u8"), []
        return fields, fresh.tobytes()

    def take_blocks(self) -> tuple[list[JournaledBlock], npt.NDArray[np.uint32]]:
        """The journaled blocks, and the electrons on each pixel of them. They are handed over: none is kept here."""
        blocks, self.blocks = self.blocks, []
        pattern = self.reduction.diffraction_sum.copy()
        if int(pattern.sum(dtype=np.int64)) != sum(block.electrons for block in blocks):
            # something was counted that is not journaled, or was handed over before
            pattern = diffraction_sum_of(of_kind(CountedBlock, blocks))
        return blocks, pattern

    def close(self, keep: bool) -> None:
        """The scan has ended: the journal goes, unless it is to be kept, and the last one takes the folder along."""
        if self.pixels is not None:
            self.pixels.close()
        if self.journal is None:
            return
        self.journal.close()
        if not keep:
            with suppress(OSError):
                self.journal.path.unlink(missing_ok=True)
                self.journal.path.parent.rmdir()
