"""Electron counting as its definition reads, slow and obvious: what the kernel is compared with.

Frames are uint16[..., rows, columns]: one, or many of the same shape at once. Images (dark, gain, masks) are [rows,
columns], except that ``missing``, which marks the pixels of missing sectors, may differ from frame to frame.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

BoolImages = npt.NDArray[np.bool_]

#: (row, column) steps to the eight neighbours.
NEIGHBOURS = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]


def corrected_values(
    frames: npt.NDArray[np.uint16],
    dark: npt.NDArray | None = None,
    gain: npt.NDArray | None = None,
    missing: BoolImages | None = None,
    pixel_mask: npt.NDArray | None = None,
    row_dark: Literal["mean", "median"] | None = None,
    row_dark_level: float | None = None,
) -> npt.NDArray:
    """Pixel values after all corrections: exact integers, or float32 where anything but an integer dark takes part."""
    values: npt.NDArray = frames.astype(np.int64)
    if gain is not None or row_dark is not None or (dark is not None and dark.dtype.kind == "f"):
        values = frames.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if dark is not None:
            values = values - dark.astype(values.dtype)
        if row_dark is not None:
            assert row_dark_level is not None
            values = values * row_dark_factors(frames, missing, pixel_mask, row_dark, row_dark_level)
        if gain is not None:
            values = values * (np.float32(1) / gain.astype(np.float32))
    if missing is not None:
        values = np.where(missing, values.dtype.type(0), values)
    return values


def row_dark_factors(
    frames: npt.NDArray[np.uint16],
    missing: BoolImages | None,
    pixel_mask: npt.NDArray | None,
    row_dark: Literal["mean", "median"],
    level: float,
) -> npt.NDArray[np.float32]:
    """What row-dark multiplies each pixel by, float32[..., rows, columns]: level / statistic of its half-row."""
    there = np.ones(frames.shape, bool)
    if missing is not None:
        there &= ~missing
    if pixel_mask is not None:
        there &= pixel_mask == 0
    pixels = np.where(there, frames, np.nan)  # sums and halves of uint16 are exact in float64
    statistic = np.nanmean if row_dark == "mean" else np.nanmedian
    factors = np.zeros(frames.shape, np.float32)
    middle = frames.shape[-1] // 2
    for half in (slice(0, middle), slice(middle, None)):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(Mean of empty|All-NaN) slice", RuntimeWarning)
            statistics = statistic(pixels[..., half], axis=-1, keepdims=True).astype(np.float32)
        with np.errstate(divide="ignore", over="ignore"):
            # NaN where nothing is there
            factors[..., half] = np.where(statistics > 0, np.float32(level) / statistics, np.float32(0))
    return factors


def neighbour(images: npt.NDArray, row_step: int, column_step: int, outside: float) -> npt.NDArray:
    """The value of each pixel's neighbour, ``outside`` beyond the frame."""
    rows, columns = images.shape[-2:]
    around = np.full((*images.shape[:-2], rows + 2, columns + 2), outside, images.dtype)
    around[..., 1:-1, 1:-1] = images
    return around[..., 1 + row_step : 1 + row_step + rows, 1 + column_step : 1 + column_step + columns]


def is_electron(
    values: npt.NDArray, background: float, xray: float, pixel_mask: npt.NDArray | None = None
) -> BoolImages:
    """Which of the corrected values are strictly greater than all their neighbours, after the thresholds."""
    # float64 holds every uint16, int and float32 value exactly, so that comparing in it compares unrounded.
    values = values.astype(np.float64)
    kept = (values > background) & (values < xray)
    good = np.ones(values.shape, bool) if pixel_mask is None else np.broadcast_to(pixel_mask == 0, values.shape)
    # What is no neighbour is below every value.
    values = np.where(good, np.where(kept, values, 0), -np.inf)
    electrons = good.copy()
    alone = np.ones(values.shape, bool)
    for step in NEIGHBOURS:
        electrons &= values > neighbour(values, *step, outside=-np.inf)
        alone &= ~neighbour(good, *step, outside=False)
    return electrons & (kept | ~alone)


def count_frame(
    frame: npt.NDArray[np.uint16],
    background: float,
    xray: float,
    dark: npt.NDArray | None = None,
    gain: npt.NDArray | None = None,
    missing: BoolImages | None = None,
    pixel_mask: npt.NDArray | None = None,
    row_dark: Literal["mean", "median"] | None = None,
    row_dark_level: float | None = None,
) -> npt.NDArray[np.uint32]:
    """Flat indices of the electrons of one (rows, columns) frame, ascending."""
    values = corrected_values(frame, dark, gain, missing, pixel_mask, row_dark, row_dark_level)
    return np.flatnonzero(is_electron(values, background, xray, pixel_mask)).astype(np.uint32)


def centroids(
    values: npt.NDArray,
    electrons: BoolImages,
    background: float,
    xray: float,
    missing: BoolImages | None = None,
    pixel_mask: npt.NDArray | None = None,
) -> npt.NDArray[np.int8]:
    """(row, column) offsets of the electrons of [n_frames, rows, columns] in 1/128 pixel, frame after frame."""
    values = values.astype(np.float64)
    there = values < xray
    if missing is not None:
        there &= ~missing
    if pixel_mask is not None:
        there &= pixel_mask == 0
    kept = there & (values > background)
    lowest = beyond = np.where(there, values, np.inf)
    for step in NEIGHBOURS:
        lowest = np.minimum(lowest, neighbour(beyond, *step, outside=np.inf))

    def weight(row_step: int, column_step: int) -> npt.NDArray[np.float64]:
        """At the electrons, of their neighbour in that direction."""
        value = neighbour(beyond, row_step, column_step, outside=np.inf)[electrons]
        return np.where(value < np.inf, value - lowest[electrons], 0)

    offsets = np.zeros((np.count_nonzero(electrons), 2), np.int8)
    with np.errstate(invalid="ignore"):  # of infinities
        for axis, (before, after) in enumerate((((-1, 0), (1, 0)), ((0, -1), (0, 1)))):
            charge = weight(*before) + weight(0, 0) + weight(*after)
            usable = kept[electrons] & (charge > 0) & (charge < np.inf)
            difference = weight(*after) - weight(*before)
            offsets[usable, axis] = np.rint(difference[usable] / charge[usable] * 128)
    return offsets


@dataclass(frozen=True)
class Sums:
    """Per frame: the number of electrons, the sums of their rows and columns, those on each annulus; over all frames:
    the electrons on each pixel.
    """

    counts: npt.NDArray[np.uint32]
    moments: npt.NDArray[np.uint64]
    annuli: npt.NDArray[np.uint64]
    diffraction_sum: npt.NDArray[np.uint32]


def sums(electrons: BoolImages, annuli: list[BoolImages]) -> Sums:
    """Of [n_frames, rows, columns] electrons; annuli are bool[rows, columns]."""
    moments = np.zeros((len(electrons), 2), np.uint64)
    on_annuli = np.zeros((len(electrons), len(annuli)), np.uint64)
    for i, frame in enumerate(electrons):
        moments[i] = [axis.sum() for axis in np.nonzero(frame)]
        on_annuli[i] = [np.count_nonzero(frame & annulus) for annulus in annuli]
    counts = electrons.sum(axis=(1, 2)).astype(np.uint32)
    return Sums(counts, moments, on_annuli, electrons.sum(axis=0).astype(np.uint32))
