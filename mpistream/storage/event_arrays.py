"""The event arrays of the dataset file: created by one rank, filled by all of them or by rank 0 for all, compared.

Every transfer is bounded in bytes and its success agreed between the ranks before the next one.
"""

import contextlib
import errno
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from mpistream.model import h5_layout as layout
from mpistream.model.agreement import agreed
from mpistream.model.electron_events import Slab
from mpistream.model.errors import StorageError
from mpistream.storage.disk_file import hdf5_on_disk, write_fully
from mpistream.storage.placement import is_no_room, readable_bytes, storage_error

FAILURE = "the dataset cannot be written"
REMEDY = "free space in the folder, or choose another output"


@contextlib.contextmanager
def together(comm: MPI.Comm) -> Iterator[None]:
    """Collective: ``agreed`` with a StorageError, which is a NoRoomError where a rank met a full disk."""
    with agreed(comm, StorageError, FAILURE, REMEDY):
        try:
            yield
        except OSError as error:
            if is_no_room(error):
                raise storage_error(f"{FAILURE}: rank {comm.rank}", error, REMEDY) from error
            raise


@dataclass(frozen=True)
class _Array:
    """One of the arrays in the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])


@dataclass(frozen=True)
class _Piece:
    """Part of one rank's share of one array: rows ``first_row`` to ``first_row + len(values)``; may be empty.

    ``first_byte`` is where it begins within the array in the file.
    """

    name: str
    first_row: int
    first_byte: int
    values: npt.NDArray[Any]


def _arrays(frames: int, events: int, centroids: bool) -> dict[str, _Array]:
    rows = {layout.INDICES: events, layout.OFFSETS: frames + 1}
    arrays = {name: _Array(np.dtype(dtype), (rows.get(name, frames),)) for name, dtype in layout.EVENT_DTYPES.items()}
    if centroids:
        arrays[layout.CENTROIDS] = _Array(np.dtype(layout.CENTROIDS_DTYPE), (events, 2))
    return arrays


def event_bytes(frames: int, events: int, centroids: bool) -> int:
    """Size in bytes of the event arrays of a dataset."""
    return sum(array.row_bytes * array.shape[0] for array in _arrays(frames, events, centroids).values())


def create_event_arrays(path: Path, frames: int, events: int, centroids: bool) -> dict[str, int]:
    """A new file with the event arrays, contiguous, their space laid out but not written. Replaces ``path``.

    One rank does this without MPI: then no rank has metadata to flush when all have the file open, and nothing
    about it must be done by all ranks alike. Returns the address in the file, in bytes, of each array that is not
    empty.
    """
    addresses = {}
    with hdf5_on_disk(path, "w") as (file, _):
        for name, array in _arrays(frames, events, centroids).items():
            creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            creation.set_layout(h5py.h5d.CONTIGUOUS)
            creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            group, _, leaf = name.rpartition("/")
            space = h5py.h5s.create_simple(array.shape)
            kind = h5py.h5t.py_create(array.dtype)
            dataset = h5py.h5d.create(file.require_group(group).id, leaf.encode(), kind, space, dcpl=creation)
            if (address := dataset.get_offset()) is not None:
                addresses[name] = int(address)
    return addresses


def _pieces(comm: MPI.Comm, slab: Slab, round_bytes: int) -> Iterator[_Piece]:
    """Collective: this rank's pieces of all arrays. Every rank gets as many, of the same arrays in the same order."""
    events = slab.events
    is_last_rank = comm.rank == comm.size - 1
    with together(comm):
        offsets = (events.offsets if is_last_rank else events.offsets[:-1]) + np.uint64(slab.first_event)
        shares: dict[str, tuple[int, npt.NDArray[Any]]] = {
            layout.INDICES: (slab.first_event, events.indices),
            layout.OFFSETS: (slab.first_frame, offsets),
            layout.SCAN_POSITION: (slab.first_frame, events.scan_position),
            layout.FRAME_NUMBER: (slab.first_frame, events.frame_number),
            layout.MISSING_SECTORS: (slab.first_frame, events.missing_sectors),
        }
        if events.centroids is not None:
            shares[layout.CENTROIDS] = slab.first_event, events.centroids
        arrays = _arrays(slab.total_frames, slab.total_events, events.centroids is not None)
        shares = {
            name: (first_row, np.ascontiguousarray(values, arrays[name].dtype))
            for name, (first_row, values) in shares.items()
        }
    for name, (first_row, values) in shares.items():
        row_bytes = arrays[name].row_bytes
        rows = max(1, round_bytes // row_bytes)
        rounds = comm.allreduce(-(-len(values) // rows), op=MPI.MAX)
        for begin in range(0, rounds * rows, rows):
            row = first_row + begin
            yield _Piece(name, row, row * row_bytes, values[begin : begin + rows])


def write_by_all(comm: MPI.Comm, path: Path, slab: Slab, round_bytes: int, collective: bool) -> str:
    """Collective: each rank writes its slab into the file that ``create_event_arrays`` made; the driver's name.

    ``collective`` lets MPI-IO merge the ranks' requests (collective buffering). It is for files whose space is
    reserved: when a disk fills up under a collective transfer, OpenMPI 4.1 hangs or reports success, depending on
    the rank that is hit. Otherwise each rank's transfer stands for itself.
    """
    with together(comm):
        # a rank that cannot reach the file must say so before the others wait for it inside MPI_File_open
        os.close(os.open(path, os.O_RDWR))
    # The ranks have just met. H5Fopen holds Python's global lock, so no rank should wait for others inside it.
    with together(comm):
        file = h5py.File(path, "r+", driver="mpio", comm=comm)
    try:
        driver = str(file.driver)
        transfer = h5py.h5p.create(h5py.h5p.DATASET_XFER)
        transfer.set_dxpl_mpio(h5py.h5fd.MPIO_COLLECTIVE if collective else h5py.h5fd.MPIO_INDEPENDENT)
        for piece in _pieces(comm, slab, round_bytes):
            with together(comm):
                _write(file, piece, transfer)
    except StorageError:
        # all ranks come here; what else fails in closing matters no more
        with contextlib.suppress(Exception):
            file.close()
        raise
    with together(comm):
        file.close()
    return driver


def _write(file: h5py.File, piece: _Piece, transfer: h5py.h5p.PropDXID) -> None:
    """One transfer; an empty piece takes part with an empty selection, as a collective one must."""
    dataset = file[piece.name].id
    in_file = dataset.get_space()
    in_memory = h5py.h5s.create_simple(piece.values.shape)
    if len(piece.values):
        in_file.select_hyperslab((piece.first_row, *[0] * (piece.values.ndim - 1)), piece.values.shape)
    else:
        in_file.select_none()
        in_memory.select_none()
    try:
        dataset.write(in_memory, in_file, piece.values, dxpl=transfer)
    except OSError as error:
        # HDF5 does not pass the system's reason on; most often it is this one
        folder = Path(os.fsdecode(file.filename)).parent
        free = shutil.disk_usage(folder).free
        reason = OSError(f"{error}; {readable_bytes(free)} is free in {folder}")
        reason.errno = errno.ENOSPC if free < piece.values.nbytes else error.errno
        raise reason from error


def _largest_piece_bytes(slab: Slab, round_bytes: int) -> int:
    """Of this rank's pieces, at most."""
    events = slab.events
    arrays = _arrays(len(events), len(events.indices), events.centroids is not None).values()
    return max(array.row_bytes * min(array.shape[0], max(1, round_bytes // array.row_bytes)) for array in arrays)


def write_by_rank_zero(comm: MPI.Comm, path: Path, addresses: dict[str, int], slab: Slab, round_bytes: int) -> str:
    """Collective: the same file without parallel HDF5; the ranks' pieces travel to rank 0; the means, on rank 0.

    ``addresses`` are those from ``create_event_arrays``: contiguous arrays can be written without HDF5.
    """
    descriptor: int | None = None
    largest = comm.reduce(_largest_piece_bytes(slab, round_bytes) if comm.rank else 0, op=MPI.MAX)
    try:
        with together(comm):
            if comm.rank == 0:
                descriptor = os.open(path, os.O_WRONLY)
        with together(comm):
            # now: a rank 0 that found no room while the others send would leave them waiting
            buffer = np.empty(largest or 0, np.uint8)
        for piece in _pieces(comm, slab, round_bytes):
            with together(comm):
                _write_all_pieces(comm, descriptor, addresses.get(piece.name, 0), piece, buffer)
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return "posix" if comm.rank == 0 else ""


def _write_all_pieces(
    comm: MPI.Comm, descriptor: int | None, address: int, own: _Piece, buffer: npt.NDArray[np.uint8]
) -> None:
    """Collective: rank 0 (which has the file) writes its own piece, then the others' by way of ``buffer``."""
    own_bytes = own.values.reshape(-1).view(np.uint8)
    shares = comm.gather((own.first_byte, len(own_bytes)))
    if shares is None or descriptor is None:
        comm.Send([own_bytes, MPI.BYTE], dest=0)
        return
    failure: OSError | None = None
    for source, (first_byte, count) in enumerate(shares):
        values = own_bytes
        if source:
            values = buffer[:count]
            comm.Recv([values, MPI.BYTE], source=source)
        # after a failure the other ranks' pieces are still received: they are being sent
        if count and failure is None:
            try:
                write_fully(descriptor, values.data, address + first_byte)
            except OSError as error:
                failure = error
    if failure is not None:
        raise failure


def compare_with_file(comm: MPI.Comm, path: Path, slab: Slab, round_bytes: int) -> None:
    """Collective: raises StorageError on every rank unless the file holds exactly what the ranks hold."""
    file: h5py.File | None = None
    try:
        with together(comm):
            file = h5py.File(path, "r", locking=False)
            centroids = slab.events.centroids is not None
            for name, array in _arrays(slab.total_frames, slab.total_events, centroids).items():
                if file[name].shape != array.shape:
                    raise StorageError(
                        f"{path}: {name} has the shape {file[name].shape} instead of {array.shape}", REMEDY
                    )
            if file[layout.OFFSETS][-1] != slab.total_events:
                raise StorageError(f"{path}: the offsets end with {file[layout.OFFSETS][-1]}", REMEDY)
        for piece in _pieces(comm, slab, round_bytes):
            with together(comm):
                last_row = piece.first_row + len(piece.values)
                if not np.array_equal(file[piece.name][piece.first_row : last_row], piece.values):
                    raise StorageError(
                        f"{path}: {piece.name} [{piece.first_row}:{last_row}] differs from what was written", REMEDY
                    )
    finally:
        if file is not None:
            file.close()
