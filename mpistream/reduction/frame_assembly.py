"""Puts the four sectors of a block together, without copying a pixel: addresses into the buffers as they arrived."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mpistream.model.block_set import BlockSet
from mpistream.model.errors import ProtocolError
from mpistream.model.geometry import ALL_SECTORS, HEADER_BYTES, RECORD_BYTES, RECORD_HEADER, SECTORS
from mpistream.model.protocol import BlockHeader
from mpistream.model.scan import ScanRecord


@dataclass(frozen=True)
class AssembledBlock:
    """A block all of whose sectors have been heard of, or will never be: its frames, those with at least one sector.

    headers          of the messages that came, in the order of their sectors
    frames_rejected  per sector, the bit map of records that came and were bad
    sector_addresses uint64[n_frames, 4]   where each sector's pixels lie; 0 where it is missing
    scan_position    uint32[n_frames]
    frame_number     uint64[n_frames]
    missing_sectors  uint8[n_frames]
    """

    block: int
    headers: tuple[BlockHeader, ...]
    frames_rejected: tuple[int, int, int, int]
    sector_addresses: npt.NDArray[np.uint64]
    scan_position: npt.NDArray[np.uint32]
    frame_number: npt.NDArray[np.uint64]
    missing_sectors: npt.NDArray[np.uint8]
    payloads: tuple[memoryview, ...]  # keeps the addresses valid

    @property
    def raw_bytes(self) -> int:
        return sum(header.payload_bytes for header in self.headers)


@dataclass
class FrameAssembly:
    """Collects the blocks of one scan that are routed to this rank.

    A block is complete when each sector's message has come, an empty one included: "nothing came" and "nothing was
    there" differ. Of a sector that comes again, sent once more after a loss, the fuller message counts.

    blocks_repeated  messages that came again
    """

    record: ScanRecord
    blocks_repeated: int = 0
    _wanted: set[int] = field(default_factory=lambda: set(range(SECTORS)))
    _partial: dict[int, dict[int, tuple[BlockHeader, memoryview]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._complete = BlockSet(self.record.block_range)

    @property
    def blocks_partial(self) -> int:
        """Blocks of which some sectors are here and others are waited for."""
        return len(self._partial)

    def add(self, header: BlockHeader, payload: memoryview) -> AssembledBlock | None:
        """Takes one sector's message; returns the block when it was the last one wanting.

        Raises ProtocolError, and takes nothing, when the message contradicts itself or the scan's record.
        """
        if payload.nbytes != header.payload_bytes:
            raise ProtocolError(f"a payload of {payload.nbytes} bytes, announced as {header.payload_bytes}")
        if header.encoding is not self.record.encoding or header.block_frames != self.record.block_frames:
            raise ProtocolError(f"block {header.block} is not encoded as the scan's record says")
        if header.block not in self.record.block_range:
            raise ProtocolError(f"block {header.block} is outside the scan's {self.record.block_range}")
        if header.block in self._complete:
            self.blocks_repeated += 1
            return None
        sectors = self._partial.setdefault(header.block, {})
        if header.sector in sectors:
            self.blocks_repeated += 1
            if header.frames_present.bit_count() <= sectors[header.sector][0].frames_present.bit_count():
                return None
        sectors[header.sector] = (header, payload)
        return self._take_if_complete(header.block)

    def cut(self, sectors: Iterable[int]) -> Iterator[AssembledBlock]:
        """From now on nothing is waited for of ``sectors``; what thereby is complete."""
        self._wanted -= set(sectors)
        for block in sorted(self._partial):
            if (assembled := self._take_if_complete(block)) is not None:
                yield assembled

    def forget_partial(self, still_mine: Callable[[int], bool]) -> None:
        """Lets go of incomplete blocks that another rank will get, all their sectors once more."""
        for block in [block for block in self._partial if not still_mine(block)]:
            del self._partial[block]

    def _take_if_complete(self, block: int) -> AssembledBlock | None:
        if not self._wanted <= self._partial[block].keys():
            return None
        self._complete.add([block])
        sectors = self._partial.pop(block)
        return self._assemble(block, [sectors[sector] for sector in sorted(sectors)])

    def _assemble(self, block: int, sectors: list[tuple[BlockHeader, memoryview]]) -> AssembledBlock:
        block_frames = self.record.block_frames
        addresses = np.zeros((block_frames, SECTORS), np.uint64)
        position = np.zeros(block_frames, np.uint32)
        missing = np.full(block_frames, ALL_SECTORS, np.uint8)
        rejected = [0] * SECTORS
        for header, payload in sectors:
            if header.frames_present:
                rejected[header.sector] = self._place(header, payload, addresses, position, missing)
        present = np.flatnonzero(missing != ALL_SECTORS)
        return AssembledBlock(
            block,
            tuple(header for header, _ in sectors),
            (rejected[0], rejected[1], rejected[2], rejected[3]),
            addresses[present],
            position[present],
            (present + block * block_frames).astype(np.uint64),
            missing[present],
            tuple(payload for _, payload in sectors),
        )

    def _place(
        self,
        header: BlockHeader,
        payload: memoryview,
        addresses: npt.NDArray[np.uint64],
        position: npt.NDArray[np.uint32],
        missing: npt.NDArray[np.uint8],
    ) -> int:
        """Enters one sector's records. Those with impossible headers, or at another position than the sectors before
        them say, are rejected and count as missing; returns their bit map.
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
        rejected = sum(1 << int(frame) for frame in frames[~good])
        frames, claimed = frames[good], claimed[good]
        position[frames] = claimed
        missing[frames] &= np.uint8(ALL_SECTORS & ~(1 << header.sector))
        addresses[frames, header.sector] = records.ctypes.data + np.flatnonzero(good) * RECORD_BYTES + HEADER_BYTES
        return rejected
