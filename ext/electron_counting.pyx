# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""Loops of electron counting and of calibration; their callers in mpistream.reduction check the arguments.

Wherever sector addresses are asked for, each points to the row-major little-endian uint16 pixels of one sector of a
frame, at any alignment, or is 0 where the sector is missing. Whoever calls keeps that memory alive.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "electron_counting.h" nogil:
    struct frame_pixels:
        int rows
        int columns
        int sectors
        int side_by_side
        const float *dark
        const float *inverse_gain

    struct frame_moments:
        float minimum
        float maximum
        int64_t sum
        uint64_t square_sum

    int FIRST_BIN
    int LAST_BIN
    int STEPS_PER_UNIT
    const char *simd_level_name()
    size_t counting_scratch_floats(int columns)
    unsigned int count_frame(const frame_pixels *frame, const uint64_t *sectors, float background, float xray,
                             float *scratch, uint32_t *indices)
    void sample_frame(const frame_pixels *frame, const uint64_t *sectors, float *row_values, uint64_t *histogram,
                      frame_moments *moments)


first_bin = FIRST_BIN
last_bin = LAST_BIN
steps_per_unit = STEPS_PER_UNIT


def simd_level() -> str:
    """The instruction set that the loops use on this CPU: "avx512", "avx2" or "portable"."""
    return simd_level_name().decode()


def scratch_floats(int columns) -> int:
    """Length of the float32 scratch array that count_block needs."""
    return counting_scratch_floats(columns)


cdef frame_pixels describe(const uint64_t[:, ::1] sector_addresses, int rows, int columns, int sectors,
                           bint side_by_side, const float[:, ::1] dark,
                           const float[:, ::1] inverse_gain) except *:
    cdef frame_pixels frame
    if sector_addresses.shape[1] != sectors:
        raise ValueError(f"{sector_addresses.shape[1]} addresses per frame, for {sectors} sectors")
    if dark is not None and (dark.shape[0] != rows or dark.shape[1] != columns):
        raise ValueError("the dark reference has another shape than the frames")
    if inverse_gain is not None and (inverse_gain.shape[0] != rows or inverse_gain.shape[1] != columns):
        raise ValueError("the gain reference has another shape than the frames")
    if rows < 1 or columns < 1 or sectors < 1 or (columns if side_by_side else rows) % sectors:
        raise ValueError(f"{rows} x {columns} pixels do not divide into {sectors} sectors")
    frame.rows = rows
    frame.columns = columns
    frame.sectors = sectors
    frame.side_by_side = side_by_side
    frame.dark = NULL if dark is None else <float *>&dark[0, 0]
    frame.inverse_gain = NULL if inverse_gain is None else <float *>&inverse_gain[0, 0]
    return frame


def count_block(const uint64_t[:, ::1] sector_addresses, int rows, int columns, int sectors, bint side_by_side,
                const float[:, ::1] dark, const float[:, ::1] inverse_gain, float background, float xray,
                float[::1] scratch, uint32_t[::1] indices, uint32_t[::1] counts) -> int:
    """Counts the electrons of uint64[n_frames, n_sectors] addresses; returns their total number.

    Kept are the values v with background < v < xray, both float32. ``indices`` must hold n_frames times
    ceil(rows / 2) * ceil(columns / 2), ``counts`` n_frames, ``scratch`` ``scratch_floats(columns)``.
    """
    cdef frame_pixels frame = describe(sector_addresses, rows, columns, sectors, side_by_side, dark, inverse_gain)
    cdef Py_ssize_t n_frames = sector_addresses.shape[0]
    cdef Py_ssize_t most = n_frames * ((rows + 1) // 2) * ((columns + 1) // 2)
    cdef Py_ssize_t i
    cdef uint64_t total = 0
    if indices.shape[0] < most or counts.shape[0] < n_frames:
        raise ValueError("the output arrays are too small for the block")
    if <size_t>scratch.shape[0] < counting_scratch_floats(columns):
        raise ValueError("the scratch array is too small for the frames")
    with nogil:
        for i in range(n_frames):
            counts[i] = count_frame(&frame, &sector_addresses[i, 0], background, xray, &scratch[0],
                                    &indices[0] + total)
            total += counts[i]
    return total


def sample_block(const uint64_t[:, ::1] sector_addresses, int rows, int columns, int sectors, bint side_by_side,
                 const float[:, ::1] dark, const float[:, ::1] inverse_gain, float[::1] row_scratch,
                 uint64_t[::1] histogram) -> list:
    """Adds the values of all frames to ``histogram``; returns per frame (minimum, maximum, sum, sum of squares).

    Bin i counts the values nearest to ``first_bin + i``. The sums are of the integers round(v * steps_per_unit).
    """
    cdef frame_pixels frame = describe(sector_addresses, rows, columns, sectors, side_by_side, dark, inverse_gain)
    cdef frame_moments moments
    cdef Py_ssize_t i
    if row_scratch.shape[0] < columns or histogram.shape[0] < LAST_BIN - FIRST_BIN + 1:
        raise ValueError("the histogram or the scratch row is too small")
    result = []
    for i in range(sector_addresses.shape[0]):
        with nogil:
            sample_frame(&frame, &sector_addresses[i, 0], &row_scratch[0], &histogram[0], &moments)
        result.append((moments.minimum, moments.maximum, moments.sum, moments.square_sum))
    return result
