"""Reading of a dataset: plain HDF5, no MPI.

with open_dataset("scan.h5") as dataset:
    dark_field = dataset.virtual_image(80, 288)
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from mpistream.model import h5_layout as layout
from mpistream.model.dataset_description import Delivery, SampleHistogram
from mpistream.model.electron_events import ElectronEvents
from mpistream.model.errors import StorageError
from mpistream.model.recording_layout import FORMAT_NAME as RECORDING_FORMAT
from mpistream.model.scan import SectorEnd
from mpistream.model.virtual_images import Image, annulus_mask, diffraction_sum, frame_runs, virtual_image
from mpistream.storage.hdf5_input import check_event_arrays, check_version, kept_open, read_to_its_end

if TYPE_CHECKING:
    from stempy.io.sparse_array import SparseArray


def open_dataset(path: str | Path) -> "Dataset":
    """The dataset ``path``, open until it is closed. Raises StorageError for anything that is not a whole one.

    A series of scans is opened by ``open_series``.
    """
    path = Path(path)
    with kept_open(path, "copy it again") as file:
        _check_format(file, path)
        check_event_arrays(file, path)
        return Dataset(file)


@contextmanager
def whole_dataset(path: str | Path) -> "Iterator[Dataset]":
    """As ``open_dataset``, for work that reads a dataset to its end: what is damaged inside is a StorageError, too."""
    with open_dataset(path) as dataset, read_to_its_end(path):
        yield dataset


def _check_format(file: h5py.File, path: Path) -> None:
    name = file.attrs.get(layout.FORMAT_ATTRIBUTE)
    if name == layout.SERIES_FORMAT_NAME:
        raise StorageError(
            f"{path} is a series of scans",
            "give --time-index, where there is that option; in Python: open_series(path).scan(time_index)",
        )
    if name == layout.TILTS_FORMAT_NAME:
        raise StorageError(f"{path} is the index of a tilt series", "give one of the datasets that it names")
    if name != layout.FORMAT_NAME:
        if f"{layout.EVENTS}/frames" in file:
            raise StorageError(f"{path} is a file of stempy's", "open it with stempy.io.load_electron_counts")
        if file.attrs.get(layout.FORMAT_ATTRIBUTE) == RECORDING_FORMAT:
            raise StorageError(f"{path} is a raw recording, not counted", f"count it: --source raw:{path}")
        raise StorageError(f"{path} is no mpistream dataset", "give the path of a finished scan's output")
    check_version(file, path, layout.FORMAT_VERSION)


class Dataset:
    """A counted scan. Frames are numbered by their row in the file: ordered by (scan position, frame number).

    ``scan_shape`` and ``frame_shape`` are (rows, columns). Arrays of one value per frame are read once and kept; the
    events are read as they are asked for.
    """

    def __init__(self, group: h5py.Group, frames: range | None = None, events: range | None = None) -> None:
        """``group`` describes the scan: the file itself. In a series, which has many, it is one of the file's groups,
        and ``frames`` and ``events`` are the scan's rows of the file's event arrays.
        """
        file = group.file
        self._group = group
        self._arrays = file
        self._is_part = frames is not None
        self._frames = range(file[layout.FRAME_NUMBER].shape[0]) if frames is None else frames
        self._events = range(file[layout.INDICES].shape[0]) if events is None else events
        self.path = Path(file.filename)
        self.scan_shape = shape_of(group, layout.SCAN_SHAPE_ATTRIBUTE)
        self.frame_shape = shape_of(group, layout.FRAME_SHAPE_ATTRIBUTE)
        self.scan_uid = str(group.attrs[layout.SCAN_UID_ATTRIBUTE])
        self.scan_number = int(group.attrs[layout.SCAN_NUMBER_ATTRIBUTE])
        self.n_frames = len(self._frames)
        self.n_electrons = len(self._events)
        self.has_centroids: bool = layout.CENTROIDS in file

    def close(self) -> None:
        """Of a series, the whole is closed by who opened it."""
        if not self._is_part:
            self._arrays.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self.n_frames

    def __repr__(self) -> str:
        scan, frame = (f"{rows} x {columns}" for rows, columns in (self.scan_shape, self.frame_shape))
        return (
            f"<mpistream dataset {self.path.name}: {scan} scan, {self.n_frames} frames of {frame} pixels, "
            f"{self.n_electrons} electrons>"
        )

    @cached_property
    def offsets(self) -> npt.NDArray[np.uint64]:
        """uint64[n_frames+1]: frame i owns events offsets[i] to offsets[i+1]-1."""
        return self.read(layout.OFFSETS, 0, self.n_frames + 1)

    @cached_property
    def scan_position(self) -> npt.NDArray[np.uint32]:
        """uint32[n_frames]: row * scan columns + column, ascending."""
        return self.read(layout.SCAN_POSITION, 0, self.n_frames)

    @cached_property
    def frame_number(self) -> npt.NDArray[np.uint64]:
        """uint64[n_frames]: as the camera numbered the frames."""
        return self.read(layout.FRAME_NUMBER, 0, self.n_frames)

    @cached_property
    def missing_sectors(self) -> npt.NDArray[np.uint8]:
        """uint8[n_frames]: bit s is set where sector s never came."""
        return self.read(layout.MISSING_SECTORS, 0, self.n_frames)

    @cached_property
    def events(self) -> ElectronEvents:
        """All frames and events, in memory."""
        return self.run(0, self.n_frames)

    def read(self, name: str, first: int, end: int) -> npt.NDArray[Any]:
        """Rows ``first`` to ``end - 1`` of the array ``name`` (of h5_layout), from the file."""
        begin = (self._events if name in (layout.INDICES, layout.CENTROIDS) else self._frames).start
        rows = np.asarray(self._arrays[name][begin + first : begin + end])
        return rows - np.uint64(self._events.start) if name == layout.OFFSETS else rows

    def copy_description(self, group: h5py.Group) -> None:
        """Copies everything but the event arrays and the references to a group of another file."""
        group.attrs.update(self._group.attrs)
        for name in self._group.keys() - {layout.EVENTS, layout.REFERENCES}:
            self._group.copy(name, group)

    def run(self, first: int, end: int, centroids: bool = True) -> ElectronEvents:
        """Frames ``first`` to ``end - 1`` (0 <= first <= end <= n_frames), for working through a scan in parts.

        Centroids, where there are any, are read too, unless ``centroids`` is False.
        """
        begin, stop = int(self.offsets[first]), int(self.offsets[end])
        return ElectronEvents(
            self.scan_position[first:end],
            self.frame_number[first:end],
            self.missing_sectors[first:end],
            self.offsets[first : end + 1] - np.uint64(begin),
            self.read(layout.INDICES, begin, stop),
            self.read(layout.CENTROIDS, begin, stop) if centroids and self.has_centroids else None,
        )

    def frame(self, index: int) -> npt.NDArray[np.uint32]:
        """uint32[n]: pixels (row * frame columns + column) of the electrons of a frame, ascending.

        Raises IndexError; negative indices count from the end.
        """
        return self._single(index, centroids=False).indices

    def frame_centroids(self, index: int) -> npt.NDArray[np.int8] | None:
        """int8[n, 2]: (row, column) from the middle of each electron's pixel to where it hit, in 1/128 pixel.

        None in a dataset without centroids. Raises IndexError.
        """
        return self._single(index).centroids

    def frame_coordinates(self, index: int) -> npt.NDArray[np.float64]:
        """float64[n, 2]: (row, column) where each electron of a frame hit; whole numbers are the middles of pixels.

        In a dataset without centroids all numbers are whole. Raises IndexError.
        """
        return self._single(index).coordinates(self.frame_shape[1])

    def _single(self, index: int, centroids: bool = True) -> ElectronEvents:
        if not -self.n_frames <= index < self.n_frames:
            raise IndexError(f"frame {index} of {self.n_frames}")
        index %= self.n_frames
        return self.run(index, index + 1, centroids)

    def dense_frame(self, index: int) -> npt.NDArray[np.uint8]:
        """uint8[frame rows, frame columns]: 1 where there was an electron."""
        image = np.zeros(self.frame_shape, np.uint8)
        image.ravel()[self.frame(index)] = 1
        return image

    def frames_at(self, row: int, column: int) -> list[npt.NDArray[np.uint32]]:
        """The frames at a scan position, each as from ``frame``; none, one or several. Raises IndexError."""
        rows, columns = self.scan_shape
        if not (0 <= row < rows and 0 <= column < columns):
            raise IndexError(f"scan position ({row}, {column}) of a scan of {rows} x {columns}")
        position = row * columns + column
        first, last = np.searchsorted(self.scan_position, [position, position + 1])
        return [self.frame(index) for index in range(first, last)]

    def virtual_image(self, inner: float, outer: float, center: tuple[float, float] | None = None) -> Image:
        """uint64[scan rows, scan columns]: electrons with inner <= distance from center < outer, in pixels.

        Without ``center`` (row, column) it is that of the stored images. Several frames at a position are added up;
        0 where there is none.
        """
        mask = annulus_mask(self.frame_shape, inner, outer, center if center is not None else self.center)
        image = np.zeros(self.scan_shape, np.uint64)
        for frames in frame_runs(self.offsets):
            image += virtual_image(self.run(frames.start, frames.stop, centroids=False), mask, self.scan_shape)
        return image

    def diffraction_sum(self) -> Image:
        """uint64[frame rows, frame columns]: electrons on each pixel in all frames, counted from the events."""
        pattern = np.zeros(self.frame_shape, np.uint64)
        for frames in frame_runs(self.offsets):
            run = self.run(frames.start, frames.stop, centroids=False)
            pattern += diffraction_sum(run.indices, self.frame_shape)
        return pattern

    @property
    def center(self) -> tuple[float, float]:
        """(row, column) around which the stored images were computed."""
        row, column = self._group[layout.DIFFRACTION_SUM].attrs[layout.CENTER_ATTRIBUTE]
        return float(row), float(column)

    @cached_property
    def images(self) -> dict[str, npt.NDArray[Any]]:
        """The stored images: bright_field, annular_dark_field, electron_count and center_of_mass (row, column; NaN
        where there are no electrons) over the scan; diffraction_sum.
        """
        return {name: dataset[:] for name, dataset in self._group[layout.IMAGES].items()}

    def image_radii(self, name: str) -> tuple[float, float]:
        """Inner and outer radius in pixels of a stored image over the scan. Raises KeyError."""
        attributes = self._group[f"{layout.IMAGES}/{name}"].attrs
        return float(attributes[layout.INNER_RADIUS_ATTRIBUTE]), float(attributes[layout.OUTER_RADIUS_ATTRIBUTE])

    @property
    def dark(self) -> npt.NDArray[Any] | None:
        """The dark reference that was subtracted, (frame rows, frame columns), if any."""
        return self._group[layout.DARK][:] if layout.DARK in self._group else None

    @property
    def gain(self) -> npt.NDArray[Any] | None:
        """The gain reference that was divided by, (frame rows, frame columns), if any."""
        return self._group[layout.GAIN][:] if layout.GAIN in self._group else None

    @property
    def pixel_mask(self) -> npt.NDArray[np.bool_] | None:
        """bool[frame rows, frame columns]: the pixels that were left out; None where there was no mask."""
        return self._group[layout.PIXEL_MASK][:] != 0 if layout.PIXEL_MASK in self._group else None

    @property
    def sample_histogram(self) -> SampleHistogram | None:
        """The pixel values from which the thresholds were calibrated; None where they were given."""
        if layout.SAMPLE_HISTOGRAM not in self._group:
            return None
        histogram = self._group[layout.SAMPLE_HISTOGRAM]
        return SampleHistogram(int(histogram.attrs[layout.FIRST_BIN_ATTRIBUTE]), histogram[:])

    @cached_property
    def counters(self) -> dict[str, int]:
        """Totals of the scan: frames, electrons, what was missing, twice or rejected."""
        return attributes(self._group[layout.COUNTERS])

    @cached_property
    def labels(self) -> dict[str, str | int | float]:
        """What whoever started the scan had to say of it: a tilt angle, a point in time."""
        return attributes(self._group[layout.LABELS]) if layout.LABELS in self._group else {}

    @cached_property
    def session(self) -> str:
        """The session that the scan belongs to; empty where it belongs to none."""
        return str(self._group[layout.PROVENANCE].attrs.get(layout.SESSION_ATTRIBUTE, ""))

    @cached_property
    def delivery(self) -> Delivery | None:
        """What its producers sent, and checksums; None in a dataset of a release that did not record that."""
        if layout.DELIVERY not in self._group:
            return None
        complete, ends = read_ends(self._group)
        return Delivery(complete, ends, self._group[layout.REJECTED][:], self._group[layout.CHECKSUMS][:])

    @cached_property
    def thresholds(self) -> dict[str, Any]:
        """The counting parameters, named as in stempy's files: background_threshold, x_ray_threshold, ..."""
        return attributes(self._group[layout.COUNTING])

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Who wrote the dataset, from what and how: scan_record, versions, seconds, ranks, ..."""
        return read_provenance(self._group)

    def frame_slots(self) -> tuple[npt.NDArray[np.int64], int]:
        """For rectangular formats: (int64[n_frames] slot of each frame, slots per position).

        Slot = position * slots per position + 0, 1, ... for the frames of a position; the others stay empty.
        """
        first_of_position = np.searchsorted(self.scan_position, self.scan_position)
        turn = np.arange(self.n_frames) - first_of_position
        per_position = int(turn.max()) + 1 if self.n_frames else 1
        return self.scan_position.astype(np.int64) * per_position + turn, per_position

    def to_stempy(self) -> "SparseArray":
        """The dataset as stempy's SparseArray; further frames at a position are further rows of it.

        Raises StorageError where stempy is not installed.
        """
        try:
            from stempy.io.sparse_array import SparseArray
        except ImportError as error:
            raise StorageError(f"stempy cannot be imported: {error}", "install it: pip install stempy") from error
        slots, per_position = self.frame_slots()
        rows = np.empty(self.scan_shape[0] * self.scan_shape[1] * per_position, object)
        rows.fill(np.empty(0, np.uint32))
        indices, offsets = self.run(0, self.n_frames, centroids=False).indices, self.offsets.tolist()
        for frame, slot in enumerate(slots.tolist()):
            rows[slot] = indices[offsets[frame] : offsets[frame + 1]]
        return SparseArray(
            rows.reshape(-1, per_position),
            self.scan_shape,
            self.frame_shape,
            metadata={"electron_counting": self.thresholds},
            validate=False,
        )


def shape_of(group: h5py.Group, attribute: str) -> tuple[int, int]:
    """(rows, columns) from an attribute of h5_layout."""
    rows, columns = group.attrs[attribute]
    return int(rows), int(columns)


def read_ends(file: h5py.Group) -> tuple[bool, tuple[SectorEnd, ...]]:
    """Whether the scan ran to its end with all its producers, and what they sent."""
    group = file[layout.DELIVERY]
    ends = json.loads(group.attrs[layout.ENDS_ATTRIBUTE])
    return bool(group.attrs[layout.COMPLETE_ATTRIBUTE]), tuple(SectorEnd.model_validate(end) for end in ends)


def read_provenance(file: h5py.Group) -> dict[str, Any]:
    group = file[layout.PROVENANCE]
    provenance = attributes(group)
    provenance["scan_record"] = json.loads(provenance["scan_record"])
    for name, member in group.items():
        provenance[name] = attributes(member) if isinstance(member, h5py.Group) else member[:]
    return provenance


def attributes(group: h5py.Group) -> dict[str, Any]:
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in group.attrs.items()}
