"""Writes that must fail alike on every rank, each followed by one that succeeds in the same processes.

``program_failing_write FOLDER UNWRITABLE SMALL``: UNWRITABLE a folder that takes no file, SMALL a file system of 16 MB
(either may be ``-``: then its case is left out).
"""

import contextlib
import os
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from mpi4py import MPI

from mpistream.model.electron_events import ElectronEvents, Slab
from mpistream.model.errors import MpistreamError, NoRoomError, ScanFailed, StorageError
from mpistream.model.frame_sums import FrameSums
from mpistream.model.virtual_images import VirtualDetectors
from mpistream.reduction.gather import gather_slab
from mpistream.storage import event_arrays
from mpistream.storage.event_arrays import compare_with_file
from mpistream.storage.reader import open_dataset
from mpistream.storage.writer import write_dataset
from tests.scans import Frame, describe, to_ends, to_rejected

ROWS, COLUMNS = 40, 50
EVENTS_PER_FRAME = 1000
#: small, so that a write has many rounds and takes long enough for the disk to fill up meanwhile
ROUND_BYTES = 16384


def make_slab(comm: MPI.Comm) -> tuple[Slab, npt.NDArray[np.uint32]]:
    """8 MB of events in all, on the first pixels of every frame."""
    mine = np.arange(comm.rank, ROWS * COLUMNS, comm.size)
    events = ElectronEvents.from_counts(
        mine.astype(np.uint32),
        mine.astype(np.uint64),
        np.zeros(len(mine), np.uint8),
        np.full(len(mine), EVENTS_PER_FRAME, np.uint32),
        np.tile(np.arange(EVENTS_PER_FRAME, dtype=np.uint32), len(mine)),
    )
    pattern = np.zeros((576, 576), np.uint32)
    pattern.ravel()[:EVENTS_PER_FRAME] = len(mine)
    moments = np.sum(np.divmod(np.arange(EVENTS_PER_FRAME), 576), axis=1).astype(np.uint32)
    sums = FrameSums(np.tile(moments, (len(mine), 1)), np.empty((len(mine), 0), np.uint32))
    return gather_slab(comm, events, sums, ROWS * COLUMNS), pattern


class Case:
    def __init__(
        self, comm: MPI.Comm, slab: Slab, pattern: npt.NDArray[np.uint32], folder: Path, parallel: bool
    ) -> None:
        self.comm, self.slab, self.pattern, self.folder, self.parallel = comm, slab, pattern, folder, parallel
        self.round_bytes = ROUND_BYTES
        scan = describe([], ROWS, COLUMNS).scan.model_copy(
            update={"first_frame": 0, "last_frame": ROWS * COLUMNS - 1, "detectors": VirtualDetectors()}
        )
        frames: list[Frame] = [(number, number, 0, []) for number in range(ROWS * COLUMNS)]
        self.description = replace(describe([], ROWS, COLUMNS), scan=scan, ends=tuple(to_ends(frames, scan)))
        #: as the writer decides, but where a rank's transfer itself is made to fail: that needs separate transfers
        self.collective: bool | None = None

    def write(self, path: Path, overwrite: bool = False) -> None:
        write_dataset(
            self.comm,
            self.slab,
            self.pattern,
            self.description,
            path,
            overwrite,
            tag="1234.7",
            round_bytes=self.round_bytes,
            parallel=self.parallel,
            collective=self.collective,
        )

    def fails(
        self, path: Path, *reasons: str, overwrite: bool = False, kind: type[MpistreamError] = StorageError
    ) -> None:
        """Every rank raises the same error, which names one of the reasons and a remedy; nothing is left."""
        files_open = len(os.listdir("/proc/self/fd"))
        before = folder_names(path.parent)
        self.comm.Barrier()
        with pytest.raises(MpistreamError) as caught:
            self.write(path, overwrite)
        messages = self.comm.allgather((caught.value.message, caught.value.remedy))
        assert len(set(messages)) == 1, messages
        assert type(caught.value) is kind
        assert len(os.listdir("/proc/self/fd")) == files_open
        assert any(reason in caught.value.message for reason in reasons), (caught.value.message, reasons)
        assert caught.value.remedy
        assert folder_names(path.parent) == before
        # no rank changes the folder before the others have looked
        self.comm.Barrier()

    def succeeds(self, path: Path, overwrite: bool = False) -> None:
        self.write(path, overwrite)
        if self.comm.rank == 0:
            with open_dataset(path) as dataset:
                assert dataset.n_electrons == ROWS * COLUMNS * EVENTS_PER_FRAME
                assert (dataset.images["electron_count"] == EVENTS_PER_FRAME).all()
        self.comm.Barrier()


def folder_names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


@contextmanager
def file_size_limit(limited: bool) -> Iterator[None]:
    """On the rank that is ``limited`` no write reaches beyond the first MB of a file."""
    if limited:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        if limited:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextmanager
def disk_filling_up(case: Case, folder: Path) -> Iterator[None]:
    """As soon as the partial file is there, another file takes all the space that is left."""
    ballast = folder / "ballast"

    def fill() -> None:
        while not list(folder.glob("*.partial.*")):
            pass
        with ballast.open("wb") as file:
            space = os.statvfs(folder)
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - 65536)

    thread = threading.Thread(target=fill, daemon=True)
    if case.comm.rank == 0:
        ballast.touch()
        thread.start()
    case.comm.Barrier()
    yield
    if case.comm.rank == 0:
        thread.join()
        ballast.unlink()
    case.comm.Barrier()


def check_requests(case: Case) -> None:
    target = case.folder / "taken.h5"
    case.fails(case.folder / "missing" / "scan.h5", "does not exist")
    case.succeeds(target)
    before = target.stat()
    case.fails(target, "exists")
    case.fails(case.folder, "is a folder")
    assert target.stat().st_ino == before.st_ino
    case.succeeds(target, overwrite=True)
    assert target.stat().st_ino != before.st_ino


def check_sums(case: Case) -> None:
    """What the last rank added up is not that of its events, or not of the detectors."""
    target, is_last = case.folder / "sums.h5", case.comm.rank == case.comm.size - 1
    right, description = case.pattern, case.description
    if is_last:
        case.pattern = right + np.eye(576, dtype=np.uint32)
    # what the target refuses is said before any image is computed
    case.fails(case.folder / "taken.h5", "taken.h5 exists")
    events = ROWS * COLUMNS * EVENTS_PER_FRAME
    case.fails(target, f"{events} electrons were counted, but {events + 576} on the pixels")
    case.pattern = right
    if is_last:
        scan = description.scan.model_copy(update={"detectors": VirtualDetectors(center=(280.0, 290.0))})
        case.description = replace(description, scan=scan)
    case.fails(target, f"the images cannot be computed: rank {case.comm.size - 1}: ValueError")
    case.description = description


def check_ends(case: Case) -> None:
    """The file would not have what the producers say they sent."""
    target, right = case.folder / "ends.h5", case.description
    sent = list(right.ends)
    sent[2] = sent[2].model_copy(update={"digest": (sent[2].digest or 0) ^ 1})
    sent[3] = sent[3].model_copy(update={"digest": 5, "records": 2001})
    case.description = replace(right, ends=tuple(sent))
    frames = ROWS * COLUMNS
    case.fails(
        target,
        f"sector 2: {frames} records are there, its producer sent others; sector 3: {frames} records",
        kind=ScanFailed,
    )
    # a producer that was gone, and one that does not know, contradict nothing
    sent[2] = sent[2].model_copy(update={"cut": "it was gone"})
    sent[3] = sent[3].model_copy(update={"digest": None})
    case.description = replace(right, ends=tuple(sent))
    case.succeeds(target)
    is_last = case.comm.rank == case.comm.size - 1
    case.description = replace(right, rejected=to_rejected([(9, 1)] if is_last else []))
    case.fails(
        target.with_name("both.h5"), "1 records are called rejected, and are there all the same", kind=ScanFailed
    )
    # the record's blocks end before the last frames do
    scan = right.scan.model_copy(update={"last_frame": 1599})
    case.description = replace(right, scan=scan)
    case.fails(target.with_name("short.h5"), "400 rows are of frames outside the scan", kind=ScanFailed)
    case.description = right


def check_failing_rank(case: Case, bad_rank: int) -> None:
    target = case.folder / f"limited-{bad_rank}-{case.round_bytes}.h5"
    case.collective = False
    with file_size_limit(case.comm.rank == bad_rank):
        case.fails(target, f"rank {bad_rank}: ", "the dataset cannot be written")
    case.succeeds(target)
    before = target.stat()
    with file_size_limit(case.comm.rank == bad_rank):
        case.fails(target, f"rank {bad_rank}: ", "the dataset cannot be written", overwrite=True)
    # the old dataset stays until the new one is complete
    assert target.stat().st_ino == before.st_ino
    case.collective = None


def check_full_disk(case: Case, target: Path) -> None:
    """Whoever is faster gets the space: the other file, then all ranks say so; or the dataset, then it is whole."""
    failure: StorageError | None = None
    with disk_filling_up(case, target.parent):
        try:
            case.write(target)
        except StorageError as error:
            failure = error
    message = failure.message if failure else None
    assert set(case.comm.allgather(message)) == {message}
    if message is not None:
        assert "free in" in message or "No space left" in message, message
        assert "No space left" not in message or isinstance(failure, NoRoomError), failure
        assert not folder_names(target.parent)
    elif case.comm.rank == 0:
        with open_dataset(target) as dataset:
            assert (dataset.images["electron_count"] == EVENTS_PER_FRAME).all()
        target.unlink()
    case.comm.Barrier()


class NoMemory:
    """numpy, as long as nothing is to be allocated."""

    def __getattr__(self, name: str) -> object:
        return getattr(np, name)

    def empty(self, *_: object) -> None:
        raise MemoryError


def check_memory(case: Case) -> None:
    """Rank 0 has no memory to receive in; the others do not wait for it."""
    if case.comm.rank == 0:
        event_arrays.np = NoMemory()
    case.fails(case.folder / "memory.h5", "the dataset cannot be written: rank 0: MemoryError")
    event_arrays.np = np
    case.succeeds(case.folder / "memory.h5")


def check_comparison(case: Case) -> None:
    """One wrong event in the file, in the last rank's share, is noticed by all ranks."""
    path = case.folder / "damaged.h5"
    case.succeeds(path)
    if case.comm.rank == 0:
        with h5py.File(path, "r+") as file:
            file["electron_events/indices"][-1] += 1
    case.comm.Barrier()
    with pytest.raises(StorageError, match=r"electron_events/indices .* differs"):
        compare_with_file(case.comm, path, case.slab, ROUND_BYTES)


def main() -> None:
    folder, unwritable, small = sys.argv[1:4]
    comm = MPI.COMM_WORLD.Dup()
    slab, pattern = make_slab(comm)
    for parallel in (True, False):
        case = Case(comm, slab, pattern, Path(folder) / f"parallel-{parallel}", parallel)
        if comm.rank == 0:
            case.folder.mkdir()
        comm.Barrier()
        check_requests(case)
        check_sums(case)
        check_ends(case)
        for case.round_bytes in (2**26, ROUND_BYTES):
            for bad_rank in range(comm.size if parallel else 1):
                check_failing_rank(case, bad_rank)
        if not parallel:
            check_memory(case)
        check_comparison(case)
        if unwritable != "-":
            case.fails(Path(unwritable) / "scan.h5", "is not writable")
        if small != "-":
            check_full_disk(case, Path(small) / "scan.h5")
            case.succeeds(Path(small) / "scan.h5")
            case.fails(Path(small) / "second.h5", "needs 13.5 MB, ", kind=NoRoomError)
            if comm.rank == 0:
                (Path(small) / "scan.h5").unlink()
    comm.Free()
    print("failed as they should" if MPI.COMM_WORLD.rank == 0 else "", end="")


if __name__ == "__main__":
    main()
