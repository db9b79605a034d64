"""Export of a dataset to the file format that stempy reads and writes (version 3)."""

from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from mpistream.storage.disk_file import DiskFile, whole_hdf5_file
from mpistream.storage.placement import check_target
from mpistream.storage.reader import Dataset
from mpistream.storage.series_reader import whole_scan
from mpistream.storage.small_files import check_targets

STEMPY_VERSION = 3
#: Slots written at a time: variable-length rows pass through Python objects.
CHUNK_SLOTS = 1 << 16
ROW_DTYPE = h5py.vlen_dtype(np.uint32)


def export_stempy(
    dataset_path: str | Path, out_path: str | Path, overwrite: bool = False, time_index: int | None = None
) -> Path:
    """Writes ``out_path``, which ``stempy.io.load_electron_counts`` opens; its absolute path.

    Of a series, which has an axis more than stempy knows, the scan ``time_index`` is written.
    Every position gets as many rows as the position with the most frames has; where frames lack, rows are empty.
    Raises StorageError, and then leaves no file behind.
    """
    target = Path(out_path).absolute()
    with whole_scan(dataset_path, time_index) as dataset:
        check_targets([target], overwrite, [Path(dataset_path)])
        # a row's address takes 16 bytes beside the events themselves
        check_target(target, overwrite, 4 * dataset.n_electrons + 16 * _slots(dataset) + 2**20)
        with whole_hdf5_file(target, overwrite) as (file, disk):
            _write(file, disk, dataset)
    return target


def _slots(dataset: Dataset) -> int:
    return dataset.scan_shape[0] * dataset.scan_shape[1] * dataset.frame_slots()[1]


def _write(file: h5py.File, disk: DiskFile, dataset: Dataset) -> None:
    rows, columns = dataset.scan_shape
    file.attrs["version"] = STEMPY_VERSION
    positions = file.create_dataset("electron_events/scan_positions", data=np.arange(rows * columns))
    positions.attrs["Nx"], positions.attrs["Ny"] = columns, rows
    frames = file.create_dataset("electron_events/frames", (_slots(dataset),), dtype=ROW_DTYPE)
    # here Nx is the number of rows: stempy names the axes of frames and of scans in opposite order
    frames.attrs["Nx"], frames.attrs["Ny"] = dataset.frame_shape
    file.require_group("metadata/electron_counting").attrs.update(dataset.thresholds)
    _write_frames(frames, disk, dataset)


def _write_frames(frames: h5py.Dataset, disk: DiskFile, dataset: Dataset) -> None:
    slots, _ = dataset.frame_slots()
    for first in range(0, len(frames), CHUNK_SLOTS):
        rows = np.empty(min(CHUNK_SLOTS, len(frames) - first), ROW_DTYPE)
        rows.fill(np.empty(0, np.uint32))
        first_frame, end_frame = np.searchsorted(slots, [first, first + len(rows)])
        begins = dataset.offsets[first_frame : end_frame + 1].astype(np.int64)
        chunk = dataset.run(first_frame, end_frame, centroids=False).indices
        for slot, begin, end in zip(slots[first_frame:end_frame] - first, begins, begins[1:], strict=False):
            rows[slot] = chunk[begin - begins[0] : end - begins[0]]
        _write_rows(frames, first, rows)
        disk.check()


def _write_rows(frames: h5py.Dataset, first: int, rows: npt.NDArray[np.object_]) -> None:
    """Without h5py's convenience, which takes rows of equal lengths for an array of two dimensions."""
    in_file = frames.id.get_space()
    in_file.select_hyperslab((first,), rows.shape)
    frames.id.write(h5py.h5s.create_simple(rows.shape), in_file, rows, h5py.h5t.py_create(ROW_DTYPE))
