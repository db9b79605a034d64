"""The images of a scan, from what every rank added up while it counted."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from mpistream.model.agreement import agreed
from mpistream.model.dataset_description import DatasetDescription
from mpistream.model.electron_events import Slab
from mpistream.model.errors import StorageError
from mpistream.model.scan_sums import ScanSums
from mpistream.model.virtual_images import Image, center_of_mass, virtual_image

FAILURE = "the images cannot be computed"


@dataclass(frozen=True)
class ReducedImages:
    """Over all ranks: images of the scan uint64[rows, columns], the pattern uint64[frame rows, frame columns], the
    centre of mass at each scan position float64[rows, columns, 2].
    """

    bright_field: Image
    annular_dark_field: Image
    electron_count: Image
    center_of_mass: npt.NDArray[np.float64]
    diffraction_sum: Image
    center: tuple[float, float]


def image_bytes(description: DatasetDescription) -> int:
    """Size in bytes of the images in the file."""
    return (3 + 2) * 8 * math.prod(description.scan_shape) + 8 * math.prod(description.frame_shape)


def reduce_images(comm: MPI.Comm, slab: Slab, sums: ScanSums, description: DatasetDescription) -> ReducedImages | None:
    """Collective: the images of the whole scan on rank 0, None elsewhere. Raises StorageError on every rank.

    Where the detectors' center is given, ``sums`` must hold what lies in the bright field and in the annular dark
    field, in this order. Otherwise the center is that of the summed pattern, known only now, and these two are counted
    from the events.
    """
    detectors = description.detectors
    _refuse_different_detectors(comm, sums, description)
    with agreed(comm, StorageError, FAILURE):
        pattern = sums.diffraction_sum.astype(np.uint64)
    comm.Allreduce(MPI.IN_PLACE, pattern, op=MPI.SUM)
    per_position = _sum_on_rank_zero(comm, sums.per_position)
    center, within = detectors.center, None
    if center is None:
        center = center_of_mass(pattern)
        within = _count_within_detectors(comm, slab, description, center)
    images: ReducedImages | None = None
    with agreed(comm, StorageError, FAILURE):
        if per_position is not None:
            total = ScanSums(per_position, pattern)
            _check_electrons(total, slab)
            bright, dark = total.annuli[:2] if within is None else within
            images = ReducedImages(bright, dark, total.electron_count, total.center_of_mass, pattern, center)
    return images


def _refuse_different_detectors(comm: MPI.Comm, sums: ScanSums, description: DatasetDescription) -> None:
    """Ranks with different configurations would add up what does not belong together."""
    if len(set(comm.allgather((description.detectors, sums.per_position.shape)))) > 1:
        raise StorageError(
            "the ranks' configurations describe different detectors", "give all ranks the same [detectors]"
        )


def _sum_on_rank_zero(comm: MPI.Comm, own: Image) -> Image | None:
    """Collective: the sum of all ranks' arrays on rank 0, None elsewhere."""
    total: Image | None = None
    with agreed(comm, StorageError, FAILURE):
        if comm.rank == 0:
            total = np.empty_like(own)
    comm.Reduce(own, total, op=MPI.SUM)
    return total


def _count_within_detectors(
    comm: MPI.Comm, slab: Slab, description: DatasetDescription, center: tuple[float, float]
) -> Image | None:
    """Collective: uint64[2, rows, columns] on rank 0, of the bright field and of the annular dark field."""
    with agreed(comm, StorageError, FAILURE):
        masks = description.detectors.masks(description.frame_shape, center)
        own = np.stack([virtual_image(slab.events, mask, description.scan_shape) for mask in masks])
    return _sum_on_rank_zero(comm, own)


def _check_electrons(total: ScanSums, slab: Slab) -> None:
    """The sums were kept beside the events: both must have met the same electrons."""
    at_positions, on_pixels = int(total.electron_count.sum()), int(total.diffraction_sum.sum())
    if not at_positions == on_pixels == slab.total_events:
        raise StorageError(
            f"{slab.total_events} electrons were counted, but {at_positions} on scan positions, {on_pixels} on pixels",
            "repeat the scan, and report this: it must not happen",
        )
