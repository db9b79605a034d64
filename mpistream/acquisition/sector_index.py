"""The index of a scan's sector files, made by reading the records' headers only.

A scan of 700 GB has 4 million records; their headers are 64 MB.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpistream.acquisition.sector_files import SectorFile, SectorIndex
from mpistream.model.errors import SourceError
from mpistream.model.geometry import HEADER_BYTES, RECORD_BYTES, RECORD_HEADER, ScanShape

#: Frame numbers further apart than this times the number of records come from a damaged header.
MAX_SPARSENESS = 64

_READERS = 8
_RECORDS_PER_READ_TASK = 4096
_SAMPLES_PER_FILE = 8
_SKIP = "leave such records out with ?skip_bad_records=yes"


@dataclass(frozen=True)
class ScanIdentity:
    """What all records of a scan have in common. ``frame_span``: more frame numbers than that cannot be right."""

    scan_number: int
    scan_shape: ScanShape
    frame_span: int


def identify_scan(files: list[SectorFile]) -> ScanIdentity:
    """What most headers of a sample of all files say: the same for every sector's producer. Raises SourceError."""
    votes: Counter[tuple[int, int, int]] = Counter()
    for file in files:
        samples = min(_SAMPLES_PER_FILE, file.records)
        places = [file.records * sample // samples for sample in range(samples)]
        for scan_number, _, columns, rows, _, _ in _read_headers(file, places).tolist():
            votes[scan_number, rows, columns] += 1
    if not votes:
        raise SourceError(
            f"there is no complete record in {files[0].path.parent}, the sector files are empty or truncated",
            "copy the files again",
        )
    valid = [identity for identity, _ in votes.most_common() if identity[1] and identity[2]]
    if not valid:
        raise SourceError(
            f"the headers in {files[0].path} give a scan of 0 rows or 0 columns",
            "check that these are sector files of the format's version 4 or 5",
        )
    scan_number, rows, columns = valid[0]
    records = Counter[int]()
    for file in files:
        records[file.sector] += file.records
    return ScanIdentity(scan_number, ScanShape(rows, columns), MAX_SPARSENESS * max(records.values()))


def index_sector(files: list[SectorFile], sector: int, scan: ScanIdentity, skip_bad_records: bool) -> SectorIndex:
    """Reads the headers of one sector's files (of all ``files`` of the scan); no file gives an empty index.

    Bad records and truncated files raise SourceError; with ``skip_bad_records`` they are left out and counted.
    """
    own = [file for file in files if file.sector == sector]
    rejected = sum(_rejected_tail(file, skip_bad_records) for file in own)
    headers = np.concatenate([np.empty(0, RECORD_HEADER), *_read_all_headers(own)])
    file_numbers = np.repeat(np.arange(len(own)), [file.records for file in own])
    record_numbers = np.concatenate([np.empty(0, np.int64), *(np.arange(file.records) for file in own)])

    good = np.ones(len(headers), bool)
    for find in (_other_scan, _other_shape, _outside_scan, _stray_frame_number):
        bad, reason = find(headers, good, scan)
        if bad.any() and not skip_bad_records:
            first = int(np.argmax(bad))
            raise SourceError(
                f"{own[file_numbers[first]].path}, record {record_numbers[first]}: {reason(headers[first])}"
                f" ({_count(int(bad.sum()))} like this in sector {sector})",
                f"check where the file comes from, or {_SKIP}",
            )
        good &= ~bad
    rejected += int((~good).sum())
    headers, file_numbers, record_numbers = headers[good], file_numbers[good], record_numbers[good]

    positions = headers["y"].astype(np.int64) * scan.scan_shape.columns + headers["x"]
    every_frame_number = headers["frame_number"].astype(np.int64)
    check_one_position_each(every_frame_number, positions, f"sector {sector}")
    frame_numbers, firsts = np.unique(every_frame_number, return_index=True)
    return SectorIndex(
        tuple(file.path for file in own),
        frame_numbers,
        positions[firsts],
        file_numbers[firsts],
        record_numbers[firsts],
        len(headers) - len(frame_numbers),
        rejected,
    )


def check_one_position_each(frame_numbers: npt.NDArray[np.int64], positions: npt.NDArray[np.int64], where: str) -> None:
    """Raises SourceError if a frame number comes with two different scan positions."""
    order = np.argsort(frame_numbers, kind="stable")
    frames, places = frame_numbers[order], positions[order]
    differs = (frames[1:] == frames[:-1]) & (places[1:] != places[:-1])
    if differs.any():
        place = int(np.argmax(differs))
        raise SourceError(
            f"frame {frames[place]} is at scan position {places[place]} and at {places[place + 1]} in {where}",
            "the files are damaged or of different scans that have the same number; keep only those of one scan",
        )


def _rejected_tail(file: SectorFile, skip_bad_records: bool) -> int:
    """How many records are left out because the file ends within them: 0 or 1."""
    tail = file.size % RECORD_BYTES
    if skip_bad_records:
        return int(tail > 0)
    if not file.size:
        raise SourceError(f"{file.path} is empty", f"copy it again, move it away, or {_SKIP}")
    if tail:
        raise SourceError(
            f"{file.path} is truncated: {_count(file.records)} of {RECORD_BYTES} bytes and {tail} bytes of another",
            f"copy it again, or {_SKIP}",
        )
    return 0


def _read_all_headers(files: list[SectorFile]) -> list[npt.NDArray]:
    """The headers of every file. Several threads, since each read from a shared filesystem waits for its answer."""
    tasks = [
        (file, range(start, min(start + _RECORDS_PER_READ_TASK, file.records)))
        for file in files
        for start in range(0, file.records, _RECORDS_PER_READ_TASK)
    ]
    with ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(lambda task: _read_headers(*task), tasks))


def _read_headers(file: SectorFile, places: Sequence[int]) -> npt.NDArray:
    """The headers of the records at ``places`` in one file."""
    try:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # The pixels between the headers must not be read ahead.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            found = b"".join([os.pread(descriptor, HEADER_BYTES, place * RECORD_BYTES) for place in places])
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SourceError(f"cannot read {file.path}: {error.strerror}", "check the storage it lies on") from error
    if len(found) != len(places) * HEADER_BYTES:
        raise SourceError(
            f"{file.path} became shorter while it was indexed", "start again when nothing writes to it any more"
        )
    return np.frombuffer(found, RECORD_HEADER)


_Fault = tuple[npt.NDArray[np.bool_], Callable[[np.void], str]]


def _other_scan(headers: npt.NDArray, good: npt.NDArray[np.bool_], scan: ScanIdentity) -> _Fault:
    return (
        headers["scan_number"] != scan.scan_number,
        lambda header: f"it is of scan {header['scan_number']}, the others of scan {scan.scan_number}",
    )


def _other_shape(headers: npt.NDArray, good: npt.NDArray[np.bool_], scan: ScanIdentity) -> _Fault:
    shape = scan.scan_shape
    return (headers["rows"] != shape.rows) | (
        headers["columns"] != shape.columns
    ), lambda header: f"it is of a scan of {header['rows']} x {header['columns']} positions, the others of {shape}"


def _outside_scan(headers: npt.NDArray, good: npt.NDArray[np.bool_], scan: ScanIdentity) -> _Fault:
    shape = scan.scan_shape
    return (headers["y"] >= shape.rows) | (
        headers["x"] >= shape.columns
    ), lambda header: f"row {header['y']}, column {header['x']} is outside the scan of {shape}"


def _stray_frame_number(headers: npt.NDArray, good: npt.NDArray[np.bool_], scan: ScanIdentity) -> _Fault:
    frame_numbers = headers["frame_number"].astype(np.int64)
    if not good.any():
        return np.zeros(len(headers), bool), str
    middle = int(np.sort(frame_numbers[good])[int(good.sum()) // 2])
    return good & (
        np.abs(frame_numbers - middle) > scan.frame_span
    ), lambda header: f"the frame number {header['frame_number']} is far from the others, around {middle}"


def _count(records: int) -> str:
    return f"{records} record" + ("s" if records != 1 else "")
