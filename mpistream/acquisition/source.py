"""What a producer reads from: the sectors of a scan, out of files or out of the simulator.

A source is named by a specification:

    files:DIR[?version=4][&skip_bad_records=yes]     the camera's sector files
    sim:ROWSxCOLUMNS[?seed=3&electrons=2400&...]     a simulated scan, see SimulationOptions
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from mpistream.acquisition.layout_check import looks_like_other_layout
from mpistream.acquisition.sector_files import FileSectorSource, list_sector_files
from mpistream.acquisition.sector_index import check_one_position_each, identify_scan, index_sector
from mpistream.acquisition.simulated_live import LiveSectorSource
from mpistream.acquisition.simulation_options import SimulationOptions
from mpistream.acquisition.simulator import SimulatedSectorSource, Simulator
from mpistream.model.errors import SourceError
from mpistream.model.geometry import SECTORS, ScanShape
from mpistream.model.protocol import Encoding

FORMS = "files:DIRECTORY or sim:ROWSxCOLUMNS"
_ONLY_FOR_FILES = ("reorder", "files_per_sector")

Value = TypeVar("Value")


class SectorSource(Protocol):
    """One sector of one scan. Raises SourceError when it cannot be read any more.

    sectors_duplicate  records that occur again; the first in the order of file names and records is used
    sectors_rejected   records left out because they are bad
    is_live            it does not wait: what is not read in time is gone, and nothing can be read again for long
    frames_lost        of those that were asked for, how many were gone; 0 where nothing goes
    """

    sector: int
    sectors_duplicate: int
    sectors_rejected: int
    is_live: bool
    frames_lost: int

    def read_block(self, block: int, block_frames: int, buffer: memoryview) -> int:
        """Writes the records (verbatim: header and pixels) of frames block * block_frames and following to ``buffer``.

        They lie one behind the other in ascending order of frames from the beginning of ``buffer``, which has
        block_frames * RECORD_BYTES writable bytes. Returns the bit map of the frames present.
        """
        ...

    def frames_present(self, block: int, block_frames: int) -> int | None:
        """The bit map that ``read_block`` returns, without reading pixels; None where only reading tells."""
        ...

    def seconds_until(self, block: int, block_frames: int) -> float:
        """When all frames of the block will be there; 0 where they are."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class SourceDescription:
    """A scan as announced. Frame numbers are the camera's; ``records`` counts each sector of a frame once."""

    scan_number: int
    scan_shape: ScanShape
    first_frame: int
    last_frame: int
    encoding: Encoding
    records: int
    sectors_duplicate: int = 0
    sectors_rejected: int = 0
    sectors_without_files: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def describe_source(specification: str) -> SourceDescription:
    """Looks at all of a source before its scan is announced. Raises SourceError for whatever is wrong with it."""
    scheme, place, options = parse_specification(specification)
    if scheme == "files":
        return _describe_files(*_file_options(place, options))
    return _describe_simulation(_simulation_options(place, options))


def open_source(specification: str, sector: int, started_unix_seconds: float | None = None) -> SectorSource:
    """Opens one sector of a source; of files, only that sector's are indexed. Raises SourceError.

    ``started_unix_seconds``: when a live source began; without it there is none.
    """
    if not 0 <= sector < SECTORS:
        raise SourceError(f"sector {sector}; a frame has sectors 0 to {SECTORS - 1}")
    scheme, place, options = parse_specification(specification)
    if scheme == "files":
        directory, _, skip_bad_records = _file_options(place, options)
        files = list_sector_files(directory)
        return FileSectorSource(sector, index_sector(files, sector, identify_scan(files), skip_bad_records))
    simulation = _simulation_options(place, options)
    if not simulation.live:
        return SimulatedSectorSource(simulation, sector)
    if started_unix_seconds is None:
        raise SourceError("a live source can be streamed, and nothing else", "leave live out of it")
    return LiveSectorSource(simulation, sector, started_unix_seconds)


def can_be_opened_early(specification: str) -> bool:
    """Whether a source is the same when it is opened before its scan streams: one that waits for its reader.

    False for what is no source.
    """
    try:
        scheme, place, options = parse_specification(specification)
        if scheme == "sim":
            return not _simulation_options(place, options).live
        return scheme == "files" and "rate" not in options
    except SourceError:
        return False


def files_of_source(specification: str) -> list[Path]:
    """The files that a source reads: none of a simulated one. Raises SourceError."""
    scheme, place, options = parse_specification(specification)
    return [file.path for file in list_sector_files(_file_options(place, options)[0])] if scheme == "files" else []


def absolute_specification(specification: str) -> str:
    """The same source for a process with another working directory. Raises SourceError."""
    scheme, place, _ = parse_specification(specification)
    if scheme != "files":
        return specification
    return specification.replace(f"files:{place}", f"files:{Path(place).absolute()}", 1)


def parse_specification(specification: str) -> tuple[str, str, dict[str, str]]:
    """``"files:DIR?version=4"`` gives ``("files", "DIR", {"version": "4"})``. Raises SourceError."""
    scheme, colon, rest = specification.partition(":")
    if not colon or scheme not in ("files", "sim"):
        raise SourceError(f"{specification!r} is no source", f"sources are {FORMS}")
    place, _, query = rest.partition("?")
    if not place:
        raise SourceError(f"{specification!r} names no {'directory' if scheme == 'files' else 'scan shape'}", FORMS)
    options: dict[str, str] = {}
    for item in query.split("&") if query else []:
        name, equals, value = item.partition("=")
        if not (name and equals and value) or name in options:
            raise SourceError(
                f"{item!r} in {specification!r} is no option, or given twice",
                "options are written like ?name=value&other=value",
            )
        options[name] = value
    return scheme, place, options


def _file_options(place: str, options: dict[str, str]) -> tuple[Path, Encoding, bool]:
    version = _choice(options, "version", {"5": Encoding.RECORDS_ROWS, "4": Encoding.RECORDS_COLUMNS})
    skip_bad_records = _choice(options, "skip_bad_records", {"no": False, "yes": True})
    for name in options:
        if name not in ("version", "skip_bad_records"):
            raise SourceError(
                f"a source of files has no option {name!r}", "its options are version (4 or 5) and skip_bad_records"
            )
    return Path(place), version, skip_bad_records


def _choice(options: dict[str, str], name: str, choices: dict[str, Value]) -> Value:
    """The value of an option; the first choice without it."""
    text = options.get(name, next(iter(choices)))
    if text not in choices:
        raise SourceError(f"{name}={text} is not possible", f"{name} is {' or '.join(choices)}")
    return choices[text]


def _describe_files(directory: Path, encoding: Encoding, skip_bad_records: bool) -> SourceDescription:
    files = list_sector_files(directory)
    scan = identify_scan(files)
    indices = [index_sector(files, sector, scan, skip_bad_records) for sector in range(SECTORS)]
    frame_numbers = np.concatenate([index.frame_numbers for index in indices])
    if not len(frame_numbers):
        raise SourceError(f"all records in {directory} are bad", "copy the files again")
    first_frame, last_frame = int(frame_numbers.min()), int(frame_numbers.max())
    if last_frame - first_frame >= scan.frame_span:
        raise SourceError(
            f"the frame numbers in {directory} reach from {first_frame} to {last_frame}, but there are only"
            f" {len(np.unique(frame_numbers))} frames",
            "a header is damaged, or the sectors are of different scans; keep only the files of one scan",
        )
    check_one_position_each(frame_numbers, np.concatenate([index.positions for index in indices]), "different sectors")
    without_files = tuple(sector for sector in range(SECTORS) if not indices[sector].files)
    notes = [f"sector {sector} has no file: all of it counts as missing" for sector in without_files]
    if files[0].scan_number != scan.scan_number:
        notes.append(f"the files are named after scan {files[0].scan_number}, their headers say {scan.scan_number}")
    if looks_like_other_layout(indices, encoding.layout):
        other = 9 - int(encoding)  # 4 or 5
        notes.append(
            f"the pixels look as if these were files of version {other}, not {int(encoding)}; "
            f"files:{directory}?version={other} reads them so"
        )
    return SourceDescription(
        scan.scan_number,
        scan.scan_shape,
        first_frame,
        last_frame,
        encoding,
        len(frame_numbers),
        sum(index.duplicates for index in indices),
        sum(index.rejected for index in indices),
        without_files,
        tuple(notes),
    )


def _simulation_options(place: str, options: dict[str, str]) -> SimulationOptions:
    for name in _ONLY_FOR_FILES:
        if name in options:
            raise SourceError(
                f"{name} has no effect on a simulated stream, whose frames come in order",
                f"leave {name} out, or write simulated files and stream those with files:DIRECTORY",
            )
    return SimulationOptions.parse(place, options)


def _describe_simulation(options: SimulationOptions) -> SourceDescription:
    simulator = Simulator(options)
    return SourceDescription(
        options.scan_number,
        options.scan_shape,
        options.first_frame,
        options.last_frame,
        options.encoding,
        int((~simulator.missing).sum()),
        int(simulator.duplicated.sum()),
    )
