"""Writes a simulated scan as sector files, with the truth about it beside them.

Several processes make the frames. The place of every record in the files is known beforehand, so each process writes
its frames' records itself; this one writes the truth. Files get their names when everything is written.
"""

import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from functools import lru_cache
from multiprocessing import connection, get_context, parent_process
from pathlib import Path

import numpy as np

from mpistream.acquisition.sector_files import SectorFileWriter, sector_file_name
from mpistream.acquisition.simulation_options import SimulationOptions
from mpistream.acquisition.simulation_truth import GROUND_TRUTH, TruthPart, TruthWriter
from mpistream.acquisition.simulator import Simulator
from mpistream.model.errors import StorageError
from mpistream.model.geometry import RECORD_BYTES, SECTORS

_PARTIAL = ".partial"
_FRAMES_PER_TASK = 32
#: Below this, starting a process takes longer than making the frames.
_FRAMES_PER_PROCESS = 512
_TASKS_AHEAD = 3
_REORDER_STREAM = 5


def simulate_to_files(
    options: SimulationOptions,
    directory: Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    overwrite: bool = False,
    processes: int | None = None,
) -> list[Path]:
    """Writes the scan's sector files and ``ground_truth.h5`` into ``directory`` and returns the sector files.

    ``progress`` is called with the number of frames written and of all. ``processes``: without it as many as there
    are processors and as are worth starting. Sector files already there are replaced with ``overwrite``, once the new
    ones are complete. Raises StorageError when there are some or when the directory cannot be written; then, as after
    an interrupt, nothing partial is left.
    """
    old_files = _prepare_directory(directory, overwrite)
    _check_free_space(directory, options)
    places = RecordPlaces(Simulator(options), directory)
    if processes is None:
        processes = min(len(os.sched_getaffinity(0)), -(-options.frames // _FRAMES_PER_PROCESS))
    targets = [*places.paths, directory / GROUND_TRUTH]
    try:
        with TruthWriter(_partial(directory / GROUND_TRUTH), places.simulator) as truth:
            for part in _written_parts(options, directory, processes):
                truth.append(part)
                if progress:
                    progress(truth.frames, options.frames)
        _give_names(targets)
    except BrokenProcessPool as error:
        raise StorageError(
            "a process that simulated frames was killed; what was written has been removed",
            "see whether the machine ran out of memory, or simulate with processes=1",
        ) from error
    except OSError as error:
        raise StorageError(
            # HDF5 writes a page into strerror.
            f"cannot write the simulated scan to {directory}: {os.strerror(error.errno) if error.errno else error}",
            "free some space or choose another directory; what was written has been removed",
        ) from error
    finally:
        for path in targets:
            _partial(path).unlink(missing_ok=True)
    _remove([path for path in old_files if path not in targets], directory)
    return places.paths


class RecordPlaces:
    """Where each sector of each frame goes, by the options for loss, duplicates, order and files.

    ``paths`` are all sector files.
    """

    def __init__(self, simulator: Simulator, directory: Path) -> None:
        self.simulator = simulator
        self.paths: list[Path] = []
        self._first_file: list[int] = []
        self._file_starts = []
        self._places = []
        self._first_place = []
        for sector in range(SECTORS):
            sequence = self._sequence(sector)
            parts = np.array_split(sequence, min(simulator.options.files_per_sector, max(len(sequence), 1)))
            self._first_file.append(len(self.paths))
            self._file_starts.append(np.cumsum([0, *map(len, parts)])[:-1])
            if len(sequence):
                scan_number = simulator.options.scan_number
                self.paths += [directory / sector_file_name(scan_number, sector, part) for part in range(len(parts))]
            self._places.append(np.argsort(sequence, kind="stable"))
            self._first_place.append(np.searchsorted(np.sort(sequence), np.arange(simulator.options.frames + 1)))

    def of(self, index: int, sector: int) -> list[tuple[int, int]]:
        """The (index into ``paths``, place in that file) of every record of a frame's sector: none, one or two."""
        first, last = self._first_place[sector][index : index + 2]
        starts = self._file_starts[sector]
        found = []
        for place in self._places[sector][first:last].tolist():
            part = int(np.searchsorted(starts, place, side="right")) - 1
            found.append((self._first_file[sector] + part, place - int(starts[part])))
        return found

    def _sequence(self, sector: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        """The frame index of each record of a sector, file after file."""
        simulator, options = self.simulator, self.simulator.options
        repeats = np.where(simulator.missing[:, sector], 0, 1 + simulator.duplicated[:, sector])
        sequence = np.repeat(np.arange(options.frames), repeats)
        generator = np.random.default_rng((options.seed, _REORDER_STREAM, sector))
        if options.reorder == "all":
            generator.shuffle(sequence)
        elif options.reorder:
            delayed = np.arange(len(sequence)) + generator.uniform(0, options.reorder, len(sequence))
            sequence = sequence[np.argsort(delayed)]
        return sequence


class _FrameWriter:
    """Makes frames and writes their records to the partial files."""

    def __init__(self, places: RecordPlaces) -> None:
        self._places = places

    def write(self, frames: range) -> TruthPart:
        """Writes the records of frames (by index); returns what is in them."""
        simulator = self._places.simulator
        record = memoryview(bytearray(RECORD_BYTES))
        everything = []
        writers: dict[int, SectorFileWriter] = {}
        with ExitStack() as open_files:
            for index in frames:
                hits = simulator.hits(index)
                everything.append(hits)
                for sector in range(SECTORS):
                    places = self._places.of(index, sector)
                    if places:
                        simulator.write_record(index, hits, sector, record)
                    for file, place in places:
                        if file not in writers:
                            writers[file] = open_files.enter_context(self._open(file))
                        writers[file].write_record(place, record)
        return TruthPart.of(everything)

    def _open(self, file: int) -> SectorFileWriter:
        options = self._places.simulator.options
        return SectorFileWriter(_partial(self._places.paths[file]), options.scan_number, options.scan_shape)


def _written_parts(options: SimulationOptions, directory: Path, processes: int) -> Iterator[TruthPart]:
    """Writes all frames, and yields what is in them in their order."""
    tasks = [
        range(start, min(start + _FRAMES_PER_TASK, options.frames))
        for start in range(0, options.frames, _FRAMES_PER_TASK)
    ]
    if processes <= 1:
        for task in tasks:
            yield _write_frames(options, directory, task)
        return
    workers = ProcessPoolExecutor(processes, get_context("spawn"), _prepare_process)
    try:
        # Few tasks ahead, so that what is not yet written of the truth stays small.
        running: deque[Future[TruthPart]] = deque()
        for task in tasks:
            running.append(workers.submit(_write_frames, options, directory, task))
            if len(running) > _TASKS_AHEAD * processes:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        # Waits for the tasks that run, so that nobody writes to files that are being removed.
        workers.shutdown(cancel_futures=True)


def _write_frames(options: SimulationOptions, directory: Path, frames: range) -> TruthPart:
    return _frame_writer(options, directory).write(frames)


@lru_cache(maxsize=1)
def _frame_writer(options: SimulationOptions, directory: Path) -> _FrameWriter:
    return _FrameWriter(RecordPlaces(Simulator(options), directory))


def _prepare_process() -> None:
    """A worker leaves interrupts to the process that started it, and ends when that one is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + _PARTIAL)


def _give_names(targets: list[Path]) -> None:
    """All files get their names; or those whose names were free get none."""
    named: list[Path] = []
    try:
        for path in targets:
            is_free = not os.path.lexists(path)
            _partial(path).rename(path)
            if is_free:
                named.append(path)
    except BaseException:
        for path in named:
            with suppress(OSError):
                path.unlink()
        raise


def _remove(surplus: list[Path], directory: Path) -> None:
    """Old files that no new one has replaced go once all new ones have their names."""
    try:
        for path in surplus:
            path.unlink()
    except OSError as error:
        raise StorageError(
            f"the new sector files are in {directory}, but old ones cannot be removed: {error.strerror}",
            "remove those of an earlier date",
        ) from error


def _prepare_directory(directory: Path, overwrite: bool) -> list[Path]:
    """Makes the directory and clears it of what a killed run left; returns the sector files to replace."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        old_files = sorted(directory.glob("data_scan*.data"))
        if old_files and not overwrite:
            raise StorageError(
                f"{directory} holds {len(old_files)} sector files already",
                "choose another directory, or replace them with --overwrite",
            )
        for path in [*directory.glob(f"data_scan*.data{_PARTIAL}"), *directory.glob(GROUND_TRUTH + _PARTIAL)]:
            path.unlink()
    except OSError as error:
        raise StorageError(
            f"cannot write to {directory}: {error.strerror}", "choose a directory that you may write to"
        ) from error
    return old_files


def _check_free_space(directory: Path, options: SimulationOptions) -> None:
    records = options.frames * SECTORS * (1 - options.loss) * (1 + options.duplicates)
    needed = records * RECORD_BYTES + options.frames * options.electrons * 8
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise StorageError(
            f"the simulated scan needs {needed / 1e9:.1f} GB, {directory} has {free / 1e9:.1f} GB left",
            "free some space, choose another directory or a smaller scan; files to be replaced go only afterwards",
        )
