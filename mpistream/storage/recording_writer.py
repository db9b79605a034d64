"""A recording becomes a file that anybody can read, by all ranks of a job. Its pixels are there already.

    rank 0   checks the target; writes what makes it an HDF5 file around the pixels
    all      put the index together, in rounds; each compares its share of the pixels with the checksums taken when
             they came, and clears what is missing
    rank 0   writes the index; compares it with what the producers say they sent
    all      flush the file to the disk
    rank 0   gives it its name; on another file system than the pixels': all copy it there before

Each step's success is agreed, as when a dataset is written; the pixels stay where they are whatever fails, so that it
can be tried again.
"""

import os
import socket
import time
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from mpistream.model import h5_layout, recording_layout
from mpistream.model.dataset_description import DatasetDescription, WriteReport
from mpistream.model.errors import MpistreamError, ScanFailed
from mpistream.model.fault_points import reach
from mpistream.model.geometry import ALL_SECTORS, SECTOR_BYTES, SECTORS
from mpistream.model.recorded_block import RecordedBlock
from mpistream.model.recording_layout import PixelPlaces
from mpistream.storage.delivery import SectorTotals, frames_of, mark_rejected, mark_rows
from mpistream.storage.event_arrays import together
from mpistream.storage.journal import write_all
from mpistream.storage.placement import (
    check_target,
    flush_to_disk,
    partial_path,
    publish,
    remove_partial,
    reserve_space,
)
from mpistream.storage.recording_head import write_head
from mpistream.storage.recording_pixels import places_of
from mpistream.storage.writer import gather_rejected, on_rank_zero

#: Frames whose index is in the memory of each rank at a time, 25 bytes each.
_ROUND_FRAMES = 1 << 18
#: Frames of one sector that are read at a time.
_FRAMES_AT_A_TIME = 16
_COPY_BYTES = 1 << 24
_HEAD_BYTES = 1 << 20


@dataclass(frozen=True)
class _IndexPart:
    """The index of the frames ``frames``: numbers of which some may be outside the recording."""

    frames: range
    scan_position: npt.NDArray[np.uint32]
    missing_sectors: npt.NDArray[np.uint8]
    checksums: npt.NDArray[np.uint32]


def write_recording(
    comm: MPI.Comm,
    blocks: Sequence[RecordedBlock],
    pixels: Path,
    description: DatasetDescription,
    target: Path,
    overwrite: bool,
    tag: str,
) -> WriteReport:
    """Collective: the file ``pixels`` gets the name ``target``, complete or not at all.

    blocks  this rank's part of what came, in any order: each block is one rank's
    tag     of this attempt alone, as for ``write_dataset``

    Raises ScanFailed or StorageError, the same on every rank; a NoRoomError where space is all that is wanting.
    """
    started = time.perf_counter()
    places = places_of(description.scan)
    target = Path(comm.bcast(target.absolute()))
    is_elsewhere = on_rank_zero(comm, lambda: _check(places, pixels, target, overwrite))
    row = (comm.rank, socket.gethostname().encode(), b"posix", 0, sum(block.frames for block in blocks), 0, 0)
    rows, rejected = comm.gather(row), gather_rejected(comm, description)
    addresses = on_rank_zero(
        comm, lambda: write_head(pixels, places, description, rejected, np.array(rows, h5_layout.RANK_DTYPE))
    )
    _write_index(comm, pixels, places, blocks, description, rejected, addresses)
    reach("rank.after-events")
    with together(comm):
        # every node flushes what its own ranks have written
        flush_to_disk(pixels)
    with _copied(comm, pixels, target, tag, is_elsewhere) as complete:
        file_bytes = on_rank_zero(comm, lambda: _publish(complete, target, overwrite))
    seconds = time.perf_counter() - started
    return comm.bcast(WriteReport(target, file_bytes, 0, comm.size, True, 0.0, seconds))


def _check(places: PixelPlaces, pixels: Path, target: Path, overwrite: bool) -> bool:
    """Whether the target lies on another file system than the pixels."""
    pixels.touch()  # of a scan of which nothing came there is no file
    check_target(target, overwrite, _HEAD_BYTES)
    is_elsewhere = target.parent.stat().st_dev != pixels.stat().st_dev
    if is_elsewhere:
        check_target(target, overwrite, places.end + _HEAD_BYTES)
    return is_elsewhere


def _publish(complete: Path, target: Path, overwrite: bool) -> int:
    reach("rank.before-rename")
    file_bytes = publish(complete, target, overwrite)
    reach("rank.after-rename")
    return file_bytes


def _share(count: int, comm: MPI.Comm) -> range:
    """This rank's part of so many things."""
    return range(count * comm.rank // comm.size, count * (comm.rank + 1) // comm.size)


def _write_index(
    comm: MPI.Comm,
    path: Path,
    places: PixelPlaces,
    blocks: Sequence[RecordedBlock],
    description: DatasetDescription,
    rejected: npt.NDArray[np.void],
    addresses: dict[str, int],
) -> None:
    """Collective: writes the index, and compares it with the pixels and with what was sent."""
    record, totals, both = description.scan, SectorTotals(), 0
    ordered = sorted(blocks, key=lambda block: block.block)
    descriptors: list[int] = []
    with together(comm):
        descriptors.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    try:
        blocks_per_round = max(1, _ROUND_FRAMES // record.block_frames)
        for first in range(0, len(record.block_range), blocks_per_round):
            numbers = record.block_range[first : first + blocks_per_round]
            part = _index_part(comm, ordered, numbers, record.block_frames)
            with together(comm):
                share = _share(len(part.frames), comm)
                _compare_pixels(descriptors[0], places, record.first_frame, part, share)
                if comm.rank == 0:
                    _write_part(descriptors[0], addresses, record.first_frame, places.frames, part)
                    marks = np.zeros(len(part.frames), np.uint8)
                    here = part.missing_sectors != ALL_SECTORS
                    frame_number = np.arange(part.frames.start, part.frames.stop, dtype=np.uint64)
                    mark_rows(marks, part.frames, frame_number[here], part.missing_sectors[here])
                    both += mark_rejected(marks, part.frames, rejected)
                    totals.add(marks, numbers, record.block_frames)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    with together(comm):
        if comm.rank == 0:
            _refuse_contradictions(description, totals, both)


def _index_part(comm: MPI.Comm, ordered: Sequence[RecordedBlock], numbers: range, block_frames: int) -> _IndexPart:
    """Collective: the index of the frames of the blocks ``numbers``, from all ranks, the same on each."""
    frames = frames_of(numbers, block_frames)
    position, present = np.zeros(len(frames), np.uint32), np.zeros(len(frames), np.uint8)
    checksums = np.zeros((len(frames), SECTORS), np.uint32)
    begin, end = (
        bisect_left(ordered, number, key=lambda block: block.block) for number in (numbers.start, numbers.stop)
    )
    with together(comm):
        for block in ordered[begin:end]:
            rows = (block.frame_number - np.uint64(frames.start)).astype(np.intp)
            position[rows] = block.scan_position
            present[rows] = ~block.missing & np.uint8(ALL_SECTORS)
            checksums[rows] = block.checksums
    for values in (position, present, checksums):
        comm.Allreduce(MPI.IN_PLACE, values, op=MPI.BOR)  # of each frame one rank knows
    position[present == 0] = recording_layout.NOWHERE
    return _IndexPart(frames, position, ~present & np.uint8(ALL_SECTORS), checksums)


def _write_part(descriptor: int, addresses: dict[str, int], first_frame: int, frames: int, part: _IndexPart) -> None:
    rows = range(max(0, part.frames.start - first_frame), min(frames, part.frames.stop - first_frame))
    inside = slice(rows.start + first_frame - part.frames.start, rows.stop + first_frame - part.frames.start)
    values: dict[str, npt.NDArray[np.generic]] = {
        recording_layout.FRAME_NUMBER: np.arange(part.frames.start, part.frames.stop)[inside],
        recording_layout.SCAN_POSITION: part.scan_position[inside],
        recording_layout.MISSING_SECTORS: part.missing_sectors[inside],
        recording_layout.CHECKSUMS: part.checksums[inside],
    }
    for name, (dtype, columns) in recording_layout.INDEX_ARRAYS.items():
        row_bytes = np.dtype(dtype).itemsize * max(1, columns)
        packed = np.ascontiguousarray(values[name], dtype)
        write_all(descriptor, [packed.reshape(-1).data], addresses[name] + rows.start * row_bytes)


def _compare_pixels(descriptor: int, places: PixelPlaces, first_frame: int, part: _IndexPart, share: range) -> None:
    """Of some frames of the part: the file has the pixels that came, and zeros where none did. Raises ScanFailed."""
    buffer = bytearray(_FRAMES_AT_A_TIME * SECTOR_BYTES)
    rows = [index for index in share if 0 <= part.frames[index] - first_frame < places.frames]
    for sector in range(SECTORS):
        for start in range(0, len(rows), _FRAMES_AT_A_TIME):
            some = rows[start : start + _FRAMES_AT_A_TIME]
            offset = places.begin(sector, part.frames[some[0]] - first_frame)
            _read_all(descriptor, memoryview(buffer)[: len(some) * SECTOR_BYTES], offset)
            for place, index in enumerate(some):
                pixels = memoryview(buffer)[place * SECTOR_BYTES : (place + 1) * SECTOR_BYTES]
                if part.missing_sectors[index] >> sector & 1:
                    if np.frombuffer(pixels, np.uint64).any():
                        write_all(descriptor, [bytes(SECTOR_BYTES)], offset + place * SECTOR_BYTES)
                elif zlib.crc32(pixels) != part.checksums[index, sector]:
                    raise ScanFailed(
                        f"what is on the disk of sector {sector} of frame {part.frames[index]} is not what came",
                        "check the file system that the recording lies on; record the scan again",
                    )


def _read_all(descriptor: int, buffer: memoryview, offset: int) -> None:
    """What lies behind the end of the file reads as zeros."""
    done = 0
    while done < len(buffer) and (count := os.preadv(descriptor, [buffer[done:]], offset + done)):
        done += count
    buffer[done:] = bytes(len(buffer) - done)


def _refuse_contradictions(description: DatasetDescription, totals: SectorTotals, both: int) -> None:
    wrong = [
        f"sector {end.sector}: {totals.contradiction(end)}"
        for end in description.ends
        if totals.is_as_sent(end) is False
    ]
    if both:
        wrong.append(f"{both} records are called rejected, and are there all the same")
    if wrong:
        raise ScanFailed(
            f"the frames of the recording are not those that were sent: {'; '.join(wrong)}",
            "stream the scan again; the journals, which are kept, show what came",
        )


@contextmanager
def _copied(comm: MPI.Comm, pixels: Path, target: Path, tag: str, is_elsewhere: bool) -> Iterator[Path]:
    """Collective: the complete file on the target's file system; a copy of it, where it was on another one, is removed
    after a failure.
    """
    if not is_elsewhere:
        yield pixels
        return
    copy = partial_path(target, tag)
    try:
        on_rank_zero(comm, lambda: _begin_copy(pixels, copy))
        with together(comm):
            _copy_share(pixels, copy, _share(-(-pixels.stat().st_size // _COPY_BYTES), comm))
            flush_to_disk(copy)
        yield copy
    except MpistreamError:
        if comm.rank == 0:
            remove_partial(target, tag)
        comm.Barrier()
        raise


def _begin_copy(pixels: Path, copy: Path) -> None:
    with copy.open("wb") as file:
        file.truncate(pixels.stat().st_size)
    reserve_space(copy)


def _copy_share(source: Path, copy: Path, pieces: range) -> None:
    with source.open("rb") as read, copy.open("r+b") as written:
        for piece in pieces:
            data = os.pread(read.fileno(), _COPY_BYTES, piece * _COPY_BYTES)
            write_all(written.fileno(), [data], piece * _COPY_BYTES)
