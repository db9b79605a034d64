"""A raw recording as a source: the sectors of its scan once more, record by record as they came."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from mpistream.model import h5_layout, recording_layout
from mpistream.model.errors import SourceError
from mpistream.model.geometry import (
    ALL_SECTORS,
    HEADER_BYTES,
    RECORD_BYTES,
    RECORD_HEADER,
    SECTOR_BYTES,
    SECTORS,
    ScanShape,
)
from mpistream.model.protocol import Encoding
from mpistream.model.scan import ScanRecord, SectorEnd

_REMEDY = "give the output of a scan with --raw"
_DAMAGED = "check it: mpistream verify; record the scan again"
_PIXEL_BYTES = 2


@dataclass(frozen=True, eq=False)
class RecordingIndex:
    """What a recording says of itself beside the pixels. Arrays have a row per frame number, lost ones included.

    scan_position    uint32[n]
    missing_sectors  uint8[n]
    sectors_duplicate, sectors_rejected  per sector, records that came and are not in it
    """

    scan_number: int
    scan_shape: ScanShape
    first_frame: int
    encoding: Encoding
    scan_position: npt.NDArray[np.uint32]
    missing_sectors: npt.NDArray[np.uint8]
    sectors_duplicate: tuple[int, ...]
    sectors_rejected: tuple[int, ...]
    complete: bool

    @property
    def last_frame(self) -> int:
        return self.first_frame + len(self.missing_sectors) - 1

    @property
    def records(self) -> int:
        return sum(int(np.count_nonzero(self.missing_sectors >> sector & 1 == 0)) for sector in range(SECTORS))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises SourceError for what is no whole recording."""
        with _open(path) as file:
            try:
                return cls._of(file)
            except (OSError, LookupError, TypeError, RuntimeError, ValueError) as error:
                raise SourceError(f"the recording {path} is damaged: {error}", _DAMAGED) from error

    @classmethod
    def _of(cls, file: h5py.File) -> Self:
        record = ScanRecord.model_validate_json(file[h5_layout.PROVENANCE].attrs["scan_record"])
        position, missing = file[recording_layout.SCAN_POSITION][:], file[recording_layout.MISSING_SECTORS][:]
        if not len(position) == len(missing) == record.last_frame - record.first_frame + 1:
            raise ValueError("its index has not a row for each of its frame numbers")
        if (position[missing & ALL_SECTORS != ALL_SECTORS] >= record.scan_shape.positions).any():
            raise ValueError("a frame lies outside the scan")
        delivery = file[h5_layout.DELIVERY]
        ends = {
            end.sector: end
            for end in map(SectorEnd.model_validate, json.loads(delivery.attrs[h5_layout.ENDS_ATTRIBUTE]))
        }
        rejected = np.bincount(file[h5_layout.REJECTED]["sector"], minlength=SECTORS).tolist()
        return cls(
            record.scan_number,
            record.scan_shape,
            record.first_frame,
            record.encoding,
            position,
            missing,
            tuple(ends[sector].sectors_duplicate if sector in ends else 0 for sector in range(SECTORS)),
            tuple(rejected[s] + (ends[s].sectors_rejected if s in ends else 0) for s in range(SECTORS)),
            bool(delivery.attrs[h5_layout.COMPLETE_ATTRIBUTE]),
        )


def _open(path: Path) -> h5py.File:
    """Raises SourceError for anything but a recording that this release can read."""
    try:
        file = h5py.File(path, "r", locking=False)  # it never changes under its final name
    except OSError as error:
        raise SourceError(f"cannot open the recording {path}: {error}", _REMEDY) from error
    try:
        if file.attrs.get(h5_layout.FORMAT_ATTRIBUTE) != recording_layout.FORMAT_NAME:
            raise SourceError(f"{path} is no raw recording", _REMEDY)
        version = int(file.attrs[h5_layout.FORMAT_VERSION_ATTRIBUTE])
        if version > recording_layout.FORMAT_VERSION:
            raise SourceError(
                f"{path} has format version {version}; this release reads up to {recording_layout.FORMAT_VERSION}",
                "replay it with a newer mpistream",
            )
    except BaseException:
        file.close()
        raise
    return file


class RecordingSectorSource:
    """One sector of a recording as a producer reads it; see ``sector_source.SectorSource``."""

    is_live = False
    frames_lost = 0

    def __init__(self, path: Path, sector: int) -> None:
        """Raises SourceError."""
        self.sector = sector
        self._path = path
        self._index = index = RecordingIndex.read(path)
        self.sectors_duplicate = index.sectors_duplicate[sector]
        self.sectors_rejected = index.sectors_rejected[sector]
        self._is_there = index.missing_sectors >> sector & 1 == 0
        self._file = _open(path)
        self._pixels: Any = self._file.get(recording_layout.sector_name(sector))
        shape = (len(index.missing_sectors), *index.encoding.layout.sector_shape)
        if getattr(self._pixels, "shape", None) != shape:
            self.close()
            raise SourceError(f"the recording {path} is damaged: sector {sector} has not the shape {shape}", _DAMAGED)

    @property
    def frames(self) -> range:
        """The numbers of the first to the last frame, those included of which nothing came."""
        return range(self._index.first_frame, self._index.last_frame + 1)

    def read_block(self, block: int, block_frames: int, buffer: memoryview) -> int:
        """The records as they came: their headers are made of the index, which has all that they said."""
        rows = self._rows(block, block_frames)
        there = [row for row in rows if self._is_there[row]]
        if not there:
            return 0
        headers = np.ndarray(len(there), RECORD_HEADER, buffer, strides=(RECORD_BYTES,))
        shape, position = self._index.scan_shape, self._index.scan_position[there]
        headers["scan_number"] = self._index.scan_number
        headers["frame_number"] = np.array(there) + self._index.first_frame
        headers["columns"], headers["rows"] = shape.columns, shape.rows
        headers["x"], headers["y"] = position % shape.columns, position // shape.columns
        for first, end in _runs(there):
            self._read(there[first], buffer[first * RECORD_BYTES : end * RECORD_BYTES])
        return self._bit_map(there, block * block_frames)

    def _read(self, row: int, records: memoryview) -> None:
        """The pixels of successive frames, each to its place behind its header; HDF5 leaves the headers out."""
        frames = len(records) // RECORD_BYTES
        in_memory = h5py.h5s.create_simple((frames, RECORD_BYTES // _PIXEL_BYTES))
        in_memory.select_hyperslab((0, HEADER_BYTES // _PIXEL_BYTES), (frames, SECTOR_BYTES // _PIXEL_BYTES))
        in_file = self._pixels.id.get_space()
        in_file.select_hyperslab((row, 0, 0), (frames, *self._pixels.shape[1:]))
        try:
            values = np.frombuffer(records, recording_layout.PIXEL_DTYPE)
            self._pixels.id.read(in_memory, in_file, values, h5py.h5t.STD_U16LE)
        except (OSError, RuntimeError, ValueError) as error:
            raise SourceError(f"cannot read {self._path}: {error}", "check the storage it lies on") from error

    def frames_present(self, block: int, block_frames: int) -> int:
        """The bit map that ``read_block`` returns, from the index alone."""
        rows = self._rows(block, block_frames)
        return self._bit_map([row for row in rows if self._is_there[row]], block * block_frames)

    def _rows(self, block: int, block_frames: int) -> range:
        """Those of the frames of a block that the recording has."""
        first = block * block_frames - self._index.first_frame
        return range(max(0, first), min(len(self._is_there), first + block_frames))

    def _bit_map(self, rows: list[int], first_frame: int) -> int:
        return sum(1 << (row + self._index.first_frame - first_frame) for row in rows)

    def seconds_until(self, block: int, block_frames: int) -> float:
        return 0.0

    def close(self) -> None:
        self._file.close()


def _runs(rows: list[int]) -> list[tuple[int, int]]:
    """Where runs of successive numbers begin and end in an ascending list."""
    breaks = [place for place in range(1, len(rows)) if rows[place] != rows[place - 1] + 1]
    return list(zip([0, *breaks], [*breaks, len(rows)], strict=True))
