"""The conventional workflow: an MPI job whose ranks read a scan's source themselves. No network, no etcd, no journals.

rank 0     checks the request, writes the scan's record
sector's   reads the headers of one sector's records, and says what there is of it        (one rank per sector)
all        read their blocks of all four sectors -> assemble -> count
all        gather -> write                                                                (pipeline/ranks/assembly.py)

Every rank has a run of consecutive blocks. The dataset is that of streaming, array for array.
"""

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import numpy as np
from mpi4py import MPI

from mpistream.acquisition.sector_files import FileSectorSource
from mpistream.acquisition.source import SectorSource, open_source
from mpistream.model.agreement import agreed
from mpistream.model.config import Config
from mpistream.model.counted_block import CountedBlock, JournaledBlock
from mpistream.model.errors import MpistreamError, ScanFailed, SourceError
from mpistream.model.geometry import SECTORS
from mpistream.model.scan import ScanRecord, ScanSummary, SectorEnd, Thresholds
from mpistream.pipeline.process import new_incarnation
from mpistream.pipeline.ranks.assembly import gather_scan, write_scan
from mpistream.pipeline.ranks.orders import CountedScan
from mpistream.pipeline.ranks.rank import abort, world
from mpistream.pipeline.source_frames import end_of_source, read_blocks
from mpistream.reduction.calibration import SampleStatistics, fit_sample
from mpistream.reduction.frame_assembly import FrameAssembly
from mpistream.reduction.scan_reduction import ScanReduction
from mpistream.storage.delivery import frames_of
from mpistream.storage.placement import remove_partials

#: Blocks that are read while others are counted.
_BLOCKS_AHEAD = 2

_PROGRESS_SECONDS = 0.5
_TURN_SECONDS = 0.02
_PROGRESS_TAG = 7

#: What is being done, and of how many frames and raw bytes it is done.
Show = Callable[[str, dict[str, int]], None]

Item = TypeVar("Item")


def count_source(
    prepare: Callable[[], tuple[Config, ScanRecord]], watch: Callable[[ScanRecord], AbstractContextManager[Show]]
) -> ScanSummary | None:
    """Counts a scan with all ranks of this job and writes its dataset; the summary, on rank 0 only.

    ``prepare`` and ``watch`` are called on rank 0 alone. A rank that fails ends the whole job; a job of one raises.
    """
    comm = world()
    try:
        with agreed(comm, MpistreamError, "the scan cannot be prepared"):
            prepared = prepare() if comm.rank == 0 else None
        config, record = comm.bcast(prepared)
        try:
            with watch(record) if comm.rank == 0 else nullcontext(_show_nobody) as show:
                summary = _count(comm, config, record, show)
        except BaseException:
            if comm.rank == 0:
                remove_partials(Path(record.output), record.uid.hex)
            raise
    except BaseException as error:
        if comm.size == 1:
            raise
        abort(error)
    return summary if comm.rank == 0 else None


def _show_nobody(stage: str, progress: dict[str, int]) -> None:
    """Rank 0 shows the progress of all."""


def _count(comm: MPI.Comm, config: Config, record: ScanRecord, show: Show) -> ScanSummary:
    """Collective: the whole work. Raises MpistreamError."""
    job, attempt = comm.bcast(_names())
    blocks = _share(record.block_range, comm.rank, comm.size)
    with ExitStack() as opened:
        with _at_most(config.watchdog.assembly_seconds, "opening the source"):
            with agreed(comm, ScanFailed, "a rank cannot get ready"):
                reduction = ScanReduction.prepare(record)
            ends, sources = _open_sectors(comm, record, blocks, opened)
        with _at_most(config.watchdog.assembly_seconds, "calibrating"):
            reduction.set_thresholds(*_thresholds(comm, record, reduction, sources, blocks))
        seconds_reading = [0.0] * SECTORS
        progress = _JobProgress(comm, show, config.stream.patience_seconds)
        counted = _count_blocks(reduction, sources, blocks, seconds_reading, progress)
    ends = _with_seconds(comm, ends, seconds_reading)
    scan = CountedScan(reduction, ends, counted, reduction.diffraction_sum, (), Path(record.output), attempt)
    with _at_most(config.watchdog.assembly_seconds, "gathering and writing"):
        show("gathering", {})
        gathered = gather_scan(comm, config, scan)
        show("writing", {})
        return write_scan(comm, config, scan, gathered, job, ingest="read")


@contextmanager
def _at_most(seconds: float, what: str) -> Iterator[None]:
    """Ends the job if ``what`` the ranks do together takes longer: one of them may be stopped, or its disk silent."""
    error = ScanFailed(
        f"{what} has taken longer than {seconds:g} s; ending the MPI job",
        "look after its nodes and the file system, or raise [watchdog] assembly_seconds",
    )
    timer = threading.Timer(seconds, abort, [error])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _names() -> tuple[str, str]:
    """The job's name, and what tells this attempt to write the dataset from all others. Rank 0's count."""
    incarnation = new_incarnation()
    return f"{socket.gethostname()}-{os.getpid()}-{incarnation}", f"{incarnation}-0"


def _share(blocks: range, rank: int, size: int) -> range:
    """A rank's blocks: consecutive, so that it reads few long stretches of each file and has little to gather."""
    return blocks[len(blocks) * rank // size : len(blocks) * (rank + 1) // size]


def _open_sectors(
    comm: MPI.Comm, record: ScanRecord, blocks: range, opened: ExitStack
) -> tuple[tuple[SectorEnd, ...], list[SectorSource]]:
    """Collective: what there is of each sector, and its source for this rank's blocks. Raises SourceError.

    Of files, each sector's headers are read by one rank, which tells the others where their records are: a large scan
    has millions of them.
    """
    whole: dict[int, tuple[SectorEnd, list[object]]] = {}
    with agreed(comm, SourceError, "the source cannot be opened"):
        for sector in range(comm.rank, SECTORS, comm.size):
            with closing(open_source(record.source, sector)) as source:
                whole[sector] = end_of_source(record, source), _indices(source, record, comm.size)
    ends, sources = [], []
    for sector in range(SECTORS):
        end, indices = whole.get(sector, (None, None))
        root = sector % comm.size
        ends.append(comm.bcast(end, root))
        index = comm.scatter(indices, root)
        with agreed(comm, SourceError, "the source cannot be opened"):
            sources.append(opened.enter_context(closing(open_source(record.source, sector, index=index))))
    return tuple(ends), sources


def _indices(source: SectorSource, record: ScanRecord, size: int) -> list[object]:
    """Of files, the part of the sector's index that each rank needs."""
    if not isinstance(source, FileSectorSource):
        return [None] * size
    shares = (_share(record.block_range, rank, size) for rank in range(size))
    return [source.index.of_frames(frames_of(share, record.block_frames)) for share in shares]


def _thresholds(
    comm: MPI.Comm, record: ScanRecord, reduction: ScanReduction, sources: list[SectorSource], blocks: range
) -> tuple[Thresholds, SampleStatistics | None]:
    """Collective: what every rank counts with, and the sample that it was calibrated from. Raises CalibrationError."""
    if record.counting.thresholds_are_given:
        return Thresholds.given(record.counting), None
    with agreed(comm, ScanFailed, "the sample frames cannot be read"):
        own = _samples(record, reduction, sources, blocks)
    samples = comm.gather(own)
    fitted: tuple[Thresholds, bytes] | None = None
    with agreed(comm, ScanFailed, "the thresholds cannot be calibrated"):
        if samples is not None:
            merged = {block: statistics for part in samples for block, statistics in part.items()}
            fitted = fit_sample(merged, record, with_less=True)
    thresholds, sample = comm.bcast(fitted)
    return thresholds, SampleStatistics.from_bytes(sample)


def _samples(
    record: ScanRecord, reduction: ScanReduction, sources: list[SectorSource], blocks: range
) -> dict[int, bytes]:
    """The packed statistics of this rank's sample blocks: as many as can be needed, whatever the other ranks have."""
    wanted = record.sample_blocks
    mine = range(max(blocks.start, wanted.start), min(blocks.stop, wanted.stop))
    samples: dict[int, bytes] = {}
    complete_frames = 0
    for block in read_blocks(record, sources, mine, FrameAssembly(record).add):
        statistics = reduction.sample_block(block)
        assert statistics is not None, "no threshold is known yet"
        samples[block.block] = statistics
        complete_frames += int(np.count_nonzero(block.missing_sectors == 0))
        if complete_frames >= record.counting.sample_frames:
            break
    return samples


def _count_blocks(
    reduction: ScanReduction,
    sources: list[SectorSource],
    blocks: range,
    seconds_reading: list[float],
    progress: "_JobProgress",
) -> list[JournaledBlock]:
    """Counts this rank's blocks while the next ones are read; returns when all ranks have theirs, on rank 0.

    Raises SourceError or ScanFailed on the rank concerned alone, which must then end the job.
    """
    counted: list[JournaledBlock] = []
    for block in _read_ahead(read_blocks(reduction.record, sources, blocks, reduction.assemble, seconds_reading)):
        done = reduction.count(block)
        assert isinstance(done, CountedBlock), "the thresholds are known, and this is no recording"
        counted.append(done)
        progress.add(len(done.events), done.raw_bytes)
    progress.finish()
    return counted


def _read_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; a thread gets the next ones meanwhile."""
    with ThreadPoolExecutor(1, "reading") as reader:
        pending = deque(reader.submit(next, items, None) for _ in range(_BLOCKS_AHEAD))
        while (item := pending.popleft().result()) is not None:
            pending.append(reader.submit(next, items, None))
            yield item


def _with_seconds(comm: MPI.Comm, ends: tuple[SectorEnd, ...], seconds_reading: list[float]) -> tuple[SectorEnd, ...]:
    """Collective: the ends with what reading took over all ranks."""
    seconds = np.array(seconds_reading)
    comm.Allreduce(MPI.IN_PLACE, seconds, op=MPI.SUM)
    return tuple(end.model_copy(update={"seconds_reading": float(seconds[end.sector])}) for end in ends)


class _JobProgress:
    """What all ranks have counted, known to rank 0: each of the others sends it a small message now and then."""

    def __init__(self, comm: MPI.Comm, show: Show, patience_seconds: float) -> None:
        self._comm, self._show, self._patience_seconds = comm, show, patience_seconds
        self._own = np.zeros(3, np.int64)  # frames, raw bytes, 1 once the rank has finished
        self._of_ranks = np.zeros((comm.size, 3), np.int64)
        self._next = 0.0
        self._last_news = time.monotonic()
        self._sent: tuple[MPI.Request, np.ndarray] | None = None

    def add(self, frames: int, raw_bytes: int) -> None:
        """This rank has counted so much more."""
        self._own += (frames, raw_bytes, 0)
        if (now := time.monotonic()) >= self._next:
            self._next = now + _PROGRESS_SECONDS
            self._tell()

    def finish(self) -> None:
        """This rank has counted everything; on rank 0, returns when all have. Raises ScanFailed there where nothing
        is counted any more.
        """
        self._own[2] = 1
        if self._comm.rank:
            if self._sent is not None:
                self._sent[0].Wait()
            self._comm.Send(self._own, 0, _PROGRESS_TAG)
            return
        self._tell()
        while not self._of_ranks[:, 2].all():
            time.sleep(_TURN_SECONDS)
            self._tell()
            if time.monotonic() - self._last_news > self._patience_seconds:
                waiting = ", ".join(map(str, np.flatnonzero(self._of_ranks[:, 2] == 0)))
                raise ScanFailed(
                    f"nothing was counted for {self._patience_seconds:g} s, and rank {waiting} has not finished",
                    "look after its node and the file system; [stream] patience_seconds is how long is waited",
                )

    def _tell(self) -> None:
        if self._comm.rank == 0:
            self._collect()
        elif self._sent is None or self._sent[0].Test():
            message = self._own.copy()
            self._sent = self._comm.Isend(message, 0, _PROGRESS_TAG), message

    def _collect(self) -> None:
        if (self._of_ranks[0] != self._own).any():
            self._of_ranks[0] = self._own
            self._last_news = time.monotonic()
        while self._comm.Iprobe(MPI.ANY_SOURCE, _PROGRESS_TAG, status := MPI.Status()):
            self._comm.Recv(self._of_ranks[status.source], status.source, _PROGRESS_TAG)
            self._last_news = time.monotonic()
        frames, raw_bytes, _ = self._of_ranks.sum(axis=0).tolist()
        self._show("counting", {"frames": frames, "raw_bytes": raw_bytes})
