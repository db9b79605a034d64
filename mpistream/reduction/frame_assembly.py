"""Puts the four sectors of a block together, without copying a pixel: addresses into the buffers as they arrived."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mpistream.model.errors import ProtocolError
from mpistream.model.geometry import ALL_SECTORS, HEADER_BYTES, RECORD_BYTES, RECORD_HEADER, SECTORS
from mpistream.model.protocol import BlockHeader, blocks_digest
from mpistream.model.scan import ScanRecord


@dataclass(frozen=True)
class AssembledBlock:
    """A block whose four sectors have all been heard of: its frames, those with at least one sector.

    sector_addresses uint64[n_frames, 4]   where each sector's pixels lie; 0 where it is missing
    scan_position    uint32[n_frames]
    frame_number     uint64[n_frames]
    missing_sectors  uint8[n_frames]
    """

    block: int
    headers: tuple[BlockHeader, ...]
    sector_addresses: npt.NDArray[np.uint64]
    scan_position: npt.NDArray[np.uint32]
    frame_number: npt.NDArray[np.uint64]
    missing_sectors: npt.NDArray[np.uint8]
    payloads: tuple[memoryview, ...]  # keeps the addresses valid

    @property
    def raw_bytes(self) -> int:
        return sum(header.payload_bytes for header in self.headers)


@dataclass
class AssemblyCounters:
    """What came beside the good records, in records (one sector of one frame)."""

    sectors_duplicate: int = 0
    sectors_rejected: int = 0


@dataclass
class FrameAssembly:
    """Collects the blocks of one scan that are routed to this rank.

    A block is complete when each sector's message has come, an empty one included: "nothing came" and "nothing was
    there" differ. A sector that comes twice is dropped the second time.
    """

    record: ScanRecord
    counters: AssemblyCounters = field(default_factory=AssemblyCounters)

    def __post_init__(self) -> None:
        self._blocks = self.record.block_range
        self._partial: dict[int, dict[int, tuple[BlockHeader, memoryview]]] = {}
        self._complete = np.zeros(len(self._blocks), bool)
        self._digests = [0] * SECTORS

    @property
    def digests(self) -> tuple[int, ...]:
        """Per sector, the digest of which frames have come: to be compared with what the producer says it sent."""
        return tuple(self._digests)

    def add(self, header: BlockHeader, payload: memoryview) -> AssembledBlock | None:
        """Takes one sector's message; returns the block when it was the last one wanting.

        Raises ProtocolError, and takes nothing, when the message contradicts itself or the scan's record.
        """
        if payload.nbytes != header.payload_bytes:
            raise ProtocolError(f"a payload of {payload.nbytes} bytes, announced as {header.payload_bytes}")
        if header.encoding is not self.record.encoding or header.block_frames != self.record.block_frames:
            raise ProtocolError(f"block {header.block} is not encoded as the scan's record says")
        if header.block not in self._blocks:
            raise ProtocolError(f"block {header.block} is outside the scan's {self._blocks}")
        sectors = {} if self.is_complete(header.block) else self._partial.setdefault(header.block, {})
        if header.sector in sectors or self.is_complete(header.block):
            self.counters.sectors_duplicate += header.frames_present.bit_count()
            return None
        sectors[header.sector] = (header, payload)
        if len(sectors) < SECTORS:
            return None
        del self._partial[header.block]
        self._complete[header.block - self._blocks.start] = True
        return self._assemble(header.block, [sectors[sector] for sector in range(SECTORS)])

    def is_complete(self, block: int) -> bool:
        return bool(self._complete[block - self._blocks.start])

    def _assemble(self, block: int, sectors: list[tuple[BlockHeader, memoryview]]) -> AssembledBlock:
        block_frames = self.record.block_frames
        addresses = np.zeros((block_frames, SECTORS), np.uint64)
        position = np.zeros(block_frames, np.uint32)
        missing = np.full(block_frames, ALL_SECTORS, np.uint8)
        for sector, (header, payload) in enumerate(sectors):
            self._digests[sector] += blocks_digest(sector, [block], [header.frames_present])
            self._digests[sector] %= 1 << 64
            if header.frames_present:
                self._place(sector, header, payload, addresses, position, missing)
        present = np.flatnonzero(missing != ALL_SECTORS)
        return AssembledBlock(
            block,
            tuple(header for header, _ in sectors),
            addresses[present],
            position[present],
            (present + block * block_frames).astype(np.uint64),
            missing[present],
            tuple(payload for _, payload in sectors),
        )

    def _place(
        self,
        sector: int,
        header: BlockHeader,
        payload: memoryview,
        addresses: npt.NDArray[np.uint64],
        position: npt.NDArray[np.uint32],
        missing: npt.NDArray[np.uint8],
    ) -> None:
        """Enters one sector's records. Those with impossible headers, or at another position than the sectors before
        them say, are rejected and count as missing.
        """
        frames = np.flatnonzero([header.frames_present >> bit & 1 for bit in range(header.block_frames)])
        records = np.frombuffer(payload, np.uint8).reshape(len(frames), RECORD_BYTES)
        found = records[:, :HEADER_BYTES].copy().view(RECORD_HEADER)[:, 0]
        columns, rows = self.record.columns, self.record.rows
        claimed = found["y"].astype(np.uint32) * np.uint32(columns) + found["x"]
        good = (
            (found["scan_number"] == self.record.scan_number)
            & (found["frame_number"] == frames + header.first_frame)
            & (frames + header.first_frame >= self.record.first_frame)
            & (frames + header.first_frame <= self.record.last_frame)
            & (found["x"] < columns)
            & (found["y"] < rows)
            & (found["columns"] == columns)
            & (found["rows"] == rows)
            & ((missing[frames] == ALL_SECTORS) | (position[frames] == claimed))
        )
        self.counters.sectors_rejected += int(len(frames) - good.sum())
        frames, claimed = frames[good], claimed[good]
        position[frames] = claimed
        missing[frames] &= np.uint8(ALL_SECTORS & ~(1 << sector))
        addresses[frames, sector] = records.ctypes.data + np.flatnonzero(good) * RECORD_BYTES + HEADER_BYTES
