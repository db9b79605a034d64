"""Reading of a raw recording: plain HDF5, no MPI."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from mpistream.model import h5_layout, recording_layout
from mpistream.model.errors import MpistreamError, StorageError
from mpistream.model.geometry import SECTORS, SectorLayout
from mpistream.model.scan import SectorEnd
from mpistream.storage.hdf5_input import open_hdf5
from mpistream.storage.reader import attributes, read_ends, read_provenance, shape_of


def is_recording(path: str | Path) -> bool:
    """Whether ``path`` is a raw recording; False for anything else, or what cannot be read."""
    try:
        with open_hdf5(Path(path)) as file:
            return bool(file.attrs.get(h5_layout.FORMAT_ATTRIBUTE) == recording_layout.FORMAT_NAME)
    except (StorageError, OSError, TypeError, ValueError, RuntimeError):
        return False


@contextmanager
def open_recording(path: str | Path) -> "Iterator[Recording]":
    """The recording ``path``. Raises StorageError for anything that is not a whole one, and for what is damaged inside
    when it is read.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        try:
            _check_format(file, path)
            yield Recording(file)
        except (MpistreamError, BrokenPipeError):
            raise
        except (OSError, LookupError, TypeError, RuntimeError, ValueError) as error:
            raise StorageError(f"{path} is damaged: {error}", "copy it again, or record the scan again") from error


def _check_format(file: h5py.File, path: Path) -> None:
    if file.attrs.get(h5_layout.FORMAT_ATTRIBUTE) != recording_layout.FORMAT_NAME:
        raise StorageError(f"{path} is no raw recording", "give the output of a scan with --raw")
    version = int(file.attrs.get(h5_layout.FORMAT_VERSION_ATTRIBUTE, 0))
    if version > recording_layout.FORMAT_VERSION:
        raise StorageError(
            f"{path} has format version {version}; this release reads up to {recording_layout.FORMAT_VERSION}",
            "open it with a newer mpistream",
        )
    frames = len(file[recording_layout.FRAME_NUMBER])
    sector_shape = SectorLayout(int(file.attrs[recording_layout.ENCODING_ATTRIBUTE])).sector_shape
    shapes: dict[str, tuple[int, ...]] = {
        recording_layout.sector_name(sector): (frames, *sector_shape) for sector in range(SECTORS)
    }
    for name, (_, columns) in recording_layout.INDEX_ARRAYS.items():
        shapes[name] = (frames, columns) if columns else (frames,)
    for name, shape in shapes.items():
        if file[name].shape != shape:
            raise StorageError(
                f"{path} is damaged: {name} has the shape {file[name].shape}, not {shape}", "copy it again"
            )


class Recording:
    """A recorded scan: one row per frame number from the first to the last, those included of which nothing came."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self.path = Path(file.filename)
        self.scan_shape: tuple[int, int] = shape_of(file, h5_layout.SCAN_SHAPE_ATTRIBUTE)
        self.frame_shape: tuple[int, int] = shape_of(file, h5_layout.FRAME_SHAPE_ATTRIBUTE)
        self.scan_uid = str(file.attrs[h5_layout.SCAN_UID_ATTRIBUTE])
        self.scan_number = int(file.attrs[h5_layout.SCAN_NUMBER_ATTRIBUTE])
        self.layout = SectorLayout(int(file.attrs[recording_layout.ENCODING_ATTRIBUTE]))
        self.rows: int = len(file[recording_layout.FRAME_NUMBER])

    def read(self, name: str, first: int, end: int) -> npt.NDArray[Any]:
        """Rows ``first`` to ``end - 1`` of an array of the index (of recording_layout)."""
        return np.asarray(self._file[name][first:end])

    def pixels(self, sector: int, first: int, end: int) -> npt.NDArray[np.uint16]:
        """uint16[end - first, sector rows, sector columns]: a sector of the frames in these rows; 0 where missing."""
        return np.asarray(self._file[recording_layout.sector_name(sector)][first:end])

    @cached_property
    def counters(self) -> dict[str, int]:
        """Totals of the scan: frames, what was missing, twice or rejected."""
        return attributes(self._file[h5_layout.COUNTERS])

    @cached_property
    def complete(self) -> bool:
        """Whether the scan ran to its end with all its producers."""
        return read_ends(self._file)[0]

    @cached_property
    def ends(self) -> tuple[SectorEnd, ...]:
        return read_ends(self._file)[1]

    @cached_property
    def rejected(self) -> npt.NDArray[np.void]:
        """REJECTED_DTYPE: records that came and were left out because they were bad, ordered by frame and sector."""
        return np.asarray(self._file[h5_layout.REJECTED][:])

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Who wrote the recording, from what and how: scan_record, versions, seconds, ranks, ..."""
        return read_provenance(self._file)
