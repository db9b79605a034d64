"""A dark reference, the noise of every pixel and a mask of bad pixels, from the frames of a dark scan.

The first complete frames give a robust centre and scale of every pixel, and so the bounds beyond which a value is an
outlier (an x-ray, a stray electron). What lies within the bounds is then summed over all frames, in integers: the
result does not depend on their order or on how they are cut into blocks, and memory not on their number.
"""

import ctypes
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

import mpistream._ext.pixel_statistics as _kernel
from mpistream.model.errors import CalibrationError, ConfigError
from mpistream.model.geometry import FRAME_PIXELS, FRAME_SHAPE, SECTOR_BYTES, SECTORS, SectorLayout
from mpistream.reduction.frame_assembly import AssembledBlock
from mpistream.reduction.reference_images import BoolImage, FloatImage

#: Bounds come from this many complete frames, or from those that the first HELD_FRAMES frames have.
SAMPLE_FRAMES = 64
HELD_FRAMES = 4 * SAMPLE_FRAMES
LEAST_FRAMES = 16
LEAST_OUTLIER_SIGMAS = 2.0
#: Of a normal distribution, sigma / median absolute deviation.
_SIGMA_PER_DEVIATION = 1.4826
_LEAST_SCALE = 1.0  # ADU: pixel values are integers

#: A pixel is bad beyond these.
_HOT_SIGMAS = 6.0
_NOISY_RATIO = 5.0
_MOST_REJECTED_OF_A_PIXEL = 0.1

#: Of all pixel values: a scan with more outliers was not dark, or its user should know.
_MOST_REJECTED = 1e-3
_NOTED_REJECTED = 1e-4
_MOST_BAD = 0.1
_NOTED_BAD = 0.01


@dataclass(frozen=True, eq=False)
class DarkReference:
    """What a dark scan says about the detector, in ADU.

    mean, noise      float32[576, 576]: mean and standard deviation of each pixel's values within its bounds
    dead             bool[576, 576]: pixels that always show the same
    hot              bool[576, 576]: pixels whose mean is far off the others'
    noisy            bool[576, 576]: pixels with much more noise, or many more outliers, than others
    frames           frames used, in part where sectors were missing
    rejected         fraction of all pixel values beyond the bounds
    """

    mean: FloatImage
    noise: FloatImage
    dead: BoolImage
    hot: BoolImage
    noisy: BoolImage
    frames: int
    rejected: float

    @property
    def mask(self) -> BoolImage:
        """bool[576, 576]: the bad pixels."""
        return self.dead | self.hot | self.noisy

    @property
    def notes(self) -> Iterator[str]:
        """What the user should look at."""
        if self.frames < SAMPLE_FRAMES:
            yield f"the mean of {self.frames} frames is uncertain: take {SAMPLE_FRAMES} or more"
        if self.rejected > _NOTED_REJECTED:
            yield f"{self.rejected:.2%} of the pixel values were outliers: was the beam blanked?"
        if (bad := np.count_nonzero(self.mask)) > _NOTED_BAD * FRAME_PIXELS:
            yield f"{bad} pixels ({bad / FRAME_PIXELS:.1%}) are bad: look at the mask before you use it"


def dark_reference(blocks: Iterable[AssembledBlock], layout: SectorLayout, outlier_sigmas: float) -> DarkReference:
    """The dark reference from the blocks of a dark scan.

    A value is left out where it is further from its pixel's median than ``outlier_sigmas`` (2 or more) times the
    pixel's sigma or, where that is larger, the median sigma of all pixels; both from the first complete frames. Raises
    CalibrationError for a scan that is too short, not dark or without one of the sectors, ConfigError for
    ``outlier_sigmas``.
    """
    if not outlier_sigmas >= LEAST_OUTLIER_SIGMAS:
        raise ConfigError(
            f"{outlier_sigmas:g} as outlier_sigmas leaves out good values, too",
            f"give {LEAST_OUTLIER_SIGMAS:g} or more, for instance 5",
        )
    rest = iter(blocks)
    held = _first_blocks(rest)
    sums = _BoundedSums(layout, *_bounds(_complete_frames(held, layout), outlier_sigmas))
    for block in chain(held, rest):
        sums.add(block)
    reference = sums.reference()
    _check_is_dark(reference)
    return reference


def _check_is_dark(reference: DarkReference) -> None:
    if reference.rejected > _MOST_REJECTED:
        raise CalibrationError(
            f"the scan does not look dark: {reference.rejected:.2%} of the pixel values are outliers, "
            f"more than {_MOST_REJECTED:.2%}",
            "record a scan with the beam blanked",
        )
    bad = np.count_nonzero(reference.mask) / FRAME_PIXELS
    if bad > _MOST_BAD:
        numbers = ", ".join(f"{np.count_nonzero(getattr(reference, kind))} {kind}" for kind in ("dead", "hot", "noisy"))
        raise CalibrationError(
            f"{bad:.0%} of the pixels look bad ({numbers}): these are no frames of a dark scan",
            "record a scan with the beam blanked; does the camera send its pixels?",
        )


def _first_blocks(blocks: Iterator[AssembledBlock]) -> list[AssembledBlock]:
    """As many as have SAMPLE_FRAMES complete frames, but no more than HELD_FRAMES frames need."""
    held, frames, complete = [], 0, 0
    for block in blocks:
        held.append(block)
        frames += len(block.frame_number)
        complete += int(np.count_nonzero(block.missing_sectors == 0))
        if complete >= SAMPLE_FRAMES or frames >= HELD_FRAMES:
            break
    return held


def _complete_frames(blocks: list[AssembledBlock], layout: SectorLayout) -> npt.NDArray[np.uint16]:
    """uint16[n, 576, 576]: up to SAMPLE_FRAMES of the first HELD_FRAMES frames, however these are cut into blocks."""
    first = np.concatenate([block.sector_addresses for block in blocks])[:HELD_FRAMES]
    addresses = first[first.all(axis=1)]
    if len(addresses) < LEAST_FRAMES:
        seen = first.any(axis=0)
        absent = ", ".join(str(sector) for sector in np.flatnonzero(~seen))
        raise CalibrationError(
            f"there are {len(addresses)} complete frames at the scan's beginning"
            + (f"; no frame has sector {absent}" if absent else ""),
            f"a dark reference needs {LEAST_FRAMES}, better {SAMPLE_FRAMES} or more, with all sectors; "
            "--frames must not be fewer",
        )
    frames = np.empty((min(len(addresses), SAMPLE_FRAMES), *FRAME_SHAPE), np.uint16)
    for frame, sectors in zip(frames, addresses.tolist(), strict=False):
        for sector, address in enumerate(sectors):
            pixels = np.frombuffer(ctypes.string_at(address, SECTOR_BYTES), "<u2")
            frame[layout.sector_slices(sector)] = pixels.reshape(layout.sector_shape)
    return frames


def _bounds(
    frames: npt.NDArray[np.uint16], outlier_sigmas: float
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    """The lowest value of each pixel that is no outlier, and how far above it the highest is: uint16[576, 576]."""
    centre = np.empty(FRAME_SHAPE)
    deviation = np.empty(FRAME_SHAPE)
    for row in range(FRAME_SHAPE[0]):  # a row of all frames stays in the cache
        values = np.ascontiguousarray(frames[:, row].T, np.float32)
        centre[row] = np.median(values, axis=1)
        deviation[row] = np.median(np.abs(values - centre[row, :, np.newaxis]), axis=1)
    scale = _SIGMA_PER_DEVIATION * deviation
    scale = np.maximum(scale, max(float(np.median(scale)), _LEAST_SCALE))
    lowest = np.ceil(centre - outlier_sigmas * scale).clip(0, 0xFFFF)
    highest = np.floor(centre + outlier_sigmas * scale).clip(0, 0xFFFF)
    return lowest.astype(np.uint16), (highest - lowest).astype(np.uint16)


class _BoundedSums:
    """Exact sums over frames, for every pixel, of the values v with lowest <= v <= lowest + width."""

    def __init__(self, layout: SectorLayout, lowest: npt.NDArray[np.uint16], width: npt.NDArray[np.uint16]) -> None:
        self._layout = layout
        self._lowest = lowest
        self._width = width
        self._used = np.zeros(FRAME_SHAPE, np.uint32)
        self._sum = np.zeros(FRAME_SHAPE, np.uint64)  # of v - lowest
        self._square_sum = np.zeros(FRAME_SHAPE, np.uint64)
        self._frames = 0
        self._frames_with_sector = np.zeros(SECTORS, np.int64)

    def add(self, block: AssembledBlock) -> None:
        _kernel.add_within_bounds(
            block.sector_addresses,
            *FRAME_SHAPE,
            SECTORS,
            self._layout is SectorLayout.COLUMNS,
            self._lowest,
            self._width,
            self._used,
            self._sum,
            self._square_sum,
        )
        self._frames += len(block.frame_number)
        self._frames_with_sector += np.count_nonzero(block.sector_addresses, axis=0)

    def reference(self) -> DarkReference:
        """Half of the frames that the bounds come from lie within them: no pixel is without values."""
        used, total = self._used.astype(float), self._sum.astype(float)
        mean = self._lowest + total / used
        variance = (self._square_sum - total * total / used) / np.maximum(used - 1, 1)
        noise = np.sqrt(np.maximum(variance, 0))
        seen = np.empty(FRAME_SHAPE)
        for sector, frames in enumerate(self._frames_with_sector):
            seen[self._layout.sector_slices(sector)] = frames
        dead, hot, noisy = _bad_pixels(mean, noise, 1 - used / seen)
        return DarkReference(
            mean.astype(np.float32),
            noise.astype(np.float32),
            dead,
            hot,
            noisy,
            self._frames,
            float(1 - used.sum() / seen.sum()),
        )


def _bad_pixels(
    mean: npt.NDArray[np.float64], noise: npt.NDArray[np.float64], rejected: npt.NDArray[np.float64]
) -> tuple[BoolImage, BoolImage, BoolImage]:
    """Which pixels are dead, hot and noisy; each pixel is one of these at most. ``rejected`` is a fraction."""
    dead = noise == 0
    if dead.all():
        return dead, ~dead, ~dead
    middle, typical_noise = np.median(mean[~dead]), np.median(noise[~dead])
    spread = _SIGMA_PER_DEVIATION * np.median(np.abs(mean[~dead] - middle))
    hot = ~dead & (np.abs(mean - middle) > _HOT_SIGMAS * max(spread, typical_noise))
    noisy = (noise > _NOISY_RATIO * typical_noise) | (rejected > _MOST_REJECTED_OF_A_PIXEL)
    return dead, hot, noisy & ~dead & ~hot
