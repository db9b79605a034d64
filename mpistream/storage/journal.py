"""The journal of one rank of one scan: an append-only file of its blocks, each with its own checksum.

docs/file-format.md, "Journals", has the format byte by byte.
"""

import contextlib
import errno
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import IO, Any
from uuid import UUID

import numpy as np

from mpistream.model import fault_points
from mpistream.model.counted_block import JournaledBlock
from mpistream.model.errors import StorageError
from mpistream.model.scan import Durability
from mpistream.storage.journal_record import NotARecord, encode_record, read_record
from mpistream.storage.placement import flush_to_disk, storage_error

FILE_MAGIC = b"MPISJRNL"
VERSION = 1
#: Beside the journals of a calibrated scan: the packed statistics that its thresholds come from.
SAMPLE_FILE = "sample"
_CRC = Struct("<I")
# magic, version, scan uid, rank incarnation; then the CRC-32 of these
_FILE_HEAD = Struct("<8sI16sQ")
FILE_HEAD_BYTES = _FILE_HEAD.size + _CRC.size

#: Most buffers of one system call.
_IOV_MAX = os.sysconf("SC_IOV_MAX")

_REMEDY = "free space in its folder, or make it writable; it is tried again"
_DAMAGED = "check the file system that it lies on; where it cannot be restored, end the scan and stream it again"


class JournalWriter:
    """Appends blocks. What has been appended is in the file whatever becomes of this process.

    ``bytes`` is how far the file is good; what lies behind, after a failure, does not count.
    """

    def __init__(self, path: Path, descriptor: int, rank_incarnation: int, durability: Durability) -> None:
        self.path = path
        self.rank_incarnation = rank_incarnation
        self.bytes = FILE_HEAD_BYTES
        self._descriptor = descriptor
        self._flushes = durability is Durability.FSYNC
        self._is_torn = False

    @classmethod
    def create(cls, path: Path, scan_uid: UUID, rank_incarnation: int, durability: Durability) -> "JournalWriter":
        """A new journal without blocks; makes the folders. Raises StorageError, and then leaves no file."""
        head = _FILE_HEAD.pack(FILE_MAGIC, VERSION, scan_uid.bytes, rank_incarnation)
        try:
            made = [folder for folder in path.parents if not folder.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                write_all(descriptor, [head, _CRC.pack(zlib.crc32(head))], 0)
                if durability is Durability.FSYNC:
                    os.fsync(descriptor)
                    for folder in {path.parent, *(folder.parent for folder in made)}:
                        flush_to_disk(folder)
            except BaseException:
                os.close(descriptor)
                path.unlink(missing_ok=True)
                raise
        except OSError as error:
            if isinstance(error, FileExistsError) and os.path.lexists(path):
                raise StorageError(
                    f"the journal {path} exists",
                    "keep it, for it may hold counted blocks, and start the rank again: it takes another name",
                ) from error
            raise storage_error(f"the journal {path} cannot be made", error, _REMEDY) from error
        return cls(path, descriptor, rank_incarnation, durability)

    def append(self, blocks: Sequence[JournaledBlock]) -> None:
        """All of the blocks, in one write, and on the disk with Durability.FSYNC.

        Raises StorageError, NoRoomError where a disk is full: then none of them counts, and they can be appended again.
        """
        buffers = [buffer for block in blocks for buffer in encode_record(block)]
        try:
            if self._is_torn:
                os.ftruncate(self._descriptor, self.bytes)
            self._is_torn = True
            written = self._write(buffers)
            if self._flushes:
                os.fdatasync(self._descriptor)
        except OSError as error:
            # At once, too, where that is possible: whoever reads the file next may not be this process.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.bytes)
            raise storage_error(f"the journal {self.path} cannot be written", error, _REMEDY) from error
        self._is_torn = False
        self.bytes += written

    def _write(self, buffers: list[Any]) -> int:
        if not fault_points.is_active() or not buffers:
            return write_all(self._descriptor, buffers, self.bytes)
        head = memoryview(buffers[0])
        written = write_all(self._descriptor, [head[: len(head) // 2]], self.bytes)
        fault_points.reach("rank.torn-journal")
        rest: list[Any] = [head[len(head) // 2 :], *buffers[1:]]
        return written + write_all(self._descriptor, rest, self.bytes + written)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def write_all(descriptor: int, buffers: Sequence[Any], offset: int) -> int:
    """Writes all of the buffers at ``offset``, in one call where the system takes so many; their bytes."""
    pending: list[memoryview[Any]] = [memoryview(buffer) for buffer in buffers]
    pending = [view for view in pending if view.nbytes]
    written = 0
    while pending:
        # a write that meets a limit stops short, and the next one says why
        count = os.pwritev(descriptor, pending[:_IOV_MAX], offset + written)
        if not count:
            raise OSError(errno.EIO, os.strerror(errno.EIO), "nothing could be written")
        written += count
        done = 0
        while done < len(pending) and count >= pending[done].nbytes:
            count -= pending[done].nbytes
            done += 1
        pending = pending[done:]
        if count:
            pending[0] = pending[0].cast("B")[count:]
    return written


def read_journal(
    path: Path, bytes_limit: int | None = None, *, scan_uid: UUID | None = None
) -> Iterator[JournaledBlock]:
    """The blocks in the order in which they were appended, one at a time.

    Without ``bytes_limit`` up to a torn tail; a file that is not there has none. With it, all up to that byte: raises
    StorageError where one of them is not as it was written. ``scan_uid``: refuses the journal of another scan.
    """
    journal = _OpenJournal(path, bytes_limit)
    try:
        yield from journal.blocks(scan_uid)
    except NotARecord as reason:
        if bytes_limit is not None:
            raise StorageError(
                f"the journal {path} is damaged at byte {journal.position}: {reason}", _DAMAGED
            ) from None


@dataclass(frozen=True)
class ExaminedJournal:
    """How far a journal is good, and what it holds up to there.

    blocks  in the order in which they were appended; one can occur again
    totals  over all of them: frames, electrons, raw_bytes, frames_incomplete (a sector is missing), sectors_rejected;
            and torn_bytes, those behind the last good one
    """

    bytes: int
    blocks: list[int]
    totals: dict[str, int]


def examine_journal(path: Path, *, scan_uid: UUID | None = None) -> ExaminedJournal:
    """Reads and checks all of it, one block at a time.

    A file that does not begin as a journal does, or is not there, has 0 good bytes. Raises StorageError where it
    cannot be read, or is not a journal of this scan.
    """
    totals = dict.fromkeys(("frames", "electrons", "raw_bytes", "frames_incomplete", "sectors_rejected"), 0)
    blocks: list[int] = []
    journal = _OpenJournal(path, None)
    with contextlib.suppress(NotARecord):
        for block in journal.blocks(scan_uid):
            blocks.append(block.block)
            totals["frames"] += block.frames
            totals["electrons"] += block.electrons
            totals["raw_bytes"] += block.raw_bytes
            totals["frames_incomplete"] += int(np.count_nonzero(block.missing_sectors))
            totals["sectors_rejected"] += block.records_rejected
    totals["torn_bytes"] = journal.size - journal.position
    return ExaminedJournal(journal.position, blocks, totals)


class _OpenJournal:
    """Up to ``position`` it has been read and is good. ``size`` is that of the file when it was opened."""

    def __init__(self, path: Path, bytes_limit: int | None) -> None:
        self.path = path
        self.position = 0
        self.size = 0
        self._limit = bytes_limit

    def blocks(self, scan_uid: UUID | None) -> Iterator[JournaledBlock]:
        """Raises NotARecord where what follows is no record, StorageError where the file cannot be read."""
        if self._limit == 0:
            return
        try:
            file = self.path.open("rb")
        except FileNotFoundError as error:
            if self._limit is None:
                return
            raise StorageError(f"the journal {self.path} is not there", _DAMAGED) from error
        except OSError as error:
            raise self._unreadable(error) from error
        with file:
            try:
                self.size = os.fstat(file.fileno()).st_size
                if self._limit is not None and self.size < self._limit:
                    raise NotARecord(f"it has {self.size} bytes instead of {self._limit}")
                end = self.size if self._limit is None else self._limit
                self.position = self._read_head(file, end, scan_uid)
                while self.position < end:
                    block, length = read_record(file, end - self.position)
                    self.position += length
                    yield block
            except OSError as error:
                raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> StorageError:
        return StorageError(f"the journal {self.path} cannot be read: {error.strerror or error}", _DAMAGED)

    def _read_head(self, file: IO[bytes], most: int, scan_uid: UUID | None) -> int:
        head = file.read(min(FILE_HEAD_BYTES, most))
        if len(head) < FILE_HEAD_BYTES or _CRC.unpack_from(head, _FILE_HEAD.size)[0] != zlib.crc32(head[: -_CRC.size]):
            raise NotARecord("it does not begin as a journal does")
        magic, version, uid, _ = _FILE_HEAD.unpack_from(head)
        if magic != FILE_MAGIC:
            raise NotARecord("it does not begin as a journal does")
        if version != VERSION:
            raise StorageError(
                f"the journal {self.path} has version {version}; this release reads {VERSION}",
                "run the same mpistream release in all jobs of a scan",
            )
        if scan_uid is not None and uid != scan_uid.bytes:
            raise StorageError(
                f"the journal {self.path} is of scan {UUID(bytes=uid)}, not of {scan_uid}",
                "give each scan a folder of its own",
            )
        return FILE_HEAD_BYTES
