"""What is added up over the electrons of each frame while it is counted, for the images of the scan."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class FrameSums:
    """Sums over the electrons of n frames, frame by frame, in the order of the ElectronEvents that they belong to.

    moments  uint32[n_frames, 2]         the sums of the electrons' rows and of their columns
    annuli   uint32[n_frames, n_annuli]  electrons within each annulus that was asked for

    Electrons are no neighbours of each other: a frame of 576 x 576 has at most 288 * 288 of them, so 32 bits hold
    every sum.
    """

    moments: npt.NDArray[np.uint32]
    annuli: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.moments)

    def validate(self, frames: int) -> None:
        """Raises ValueError unless these are the sums of so many frames."""
        if (len(self.moments), len(self.annuli)) != (frames, frames):
            raise ValueError(
                f"{frames} frames with moments of {len(self.moments)}, annuli of {len(self.annuli)} frames"
            )

    @classmethod
    def empty(cls, annuli: int) -> "FrameSums":
        return cls(np.empty((0, 2), np.uint32), np.empty((0, annuli), np.uint32))

    @classmethod
    def concatenate(cls, parts: "Sequence[FrameSums]", annuli: int) -> "FrameSums":
        """The frames of all parts, one after the other. Raises ValueError where one has another number of annuli."""
        parts = [cls.empty(annuli), *parts]
        return cls(np.concatenate([part.moments for part in parts]), np.concatenate([part.annuli for part in parts]))
