"""The images of a scan: every rank computes those of its own scan positions, rank 0 puts them together."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from mpistream.model.agreement import agreed
from mpistream.model.dataset_description import DatasetDescription
from mpistream.model.electron_events import Slab
from mpistream.model.errors import StorageError
from mpistream.model.virtual_images import Image, center_of_mass, frame_sums, sum_over_positions

FAILURE = "the images cannot be computed"
REMEDY = "use more nodes: a rank holds the images of its scan positions, rank 0 those of the scan"

#: What the images show at one scan position; packed, since it travels.
_POINT = np.dtype(
    [
        ("bright_field", np.uint64),
        ("annular_dark_field", np.uint64),
        ("electron_count", np.uint64),
        ("center_of_mass", np.float64, (2,)),
    ]
)


@dataclass(frozen=True)
class ScanImages:
    """Of the whole scan: images uint64[rows, columns], the pattern uint64[frame rows, frame columns], the centre of
    mass at each scan position float64[rows, columns, 2]. Those of the scan may be views that are not contiguous.
    """

    bright_field: Image
    annular_dark_field: Image
    electron_count: Image
    diffraction_sum: Image
    center: tuple[float, float]
    center_of_mass: npt.NDArray[np.float64]


def image_bytes(description: DatasetDescription) -> int:
    """Size in bytes of the images in the file."""
    return _POINT.itemsize * math.prod(description.scan_shape) + 8 * math.prod(description.frame_shape)


def gather_images(
    comm: MPI.Comm,
    slab: Slab,
    diffraction_sum: npt.NDArray[np.uint32],
    description: DatasetDescription,
    round_bytes: int,
) -> ScanImages | None:
    """Collective: the images of the whole scan on rank 0, None elsewhere. Raises StorageError on every rank.

    ``diffraction_sum`` is of the frames that this rank counted. Where the detectors' center is given, the slab's sums
    must hold what lies in the bright field and in the annular dark field, in this order. Otherwise the center is that
    of the summed pattern, known only now, and these two are counted from the slab's events. What rank 0 receives at a
    time is at most ``round_bytes`` or one scan position.
    """
    with agreed(comm, StorageError, FAILURE, REMEDY):
        pattern = diffraction_sum.astype(np.uint64)
    comm.Allreduce(MPI.IN_PLACE, pattern, op=MPI.SUM)
    with agreed(comm, StorageError, FAILURE, REMEDY):
        _check_electrons(pattern, slab)
        center = description.detectors.center or center_of_mass(pattern)
        points = _points_of_slab(slab, description, center)
    scan = _gather_points(comm, slab.positions, points, round_bytes)
    if scan is None:
        return None
    scan = scan.reshape(description.scan_shape)
    bright, dark, count, mass = (
        scan[name] for name in ("bright_field", "annular_dark_field", "electron_count", "center_of_mass")
    )
    return ScanImages(bright, dark, count, pattern, center, mass)


def _check_electrons(pattern: Image, slab: Slab) -> None:
    """The pattern was kept beside the events: both must have met the same electrons."""
    on_pixels = int(pattern.sum())
    if on_pixels != slab.total_events:
        raise StorageError(
            f"{slab.total_events} electrons were counted, but {on_pixels} on the pixels of the summed pattern",
            "repeat the scan, and report this: it must not happen",
        )


def _points_of_slab(slab: Slab, description: DatasetDescription, center: tuple[float, float]) -> npt.NDArray[np.void]:
    """_POINT[n_positions] of the slab's own scan positions."""
    events, detectors = slab.events, description.detectors
    position = events.scan_position - np.uint32(slab.positions.start)

    def summed(values: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
        return sum_over_positions(position, values, len(slab.positions))

    points = np.empty(len(slab.positions), _POINT)
    if detectors.center is not None:
        bright, dark = slab.sums.annuli.T
    else:
        bright, dark = (frame_sums(events, mask) for mask in detectors.masks(description.frame_shape, center))
    points["bright_field"], points["annular_dark_field"] = summed(bright), summed(dark)
    points["electron_count"] = count = summed(events.counts)
    points["center_of_mass"] = np.nan
    for axis, moments in enumerate(slab.sums.moments.T):
        np.divide(summed(moments), count, out=points["center_of_mass"][:, axis], where=count > 0)
    return points


def _gather_points(
    comm: MPI.Comm, positions: range, own: npt.NDArray[np.void], round_bytes: int
) -> npt.NDArray[Any] | None:
    """Collective: the points of all ranks on rank 0, which takes them one rank after the other; None elsewhere."""
    ranges = comm.gather(positions)
    scan: npt.NDArray[np.void] | None = None
    with agreed(comm, StorageError, FAILURE, REMEDY):
        if ranges is not None:
            scan = np.empty(ranges[-1].stop, _POINT)
            scan[positions.start : positions.stop] = own
    per_round = max(1, round_bytes // _POINT.itemsize)
    if ranges is None or scan is None:
        for first in range(0, len(own), per_round):
            comm.Send([own[first : first + per_round], MPI.BYTE], dest=0)
        return None
    for source, theirs in enumerate(ranges[1:], start=1):
        for first in range(theirs.start, theirs.stop, per_round):
            comm.Recv([scan[first : min(first + per_round, theirs.stop)], MPI.BYTE], source=source)
    return scan
