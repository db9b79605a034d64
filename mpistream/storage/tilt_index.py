"""The index of a tomography series: one small file that names the dataset of every tilt, shows it, and opens it.

with open_tilt_index("tilts.h5") as tilts:
    for row in tilts.by_angle:
        with tilts.open(row) as dataset:
            ...
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from mpistream.model import h5_layout as layout
from mpistream.model.errors import StorageError
from mpistream.model.virtual_images import Image
from mpistream.storage.disk_file import whole_hdf5_file
from mpistream.storage.hdf5_input import check_version, kept_open
from mpistream.storage.reader import Dataset, open_dataset, whole_dataset
from mpistream.storage.series import scan_facts
from mpistream.storage.small_files import check_targets

#: The label that a dataset carries its tilt in.
TILT_LABEL = "tilt_degrees"

#: What ``state`` can be: of a tilt whose dataset is whole; is there, but its scan was cut short; is not there.
COMPLETE, INCOMPLETE, MISSING = "complete", "incomplete", "missing"

TILT_DTYPE = np.dtype([*layout.TILT_FIELDS, ("dataset", h5py.string_dtype()), ("reason", h5py.string_dtype())])

#: Previews have no more rows and columns than that.
_PREVIEW_PIXELS = 256
_PREVIEWS = (layout.BRIGHT_FIELD, layout.ANNULAR_DARK_FIELD)


@dataclass(frozen=True, eq=False)
class _Tilt:
    """One tilt: its row in the table, and its images; none where there is no dataset."""

    row: dict[str, Any]
    images: dict[str, Image]


def write_tilt_index(datasets: Sequence[Path], tilts_degrees: Sequence[float], output: Path, overwrite: bool) -> Path:
    """Writes ``output``, which ``open_tilt_index`` opens; its absolute path.

    Datasets and angles are in the order of acquisition. One that is not there, or cannot be opened, is recorded as
    missing, with the reason. Raises StorageError where a dataset's own label says another angle, where scans differ in
    shape, and where the file cannot be written; then nothing is left behind.
    """
    target = output.absolute()
    if len(datasets) != len(tilts_degrees) or not datasets:
        raise StorageError(
            f"{len(datasets)} datasets and {len(tilts_degrees)} angles", "give the angle of every dataset"
        )
    if not np.isfinite(tilts_degrees).all():
        raise StorageError("an angle is no number", "give degrees")
    check_targets([target], overwrite, datasets)
    tilts = [_look_at(path, degrees, target) for path, degrees in zip(datasets, tilts_degrees, strict=True)]
    shape = _common_shape(tilts)
    with whole_hdf5_file(target, overwrite) as (file, _):
        file.attrs[layout.FORMAT_ATTRIBUTE] = layout.TILTS_FORMAT_NAME
        file.attrs[layout.FORMAT_VERSION_ATTRIBUTE] = layout.TILTS_FORMAT_VERSION
        file.attrs[layout.SCAN_SHAPE_ATTRIBUTE] = np.array(shape, "<u4")
        file.attrs["written_utc"] = datetime.now(UTC).isoformat(timespec="seconds")
        file.attrs["mpistream"] = version("mpistream")
        rows = [tuple(tilt.row[name] for name in TILT_DTYPE.names or ()) for tilt in tilts]
        file.create_dataset(layout.TILTS, data=np.array(rows, TILT_DTYPE))
        by_angle = np.argsort(np.asarray(tilts_degrees, float), kind="stable")
        file.create_dataset(layout.BY_ANGLE, data=by_angle, dtype=layout.BY_ANGLE_DTYPE)
        _write_previews(file, tilts, shape)
        for number, tilt in enumerate(tilts):
            if tilt.images:
                file[_link(number)] = h5py.ExternalLink(tilt.row["dataset"], "/")
    return target


def tilt_of(path: Path) -> float | None:
    """The tilt in degrees at which a dataset says it was taken. Raises StorageError where it cannot be read."""
    with whole_dataset(path) as dataset:
        return _label_of(dataset)


def _label_of(dataset: Dataset) -> float | None:
    label = dataset.provenance["scan_record"].get("labels", {}).get(TILT_LABEL)
    return None if label is None else float(label)


def _look_at(path: Path, degrees: float, target: Path) -> _Tilt:
    row: dict[str, Any] = dict.fromkeys(TILT_DTYPE.names or (), 0)
    row |= {"tilt_degrees": degrees, "dataset": _place(path, target), "reason": "", "scan_uid": b"", "center": (0, 0)}
    try:
        with whole_dataset(path) as dataset:
            _check_label(dataset, degrees)
            row |= scan_facts(dataset)
            row["rows"], row["columns"] = dataset.scan_shape
            is_complete = dataset.delivery is None or dataset.delivery.complete
            row["state"] = COMPLETE if is_complete else INCOMPLETE
            row["reason"] = "" if is_complete else _why_incomplete(dataset)
            images = {name: dataset.images[name.rpartition("/")[2]] for name in _PREVIEWS}
    except _Contradiction:
        raise
    except StorageError as error:
        return _Tilt({**row, "state": MISSING, "reason": error.message}, {})
    return _Tilt({**row, "state": row["state"].encode()}, images)


class _Contradiction(StorageError):
    """A dataset is of another tilt than the one it is given for."""


def _check_label(dataset: Dataset, degrees: float) -> None:
    label = _label_of(dataset)
    if label is not None and label != degrees:
        raise _Contradiction(
            f"{dataset.path} was taken at {label:g} degrees, not at {degrees:g}", "give each dataset its own angle"
        )


def _why_incomplete(dataset: Dataset) -> str:
    ends = dataset.delivery.ends if dataset.delivery is not None else ()
    return (
        "; ".join(dict.fromkeys(end.cut for end in ends if end.cut)) or "frames were lost that could not be sent again"
    )


def _place(path: Path, target: Path) -> str:
    """Where the dataset is: from the index's folder, if it is there or below; so both can be moved together."""
    absolute = path.absolute()
    return str(absolute.relative_to(target.parent) if absolute.is_relative_to(target.parent) else absolute)


def _common_shape(tilts: list[_Tilt]) -> tuple[int, int]:
    """Of all scans; (0, 0) where there is none. Raises StorageError where they differ."""
    there = [tilt for tilt in tilts if tilt.images]
    shapes = [(tilt.row["rows"], tilt.row["columns"]) for tilt in there]
    for tilt, (rows, columns) in zip(there, shapes, strict=True):
        if (rows, columns) != shapes[0]:
            raise StorageError(
                f"{tilt.row['dataset']} has {rows} x {columns} scan positions, {there[0].row['dataset']} has "
                f"{shapes[0][0]} x {shapes[0][1]}",
                "an index is for scans of one shape: write one for each shape",
            )
    return shapes[0] if shapes else (0, 0)


def _write_previews(file: h5py.File, tilts: list[_Tilt], shape: tuple[int, int]) -> None:
    binning = max(1, -(-max(shape) // _PREVIEW_PIXELS))
    small = tuple(-(-size // binning) for size in shape)
    for name in _PREVIEWS:
        stack = np.zeros((len(tilts), *small), layout.IMAGE_DTYPE)
        for place, tilt in zip(stack, tilts, strict=True):
            if tilt.images:
                place[:] = _binned(tilt.images[name], binning)
        file.create_dataset(name, data=stack).attrs[layout.BINNING_ATTRIBUTE] = binning


def _binned(image: Image, binning: int) -> Image:
    """Sums of squares of that many rows and columns; what is over at the edges makes smaller ones."""
    for axis, size in enumerate(image.shape):
        image = np.add.reduceat(image, np.arange(0, size, binning), axis=axis)
    return image


def _link(row: int) -> str:
    return f"{layout.SCANS}/{row:04d}"


def open_tilt_index(path: str | Path) -> "TiltIndex":
    """The tilt index ``path``, open until it is closed. Raises StorageError for anything that is not a whole one."""
    path = Path(path)
    with kept_open(path, "write the index again") as file:
        if file.attrs.get(layout.FORMAT_ATTRIBUTE) != layout.TILTS_FORMAT_NAME:
            raise StorageError(f"{path} is no tilt index", "give a file that `mpistream series tilts` has written")
        check_version(file, path, layout.TILTS_FORMAT_VERSION)
        return TiltIndex(file)


class TiltIndex:
    """A tomography series. ``table`` has a row per tilt, in the order of acquisition: h5_layout.TILT_FIELDS, the
    ``dataset`` as the index has it, and the ``reason`` why it is missing or incomplete.
    """

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self.path = Path(file.filename)
        self.table: npt.NDArray[np.void] = file[layout.TILTS][:]
        self.by_angle = [int(row) for row in file[layout.BY_ANGLE][:]]

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.table)

    @property
    def tilts_degrees(self) -> npt.NDArray[np.float64]:
        """In the order of acquisition."""
        return self.table["tilt_degrees"].astype(np.float64)

    @property
    def states(self) -> list[str]:
        """COMPLETE, INCOMPLETE or MISSING, for each tilt."""
        return [state.decode() for state in self.table["state"].tolist()]

    @property
    def images(self) -> dict[str, Image]:
        """bright_field and annular_dark_field: uint64[tilts, rows, columns], small; zeros where a tilt is missing."""
        return {name: dataset[:] for name, dataset in self._file[layout.IMAGES].items()}

    def dataset_path(self, row: int) -> Path:
        """Where the dataset of a tilt was when the index was written, or, beside the index, is."""
        return Path(os.path.normpath(self.path.absolute().parent / self.table["dataset"][row].decode()))

    def open(self, row: int) -> Dataset:
        """The dataset of a tilt. Raises StorageError where there is none."""
        return open_dataset(self.dataset_path(row))
