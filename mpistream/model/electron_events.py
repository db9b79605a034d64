"""The electron events of a set of frames, as arrays (compressed sparse rows: one row per frame)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mpistream.model.frame_sums import FrameSums

#: Centroids are kept as whole numbers of this fraction of a pixel.
CENTROID_STEPS_PER_PIXEL = 128


@dataclass(frozen=True)
class ElectronEvents:
    """Frames and their electrons.

    scan_position   uint32[n_frames]    row * columns + column of the probe
    frame_number    uint64[n_frames]    as the camera numbered it
    missing_sectors uint8[n_frames]     bit s is set where sector s never came (its pixels counted as zeros)
    offsets         uint64[n_frames+1]  frame i owns ``indices[offsets[i]:offsets[i+1]]``
    indices         uint32[n_events]    row * frame columns + column, ascending within a frame
    centroids       int8[n_events, 2]   (row, column) from the middle of that pixel to where the electron hit, in 1/128
                                        pixel; None where that was not asked for
    """

    scan_position: npt.NDArray[np.uint32]
    frame_number: npt.NDArray[np.uint64]
    missing_sectors: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.uint64]
    indices: npt.NDArray[np.uint32]
    centroids: npt.NDArray[np.int8] | None = None

    def __len__(self) -> int:
        return len(self.frame_number)

    def __getitem__(self, frames: slice) -> "ElectronEvents":
        """A run of frames (step 1) with offsets that begin at 0; no events are copied."""
        first, last, step = frames.indices(len(self))
        if step != 1:
            raise ValueError("frames are taken in runs: a step of 1 only")
        last = max(first, last)
        begin, end = self.offsets[first], self.offsets[last]
        return ElectronEvents(
            self.scan_position[first:last],
            self.frame_number[first:last],
            self.missing_sectors[first:last],
            self.offsets[first : last + 1] - begin,
            self.indices[int(begin) : int(end)],
            None if self.centroids is None else self.centroids[int(begin) : int(end)],
        )

    @property
    def counts(self) -> npt.NDArray[np.uint32]:
        """Electrons per frame, uint32[n_frames]."""
        return np.diff(self.offsets).astype(np.uint32)

    def coordinates(self, frame_columns: int) -> npt.NDArray[np.float64]:
        """float64[n_events, 2]: (row, column) where each electron hit; whole numbers are the middles of pixels.

        Without centroids they are whole numbers.
        """
        coordinates = np.stack(np.divmod(self.indices, np.uint32(frame_columns)), axis=1).astype(np.float64)
        if self.centroids is not None:
            coordinates += np.divide(self.centroids, CENTROID_STEPS_PER_PIXEL, dtype=np.float64)
        return coordinates

    def with_centroids(self, present: bool) -> "ElectronEvents":
        """The same, with centroids (of no event) if ``present`` and without otherwise, where there are no events.

        Raises ValueError where the events are not as ``present`` says.
        """
        if not len(self.indices):
            return replace(self, centroids=np.empty((0, 2), np.int8) if present else None)
        if (self.centroids is not None) != present:
            raise ValueError(f"{len(self.indices)} events {'without' if present else 'with'} centroids")
        return self

    def validate(self, positions: int) -> None:
        """Raises ValueError unless the arrays fit each other and every position is below ``positions``."""
        frames = len(self)
        lengths = (len(self.scan_position), len(self.missing_sectors), len(self.offsets) - 1)
        if lengths != (frames,) * 3:
            raise ValueError(f"{frames} frame numbers with positions, masks and counts of {lengths} frames")
        if (
            self.offsets[0] != 0
            or self.offsets[-1] != len(self.indices)
            or (np.diff(self.offsets.view("i8")) < 0).any()
        ):
            raise ValueError(f"offsets that do not rise from 0 to the {len(self.indices)} events")
        if self.centroids is not None and self.centroids.shape != (len(self.indices), 2):
            raise ValueError(f"{len(self.indices)} events with centroids of the shape {self.centroids.shape}")
        if frames and self.scan_position.max() >= positions:
            raise ValueError(f"scan position {self.scan_position.max()} in a scan of {positions} positions")

    @classmethod
    def empty(cls) -> "ElectronEvents":
        return cls(
            np.empty(0, np.uint32),
            np.empty(0, np.uint64),
            np.empty(0, np.uint8),
            np.zeros(1, np.uint64),
            np.empty(0, np.uint32),
        )

    @classmethod
    def from_counts(
        cls,
        scan_position: npt.NDArray[np.uint32],
        frame_number: npt.NDArray[np.uint64],
        missing_sectors: npt.NDArray[np.uint8],
        counts: npt.NDArray[np.uint32],
        indices: npt.NDArray[np.uint32],
        centroids: npt.NDArray[np.int8] | None = None,
    ) -> "ElectronEvents":
        return cls(scan_position, frame_number, missing_sectors, offsets_from_counts(counts), indices, centroids)

    @classmethod
    def concatenate(cls, parts: "Sequence[ElectronEvents]") -> "ElectronEvents":
        """The frames of all parts, one after the other. Raises ValueError where only some events have centroids."""
        if not parts:
            return cls.empty()
        with_events = [part for part in parts if len(part.indices)]
        present = any(part.centroids is not None for part in with_events or parts)
        parts = [part.with_centroids(present) for part in parts]
        return cls.from_counts(
            np.concatenate([part.scan_position for part in parts]),
            np.concatenate([part.frame_number for part in parts]),
            np.concatenate([part.missing_sectors for part in parts]),
            np.concatenate([part.counts for part in parts]),
            np.concatenate([part.indices for part in parts]),
            np.concatenate([part.centroids for part in parts if part.centroids is not None]) if present else None,
        )


@dataclass(frozen=True)
class Slab:
    """One rank's share of a scan: all frames of the scan positions ``positions``, ordered by (position, frame).

    The slabs of all ranks, one after the other, are the dataset: ``events`` are its frames from ``first_frame`` (a
    row, not a frame number) and its events from ``first_event`` on; ``sums`` are those of the same frames. The ranges
    of positions follow one another too, and cover the scan; one can be empty.
    """

    events: ElectronEvents
    sums: FrameSums
    positions: range
    first_frame: int
    first_event: int
    total_frames: int
    total_events: int


def offsets_from_counts(counts: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """uint64[n+1] running totals of uint32[n] counts, beginning with 0."""
    offsets = np.zeros(len(counts) + 1, np.uint64)
    np.cumsum(counts, out=offsets[1:], dtype=np.uint64)
    return offsets
