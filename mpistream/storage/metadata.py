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
from mpistream.model.agreement import agreed
from mpistream.model.dataset_description import DatasetDescription
from mpistream.model.electron_events import Slab
from mpistream.model.errors import StorageError
from mpistream.model.virtual_images import (
    Image,
    annulus_mask,
    center_of_mass,
    diffraction_sum,
    sum_over_positions,
    virtual_image,
)
from mpistream.storage.disk_file import hdf5_on_disk


@dataclass(frozen=True)
class ReducedImages:
    """Sums over all ranks: over the scan uint64[rows, columns], the pattern uint64[frame rows, frame columns]."""

    bright_field: Image
    annular_dark_field: Image
    electron_count: Image
    diffraction_sum: Image
    center: tuple[float, float]


@dataclass(frozen=True)
class WritingFacts:
    """How the events were written: one row per rank (layout.RANK_DTYPE), by how many ranks, in what time."""

    ranks: npt.NDArray[np.void]
    writing_ranks: int
    seconds: Mapping[str, float]


def reduce_images(comm: MPI.Comm, slab: Slab, description: DatasetDescription) -> ReducedImages | None:
    """Collective: the images of the whole scan on rank 0, None elsewhere. Raises StorageError on every rank."""
    events, detectors = slab.events, description.detectors
    with agreed(comm, StorageError, "the virtual images cannot be computed"):
        pattern = diffraction_sum(events.indices, description.frame_shape)
    comm.Allreduce(MPI.IN_PLACE, pattern, op=MPI.SUM)
    center = detectors.center if detectors.center is not None else center_of_mass(pattern)
    with agreed(comm, StorageError, "the virtual images cannot be computed"):
        bright, dark = (
            virtual_image(events, annulus_mask(description.frame_shape, *radii, center), description.scan_shape)
            for radii in (detectors.bright_field, detectors.annular_dark_field)
        )
        count = sum_over_positions(events.scan_position, events.counts, description.scan_shape)
    for image in (bright, dark, count):
        comm.Reduce(MPI.IN_PLACE if comm.rank == 0 else image, image if comm.rank == 0 else None, op=MPI.SUM)
    return ReducedImages(bright, dark, count, pattern, center) if comm.rank == 0 else None


def metadata_bytes(description: DatasetDescription) -> int:
    """About how many bytes ``write_metadata`` adds to the file."""
    positions = description.scan_shape[0] * description.scan_shape[1]
    references = [array.nbytes for array in (description.dark, description.gain) if array is not None]
    return 3 * 8 * positions + 8 * int(np.prod(description.frame_shape)) + sum(references) + 2**20


def write_metadata(path: Path, description: DatasetDescription, images: ReducedImages, facts: WritingFacts) -> None:
    """Completes the file, without MPI. Raises OSError."""
    scan = description.scan
    with hdf5_on_disk(path, "r+") as (file, _):
        file.attrs[layout.FORMAT_ATTRIBUTE] = layout.FORMAT_NAME
        file.attrs[layout.FORMAT_VERSION_ATTRIBUTE] = layout.FORMAT_VERSION
        file.attrs[layout.SCAN_SHAPE_ATTRIBUTE] = np.array(description.scan_shape, "<u4")
        file.attrs[layout.FRAME_SHAPE_ATTRIBUTE] = np.array(description.frame_shape, "<u4")
        file.attrs[layout.SCAN_UID_ATTRIBUTE] = str(scan.uid)
        file.attrs[layout.SCAN_NUMBER_ATTRIBUTE] = scan.scan_number
        _write_images(file, description, images)
        for name, reference in ((layout.DARK, description.dark), (layout.GAIN, description.gain)):
            if reference is not None:
                file.create_dataset(name, data=reference)
        _write_counting(file, description)
        _write_attributes(file.require_group(layout.COUNTERS), description.counters.model_dump())
        _write_provenance(file, description, facts)


def _write_images(file: h5py.File, description: DatasetDescription, images: ReducedImages) -> None:
    detectors = description.detectors
    for name, image, radii in (
        (layout.BRIGHT_FIELD, images.bright_field, detectors.bright_field),
        (layout.ANNULAR_DARK_FIELD, images.annular_dark_field, detectors.annular_dark_field),
        (layout.ELECTRON_COUNT, images.electron_count, (0.0, np.inf)),
        (layout.DIFFRACTION_SUM, images.diffraction_sum, None),
    ):
        dataset = file.create_dataset(name, data=image.astype(layout.IMAGE_DTYPE, copy=False))
        dataset.attrs[layout.CENTER_ATTRIBUTE] = images.center
        if radii is not None:
            dataset.attrs[layout.INNER_RADIUS_ATTRIBUTE], dataset.attrs[layout.OUTER_RADIUS_ATTRIBUTE] = radii


def _write_counting(file: h5py.File, description: DatasetDescription) -> None:
    """The thresholds under the names that stempy's users know."""
    thresholds, parameters = description.thresholds, description.scan.counting
    group = file.require_group(layout.COUNTING)
    _write_attributes(
        group,
        {
            **thresholds.statistics,
            "threshold_calculated": thresholds.calibrated,
            "background_threshold": thresholds.background,
            "x_ray_threshold": thresholds.xray,
            "number_of_samples": thresholds.sample_frames,
            "background_threshold_n_sigma": parameters.background_sigmas,
            "x_ray_threshold_n_sigma": parameters.xray_sigmas,
        },
    )


def _write_provenance(file: h5py.File, description: DatasetDescription, facts: WritingFacts) -> None:
    group = file.require_group(layout.PROVENANCE)
    _write_attributes(
        group,
        {
            **description.provenance,
            "scan_record": description.scan.model_dump_json(),
            "written_utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "writing_ranks": facts.writing_ranks,
            "h5py_parallel": bool(h5py.get_config().mpi),
        },
    )
    _write_attributes(file.require_group(layout.PROVENANCE_SECONDS), {**description.seconds, **facts.seconds})
    _write_attributes(file.require_group(layout.PROVENANCE_VERSIONS), _versions())
    file.create_dataset(layout.PROVENANCE_RANKS, data=facts.ranks)


def _write_attributes(group: h5py.Group, values: Mapping[str, Any]) -> None:
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
