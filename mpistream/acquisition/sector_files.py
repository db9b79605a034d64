"""Raw sector files of the camera: their names, reading a sector's blocks from them, and writing them.

Many records to a file, one sector to a file, often several files to a sector. Files are read with plain reads, never
mapped: a file that someone truncates meanwhile then gives an error, where a mapping would kill the process.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from mpistream.model.errors import SourceError
from mpistream.model.geometry import HEADER_BYTES, RECORD_BYTES, RECORD_HEADER, SECTORS, ScanShape

NAME_PATTERN = "data_scan<10 digits>_module<0-3>*.data"
_NAME = re.compile(r"data_scan(\d{10})_module(\d+)(?!\d).*\.data", re.ASCII | re.DOTALL)


@dataclass(frozen=True)
class SectorFile:
    """A file that holds records of one sector; what its name says."""

    path: Path
    scan_number: int
    sector: int
    size: int

    @property
    def records(self) -> int:
        """Whole records in it."""
        return self.size // RECORD_BYTES


def sector_file_name(scan_number: int, sector: int, part: int) -> str:
    return f"data_scan{scan_number:010d}_module{sector}_part{part:03d}.data"


def list_sector_files(directory: Path, scan_number: int | None = None) -> list[SectorFile]:
    """The sector files of a scan in ``directory``, by name. Raises SourceError unless there are some, and unless all
    are of one scan where no ``scan_number`` chooses one.
    """
    try:
        paths = sorted(directory.iterdir())
        files = [
            SectorFile(path, int(match[1]), int(match[2]), path.stat().st_size)
            for path in paths
            if (match := _NAME.fullmatch(path.name))
        ]
    except OSError as error:
        raise SourceError(
            f"cannot read the directory {directory}: {error.strerror}", "give the directory that holds the sector files"
        ) from error
    if not files:
        raise SourceError(f"no sector files in {directory}", f"sector files are named {NAME_PATTERN}")
    for file in files:
        if file.sector >= SECTORS:
            raise SourceError(
                f"{file.path.name} is of sector {file.sector}; a frame has sectors 0 to {SECTORS - 1}",
                "move the file away, or correct its name if it was renamed",
            )
    scans = sorted({file.scan_number for file in files})
    if scan_number is None and len(scans) > 1:
        raise SourceError(
            f"files of different scans in {directory}: {', '.join(map(str, scans))}",
            f"choose one of them: files:{directory}?scan={scans[-1]}",
        )
    if scan_number is not None and scan_number not in scans:
        raise SourceError(
            f"no sector files of scan {scan_number} in {directory}", f"there are: {', '.join(map(str, scans))}"
        )
    return [file for file in files if scan_number in (None, file.scan_number)]


@dataclass(frozen=True)
class SectorIndex:
    """Where the records of one sector are; for every frame the first one in the order of file names and records.

    frame_numbers   int64[n]  ascending, each once
    positions       int64[n]  scan position, row * columns + column
    file_numbers    int64[n]  index into ``files``
    record_numbers  int64[n]  place in that file
    """

    files: tuple[Path, ...]
    frame_numbers: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    file_numbers: npt.NDArray[np.int64]
    record_numbers: npt.NDArray[np.int64]
    duplicates: int
    rejected: int

    def of_frames(self, frames: range) -> "SectorIndex":
        """The part of it with the frame numbers in ``frames``; the totals stay those of the sector."""
        part = slice(*np.searchsorted(self.frame_numbers, (frames.start, frames.stop)).tolist())
        return replace(
            self,
            frame_numbers=self.frame_numbers[part],
            positions=self.positions[part],
            file_numbers=self.file_numbers[part],
            record_numbers=self.record_numbers[part],
        )


class FileSectorSource:
    """One sector of a recorded scan as a producer reads it; see ``sector_source.SectorSource``."""

    is_live = False
    frames_lost = 0

    def __init__(self, sector: int, index: SectorIndex) -> None:
        self.sector = sector
        self.sectors_duplicate = index.duplicates
        self.sectors_rejected = index.rejected
        self.index = index
        self._descriptors: list[int] = []
        try:
            for path in index.files:
                self._descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            self.close()
            raise SourceError(f"cannot open {path}: {error.strerror}") from error

    def read_block(self, block: int, block_frames: int, buffer: memoryview) -> int:
        """Reads the records of the block's frames into ``buffer``; returns the bit map of those present.

        Raises SourceError when a file cannot be read or is no longer what it was when it was indexed.
        """
        frame_numbers = self.index.frame_numbers
        start, stop, frames_present = self._look_up(block, block_frames)
        if start == stop:
            return 0
        files = self.index.file_numbers[start:stop]
        records = self.index.record_numbers[start:stop]
        breaks = np.nonzero((np.diff(files) != 0) | (np.diff(records) != 1))[0] + 1
        for first, last in pairwise([0, *breaks.tolist(), stop - start]):
            self._read(int(files[first]), int(records[first]), buffer[first * RECORD_BYTES : last * RECORD_BYTES])
        headers = np.ndarray(stop - start, RECORD_HEADER, buffer, strides=(RECORD_BYTES,))
        if not np.array_equal(headers["frame_number"], frame_numbers[start:stop]):
            raise SourceError(
                f"the files of sector {self.sector} were changed while they were read",
                "start again when nothing writes to them any more",
            )
        return frames_present

    def frames_present(self, block: int, block_frames: int) -> int:
        """The bit map that ``read_block`` returns, from the index alone."""
        return self._look_up(block, block_frames)[2]

    def _look_up(self, block: int, block_frames: int) -> tuple[int, int, int]:
        """Where the block's frames begin and end in the index, and the bit map of those present."""
        first_frame = block * block_frames
        frame_numbers = self.index.frame_numbers
        start, stop = np.searchsorted(frame_numbers, (first_frame, first_frame + block_frames)).tolist()
        frames_present = 0
        for frame_number in frame_numbers[start:stop].tolist():
            frames_present |= 1 << (frame_number - first_frame)
        return start, stop, frames_present

    def seconds_until(self, block: int, block_frames: int) -> float:
        return 0.0

    def _read(self, file_number: int, record: int, buffer: memoryview) -> None:
        path = self.index.files[file_number]
        offset = record * RECORD_BYTES
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptors[file_number], [buffer[done:]], offset + done)
            except OSError as error:
                raise SourceError(f"cannot read {path}: {error.strerror}", "check the storage it lies on") from error
            if count == 0:
                raise SourceError(
                    f"{path} became shorter while it was read", "start again when nothing writes to it any more"
                )
            done += count

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())


class SectorFileWriter:
    """Writes the records of one sector file, in any order. Raises OSError."""

    def __init__(self, path: Path, scan_number: int, scan_shape: ScanShape) -> None:
        self._scan_number = scan_number
        self._scan_shape = scan_shape
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def write(self, place: int, frame_number: int, position: int, pixels: npt.NDArray[np.uint16]) -> None:
        """Writes a frame's sector (uint16, in the shape of the file's version) as the file's record ``place``."""
        row, column = divmod(position, self._scan_shape.columns)
        record = bytearray(RECORD_BYTES)
        np.frombuffer(record, RECORD_HEADER, 1)[0] = (
            self._scan_number,
            frame_number,
            self._scan_shape.columns,
            self._scan_shape.rows,
            column,
            row,
        )
        record[HEADER_BYTES:] = np.ascontiguousarray(pixels, "<u2").tobytes()
        self.write_record(place, memoryview(record))

    def write_record(self, place: int, record: memoryview) -> None:
        """Writes a record verbatim."""
        if record.nbytes != RECORD_BYTES:
            raise ValueError(f"a record has {RECORD_BYTES} bytes, not {record.nbytes}")
        done = 0
        while done < RECORD_BYTES:
            done += os.pwrite(self._descriptor, record[done:], place * RECORD_BYTES + done)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def write_sector_files(
    directory: Path,
    sector: int,
    records: Iterable[tuple[int, int, npt.NDArray[np.uint16]]],
    *,
    scan_number: int,
    scan_shape: ScanShape,
    files: int = 1,
    order: Sequence[int] | None = None,
) -> list[Path]:
    """Writes one sector's files and returns them.

    ``records`` are (frame number, scan position, uint16 pixels); ``order`` says which of them comes first, second, ...
    (all, in their own order, without it; a record may come twice). They are spread evenly over ``files``.
    """
    available = list(records)
    sequence = np.arange(len(available)) if order is None else np.asarray(order)
    paths = []
    for part, places in enumerate(np.array_split(sequence, files)):
        path = directory / sector_file_name(scan_number, sector, part)
        with SectorFileWriter(path, scan_number, scan_shape) as writer:
            for place, number in enumerate(places.tolist()):
                writer.write(place, *available[number])
        paths.append(path)
    return paths
