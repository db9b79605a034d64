"""What makes a file of pixels an HDF5 file: written around them, without moving one."""

from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from mpistream.model import h5_layout, recording_layout
from mpistream.model.dataset_description import DatasetDescription
from mpistream.model.errors import StorageError
from mpistream.model.geometry import FRAME_SHAPE, SECTORS
from mpistream.model.recording_layout import PixelPlaces
from mpistream.storage.disk_file import DiskFile
from mpistream.storage.metadata import write_attributes, write_delivery, write_identity, write_provenance


class _AroundPixels(DiskFile):
    """To HDF5 an empty file; pixels lie in it all the same, where HDF5 will put arrays that it does not fill."""

    def __init__(self, path: Path, places: PixelPlaces) -> None:
        super().__init__(path, "r+")
        self._pixels_end = places.end
        super().truncate(self._pixels_end)  # what an earlier attempt has left behind them
        self._size = 0

    def truncate(self, size: int | None = None) -> int:
        return super().truncate(max(self._position if size is None else size, self._pixels_end))


def write_head(
    path: Path,
    places: PixelPlaces,
    description: DatasetDescription,
    rejected: npt.NDArray[np.void],
    ranks: npt.NDArray[np.void],
) -> dict[str, int]:
    """Everything but the pixels, which are there, and the index: where each of its arrays begins, in bytes.

    By one process, again after any failure. ``rejected`` and ``ranks`` are of all ranks. Raises OSError, and
    StorageError where this release of HDF5 does not put the pixels where they are.
    """
    disk = _AroundPixels(path, places)
    try:
        alignment = {
            "alignment_threshold": recording_layout.LEAST_ALIGNED_BYTES,
            "alignment_interval": recording_layout.ALIGNMENT_BYTES,
        }
        with h5py.File(disk, "w", **alignment) as file:
            _lay_out_pixels(file, places)
            addresses = _lay_out_index(file, places.frames)
            _put_sectors_together(file, places)
            write_identity(file, description, recording_layout.FORMAT_NAME, recording_layout.FORMAT_VERSION)
            file.attrs[recording_layout.ENCODING_ATTRIBUTE] = int(description.scan.encoding)
            counters = description.counters.model_dump(exclude={"electrons"})
            write_attributes(file.require_group(h5_layout.COUNTERS), counters)
            write_delivery(file, description, rejected)
            write_provenance(file, description, ranks, len(ranks), {})
        disk.check()
    finally:
        disk.close()
    return addresses


def _lay_out_pixels(file: h5py.File, places: PixelPlaces) -> None:
    for sector in range(SECTORS):
        address = _unfilled(file, recording_layout.sector_name(sector), recording_layout.PIXEL_DTYPE, places.shape)
        if address != places.begin(sector):
            raise StorageError(
                f"HDF5 {h5py.version.hdf5_version} would put sector {sector} at byte {address} of a recording, "
                f"not at {places.begin(sector)}",
                "use an h5py with another release of HDF5: 1.10 is known to do",
            )


def _lay_out_index(file: h5py.File, frames: int) -> dict[str, int]:
    return {
        name: _unfilled(file, name, dtype, (frames, columns) if columns else (frames,))
        for name, (dtype, columns) in recording_layout.INDEX_ARRAYS.items()
    }


def _unfilled(file: h5py.File, name: str, dtype: str, shape: tuple[int, ...]) -> int:
    """A contiguous array whose space is laid out and not written; where it begins."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    group, _, leaf = name.rpartition("/")
    kind, space = h5py.h5t.py_create(np.dtype(dtype)), h5py.h5s.create_simple(shape)
    dataset = h5py.h5d.create(file.require_group(group).id, leaf.encode(), kind, space, dcpl=creation)
    return int(dataset.get_offset())


def _put_sectors_together(file: h5py.File, places: PixelPlaces) -> None:
    whole = h5py.VirtualLayout((places.frames, *FRAME_SHAPE), recording_layout.PIXEL_DTYPE)
    for sector in range(SECTORS):
        rows, columns = places.layout.sector_slices(sector)
        source = h5py.VirtualSource(".", recording_layout.sector_name(sector), places.shape)
        whole[:, rows, columns] = source
    file.create_virtual_dataset(recording_layout.FULL_FRAMES, whole)
