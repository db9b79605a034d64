"""Writing of a dataset by all ranks of a job.

    rank 0   checks the target, lays out the event arrays in <name>.partial.<tag>, reserves their space
    all      write their slabs into it, in rounds          (or send them to rank 0 without parallel HDF5)
    all      compute the images of their slabs             (and send them to rank 0)
    rank 0   adds images and metadata
    all      compare the file with what they hold
    rank 0   compares the file's frames, sector by sector, with what the producers say they sent
    all      flush it to the disk
    rank 0   gives it its name

Each step's success is agreed: either every rank goes on or all of them raise the same StorageError, the partial file
is gone, and the ranks can write the next dataset.
"""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast

import h5py
import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from mpistream.model import h5_layout as layout
from mpistream.model.dataset_description import DatasetDescription, WriteReport
from mpistream.model.electron_events import Slab
from mpistream.model.errors import MpistreamError, ScanFailed, StorageError
from mpistream.model.fault_points import reach
from mpistream.storage.checksums import checksum_row
from mpistream.storage.delivery import SectorTotals, frames_of, mark_rejected, mark_rows
from mpistream.storage.event_arrays import (
    compare_with_file,
    create_event_arrays,
    event_bytes,
    together,
    write_by_all,
    write_by_rank_zero,
)
from mpistream.storage.images import ScanImages, gather_images
from mpistream.storage.metadata import WritingFacts, metadata_bytes, write_metadata
from mpistream.storage.placement import (
    check_target,
    flush_to_disk,
    partial_path,
    publish,
    remove_partial,
    reserve_space,
)

SERIAL_WARNING = (
    "h5py was built without parallel HDF5, so rank 0 alone wrote the dataset; for parallel writing install an MPI build"
    " of HDF5 and build h5py against it: CC=mpicc HDF5_MPI=ON pip install --no-binary=h5py --no-build-isolation h5py"
)

#: Frames whose marks travel to rank 0 at a time, one byte each.
_ROUND_FRAMES = 1 << 20

Result = TypeVar("Result")


def write_dataset(
    comm: MPI.Comm,
    slab: Slab,
    diffraction_sum: npt.NDArray[np.uint32],
    description: DatasetDescription,
    path: str | Path,
    overwrite: bool = False,
    *,
    tag: str,
    round_bytes: int = 256 * 2**20,
    parallel: bool = True,
    collective: bool | None = None,
) -> WriteReport:
    """Collective: the slabs of all ranks become the dataset ``path`` (rank 0's is taken), complete or not at all.

    diffraction_sum  uint32[frame rows, frame columns] of the frames that this rank counted, which need not be those of
                     its slab
    tag              of this attempt alone: the scan's uid in hexadecimal, a point, the epoch of the assembly
    round_bytes      most bytes per rank and transfer, below 2**31
    parallel         False: rank 0 writes for all, as it does with a warning where h5py has no parallel HDF5
    collective       whether the ranks' MPI-IO transfers are merged (see write_by_all); None: where the disk has
                     reserved the space, so that they cannot run out of it

    Raises StorageError, the same on every rank; a NoRoomError where space is all that is wanting.
    """
    started = time.perf_counter()
    target = Path(comm.bcast(Path(path).absolute()))
    # one rank without parallel HDF5 decides for all
    in_parallel = parallel and not comm.allreduce(int(not h5py.get_config().mpi))
    _check_request(comm, slab, description, target, overwrite, round_bytes)
    with _partial_file(comm, target, tag) as partial:
        driver, seconds_events = _write_events(comm, partial, slab, round_bytes, in_parallel, collective)
        reach("rank.after-events")
        images = gather_images(comm, slab, diffraction_sum, description, round_bytes)
        _complete(comm, partial, slab, description, images, driver, seconds_events)
        compare_with_file(comm, partial, slab, round_bytes)
        check_delivery(comm, slab, description)
        with together(comm):
            # every node flushes what its own ranks have written
            flush_to_disk(partial)
        file_bytes = on_rank_zero(comm, lambda: _publish(partial, target, overwrite))
    return comm.bcast(
        WriteReport(
            path=target,
            file_bytes=file_bytes,
            event_bytes=event_bytes(slab.total_frames, slab.total_events, description.centroids),
            writing_ranks=comm.size if in_parallel else 1,
            parallel=in_parallel,
            seconds_events=seconds_events,
            seconds=time.perf_counter() - started,
            warning=SERIAL_WARNING if parallel and not in_parallel else None,
        )
    )


def _publish(partial: Path, target: Path, overwrite: bool) -> int:
    reach("rank.before-rename")
    file_bytes = publish(partial, target, overwrite)
    reach("rank.after-rename")
    return file_bytes


def check_delivery(comm: MPI.Comm, slab: Slab, description: DatasetDescription) -> None:
    """Collective: raises ScanFailed on every rank unless the slabs have exactly the frames and sectors that came.

    That is what the end records say, where they know; and every frame has one row.
    """
    if not description.ends:
        return
    record, totals = description.scan, SectorTotals()
    rejected = gather_rejected(comm, description)
    both = 0
    with together(comm):
        order = np.argsort(slab.events.frame_number)
        number, missing = slab.events.frame_number[order], slab.events.missing_sectors[order]
    blocks_per_round = max(1, _ROUND_FRAMES // record.block_frames)
    for first in range(0, len(record.block_range), blocks_per_round):
        blocks = record.block_range[first : first + blocks_per_round]
        frames = frames_of(blocks, record.block_frames)
        with together(comm):
            marks = np.zeros(len(frames), np.uint8)
            begin, end = np.searchsorted(number, np.array([frames.start, frames.stop], np.uint64))
            mark_rows(marks, frames, number[begin:end], missing[begin:end])
        comm.Reduce(MPI.IN_PLACE if comm.rank == 0 else marks, marks if comm.rank == 0 else None, op=MPI.BOR)
        with together(comm):
            if comm.rank == 0:
                both += mark_rejected(marks, frames, rejected)
                totals.add(marks, blocks, record.block_frames)
    with together(comm):
        if comm.rank == 0:
            _refuse_contradictions(slab, description, totals, both)


def gather_rejected(comm: MPI.Comm, description: DatasetDescription) -> npt.NDArray[np.void]:
    """Collective: on rank 0 those of all ranks, each once, ordered by frame and sector; none elsewhere."""
    parts = comm.gather(description.rejected)
    with together(comm):
        return np.unique(np.concatenate(parts or [np.empty(0, layout.REJECTED_DTYPE)]))


def _refuse_contradictions(slab: Slab, description: DatasetDescription, totals: SectorTotals, both: int) -> None:
    wrong = [
        f"sector {end.sector}: {totals.contradiction(end)}"
        for end in description.ends
        if totals.is_as_sent(end) is False
    ]
    if totals.rows != slab.total_frames:
        wrong.append(f"{slab.total_frames - totals.rows} rows are of frames outside the scan, or that have another row")
    if both:
        wrong.append(f"{both} records are called rejected, and are there all the same")
    if wrong:
        raise ScanFailed(
            f"the frames of the dataset are not those that were sent: {'; '.join(wrong)}",
            "stream the scan again; the journals, which are kept, show what was counted",
        )


@contextmanager
def _partial_file(comm: MPI.Comm, target: Path, tag: str) -> Iterator[Path]:
    """Collective: the dataset's name while it is written; after a failure nothing is left there."""
    try:
        yield partial_path(target, tag)
    except MpistreamError:
        # agreed, hence raised by all ranks; none returns before the partial file is gone
        if comm.rank == 0:
            remove_partial(target, tag)
        comm.Barrier()
        raise


def _check_request(
    comm: MPI.Comm, slab: Slab, description: DatasetDescription, target: Path, overwrite: bool, round_bytes: int
) -> None:
    with together(comm):
        if (slab.events.centroids is not None) != description.centroids:
            raise ValueError("the slab's centroids are not as the scan's record has it")
        if not 1 <= round_bytes < 2**31:
            raise StorageError(f"rounds of {round_bytes} bytes", "MPI counts need 1 to 2147483647 bytes per round")
        if comm.rank == 0:
            size = event_bytes(slab.total_frames, slab.total_events, description.centroids)
            check_target(target, overwrite, size + metadata_bytes(description))


def _write_events(
    comm: MPI.Comm, partial: Path, slab: Slab, round_bytes: int, in_parallel: bool, collective: bool | None
) -> tuple[str, float]:
    """Makes the partial file with the event arrays: what this rank wrote them with, and the seconds it took."""
    started = time.perf_counter()
    addresses = on_rank_zero(
        comm,
        lambda: create_event_arrays(partial, slab.total_frames, slab.total_events, slab.events.centroids is not None),
    )
    reserved = on_rank_zero(comm, lambda: reserve_space(partial))
    if in_parallel:
        driver = write_by_all(comm, partial, slab, round_bytes, reserved if collective is None else collective)
    else:
        driver = write_by_rank_zero(comm, partial, addresses, slab, round_bytes)
    return driver, comm.bcast(time.perf_counter() - started)


def _complete(
    comm: MPI.Comm,
    partial: Path,
    slab: Slab,
    description: DatasetDescription,
    images: ScanImages | None,
    driver: str,
    seconds_events: float,
) -> None:
    row = (comm.rank, socket.gethostname().encode(), driver.encode(), slab.first_frame, len(slab.events))
    with together(comm):
        checksums = checksum_row(slab)
    rows = comm.gather((*row, slab.first_event, len(slab.events.indices)))
    checksum_rows, rejected = comm.gather(checksums), gather_rejected(comm, description)

    def write() -> None:
        assert images is not None
        assert checksum_rows is not None
        ranks = np.array(rows, layout.RANK_DTYPE)
        writing_ranks = int(np.count_nonzero(ranks["driver"]))
        facts = WritingFacts(
            ranks,
            rejected,
            np.array(checksum_rows, layout.CHECKSUM_DTYPE),
            writing_ranks,
            {"writing_events": seconds_events},
        )
        write_metadata(partial, description, images, facts)

    on_rank_zero(comm, write)


def on_rank_zero(comm: MPI.Comm, action: Callable[[], Result]) -> Result:
    """Collective: rank 0 acts, every rank gets the result or the error."""
    result: Result | None = None
    with together(comm):
        if comm.rank == 0:
            result = action()
    return cast(Result, comm.bcast(result))
