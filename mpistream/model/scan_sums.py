"""What a rank adds up while it counts a scan: sums over the electrons of each scan position, and of each pixel.

All are exact integers (uint64), so sums over ranks do not depend on their order.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: Of each scan position: its electrons, the sum of their rows, the sum of their columns, then those in each annulus.
_COUNT, _MOMENTS, _ANNULI = 0, slice(1, 3), slice(3, None)


@dataclass(frozen=True, eq=False)
class ScanSums:
    """The sums over the frames that one rank, or all ranks, counted.

    per_position     uint64[scan rows, scan columns, 3 + n_annuli]: what the properties below show, in one piece
    diffraction_sum  uint32 or uint64 [frame rows, frame columns]: electrons on each pixel
    """

    per_position: npt.NDArray[np.uint64]
    diffraction_sum: npt.NDArray[np.unsignedinteger]

    @classmethod
    def zeros(
        cls, scan_shape: tuple[int, int], annuli: int, diffraction_sum: npt.NDArray[np.unsignedinteger]
    ) -> "ScanSums":
        """For a scan that begins. ``diffraction_sum`` is kept, not copied: whoever counts goes on adding to it."""
        return cls(np.zeros((*scan_shape, _ANNULI.start + annuli), np.uint64), diffraction_sum)

    @property
    def electron_count(self) -> npt.NDArray[np.uint64]:
        """uint64[scan rows, scan columns]: all electrons."""
        return self.per_position[..., _COUNT]

    @property
    def moments(self) -> npt.NDArray[np.uint64]:
        """uint64[scan rows, scan columns, 2]: the sums of the electrons' rows and of their columns."""
        return self.per_position[..., _MOMENTS]

    @property
    def annuli(self) -> npt.NDArray[np.uint64]:
        """uint64[n_annuli, scan rows, scan columns]: electrons within each annulus that was given."""
        return np.moveaxis(self.per_position[..., _ANNULI], -1, 0)

    @property
    def center_of_mass(self) -> npt.NDArray[np.float64]:
        """float64[scan rows, scan columns, 2]: (row, column) in pixels; NaN where there are no electrons."""
        count = self.electron_count[..., np.newaxis]
        return np.divide(self.moments, count, out=np.full(self.moments.shape, np.nan), where=count > 0)

    def add_frames(
        self,
        scan_position: npt.NDArray[np.uint32],
        counts: npt.NDArray[np.uint32],
        moments: npt.NDArray[np.uint64],
        annuli: npt.NDArray[np.uint64],
    ) -> None:
        """Adds the sums of n frames: uint32[n], uint32[n], uint64[n, 2] and uint64[n, n_annuli].

        ``scan_position`` is row * scan columns + column; several frames may have the same. The cost does not depend on
        the scan's size. Raises IndexError for a position outside the scan.
        """
        width = self.per_position.shape[-1]
        frames = np.empty((len(scan_position), width), np.uint64)
        frames[:, _COUNT], frames[:, _MOMENTS], frames[:, _ANNULI] = counts, moments, annuli
        np.add.at(self.per_position.reshape(-1, width), scan_position, frames)
