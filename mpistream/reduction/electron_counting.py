"""Electron counting: the checks; the loops are in ext/ (electron_counting.h and what it includes).

docs/counting.md has the definition of an electron. All arithmetic is float32, exact for raw pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import mpistream._ext.electron_counting as _kernel
from mpistream.model.electron_events import offsets_from_counts
from mpistream.model.errors import ConfigError, SourceError
from mpistream.model.geometry import FRAME_SHAPE, SECTORS, SectorLayout
from mpistream.reduction.reference_images import check_dark, check_gain, check_pixel_mask, inverse

RowDark = Literal["mean", "median"]

#: Frames counted at a time, so that the buffer for the worst case stays small.
_FRAMES_AT_A_TIME = 64
#: Of a frame: their indices, and a vector's length beyond the last one, fit into an int of 32 bits.
_MOST_PIXELS = 2**30
_ROW_DARKS = {None: 0, "mean": 1, "median": 2}


def simd_levels() -> tuple[str, ...]:
    """The instruction sets that counting can use on this CPU, best first, of "avx512", "avx2", "neon", "portable"."""
    return tuple(_kernel.simd_levels())


@dataclass(frozen=True)
class CountedFrames:
    """The electrons of n frames, and the sums that live views need.

    indices    uint32[n_events]    row * columns + column, frame after frame, ascending in each
    counts     uint32[n]           electrons of each frame
    centroids  int8[n_events, 2]   (row, column) offset of each electron within its pixel, in 1/128 pixel; or None
    moments    uint64[n, 2]        sum of the electrons' rows and of their columns
    annuli     uint64[n, k]        electrons on each of the k annuli that were asked for
    """

    indices: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.uint32]
    centroids: npt.NDArray[np.int8] | None
    moments: npt.NDArray[np.uint64]
    annuli: npt.NDArray[np.uint64]


def count_electrons(
    frames: npt.ArrayLike,
    *,
    background: float,
    xray: float,
    dark: npt.ArrayLike | None = None,
    gain: npt.ArrayLike | None = None,
    row_dark: RowDark | None = None,
    row_dark_level: float | None = None,
    pixel_mask: npt.ArrayLike | None = None,
    simd: str | None = None,
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint64]]:
    """Counts the electrons of uint16[n_frames, rows, columns] frames, of any shape.

    Any strides and byte order; what is not contiguous and little-endian is copied. The parameters are those of
    FrameCounter. Returns uint32 indices (row * columns + column, ascending within a frame) and uint64[n_frames + 1]
    offsets: frame i owns ``indices[offsets[i]:offsets[i + 1]]``. Raises SourceError, ConfigError, ReferenceImageError.
    """
    frames = _check_frames(frames)
    n_frames, rows, columns = frames.shape
    counter = FrameCounter(
        (rows, columns),
        1,
        False,
        background,
        xray,
        dark,
        gain,
        pixel_mask=pixel_mask,
        row_dark=row_dark,
        row_dark_level=row_dark_level,
        simd=simd,
    )
    indices, counts = [np.empty(0, np.uint32)], [np.empty(0, np.uint32)]
    for first in range(0, n_frames, _FRAMES_AT_A_TIME):
        chunk = np.ascontiguousarray(frames[first : first + _FRAMES_AT_A_TIME])
        addresses = chunk.ctypes.data + np.arange(len(chunk), dtype=np.uint64) * np.uint64(chunk[0].nbytes)
        counted = counter.count_block(addresses.reshape(-1, 1))
        indices.append(counted.indices)
        counts.append(counted.counts)
    return np.concatenate(indices), offsets_from_counts(np.concatenate(counts))


class FrameCounter:
    """The kernel with its parameters and buffers, for frames of any shape in any number of sectors.

    Not for several threads. ``diffraction_sum`` uint32[rows, columns] is the number of electrons on each pixel in all
    frames that it counted.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        sectors: int,
        side_by_side: bool,
        background: float,
        xray: float,
        dark: npt.ArrayLike | None = None,
        gain: npt.ArrayLike | None = None,
        *,
        pixel_mask: npt.ArrayLike | None = None,
        row_dark: RowDark | None = None,
        row_dark_level: float | None = None,
        centroids: bool = False,
        annuli: Sequence[npt.NDArray[np.bool_]] = (),
        simd: str | None = None,
    ) -> None:
        """Images are of the frame's ``shape``. Raises ConfigError, ReferenceImageError.

        side_by_side      a sector holds whole columns of the frame; otherwise whole rows
        background, xray  an electron lies between them: in ADU, after what follows
        dark              subtracted, in ADU
        row_dark          instead of it: every half row is scaled so that its mean or median becomes ``row_dark_level``
        gain              divided by, after dark or row-dark
        pixel_mask        non-zero for bad pixels, which neither are electrons nor hinder a neighbour
        centroids         also find where within its pixel each electron hit
        annuli            up to 8 masks bool[rows, columns], the electrons on which are counted
        simd              one of ``simd_levels()``; the first by default
        """
        below, above = float32_thresholds(background, xray)
        # a copy: what was derived from it must go on fitting
        dark = None if dark is None else np.array(check_dark(dark, shape))
        inverse_gain = None if gain is None else inverse(check_gain(gain, shape))
        kind_of_row_dark, level = _check_row_dark(row_dark, row_dark_level, dark)
        needs_least = kind_of_row_dark == 0 and not (dark is None and inverse_gain is None)
        self.diffraction_sum = np.zeros(shape, np.uint32)
        self._centroids = centroids
        self._n_annuli = len(annuli)
        self._counter = _kernel.BlockCounter(
            rows=shape[0],
            columns=shape[1],
            sectors=sectors,
            side_by_side=side_by_side,
            background=below,
            xray=above,
            dark=dark,
            inverse_gain=inverse_gain,
            keep=_keep(pixel_mask, shape),
            least=_least_values(max(below, 0.0), dark, inverse_gain) if needs_least else None,
            row_dark=kind_of_row_dark,
            row_dark_level=level,
            half_row_gain=_half_row_gain(inverse_gain) if kind_of_row_dark and inverse_gain is not None else None,
            labels=_labels(annuli, shape),
            annuli=len(annuli),
            pattern=self.diffraction_sum,
            simd=_check_simd(simd),
        )
        self._indices = np.empty(0, np.uint32)
        self._centroid_buffer: npt.NDArray[np.int8] | None = None

    def count_block(self, sector_addresses: npt.NDArray[np.uint64]) -> CountedFrames:
        """Counts the frames of uint64[n, sectors] addresses: where the pixels of each sector begin, at any alignment
        and without the record's header; 0 for a missing sector. The caller keeps that memory alive.

        Raises ValueError for another dtype or shape.
        """
        n = len(sector_addresses)
        most = n * self._counter.most_electrons
        if self._centroid_buffer is None or len(self._indices) < most:
            # Pages that are never written cost nothing: this is the worst case, not what is used.
            self._indices = np.empty(most, np.uint32)
            self._centroid_buffer = np.empty((most if self._centroids else 0, 2), np.int8)
        counts, moments = np.empty(n, np.uint32), np.empty((n, 2), np.uint64)
        on_annuli = np.empty((n, self._n_annuli), np.uint64)
        total = self._counter.count(
            np.ascontiguousarray(sector_addresses),
            self._indices,
            self._centroid_buffer if self._centroids else None,
            counts,
            moments,
            on_annuli,
        )
        centroids = self._centroid_buffer[:total].copy() if self._centroids else None
        return CountedFrames(self._indices[:total].copy(), counts, centroids, moments, on_annuli)


class ElectronCounter(FrameCounter):
    """Counts blocks of camera frames where their four sectors lie in memory. Made once per scan."""

    def __init__(
        self,
        layout: SectorLayout,
        background: float,
        xray: float,
        dark: npt.ArrayLike | None = None,
        gain: npt.ArrayLike | None = None,
        **options: Any,
    ) -> None:
        """Images are (576, 576); ``options`` are those of FrameCounter. Raises ConfigError, ReferenceImageError."""
        side_by_side = layout is SectorLayout.COLUMNS
        super().__init__(FRAME_SHAPE, SECTORS, side_by_side, background, xray, dark, gain, **options)


def _check_simd(simd: str | None) -> str:
    levels = simd_levels()
    if simd is not None and simd not in levels:
        raise ConfigError(f"this CPU does not count with {simd}", f"it has {', '.join(levels)}")
    return simd or levels[0]


def _check_row_dark(
    row_dark: RowDark | None, level: float | None, dark: npt.NDArray[np.float32] | None
) -> tuple[int, float]:
    """The kernel's number for the kind of row-dark, and its level. Raises ConfigError."""
    if row_dark not in _ROW_DARKS:
        raise ConfigError(f"row_dark is {row_dark!r}", "give mean or median, or leave it out")
    if row_dark is None:
        return 0, 0.0
    if dark is not None:
        raise ConfigError("a dark reference and row-dark correct the same thing", "leave one of them out")
    if level is None or not 0 < np.float32(level) <= 0xFFFF:
        raise ConfigError(
            f"row-dark brings every half row to a level between 0 and 65535 ADU, not to {level}",
            "give the mean of the pedestal as row_dark_level",
        )
    return _ROW_DARKS[row_dark], level


def _keep(pixel_mask: npt.ArrayLike | None, shape: tuple[int, int]) -> npt.NDArray[np.uint8] | None:
    """uint8: 255, and 0 for bad pixels."""
    return None if pixel_mask is None else np.where(check_pixel_mask(pixel_mask, shape), 0, 255).astype(np.uint8)


def _labels(annuli: Sequence[npt.NDArray[np.bool_]], shape: tuple[int, int]) -> npt.NDArray[np.uint8] | None:
    """uint8[rows, columns] or None: bit k is set on annulus k. Raises ConfigError."""
    if len(annuli) > _kernel.most_annuli:
        raise ConfigError(f"{len(annuli)} annuli", f"give at most {_kernel.most_annuli}")
    labels = np.zeros(shape, np.uint8)
    for bit, mask in enumerate(annuli):
        if mask.shape != shape:
            raise ConfigError(f"annulus {bit} has the shape {mask.shape}", f"give masks of the frames' shape, {shape}")
        labels |= (np.asarray(mask) != 0).astype(np.uint8) << np.uint8(bit)
    return labels if len(annuli) else None


def _least_values(
    background: float, dark: npt.NDArray[np.float32] | None, inverse_gain: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.uint16]:
    """uint16[rows, columns]: no raw value below it is above the background once it is corrected.

    ``background`` is 0 or more. The kernel decides exactly among the others. Rounding moves a corrected value by less
    than a part in a million; one ADU is allowed beside that.
    """
    with np.errstate(over="ignore"):
        gained = np.float64(background) if inverse_gain is None else background / inverse_gain.astype(np.float64)
    least = gained - 1e-6 * np.abs(gained) - 1
    if dark is not None:
        least = least + dark.astype(np.float64)
    if inverse_gain is not None:
        least = np.where(inverse_gain > 0, least, 0)  # a negative gain turns the order of values round
    return np.floor(np.clip(least, 0, 0xFFFF)).astype(np.uint16)


def _half_row_gain(inverse_gain: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """float32[rows, 2]: the largest inverse gain of each half row, at least 0."""
    middle = inverse_gain.shape[1] // 2
    halves = inverse_gain[:, :middle], inverse_gain[:, middle:]
    return np.stack([half.max(axis=1, initial=0) for half in halves], axis=1)


def float32_thresholds(background: float, xray: float) -> tuple[float, float]:
    """The thresholds among float32 numbers that keep exactly what the given float64 ones keep. Raises ConfigError.

    The largest float32 <= background and the smallest >= xray: a float32 v is then above the one if and only if it is
    above the other.
    """
    background, xray = float(background), float(xray)
    if math.isnan(background) or math.isnan(xray):
        raise ConfigError("a threshold is NaN", "give background and xray as numbers, in ADU")
    if not background < xray:
        raise ConfigError(
            f"background ({background:g}) must be below xray ({xray:g})", "nothing lies between them: swap or part them"
        )
    with np.errstate(over="ignore"):
        below, above = np.float32(background), np.float32(xray)
    if float(below) > background:
        below = np.nextafter(below, np.float32(-np.inf))
    if float(above) < xray:
        above = np.nextafter(above, np.float32(np.inf))
    return float(below), float(above)


def _check_frames(frames: Any) -> npt.NDArray[np.uint16]:
    frames = np.asarray(frames)
    if frames.dtype.kind != "u" or frames.dtype.itemsize != 2:
        raise SourceError(
            f"the frames have the dtype {frames.dtype}", "give the camera's raw pixels: an array of dtype uint16"
        )
    if frames.ndim != 3:
        raise SourceError(
            f"the frames have the shape {frames.shape}",
            "give (frames, rows, columns); a single image is frames[numpy.newaxis]",
        )
    if not 0 < frames.shape[1] * frames.shape[2] <= _MOST_PIXELS:
        raise SourceError(
            f"frames of {frames.shape[1]} rows and {frames.shape[2]} columns",
            f"give frames of 1 to {_MOST_PIXELS} pixels",
        )
    return frames.astype("<u2", copy=False)
