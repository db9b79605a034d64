"""Blocks of a live source on the disk, for as long as their scan lasts: a file per scan and sector, only appended to.

A block is a header, then its records. What the end of the file has of a block that was being written when its process
died is cut off when the file is opened again.
"""

import logging
import os
import re
import struct
import zlib
from pathlib import Path
from uuid import UUID

from mpistream.model.errors import SourceError
from mpistream.model.geometry import RECORD_BYTES
from mpistream.model.protocol import MAX_BLOCK_FRAMES

_log = logging.getLogger(__name__)

_MAGIC = b"MPSP"
_VERSION = 1
# magic, version, sector, block, frames_present, CRC-32 of the payload; then the CRC-32 of these
_HEADER = struct.Struct("<4sHHQQI")
_CHECKSUM = struct.Struct("<I")
_HEADER_BYTES = _HEADER.size + _CHECKSUM.size
_NAME = re.compile(r"mpistream-([0-9a-f]{32})-(\d)\.spill")


def spill_path(directory: Path, uid: UUID, sector: int) -> Path:
    return directory / f"mpistream-{uid.hex}-{sector}.spill"


def spilled_scans(directory: Path, sector: int) -> dict[UUID, Path]:
    """The files that are left of a sector, by their scan."""
    try:
        found = [(path, _NAME.fullmatch(path.name)) for path in directory.iterdir()]
    except OSError:
        return {}
    return {UUID(match[1]): path for path, match in found if match and int(match[2]) == sector}


def remove_spill(path: Path) -> None:
    """Where the disk refuses it, the file stays: no blocks are lost with that."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.error("cannot remove %s: %s", path, error.strerror)


class Spill:
    """The file of one sector of one scan. ``frames_present``: the bit map of each block that is in it."""

    def __init__(self, path: Path, sector: int, limit_bytes: int) -> None:
        """Opens the file of an earlier start of this process, or makes one. Raises SourceError."""
        self.path = path
        self.frames_present: dict[int, int] = {}
        self._sector = sector
        self._limit_bytes = limit_bytes
        self._offsets: dict[int, int] = {}  # of the payloads
        self._checksums: dict[int, int] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                self.bytes = self._look_through()
                os.ftruncate(self._descriptor, self.bytes)
            except BaseException:
                os.close(self._descriptor)
                raise
        except OSError as error:
            raise SourceError(
                f"cannot spill to {path}: {error.strerror}", "correct [stream] spill_directory, or leave it empty"
            ) from error

    def _look_through(self) -> int:
        """Finds the blocks in the file; returns the length of what is good. Payloads are checked when they are read."""
        size = os.fstat(self._descriptor).st_size
        offset = 0
        while (found := self._header_at(offset)) is not None:
            block, frames_present, checksum = found
            end = offset + _HEADER_BYTES + frames_present.bit_count() * RECORD_BYTES
            if end > size:
                break
            self.frames_present[block] = frames_present
            self._offsets[block], self._checksums[block] = offset + _HEADER_BYTES, checksum
            offset = end
        return offset

    def _header_at(self, offset: int) -> tuple[int, int, int] | None:
        packed = os.pread(self._descriptor, _HEADER_BYTES, offset)
        if len(packed) != _HEADER_BYTES or _CHECKSUM.pack(zlib.crc32(packed[: _HEADER.size])) != packed[_HEADER.size :]:
            return None
        magic, version, sector, block, frames_present, checksum = _HEADER.unpack_from(packed)
        if (magic, version, sector) != (_MAGIC, _VERSION, self._sector) or frames_present >> MAX_BLOCK_FRAMES:
            return None
        return block, frames_present, checksum

    def has_room(self, payload_bytes: int) -> bool:
        return self.bytes + _HEADER_BYTES + payload_bytes <= self._limit_bytes

    def append(self, block: int, frames_present: int, payload: memoryview) -> bool:
        """False, and nothing kept, where the disk does not take it."""
        checksum = zlib.crc32(payload)
        header = _HEADER.pack(_MAGIC, _VERSION, self._sector, block, frames_present, checksum)
        parts = [memoryview(header + _CHECKSUM.pack(zlib.crc32(header))), payload]
        end = self.bytes
        try:
            for part in parts:
                end += self._write(part, end)
        except OSError as error:
            _log.error("cannot spill block %d to %s: %s", block, self.path, error.strerror)
            self._limit_bytes = self.bytes  # it is full, as far as this scan is concerned
            return False
        self.frames_present[block] = frames_present
        self._offsets[block], self._checksums[block] = self.bytes + _HEADER_BYTES, checksum
        self.bytes = end
        return True

    def _write(self, part: memoryview, offset: int) -> int:
        done = 0
        while done < len(part):
            done += os.pwrite(self._descriptor, part[done:], offset + done)
        return done

    def read(self, block: int, buffer: memoryview) -> int:
        """Writes a block's records to ``buffer``; returns the bit map of their frames: 0 where they are damaged."""
        frames_present = self.frames_present[block]
        payload = buffer[: frames_present.bit_count() * RECORD_BYTES]
        try:
            done = 0
            while done < len(payload):
                count = os.preadv(self._descriptor, [payload[done:]], self._offsets[block] + done)
                if count == 0:
                    break
                done += count
            reason = "" if zlib.crc32(payload) == self._checksums[block] else "its checksum is wrong"
        except OSError as error:
            reason = str(error.strerror)
        if reason:
            _log.error("block %d is lost: it cannot be read from %s: %s", block, self.path, reason)
            return 0
        return frames_present

    def close(self, remove: bool) -> None:
        try:
            os.close(self._descriptor)
        except OSError as error:
            # the descriptor is free all the same; blocks that the disk has lost are noticed when they are read
            _log.error("cannot close %s: %s", self.path, error.strerror)
        if remove:
            remove_spill(self.path)
