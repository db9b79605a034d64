"""What a producer reads from: the sectors of a scan, out of files, out of a recording, or out of the simulator.

A source is named by a specification:

    files:DIR[?version=4&skip_bad_records=yes&scan=N&rate=R]    the camera's sector files; of several scans the one of
                                                                number N
    raw:FILE[?rate=R]                                           what a scan with --raw has left
    sim:ROWSxCOLUMNS[?seed=3&electrons=2400&...]                a simulated scan, see SimulationOptions

With a rate the frames are sent at R frames per second, or as fast as they are taken, if that is slower.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from mpistream.acquisition.layout_check import looks_like_other_layout
from mpistream.acquisition.paced import PacedSectorSource
from mpistream.acquisition.recording_source import RecordingIndex, RecordingSectorSource
from mpistream.acquisition.sector_files import FileSectorSource, SectorFile, SectorIndex, list_sector_files
from mpistream.acquisition.sector_index import check_one_position_each, identify_scan, index_sector
from mpistream.acquisition.sector_source import SectorSource
from mpistream.acquisition.simulated_live import LiveSectorSource
from mpistream.acquisition.simulation_options import SimulationOptions
from mpistream.acquisition.simulator import SimulatedSectorSource, Simulator
from mpistream.model.errors import SourceError
from mpistream.model.geometry import SECTORS, ScanShape
from mpistream.model.protocol import Encoding

FORMS = "files:DIRECTORY, raw:FILE or sim:ROWSxCOLUMNS"
_HIGHEST_RATE = 1e6
#: What stands behind the name of each kind of source.
_PLACES = {"files": "directory", "raw": "file", "sim": "scan shape"}
_ONLY_FOR_FILES = ("reorder", "files_per_sector")

Value = TypeVar("Value")


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
        return _describe_files(_file_options(place, options))
    if scheme == "raw":
        _check_options(options, ("rate",), "a recording")
        _rate(options)
        return _describe_recording(Path(place))
    return _describe_simulation(_simulation_options(place, options))


def open_source(
    specification: str, sector: int, started_unix_seconds: float | None = None, index: SectorIndex | None = None
) -> SectorSource:
    """Opens one sector of a source; of files, only that sector's are indexed. Raises SourceError.

    ``started_unix_seconds``: when a live source began; without it there is none, and a rate has no effect. ``index``:
    of the sector's files, or of those records that will be read, where another process has read their headers already.
    """
    if index is not None:
        return FileSectorSource(sector, index)
    if not 0 <= sector < SECTORS:
        raise SourceError(f"sector {sector}; a frame has sectors 0 to {SECTORS - 1}")
    scheme, place, options = parse_specification(specification)
    if scheme == "files":
        chosen = _file_options(place, options)
        files = chosen.list()
        index = index_sector(files, sector, identify_scan(files), chosen.skip_bad_records)
        numbers = index.frame_numbers.tolist()
        frames = range(numbers[0], numbers[-1] + 1) if numbers else range(0)
        return _paced(FileSectorSource(sector, index), chosen.rate, frames, started_unix_seconds)
    if scheme == "raw":
        recording = RecordingSectorSource(Path(place), sector)
        return _paced(recording, _rate(options), recording.frames, started_unix_seconds)
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
        return scheme in ("files", "raw") and "rate" not in options
    except SourceError:
        return False


def files_of_source(specification: str) -> list[Path]:
    """The files that a source reads: none of a simulated one. Raises SourceError."""
    scheme, place, options = parse_specification(specification)
    if scheme == "files":
        return [file.path for file in _file_options(place, options).list()]
    return [Path(place)] if scheme == "raw" else []


def absolute_specification(specification: str) -> str:
    """The same source for a process with another working directory. Raises SourceError."""
    scheme, place, _ = parse_specification(specification)
    if scheme == "sim":
        return specification
    return specification.replace(f"{scheme}:{place}", f"{scheme}:{Path(place).absolute()}", 1)


def parse_specification(specification: str) -> tuple[str, str, dict[str, str]]:
    """``"files:DIR?version=4"`` gives ``("files", "DIR", {"version": "4"})``. Raises SourceError."""
    scheme, colon, rest = specification.partition(":")
    if not colon or scheme not in _PLACES:
        raise SourceError(f"{specification!r} is no source", f"sources are {FORMS}")
    place, _, query = rest.partition("?")
    if not place:
        raise SourceError(f"{specification!r} names no {_PLACES[scheme]}", FORMS)
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


@dataclass(frozen=True)
class _FileOptions:
    directory: Path
    encoding: Encoding
    skip_bad_records: bool
    scan: int | None
    rate: float | None

    def list(self) -> list[SectorFile]:
        return list_sector_files(self.directory, self.scan)


def _file_options(place: str, options: dict[str, str]) -> _FileOptions:
    _check_options(options, ("version", "skip_bad_records", "scan", "rate"), "a source of files")
    scan = options.get("scan")
    if scan is not None and not scan.isdecimal():
        raise SourceError(
            f"scan={scan} is not possible", "scan is the camera's number of a scan, as in the files' names"
        )
    return _FileOptions(
        Path(place),
        _choice(options, "version", {"5": Encoding.RECORDS_ROWS, "4": Encoding.RECORDS_COLUMNS}),
        _choice(options, "skip_bad_records", {"no": False, "yes": True}),
        None if scan is None else int(scan),
        _rate(options),
    )


def _check_options(options: dict[str, str], known: tuple[str, ...], what: str) -> None:
    for name in options:
        if name not in known:
            allowed = ", ".join(known).replace("version", "version (4 or 5)")
            raise SourceError(f"{what} has no option {name!r}", f"its options: {allowed}")


def _rate(options: dict[str, str]) -> float | None:
    """Frames per second; None: as fast as they are taken."""
    if "rate" not in options:
        return None
    try:
        rate = float(options["rate"])
    except ValueError:
        rate = math.nan
    if not 0 < rate <= _HIGHEST_RATE:
        raise SourceError(
            f"rate={options['rate']} is not possible", f"rate is in frames per second, up to {_HIGHEST_RATE:.0f}"
        )
    return rate


def _paced(source: SectorSource, rate: float | None, frames: range, started: float | None) -> SectorSource:
    return source if rate is None or started is None else PacedSectorSource(source, rate, frames, started)


def _choice(options: dict[str, str], name: str, choices: dict[str, Value]) -> Value:
    """The value of an option; the first choice without it."""
    text = options.get(name, next(iter(choices)))
    if text not in choices:
        raise SourceError(f"{name}={text} is not possible", f"{name} is {' or '.join(choices)}")
    return choices[text]


def _describe_files(chosen: _FileOptions) -> SourceDescription:
    directory, encoding, files = chosen.directory, chosen.encoding, chosen.list()
    scan = identify_scan(files)
    indices = [index_sector(files, sector, scan, chosen.skip_bad_records) for sector in range(SECTORS)]
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


def _describe_recording(path: Path) -> SourceDescription:
    index = RecordingIndex.read(path)
    notes = [] if index.complete else [f"{path} is not complete: it has what had arrived of its scan"]
    return SourceDescription(
        index.scan_number,
        index.scan_shape,
        index.first_frame,
        index.last_frame,
        index.encoding,
        index.records,
        sum(index.sectors_duplicate),
        sum(index.sectors_rejected),
        notes=tuple(notes),
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
