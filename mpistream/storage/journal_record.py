"""A block as bytes: the record of a journal. docs/file-format.md, "Journals", has it byte by byte."""

import zlib
from struct import Struct
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from mpistream.model.counted_block import CountedBlock, JournaledBlock, arrays_of
from mpistream.model.electron_events import ElectronEvents
from mpistream.model.frame_sums import FrameSums
from mpistream.model.geometry import FRAME_PIXELS, SECTORS
from mpistream.model.protocol import MAX_BLOCK_FRAMES
from mpistream.model.recorded_block import RecordedBlock

MAGIC = b"MPJR"
HAS_CENTROIDS = 1
IS_RECORDED = 2

# magic, bytes of the record, block, frames_present, frames_rejected, raw_bytes, n_events, n_frames, n_annuli, sectors,
# flags; then the CRC-32 of these and of the arrays that follow
_HEAD = Struct("<4sIQ4Q4QQQIHBB")
_CRC = Struct("<I")
HEAD_BYTES = _HEAD.size + _CRC.size

#: In the order of ``arrays_of``. The first ones have a row per frame, the others one per electron.
_DTYPES = tuple(np.dtype(name) for name in ("<u4", "<u8", "u1", "<u4", "<u4", "<u4", "<u4", "i1"))
_ARRAYS_PER_FRAME = 6


class NotARecord(Exception):
    """Here the journal ends, or is damaged."""


#: Of a recorded block: scan_position, frame_number, missing, checksums.
_RECORDED_DTYPES = ("<u4", "<u8", "u1", "<u4")


def encode_record(block: JournaledBlock) -> list[Any]:
    """The parts of a record, one behind the other; what is large is not copied."""
    if isinstance(block, RecordedBlock):
        return [_encode_recorded(block)]
    assert isinstance(block, CountedBlock)
    arrays: list[Any] = [
        np.ascontiguousarray(array, dtype)
        for array, dtype in zip(arrays_of(block.events, block.sums), _DTYPES, strict=False)
    ]
    annuli, flags = block.sums.annuli.shape[1], HAS_CENTROIDS if block.events.centroids is not None else 0
    shape = len(block.events), len(block.events.indices), annuli, flags
    length = HEAD_BYTES + sum(array.nbytes for array in arrays)
    if length != _record_bytes(*shape):
        raise ValueError(f"the arrays of block {block.block} do not fit each other")
    head = _pack_head(block, length, shape[1], annuli, flags)
    per_frame, per_event = b"".join(arrays[:_ARRAYS_PER_FRAME]), arrays[_ARRAYS_PER_FRAME:]
    crc = zlib.crc32(per_frame, zlib.crc32(head))
    for array in per_event:
        crc = zlib.crc32(array, crc)
    return [b"".join((head, _CRC.pack(crc), per_frame)), *per_event]


def _encode_recorded(block: RecordedBlock) -> bytes:
    arrays = (block.scan_position, block.frame_number, block.missing, block.checksums)
    packed = b"".join(
        np.ascontiguousarray(array, dtype).tobytes() for array, dtype in zip(arrays, _RECORDED_DTYPES, strict=True)
    )
    if len(packed) != _recorded_bytes(block.frames) - HEAD_BYTES:
        raise ValueError(f"the arrays of block {block.block} do not fit each other")
    head = _pack_head(block, HEAD_BYTES + len(packed), 0, 0, IS_RECORDED)
    return b"".join((head, _CRC.pack(zlib.crc32(packed, zlib.crc32(head))), packed))


def _pack_head(block: JournaledBlock, length: int, events: int, annuli: int, flags: int) -> bytes:
    return _HEAD.pack(
        MAGIC,
        length,
        block.block,
        *block.frames_present,
        *block.frames_rejected,
        block.raw_bytes,
        events,
        block.frames,
        annuli,
        block.sectors,
        flags,
    )


def _recorded_bytes(frames: int) -> int:
    return HEAD_BYTES + frames * (13 + 4 * SECTORS)


def _record_bytes(frames: int, events: int, annuli: int, flags: int) -> int:
    if flags & IS_RECORDED:
        return _recorded_bytes(frames)
    return HEAD_BYTES + frames * (25 + 4 * annuli) + events * (6 if flags & HAS_CENTROIDS else 4)


def read_record(file: IO[bytes], most: int) -> tuple[JournaledBlock, int]:
    """The next record and its length in bytes, at most ``most``. Raises NotARecord before anything large is read."""
    head = file.read(min(HEAD_BYTES, most))
    if len(head) < HEAD_BYTES:
        raise NotARecord("a record ends early")
    magic, length, block, *bit_maps, raw_bytes, events, frames, annuli, sectors, flags = _HEAD.unpack_from(head)
    if magic != MAGIC or frames > MAX_BLOCK_FRAMES or events > frames * FRAME_PIXELS:
        raise NotARecord("no record begins there")
    if length != _record_bytes(frames, events, annuli, flags):
        raise NotARecord("a record's length contradicts what it says of itself")
    if length > most:
        raise NotARecord("a record ends early")
    payload = file.read(length - HEAD_BYTES)
    crc = zlib.crc32(payload, zlib.crc32(head[: -_CRC.size]))
    if _CRC.unpack_from(head, _HEAD.size)[0] != crc or len(payload) < length - HEAD_BYTES:
        raise NotARecord("a record's checksum is wrong")
    present, rejected = tuple(bit_maps[:4]), tuple(bit_maps[4:])
    if flags & IS_RECORDED:
        recorded = _recorded_frames(payload, frames)
        return RecordedBlock(block, sectors, present, rejected, raw_bytes, *recorded), length
    counted = _counted_frames(payload, frames, events, annuli, flags)
    return CountedBlock(block, sectors, present, rejected, raw_bytes, *counted), length


def _recorded_frames(payload: bytes, frames: int) -> Any:
    """The arrays of ``_RECORDED_DTYPES``, of their own."""
    arrays: list[npt.NDArray[Any]] = []
    offset = 0
    for dtype, columns in zip(_RECORDED_DTYPES, (1, 1, 1, SECTORS), strict=True):
        values = np.frombuffer(payload, dtype, frames * columns, offset).copy()
        arrays.append(values.reshape(-1, columns) if columns > 1 else values)
        offset += values.nbytes
    return arrays


def _counted_frames(
    payload: bytes, frames: int, events: int, annuli: int, flags: int
) -> tuple[ElectronEvents, FrameSums]:
    """Arrays of their own, aligned: a block that is kept does not keep the whole record."""
    shapes: list[tuple[int, ...]] = [(frames,)] * 4 + [(frames, 2), (frames, annuli), (events,), (events, 2)]
    arrays: list[npt.NDArray[Any]] = []
    offset = 0
    for dtype, shape in zip(_DTYPES, shapes if flags & HAS_CENTROIDS else shapes[:-1], strict=False):
        values = np.ndarray(shape, dtype, payload, offset).copy()
        arrays.append(values)
        offset += values.nbytes
    position, number, missing, counts, moments, radial, indices, *centroids = arrays
    if int(counts.sum(dtype=np.uint64)) != events:
        raise NotARecord("a record's counts do not add up to its electrons")
    return (
        ElectronEvents.from_counts(position, number, missing, counts, indices, *centroids),
        FrameSums(moments, radial),
    )
