"""Electron counting as its definition reads, slow and obvious: what the kernel is compared with."""

import numpy as np
import numpy.typing as npt


def corrected_values(
    frame: npt.NDArray[np.uint16],
    dark: npt.NDArray | None = None,
    gain: npt.NDArray | None = None,
    missing: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray:
    """Pixel values after dark and gain: exact integers, or float32 where a float dark or a gain takes part.

    ``missing`` marks the pixels of missing sectors, which are 0.
    """
    values: npt.NDArray = frame.astype(np.int64)
    if gain is not None or (dark is not None and dark.dtype.kind == "f"):
        values = frame.astype(np.float32)
    if dark is not None:
        values = values - dark.astype(values.dtype)
    if gain is not None:
        values = values * (np.float32(1) / gain.astype(np.float32))
    if missing is not None:
        values = np.where(missing, values.dtype.type(0), values)
    return values


def count_frame(
    frame: npt.NDArray[np.uint16],
    background: float,
    xray: float,
    dark: npt.NDArray | None = None,
    gain: npt.NDArray | None = None,
    missing: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.uint32]:
    """Flat indices of the electrons of one (rows, columns) frame, ascending."""
    # float64 holds every uint16, int and float32 value exactly, so that comparing in it compares unrounded.
    values = corrected_values(frame, dark, gain, missing).astype(np.float64)
    values[(values <= background) | (values >= xray)] = 0
    rows, columns = values.shape
    is_electron = np.ones((rows, columns), bool)
    for row_step in (-1, 0, 1):
        for column_step in (-1, 0, 1):
            if row_step == column_step == 0:
                continue
            neighbours = np.full((rows, columns), -np.inf)
            for row in range(max(0, -row_step), min(rows, rows - row_step)):
                first, end = max(0, -column_step), min(columns, columns - column_step)
                neighbours[row, first:end] = values[row + row_step, first + column_step : end + column_step]
            is_electron &= values > neighbours
    return np.flatnonzero(is_electron).astype(np.uint32)
