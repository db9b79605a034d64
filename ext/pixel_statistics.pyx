# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""Statistics of pixel values; the callers in mpistream.reduction check the arguments.

Wherever sector addresses are asked for, each points to the row-major little-endian uint16 pixels of one sector of a
frame, at any alignment, or is 0 where the sector is missing. Whoever calls keeps that memory alive.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset


cdef extern from "pixel_statistics.h" nogil:
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

    struct bounded_sums:
        const uint16_t *lowest
        const uint16_t *width
        uint32_t *used
        uint64_t *sum
        uint64_t *square_sum

    int FIRST_BIN
    int BINS
    int STEPS_PER_UNIT
    int RAW_VALUES
    int PARTS
    void sample_raw_frame(const frame_pixels *frame, const uint64_t *sectors, const uint8_t *mask,
                          uint16_t *scratch_row, uint32_t *counts)
    void sample_frame(const frame_pixels *frame, const uint64_t *sectors, const uint8_t *mask, float *row_values,
                      int32_t *row_bins, uint32_t *counts, frame_moments *moments)
    void add_frames_within_bounds(const frame_pixels *frame, const uint64_t *sectors, int n_frames,
                                  const bounded_sums *sums)


first_bin = FIRST_BIN
bins = BINS
steps_per_unit = STEPS_PER_UNIT
raw_values = RAW_VALUES
parts = PARTS


cdef frame_pixels describe(const uint64_t[:, ::1] sector_addresses, int rows, int columns, int sectors,
                           bint side_by_side) except *:
    cdef frame_pixels frame
    if sector_addresses.shape[1] != sectors:
        raise ValueError(f"{sector_addresses.shape[1]} addresses per frame, for {sectors} sectors")
    if rows < 1 or columns < 1 or sectors < 1 or (columns if side_by_side else rows) % sectors:
        raise ValueError(f"{rows} x {columns} pixels do not divide into {sectors} sectors")
    memset(&frame, 0, sizeof(frame))
    frame.rows = rows
    frame.columns = columns
    frame.sectors = sectors
    frame.side_by_side = side_by_side
    return frame


cdef check_complete(const uint64_t[:, ::1] sector_addresses, int rows, int columns):
    """The counts have 32 bits."""
    cdef Py_ssize_t i, sector
    if <uint64_t>sector_addresses.shape[0] * rows * columns >= <uint64_t>1 << 32:
        raise ValueError("the frames have more than 2**32 - 1 pixels")
    for i in range(sector_addresses.shape[0]):
        for sector in range(sector_addresses.shape[1]):
            if sector_addresses[i, sector] == 0:
                raise ValueError("a frame of the sample has a missing sector")


cdef check_image(Py_ssize_t image_rows, Py_ssize_t image_columns, const frame_pixels *frame, name):
    if image_rows != frame.rows or image_columns != frame.columns:
        raise ValueError(f"{name} has another shape than the frames")


def sample_raw_block(const uint64_t[:, ::1] sector_addresses, int rows, int columns, int sectors, bint side_by_side,
                     const uint8_t[:, ::1] mask, uint16_t[::1] row_scratch, uint32_t[:, ::1] counts) -> None:
    """Adds the raw pixels of complete frames, those excepted that ``mask`` marks, to ``counts``.

    ``counts`` is [parts, raw_values]: the sum over the first axis is the histogram.
    """
    cdef frame_pixels frame = describe(sector_addresses, rows, columns, sectors, side_by_side)
    cdef const uint8_t *masked = NULL
    cdef Py_ssize_t i
    check_complete(sector_addresses, rows, columns)
    if mask is not None:
        check_image(mask.shape[0], mask.shape[1], &frame, "the pixel mask")
        masked = &mask[0, 0]
    if row_scratch.shape[0] < columns or counts.shape[0] != PARTS or counts.shape[1] != RAW_VALUES:
        raise ValueError("the counts or the scratch row have the wrong size")
    with nogil:
        for i in range(sector_addresses.shape[0]):
            sample_raw_frame(&frame, &sector_addresses[i, 0], masked, &row_scratch[0], &counts[0, 0])


def sample_block(const uint64_t[:, ::1] sector_addresses, int rows, int columns, int sectors, bint side_by_side,
                 const float[:, ::1] dark, const float[:, ::1] inverse_gain, const uint8_t[:, ::1] mask,
                 float[::1] value_scratch, int32_t[::1] bin_scratch, uint32_t[:, ::1] counts) -> list:
    """Adds the corrected pixels of complete frames, those excepted that ``mask`` marks, to ``counts``.

    ``counts`` is [parts, bins]: the sum over the first axis is the histogram, whose bin i counts the values nearest to
    ``first_bin + i``. Returns per frame (minimum, maximum, sum, sum of squares), the sums of round(v * steps_per_unit).
    """
    cdef frame_pixels frame = describe(sector_addresses, rows, columns, sectors, side_by_side)
    cdef const uint8_t *masked = NULL
    cdef frame_moments moments
    cdef Py_ssize_t i
    check_complete(sector_addresses, rows, columns)
    if dark is not None:
        check_image(dark.shape[0], dark.shape[1], &frame, "the dark reference")
        frame.dark = &dark[0, 0]
    if inverse_gain is not None:
        check_image(inverse_gain.shape[0], inverse_gain.shape[1], &frame, "the gain reference")
        frame.inverse_gain = &inverse_gain[0, 0]
    if mask is not None:
        check_image(mask.shape[0], mask.shape[1], &frame, "the pixel mask")
        masked = &mask[0, 0]
    if value_scratch.shape[0] < columns or bin_scratch.shape[0] < columns:
        raise ValueError("the scratch rows are too small")
    if counts.shape[0] != PARTS or counts.shape[1] != BINS:
        raise ValueError("the counts have the wrong size")
    result = []
    for i in range(sector_addresses.shape[0]):
        with nogil:
            sample_frame(&frame, &sector_addresses[i, 0], masked, &value_scratch[0], &bin_scratch[0], &counts[0, 0],
                         &moments)
        result.append((moments.minimum, moments.maximum, moments.sum, moments.square_sum))
    return result


def add_within_bounds(const uint64_t[:, ::1] sector_addresses, int rows, int columns, int sectors, bint side_by_side,
                      const uint16_t[:, ::1] lowest, const uint16_t[:, ::1] width, uint32_t[:, ::1] used,
                      uint64_t[:, ::1] sum, uint64_t[:, ::1] square_sum) -> None:
    """Adds the raw pixels v of all frames with 0 <= v - lowest <= width to images: of their number (``used``), of
    v - lowest and of its square. ``lowest + width`` is below 65536.
    """
    cdef frame_pixels frame = describe(sector_addresses, rows, columns, sectors, side_by_side)
    cdef bounded_sums sums
    check_image(lowest.shape[0], lowest.shape[1], &frame, "lowest")
    check_image(width.shape[0], width.shape[1], &frame, "width")
    check_image(used.shape[0], used.shape[1], &frame, "used")
    check_image(sum.shape[0], sum.shape[1], &frame, "sum")
    check_image(square_sum.shape[0], square_sum.shape[1], &frame, "square_sum")
    if sector_addresses.shape[0] == 0:
        return
    sums.lowest = &lowest[0, 0]
    sums.width = &width[0, 0]
    sums.used = &used[0, 0]
    sums.sum = &sum[0, 0]
    sums.square_sum = &square_sum[0, 0]
    with nogil:
        add_frames_within_bounds(&frame, &sector_addresses[0, 0], <int>sector_addresses.shape[0], &sums)
