"""Electron counting: the checks; the loops are in ext/electron_counting.h.

An electron is a pixel that, after dark, gain and thresholds, is strictly greater than each of its neighbours inside
the frame (8; fewer at the edge). A value at or below ``background``, or at or above ``xray``, counts as 0. All
arithmetic is float32, exact for raw pixels; a missing sector's pixels are 0 after it. In a frame of a single pixel,
that pixel has no neighbours and always counts.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

import mpistream._ext.electron_counting as _kernel
from mpistream.model.electron_events import offsets_from_counts
from mpistream.model.errors import ConfigError, SourceError
from mpistream.model.geometry import FRAME_SHAPE, SECTORS, SectorLayout
from mpistream.reduction.reference_images import check_dark, check_gain, inverse, load_reference_image

__all__ = ["ElectronCounter", "count_electrons", "load_reference_image", "simd_level"]

#: Frames counted at a time, so that the buffer for the worst case stays small.
_FRAMES_AT_A_TIME = 64


def simd_level() -> str:
    """The instruction set that counting uses on this CPU: "avx512", "avx2" or "portable"."""
    return str(_kernel.simd_level())


def count_electrons(
    frames: npt.ArrayLike,
    *,
    background: float,
    xray: float,
    dark: npt.ArrayLike | None = None,
    gain: npt.ArrayLike | None = None,
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint64]]:
    """Counts the electrons of uint16[n_frames, rows, columns] frames, of any shape and strides.

    ``background`` and ``xray`` are in ADU after ``dark`` (subtracted) and ``gain`` (divided by), both [rows, columns].
    Returns uint32 indices (row * columns + column, ascending within a frame) and uint64[n_frames + 1] offsets: frame i
    owns ``indices[offsets[i]:offsets[i + 1]]``. Raises SourceError, ConfigError or ReferenceImageError.
    """
    frames = _check_frames(frames)
    n_frames, rows, columns = frames.shape
    counter = _FrameCounter((rows, columns), 1, False, background, xray, dark, gain)
    indices, counts = [np.empty(0, np.uint32)], [np.empty(0, np.uint32)]
    for first in range(0, n_frames, _FRAMES_AT_A_TIME):
        chunk = np.ascontiguousarray(frames[first : first + _FRAMES_AT_A_TIME])
        addresses = chunk.ctypes.data + np.arange(len(chunk), dtype=np.uint64) * np.uint64(chunk[0].nbytes)
        chunk_indices, chunk_counts = counter.count(addresses.reshape(-1, 1))
        indices.append(chunk_indices)
        counts.append(chunk_counts)
    return np.concatenate(indices), offsets_from_counts(np.concatenate(counts))


class ElectronCounter:
    """Counts blocks of camera frames where their sectors lie in memory. Made once per scan; not for several threads."""

    def __init__(
        self,
        layout: SectorLayout,
        background: float,
        xray: float,
        dark: npt.ArrayLike | None = None,
        gain: npt.ArrayLike | None = None,
    ) -> None:
        """Thresholds in ADU after ``dark`` and ``gain``, (576, 576). Raises ConfigError, ReferenceImageError."""
        side_by_side = layout is SectorLayout.COLUMNS
        self._counter = _FrameCounter(FRAME_SHAPE, SECTORS, side_by_side, background, xray, dark, gain)

    def count_block(
        self, sector_addresses: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """Counts n frames; returns uint32 indices, frame after frame and ascending in each, and uint32[n] counts.

        ``sector_addresses`` is uint64[n, 4]: where the pixels of each sector begin, at any alignment and without the
        record's header; 0 for a missing sector. The caller keeps that memory alive. Raises ValueError for another
        dtype or shape.
        """
        return self._counter.count(np.ascontiguousarray(sector_addresses))


class _FrameCounter:
    """The kernel with its parameters and buffers, for frames of any shape in any number of sectors."""

    def __init__(
        self,
        shape: tuple[int, int],
        sectors: int,
        side_by_side: bool,
        background: float,
        xray: float,
        dark: npt.ArrayLike | None,
        gain: npt.ArrayLike | None,
    ) -> None:
        rows, columns = shape
        self._thresholds = float32_thresholds(background, xray)
        self._dark = None if dark is None else check_dark(dark, shape)
        self._inverse_gain = None if gain is None else inverse(check_gain(gain, shape))
        self._division = (rows, columns, sectors, side_by_side)
        self._scratch = np.empty(_kernel.scratch_floats(columns), np.float32)
        # No two maxima touch, so each square of 2 x 2 pixels holds one at most.
        self._most_per_frame = ((rows + 1) // 2) * ((columns + 1) // 2)
        self._indices = np.empty(0, np.uint32)

    def count(self, addresses: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        if len(self._indices) < len(addresses) * self._most_per_frame:
            # Pages that are never written cost nothing: this is the worst case, not what is used.
            self._indices = np.empty(len(addresses) * self._most_per_frame, np.uint32)
        counts = np.empty(len(addresses), np.uint32)
        total = _kernel.count_block(
            addresses,
            *self._division,
            self._dark,
            self._inverse_gain,
            *self._thresholds,
            self._scratch,
            self._indices,
            counts,
        )
        return self._indices[:total].copy(), counts


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
    if not 0 < frames.shape[1] * frames.shape[2] < 2**31:
        raise SourceError(
            f"frames of {frames.shape[1]} rows and {frames.shape[2]} columns", "give frames of 1 to 2**31 - 1 pixels"
        )
    return frames.astype("<u2", copy=False)
