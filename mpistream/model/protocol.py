"""The wire format, version 2: every byte that mpistream sends between its processes. See docs/protocol.md.

All numbers are little-endian. A data message has two ZeroMQ parts: a block header of fixed size, then the payload:
the camera's own records verbatim, one per bit set in ``frames_present``, in ascending order of their frames.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

import numpy as np

from mpistream.model.errors import ProtocolError
from mpistream.model.geometry import RECORD_BYTES, SECTORS, SectorLayout

MAGIC = b"MPIS"
VERSION = 2
MAX_BLOCK_FRAMES = 64


class Kind(IntEnum):
    BLOCK = 1
    ACK = 2
    HELLO = 3
    WANT = 4


class Encoding(IntEnum):
    """How the payload of a block is to be read."""

    RECORDS_COLUMNS = 4  # raw records whose sectors are 576 rows x 144 columns
    RECORDS_ROWS = 5  # raw records whose sectors are 144 rows x 576 columns

    @property
    def layout(self) -> SectorLayout:
        return SectorLayout(int(self))


# magic, version, kind: what every message begins with
_PREFIX = struct.Struct("<4sHH")
# encoding, sector, block_frames, routing_version, destination, producer_id, scan_uid,
# producer_incarnation, block, frames_present, payload_bytes
_BLOCK = struct.Struct("<BBHIII16sQQQQ")
# What goes back to a producer begins with its id, so that it can be passed on unread.
_PRODUCER_ID = struct.Struct("<I")
# producer_id, scan_uid, producer_incarnation, rank_incarnation, number of blocks
_ACK = struct.Struct("<I16sQQI")
# producer_id, scan_uid, rank_incarnation
_WANT = struct.Struct("<I16sQ")

BLOCK_HEADER_BYTES = _PREFIX.size + _BLOCK.size


def check_prefix(message: bytes | memoryview, kind: Kind) -> None:
    """Raises ProtocolError unless ``message`` begins as a message of ``kind`` of this protocol version does."""
    if len(message) < _PREFIX.size:
        raise ProtocolError(f"a message of {len(message)} bytes is no mpistream message")
    magic, version, found = _PREFIX.unpack_from(message)
    if magic != MAGIC:
        raise ProtocolError(f"a message that begins with {bytes(magic)!r} is no mpistream message")
    if version != VERSION:
        raise ProtocolError(
            f"a message of protocol version {version}; this process speaks version {VERSION}",
            "run the same mpistream release on both sides",
        )
    if found != kind:
        raise ProtocolError(f"a message of kind {found} where {kind.name} ({int(kind)}) was expected")


@dataclass(frozen=True)
class BlockHeader:
    """Frames ``block * block_frames`` to ``(block + 1) * block_frames - 1`` of one sector of one scan.

    ``destination`` is the rank that it goes to: an index into the ranks of the routing table ``routing_version``.
    """

    encoding: Encoding
    sector: int
    block_frames: int
    routing_version: int
    destination: int
    producer_id: int
    scan_uid: bytes
    producer_incarnation: int
    block: int
    frames_present: int
    payload_bytes: int

    @property
    def first_frame(self) -> int:
        return self.block * self.block_frames

    def pack(self) -> bytes:
        return _PREFIX.pack(MAGIC, VERSION, Kind.BLOCK) + _BLOCK.pack(
            self.encoding,
            self.sector,
            self.block_frames,
            self.routing_version,
            self.destination,
            self.producer_id,
            self.scan_uid,
            self.producer_incarnation,
            self.block,
            self.frames_present,
            self.payload_bytes,
        )

    @classmethod
    def unpack(cls, message: bytes | memoryview) -> "BlockHeader":
        """Raises ProtocolError for anything that is not a well-formed header of this version."""
        check_prefix(message, Kind.BLOCK)
        if len(message) != BLOCK_HEADER_BYTES:
            raise ProtocolError(f"a block header of {len(message)} bytes; it has {BLOCK_HEADER_BYTES}")
        encoding, sector, block_frames, *rest = _BLOCK.unpack_from(message, _PREFIX.size)
        if encoding not in set(Encoding):
            raise ProtocolError(f"payload encoding {encoding} is unknown to this version")
        if sector >= SECTORS:
            raise ProtocolError(f"sector {sector}; a frame has sectors 0 to {SECTORS - 1}")
        header = cls(Encoding(encoding), sector, block_frames, *rest)
        if not 1 <= block_frames <= MAX_BLOCK_FRAMES or header.frames_present >> block_frames:
            raise ProtocolError(f"a block of {block_frames} frames with the bit map {header.frames_present:#x}")
        if header.payload_bytes != header.frames_present.bit_count() * RECORD_BYTES:
            raise ProtocolError(f"{header.payload_bytes} payload bytes for {header.frames_present.bit_count()} records")
        return header


@dataclass(frozen=True)
class Ack:
    """A rank has counted and journaled these blocks of a scan: their producer need keep them no longer.

    ``producer_incarnation`` is that of the message which brought the block.
    """

    producer_id: int
    scan_uid: bytes
    producer_incarnation: int
    rank_incarnation: int
    blocks: tuple[int, ...]

    def pack(self) -> bytes:
        return (
            _PREFIX.pack(MAGIC, VERSION, Kind.ACK)
            + _ACK.pack(
                self.producer_id, self.scan_uid, self.producer_incarnation, self.rank_incarnation, len(self.blocks)
            )
            + struct.pack(f"<{len(self.blocks)}Q", *self.blocks)
        )

    @classmethod
    def unpack(cls, message: bytes | memoryview) -> "Ack":
        check_prefix(message, Kind.ACK)
        try:
            producer_id, scan_uid, producer, rank, count = _ACK.unpack_from(message, _PREFIX.size)
            blocks = struct.unpack_from(f"<{count}Q", message, _PREFIX.size + _ACK.size)
        except struct.error as error:
            raise ProtocolError(f"a truncated acknowledgement: {error}") from error
        if len(message) != _PREFIX.size + _ACK.size + 8 * count:
            raise ProtocolError(f"an acknowledgement of {count} blocks in {len(message)} bytes")
        return cls(producer_id, scan_uid, producer, rank, blocks)


@dataclass(frozen=True)
class Want:
    """A rank to which nothing comes any more: what it was sent and has not acknowledged should be sent again."""

    producer_id: int
    scan_uid: bytes
    rank_incarnation: int

    def pack(self) -> bytes:
        return _PREFIX.pack(MAGIC, VERSION, Kind.WANT) + _WANT.pack(
            self.producer_id, self.scan_uid, self.rank_incarnation
        )

    @classmethod
    def unpack(cls, message: bytes | memoryview) -> "Want":
        check_prefix(message, Kind.WANT)
        if len(message) != _PREFIX.size + _WANT.size:
            raise ProtocolError(f"a request of {len(message)} bytes")
        return cls(*_WANT.unpack_from(message, _PREFIX.size))


def unpack_answer(message: bytes | memoryview) -> Ack | Want:
    """What comes back to a producer. Raises ProtocolError."""
    if len(message) >= _PREFIX.size and _PREFIX.unpack_from(message)[2] == Kind.WANT:
        return Want.unpack(message)
    return Ack.unpack(message)


def producer_of_answer(message: bytes | memoryview) -> int:
    """The id of the producer that an answer is for, unread. Raises ProtocolError."""
    if len(message) < _PREFIX.size + _PRODUCER_ID.size:
        raise ProtocolError(f"an answer of {len(message)} bytes")
    kind = _PREFIX.unpack_from(message)[2]
    check_prefix(message, Kind.WANT if kind == Kind.WANT else Kind.ACK)
    return int(_PRODUCER_ID.unpack_from(message, _PREFIX.size)[0])


def is_want(answer: bytes | memoryview) -> bool:
    """Of an answer that ``producer_of_answer`` takes: whether it asks for blocks, rather than acknowledges some."""
    return bool(_PREFIX.unpack_from(answer)[2] == Kind.WANT)


@dataclass(frozen=True)
class Hello:
    """The first message of whoever waits for acknowledgements: ``producer_id``, or None for an aggregator."""

    producer_id: int | None

    _ANY: ClassVar[int] = 0xFFFFFFFF

    def pack(self) -> bytes:
        number = self._ANY if self.producer_id is None else self.producer_id
        return _PREFIX.pack(MAGIC, VERSION, Kind.HELLO) + struct.pack("<I", number)

    @classmethod
    def unpack(cls, message: bytes | memoryview) -> "Hello":
        check_prefix(message, Kind.HELLO)
        if len(message) != _PREFIX.size + 4:
            raise ProtocolError(f"a greeting of {len(message)} bytes")
        (number,) = struct.unpack_from("<I", message, _PREFIX.size)
        return cls(None if number == cls._ANY else number)


def blocks_digest(sector: int, blocks: Iterable[int], frames_present: Iterable[int]) -> int:
    """64-bit digest of which frames of which blocks there are: equal for equal sets, in whatever order they came.

    Digests of disjoint sets add up (modulo 2**64), so each rank digests what it got and the sum is compared with what
    the producers say they sent. The mixing function is splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
    """
    block = np.fromiter(blocks, np.uint64)
    present = np.fromiter(frames_present, np.uint64)
    with np.errstate(over="ignore"):
        mixed = _splitmix64(_splitmix64(block * np.uint64(SECTORS) + np.uint64(sector)) ^ present)
        return int(mixed.sum(dtype=np.uint64))


def _splitmix64(value: "np.ndarray[tuple[int], np.dtype[np.uint64]]") -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
