"""Images computed from electron events: virtual detectors over the scan, and the summed diffraction pattern.

All are exact integers (uint64), so sums over ranks or files do not depend on their order.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpistream.model.electron_events import ElectronEvents

#: Events worked on at a time; bounds the memory beside the events themselves to about 100 MB.
CHUNK_EVENTS = 1 << 22

Image = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class VirtualDetectors:
    """Radii in pixels of the two standard detectors, and their center (row, column).

    Without a center it is the centre of mass of the summed diffraction pattern.
    """

    bright_field: tuple[float, float] = (0.0, 60.0)
    annular_dark_field: tuple[float, float] = (80.0, 288.0)
    center: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for inner, outer in self.radii:
            check_radii(inner, outer)

    @property
    def radii(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Inner and outer radius of the bright field and of the annular dark field, in this order."""
        return self.bright_field, self.annular_dark_field

    def masks(self, frame_shape: tuple[int, int], center: tuple[float, float]) -> tuple[Mask, ...]:
        """The pixels of the bright field and of the annular dark field around ``center``: bool[rows, columns] each."""
        return tuple(annulus_mask(frame_shape, inner, outer, center) for inner, outer in self.radii)

    def known_masks(self, frame_shape: tuple[int, int]) -> tuple[Mask, ...]:
        """The same where the center is given: what can be looked at while counting. Otherwise none."""
        return self.masks(frame_shape, self.center) if self.center is not None else ()


def annulus_mask(
    frame_shape: tuple[int, int], inner: float, outer: float, center: tuple[float, float] | None = None
) -> Mask:
    """bool[rows, columns]: pixels with ``inner <= distance from center < outer`` (as in stempy), so rings add up.

    ``center`` (row, column) is the middle of the frame by default: 287.5, 287.5 of 576 x 576. Raises ValueError for
    radii that enclose nothing.
    """
    check_radii(inner, outer)
    rows, columns = frame_shape
    center_row, center_column = center if center is not None else ((rows - 1) / 2, (columns - 1) / 2)
    row, column = np.ogrid[:rows, :columns]
    squared = (row - center_row) ** 2 + (column - center_column) ** 2
    return np.asarray((squared >= inner**2) & (squared < outer**2))


def check_radii(inner: float, outer: float) -> None:
    """Raises ValueError for radii that enclose nothing."""
    if not 0 <= inner < outer:
        raise ValueError(f"radii {inner:g} to {outer:g}: the inner one must be 0 or more, the outer one larger")


def frame_runs(offsets: npt.NDArray[np.uint64], events: int = CHUNK_EVENTS) -> Iterator[slice]:
    """Consecutive slices of all frames, each of about ``events`` events, at least one frame.

    ``offsets`` uint64[n_frames+1] are running totals as in ElectronEvents.
    """
    frames = len(offsets) - 1
    first = 0
    while first < frames:
        limit = offsets[first] + np.uint64(events)
        # also bounded in frames, for scans of empty frames
        last = min(int(np.searchsorted(offsets, limit, side="right")) - 1, first + events)
        last = min(max(last, first + 1), frames)
        yield slice(first, last)
        first = last


def frame_sums(events: ElectronEvents, mask: Mask) -> npt.NDArray[np.uint32]:
    """uint32[n_frames]: electrons of each frame on the pixels of ``mask`` bool[frame rows, frame columns]."""
    flat_mask = np.ascontiguousarray(mask).ravel()
    sums = np.zeros(len(events), np.uint32)
    for frames in frame_runs(events.offsets):
        run = events[frames]
        hits_before = np.zeros(len(run.indices) + 1, np.uint64)
        np.cumsum(flat_mask[run.indices], out=hits_before[1:])
        sums[frames] = np.diff(hits_before[run.offsets.astype(np.intp)])
    return sums


def sum_over_positions(
    scan_position: npt.NDArray[np.uint32], values: npt.NDArray[np.uint32], positions: int
) -> npt.NDArray[np.uint64]:
    """uint64[positions]: the values of all frames of each position added up; 0 where there is no frame."""
    sums = np.zeros(positions, np.uint64)
    np.add.at(sums, scan_position, values.astype(np.uint64))
    return sums


def virtual_image(events: ElectronEvents, mask: Mask, scan_shape: tuple[int, int]) -> Image:
    """uint64[rows, columns]: electrons on ``mask`` at each scan position."""
    rows, columns = scan_shape
    return sum_over_positions(events.scan_position, frame_sums(events, mask), rows * columns).reshape(scan_shape)


def diffraction_sum(indices: npt.NDArray[np.uint32], frame_shape: tuple[int, int]) -> Image:
    """uint64[frame rows, frame columns]: electrons on each pixel. Raises ValueError for a pixel outside the frame."""
    pixels = frame_shape[0] * frame_shape[1]
    total = np.zeros(pixels, np.uint64)
    for first in range(0, len(indices), CHUNK_EVENTS):
        # one counter more, which catches whatever lies outside
        chunk = np.bincount(np.minimum(indices[first : first + CHUNK_EVENTS], pixels), minlength=pixels + 1)
        if chunk[pixels]:
            raise ValueError(
                f"{chunk[pixels]} events lie outside a frame of {frame_shape[0]} x {frame_shape[1]} pixels"
            )
        total += chunk[:pixels].astype(np.uint64)
    return total.reshape(frame_shape)


def center_of_mass(pattern: Image) -> tuple[float, float]:
    """(row, column) of the centre of mass in pixels; the middle of the frame for an empty pattern."""
    rows, columns = pattern.shape
    total = int(pattern.sum())
    if not total:
        return (rows - 1) / 2, (columns - 1) / 2
    # Python integers: the moments of a large scan need more than 64 bits
    row = sum(index * int(weight) for index, weight in enumerate(pattern.sum(axis=1)))
    column = sum(index * int(weight) for index, weight in enumerate(pattern.sum(axis=0)))
    return row / total, column / total
