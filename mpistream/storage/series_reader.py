"""Reading of a series: many scans in one file, with an axis of time.

with open_series("series.h5") as series:
    dark_fields = [scan.virtual_image(80, 288) for scan in series]
    first = series.scan(0)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from mpistream.model import h5_layout as layout
from mpistream.model.errors import StorageError
from mpistream.storage.hdf5_input import check_event_arrays, check_version, kept_open, read_to_its_end
from mpistream.storage.reader import Dataset, shape_of, whole_dataset


def open_series(path: str | Path) -> "Series":
    """The series ``path``, open until it is closed. Raises StorageError for anything that is not a whole one."""
    path = Path(path)
    with kept_open(path, "join the datasets again") as file:
        if file.attrs.get(layout.FORMAT_ATTRIBUTE) != layout.SERIES_FORMAT_NAME:
            raise StorageError(f"{path} is no series of scans", "a single scan is opened with open_dataset(path)")
        check_version(file, path, layout.SERIES_FORMAT_VERSION)
        check_event_arrays(file, path)
        return Series(file)


@contextmanager
def whole_series(path: str | Path) -> "Iterator[Series]":
    """As ``open_series``, for work that reads it to its end: what is damaged inside is a StorageError, too."""
    with open_series(path) as series, read_to_its_end(path):
        yield series


@contextmanager
def whole_scan(path: str | Path, time_index: int | None = None) -> Iterator[Dataset]:
    """As ``whole_dataset``; with ``time_index``, that scan of a series. Raises StorageError where it has none such."""
    if time_index is None:
        with whole_dataset(path) as dataset:
            yield dataset
        return
    with whole_series(path) as series:
        yield series.scan(time_index)


class Series:
    """Scans of one shape, in order of time. Iterated over, it gives each as a ``Dataset``.

    ``scan_shape`` and ``frame_shape`` are (rows, columns). ``table`` has a row per scan: h5_layout.SERIES_FIELDS and
    ``dataset``, the file that it came from.
    """

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self.path = Path(file.filename)
        self.scan_shape = shape_of(file, layout.SCAN_SHAPE_ATTRIBUTE)
        self.frame_shape = shape_of(file, layout.FRAME_SHAPE_ATTRIBUTE)
        self.table: npt.NDArray[np.void] = file[layout.SERIES][:]
        self.n_frames: int = file[layout.FRAME_NUMBER].shape[0]
        self.n_electrons: int = file[layout.INDICES].shape[0]
        self.has_centroids: bool = layout.CENTROIDS in file

    def close(self) -> None:
        """Its scans cannot be read any more."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Dataset]:
        return map(self.scan, self.time_indices)

    def __repr__(self) -> str:
        rows, columns = self.scan_shape
        return f"<mpistream series {self.path.name}: {len(self)} scans of {rows} x {columns}, {self.n_frames} frames>"

    @property
    def time_indices(self) -> list[int]:
        """Of the scans that there are, ascending; there can be gaps."""
        return [int(time_index) for time_index in self.table["time_index"]]

    def scan(self, time_index: int) -> Dataset:
        """One scan, as its own dataset gave it; open as long as the series is. Raises StorageError."""
        rows = np.flatnonzero(self.table["time_index"] == time_index)
        if not len(rows):
            there = f"{self.time_indices[0]} to {self.time_indices[-1]}" if len(self) else "none"
            raise StorageError(f"{self.path} has no scan with the time index {time_index}", f"it has {there}")
        row = self.table[rows[0]]
        frames, events = (
            range(int(row[f"first_{kind}"]), int(row[f"first_{kind}"]) + int(row[f"n_{kind}s"]))
            for kind in ("frame", "event")
        )
        return Dataset(self._file[scan_group(time_index)], frames, events)

    def read(self, name: str, first: int, end: int) -> npt.NDArray[Any]:
        """Rows ``first`` to ``end - 1`` of the array ``name`` (of h5_layout) of all scans, from the file."""
        return np.asarray(self._file[name][first:end])

    @cached_property
    def images(self) -> dict[str, npt.NDArray[Any]]:
        """The stored images: stacks (scans, scan rows, scan columns) of bright_field, annular_dark_field and
        electron_count, and of center_of_mass (row, column); diffraction_sum is that of all scans together.
        """
        return {name: dataset[:] for name, dataset in self._file[layout.IMAGES].items()}


def scan_group(time_index: int) -> str:
    """The name of the group that describes a scan of a series."""
    return f"{layout.SCANS}/{time_index:06d}"
