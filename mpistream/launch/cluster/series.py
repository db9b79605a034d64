"""What a batch job does in the modes of many scans: a series in time, a series of tilts."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import UUID

from mpistream.launch.announcement import ScanRequest
from mpistream.launch.cluster.batch_run import DONE, FAILED, NOT_WHOLE, BatchRun, ProgramEnd
from mpistream.launch.cluster.programs import Scans, check_session, is_whole, request_scan
from mpistream.launch.cluster.record import say
from mpistream.launch.cluster.scan_work import NotBegun, announce_scan, follow_scan, known_scan, wait_until_served
from mpistream.launch.cluster.series_sources import CAMERA, sources_of_tilts, sources_of_times
from mpistream.launch.scan_follower import ScanEnd
from mpistream.model.errors import ScanFailed, StorageError
from mpistream.storage.series import write_series
from mpistream.storage.tilt_index import write_tilt_index

#: So many scans of a series in time are announced ahead of the one that is under way: there is no gap between them.
_AHEAD = 2
#: So many scans of the camera are expected beside the one that is under way: each new one looks at all the others.
_MOST_EXPECTED = 100

#: Of each scan by its number: how it ended; None where it has no dataset.
Ends = dict[int, ScanEnd | None]


def timeseries(run: BatchRun, scans: Scans, number: int, interval_seconds: float, is_joined: bool) -> ProgramEnd:
    """Many scans one behind the other: one file each, or one dataset with a time axis beside the folder of these."""
    check_session(run)
    sources = sources_of_times(scans.source, number)
    folder = scans.output.with_suffix(".scans") if is_joined else scans.output
    _make_folder(folder)
    wait_until_served(run)
    due, width = time.monotonic(), len(str(number - 1))

    def is_due() -> bool:
        return time.monotonic() >= due

    def requests() -> Iterator[ScanRequest]:
        nonlocal due
        for index, source in enumerate(sources):
            path = folder / f"scan-{index:0{width}d}.h5"
            if known_scan(run, path) is None:  # one that an earlier run of the job has announced is not waited for
                run.wait_until(is_due)
                due += interval_seconds
            yield request_scan(run, scans, source, path, time_index=index)

    ends = _one_behind_the_other(run, requests(), _ahead(scans, number, _AHEAD))
    datasets = [Path(end.summary.dataset) for end in ends.values() if end is not None]
    if is_joined and datasets:
        say(f"joining {len(datasets)} scans in {scans.output}")
        write_series(datasets, scans.output, scans.overwrite or run.allocation.restarts > 0)
    return _end_of_all(ends, number, scans.output)


def tomography(run: BatchRun, scans: Scans, tilts_degrees: Sequence[float]) -> ProgramEnd:
    """One scan per tilt angle, and their index. The next one is announced when the last has ended: the stage moves."""
    check_session(run)
    sources = sources_of_tilts(scans.source, tilts_degrees)
    _make_folder(scans.output)
    width = len(str(len(tilts_degrees) - 1))
    paths = [scans.output / f"tilt-{index:0{width}d}.h5" for index in range(len(tilts_degrees))]

    def requests() -> Iterator[ScanRequest]:
        for index, (tilt, source, path) in enumerate(zip(tilts_degrees, sources, paths, strict=True)):
            yield request_scan(run, scans, source, path, tilt_index=index, tilt_degrees=tilt)

    ends = _one_behind_the_other(run, requests(), _ahead(scans, len(tilts_degrees), 0))
    index_path = scans.output / "tilts.h5"
    if any(ends.values()):
        write_tilt_index(paths, tilts_degrees, index_path, scans.overwrite or run.allocation.restarts > 0)
        say(f"the index of all tilts: {index_path}")
    return _end_of_all(ends, len(tilts_degrees), scans.output)


def _ahead(scans: Scans, number: int, otherwise: int) -> int:
    """The camera waits for nobody: its scans are expected from the beginning, in their order."""
    return min(number, _MOST_EXPECTED) if scans.source == CAMERA else otherwise


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"the folder {folder} cannot be made: {error.strerror}", "give another --output") from error


def _one_behind_the_other(run: BatchRun, requests: Iterator[ScanRequest], ahead: int) -> Ends:
    """Announces scans while those before are under way; one that fails does not end the series. Where no more can be
    announced, as in a session that was stopped, the others are followed to their ends.
    """
    ends: Ends = {}
    announced: deque[tuple[int, UUID]] = deque()

    def follow_first() -> None:
        index, uid = announced.popleft()
        try:
            ends[index] = follow_scan(run, uid)
        except NotBegun as failure:
            say(f"the series ends before scan {index}: {failure.message}; {failure.remedy}")
            announced.clear()
        except ScanFailed as failure:
            say(f"scan {index} of the series, {uid}, has no dataset: {failure.message}; {failure.remedy}")
            ends[index] = None

    for index, request in enumerate(requests):
        while len(announced) > ahead:
            follow_first()
        try:
            announced.append((index, announce_scan(run, request)))
        except ScanFailed as failure:
            say(f"the series ends before scan {index}: {failure.message}; {failure.remedy}")
            break
    while announced:
        follow_first()
    return ends


def _end_of_all(ends: Ends, number: int, output: Path) -> ProgramEnd:
    datasets = [end for end in ends.values() if end is not None]
    whole = sum(map(is_whole, datasets))
    text = f"{output}: {len(datasets)} of {number} scans have a dataset, {whole} a complete one"
    if not datasets:
        return ProgramEnd(text, FAILED)
    return ProgramEnd(text, DONE if whole == number else NOT_WHOLE)
