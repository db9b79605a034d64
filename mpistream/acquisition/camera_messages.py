"""The camera's wire format: messages of two parts, a msgpack array and the pixels of one sector of one frame.

The array, in the earlier version and in the later one:

    [scan_number, frame_number, columns, rows, x, y, thread_id, module]
    [scan_number, frame_number, frames_this_thread, columns, rows, x, y, thread_id, module]
"""

import struct
from typing import Any, NamedTuple, Self

import msgpack

from mpistream.model.errors import ProtocolError
from mpistream.model.geometry import SECTOR_BYTES

#: A scan of more frames is none: a damaged header is not to have memory reserved for it.
MOST_FRAMES = 2**26

_MOST_HEADER_BYTES = 64
_EARLIER_FIELDS, _LATER_FIELDS = 8, 9
_U16, _U32 = 0xFFFF, 0xFFFFFFFF
_LARGEST = (_U32, _U32, *(_U16,) * 6, _U32)  # in the order of CameraHeader
_RECORD_HEADER = struct.Struct("<IIHHHH")


class CameraHeader(NamedTuple):
    """What the camera says of one sector of one frame. ``x`` is the scan column, ``y`` the scan row.

    frames_this_thread  how many frames of this scan the sending thread will send in all; None in the earlier version
    """

    scan_number: int
    frame_number: int
    columns: int
    rows: int
    x: int
    y: int
    thread_id: int
    module: int
    frames_this_thread: int | None = None

    @property
    def position(self) -> int:
        return self.y * self.columns + self.x

    @property
    def scan_shape(self) -> tuple[int, int]:
        """(rows, columns)"""
        return self.rows, self.columns

    def record_header(self) -> bytes:
        """As the sector's record begins, 16 bytes."""
        return _RECORD_HEADER.pack(self.scan_number, self.frame_number, self.columns, self.rows, self.x, self.y)

    def pack(self) -> bytes:
        """In the later version where ``frames_this_thread`` is given."""
        announced = () if self.frames_this_thread is None else (self.frames_this_thread,)
        packed: bytes = msgpack.packb([*self[:2], *announced, *self[2:8]])
        return packed

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Raises ProtocolError for anything but such an array; what its numbers mean is checked by ``check``."""
        fields = _array(packed)
        if len(fields) == _LATER_FIELDS:
            fields.append(fields.pop(2))
        elif len(fields) != _EARLIER_FIELDS:
            raise ProtocolError(f"the header has {len(fields)} numbers, not {_EARLIER_FIELDS} or {_LATER_FIELDS}")
        for number, limit in zip(fields, _LARGEST, strict=False):
            if type(number) is not int or not 0 <= number <= limit:
                raise ProtocolError(f"{number!r} in the header is no number from 0 to {limit}")
        return cls(*fields)

    def check(self, sector: int, frames_per_position: int, payload_bytes: int) -> None:
        """Raises ProtocolError for a message that cannot be used by the producer of ``sector``."""
        if self.module != sector:
            raise ProtocolError(f"it is of module {self.module}, and this is the producer of sector {sector}")
        if payload_bytes != SECTOR_BYTES:
            raise ProtocolError(f"it has {payload_bytes} bytes of pixels, not {SECTOR_BYTES}")
        if self.x >= self.columns or self.y >= self.rows:
            raise ProtocolError(f"x {self.x}, y {self.y} is outside a scan of {self.rows} x {self.columns}")
        if self.rows * self.columns * frames_per_position > MOST_FRAMES:
            raise ProtocolError(f"a scan of {self.rows} x {self.columns} has more than {MOST_FRAMES} frames")


def _array(packed: bytes) -> list[Any]:
    if len(packed) > _MOST_HEADER_BYTES:
        raise ProtocolError(f"a header of {len(packed)} bytes")
    try:
        fields = msgpack.unpackb(packed)
    except Exception as error:  # msgpack's errors have no ancestor of their own
        raise ProtocolError(f"the header is not in msgpack: {error!r}") from error
    if not isinstance(fields, list):
        raise ProtocolError(f"the header is no array, but {type(fields).__name__}")
    return fields
