"""Everything in the dataset file beside the events: images, references, counting, counters, provenance."""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from mpistream.model import h5_layout as layout
from mpistream.model.dataset_description import DatasetDescription
from mpistream.storage.disk_file import hdf5_on_disk
from mpistream.storage.images import ScanImages, image_bytes


@dataclass(frozen=True)
class WritingFacts:
    """How the events were written: one row per rank (layout.RANK_DTYPE), by how many ranks, in what time.

    rejected, checksums: those of all ranks, as in Delivery.
    """

    ranks: npt.NDArray[np.void]
    rejected: npt.NDArray[np.void]
    checksums: npt.NDArray[np.void]
    writing_ranks: int
    seconds: Mapping[str, float]


def metadata_bytes(description: DatasetDescription) -> int:
    """About how many bytes ``write_metadata`` adds to the file."""
    references = sum(array.nbytes for array in (description.dark, description.gain) if array is not None)
    mask = description.pixel_mask.size if description.pixel_mask is not None else 0
    histogram = description.sample_histogram.pixels.nbytes if description.sample_histogram is not None else 0
    return image_bytes(description) + references + mask + histogram + description.rejected.nbytes + 2**20


def write_metadata(path: Path, description: DatasetDescription, images: ScanImages, facts: WritingFacts) -> None:
    """Completes the file, without MPI. Raises OSError."""
    with hdf5_on_disk(path, "r+") as (file, _):
        write_identity(file, description, layout.FORMAT_NAME, layout.FORMAT_VERSION)
        _write_images(file, description, images)
        _write_references(file, description)
        _write_counting(file, description)
        write_attributes(file.require_group(layout.COUNTERS), description.counters.model_dump())
        if description.scan.labels:
            write_attributes(file.require_group(layout.LABELS), description.scan.labels)
        write_delivery(file, description, facts.rejected)
        file.create_dataset(layout.CHECKSUMS, data=facts.checksums)
        write_provenance(file, description, facts.ranks, facts.writing_ranks, facts.seconds)


def write_identity(file: h5py.File, description: DatasetDescription, format_name: str, format_version: int) -> None:
    """The attributes of the root."""
    scan = description.scan
    file.attrs[layout.FORMAT_ATTRIBUTE] = format_name
    file.attrs[layout.FORMAT_VERSION_ATTRIBUTE] = format_version
    file.attrs[layout.SCAN_SHAPE_ATTRIBUTE] = np.array(description.scan_shape, "<u4")
    file.attrs[layout.FRAME_SHAPE_ATTRIBUTE] = np.array(description.frame_shape, "<u4")
    file.attrs[layout.SCAN_UID_ATTRIBUTE] = str(scan.uid)
    file.attrs[layout.SCAN_NUMBER_ATTRIBUTE] = scan.scan_number


def _write_images(file: h5py.File, description: DatasetDescription, images: ScanImages) -> None:
    detectors = description.detectors
    for name, image, radii in (
        (layout.BRIGHT_FIELD, images.bright_field, detectors.bright_field),
        (layout.ANNULAR_DARK_FIELD, images.annular_dark_field, detectors.annular_dark_field),
        (layout.ELECTRON_COUNT, images.electron_count, (0.0, np.inf)),
        (layout.DIFFRACTION_SUM, images.diffraction_sum, None),
    ):
        dataset = file.create_dataset(name, data=np.ascontiguousarray(image, layout.IMAGE_DTYPE))
        dataset.attrs[layout.CENTER_ATTRIBUTE] = images.center
        if radii is not None:
            dataset.attrs[layout.INNER_RADIUS_ATTRIBUTE], dataset.attrs[layout.OUTER_RADIUS_ATTRIBUTE] = radii
    file.create_dataset(layout.CENTER_OF_MASS, data=images.center_of_mass, dtype=layout.CENTER_OF_MASS_DTYPE)


def _write_references(file: h5py.File, description: DatasetDescription) -> None:
    for name, reference in ((layout.DARK, description.dark), (layout.GAIN, description.gain)):
        if reference is not None:
            file.create_dataset(name, data=reference)
    if description.pixel_mask is not None:
        file.create_dataset(layout.PIXEL_MASK, data=(description.pixel_mask != 0).astype(np.uint8))


def _write_counting(file: h5py.File, description: DatasetDescription) -> None:
    """The thresholds under the names that stempy's users know, and the histogram that they were fitted to."""
    thresholds, parameters = description.thresholds, description.scan.counting
    only_if_used = {
        "row_dark": parameters.row_dark,
        "row_dark_level": thresholds.row_dark_level,
        "thresholds_from": parameters.thresholds_from,
    }
    group = file.require_group(layout.COUNTING)
    write_attributes(
        group,
        {
            **thresholds.statistics,
            "threshold_calculated": thresholds.calibrated,
            "background_threshold": thresholds.background,
            "x_ray_threshold": thresholds.xray,
            "number_of_samples": thresholds.sample_frames,
            "background_threshold_n_sigma": parameters.background_sigmas,
            "x_ray_threshold_n_sigma": parameters.xray_sigmas,
            **{name: value for name, value in only_if_used.items() if value is not None},
        },
    )
    if description.sample_histogram is not None:
        histogram = file.create_dataset(layout.SAMPLE_HISTOGRAM, data=description.sample_histogram.pixels)
        histogram.attrs[layout.FIRST_BIN_ATTRIBUTE] = description.sample_histogram.first_bin


def write_delivery(file: h5py.File, description: DatasetDescription, rejected: npt.NDArray[np.void]) -> None:
    """What came, and what was sent. ``rejected`` are those of all ranks."""
    ends = [end.model_dump(mode="json") for end in sorted(description.ends, key=lambda end: end.sector)]
    group = file.require_group(layout.DELIVERY)
    write_attributes(group, {layout.COMPLETE_ATTRIBUTE: description.complete, layout.ENDS_ATTRIBUTE: ends})
    file.create_dataset(layout.REJECTED, data=rejected)


def write_provenance(
    file: h5py.File,
    description: DatasetDescription,
    ranks: npt.NDArray[np.void],
    writing_ranks: int,
    seconds: Mapping[str, float],
) -> None:
    """Where the file comes from. ``seconds`` are those of the writing; the description has the others."""
    group = file.require_group(layout.PROVENANCE)
    session = {layout.SESSION_ATTRIBUTE: description.scan.session} if description.scan.session else {}
    write_attributes(
        group,
        {
            **description.provenance,
            **session,
            "scan_record": description.scan.model_dump_json(),
            "written_utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "writing_ranks": writing_ranks,
            "h5py_parallel": bool(h5py.get_config().mpi),
        },
    )
    write_attributes(file.require_group(layout.PROVENANCE_SECONDS), {**description.seconds, **seconds})
    write_attributes(file.require_group(layout.PROVENANCE_VERSIONS), _versions())
    file.create_dataset(layout.PROVENANCE_RANKS, data=ranks)


def write_attributes(group: h5py.Group, values: Mapping[str, Any]) -> None:
    """What HDF5 has no plain type for is written as JSON."""
    for name, value in values.items():
        plain = isinstance(value, bool | int | float | str)
        group.attrs[name] = value if plain else json.dumps(value, default=str)


def _versions() -> dict[str, str]:
    return {
        "mpistream": version("mpistream"),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "h5py": h5py.version.version,
        "hdf5": h5py.version.hdf5_version,
        "mpi4py": version("mpi4py"),
        "mpi": MPI.Get_library_version().strip(" \0\n").splitlines()[0],
    }
