# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""Electron counting, block after block; mpistream.reduction.electron_counting checks what it is given."""

from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t, uint64_t

import numpy as np


cdef extern from "electron_counting.h" nogil:
    enum row_dark_kind "row_dark":
        pass

    struct counting:
        int rows
        int columns
        int sectors
        int side_by_side
        const float *dark
        const float *inverse_gain
        const uint8_t *keep
        const uint16_t *least
        const float *half_row_gain
        float background
        float xray
        row_dark_kind row_dark
        float row_dark_level

    struct frame_rows:
        pass

    struct frame_sums:
        uint32_t *pattern
        const uint8_t *labels
        const uint64_t *spread
        int annuli

    ctypedef uint32_t (*count_frame_function)(frame_rows *, const counting *, const uint64_t *, uint32_t *,
                                              int8_t (*)[2]) noexcept
    ctypedef void (*add_sums_function)(const frame_sums *, const counting *, const uint32_t *, uint32_t, uint64_t *,
                                       uint64_t *) noexcept

    struct counting_path:
        const char *name
        count_frame_function count_frame
        add_sums_function add_sums

    int MOST_ANNULI
    const counting_path *counting_paths()
    size_t counting_scratch_bytes(const counting *plan)
    size_t lay_out(frame_rows *frame, const counting *plan, char *scratch)
    void spread_labels(uint64_t *spread)


most_annuli = MOST_ANNULI


def simd_levels() -> tuple[str, ...]:
    """The instruction sets that counting can use on this CPU, best first."""
    cdef const counting_path *path = counting_paths()
    levels = []
    while path.name is not NULL:
        levels.append(path.name.decode())
        path += 1
    return tuple(levels)


cdef const float *address_of_floats(image) except? NULL:
    if image is None:
        return NULL
    cdef const float[:, ::1] view = image
    return &view[0, 0]


cdef const uint8_t *address_of_bytes(image) except? NULL:
    if image is None:
        return NULL
    cdef const uint8_t[:, ::1] view = image
    return &view[0, 0]


cdef const uint16_t *address_of_pixels(image) except? NULL:
    if image is None:
        return NULL
    cdef const uint16_t[:, ::1] view = image
    return &view[0, 0]


cdef class BlockCounter:
    """Counts blocks of frames of one shape with the same corrections and thresholds. Not for several threads at once.

    Images are [rows, columns] or None: ``dark`` and ``inverse_gain`` float32, ``keep`` uint8 (0 where masked, else
    255), ``least`` uint16 (needed with dark or gain), ``labels`` uint8. ``half_row_gain`` is float32[rows, 2].
    ``row_dark`` is 0, 1 (mean) or 2 (median). ``pattern`` uint32[rows, columns] is added to.
    """

    cdef counting plan
    cdef frame_rows frame
    cdef frame_sums sums
    cdef uint64_t spread[256]
    cdef count_frame_function count_frame
    cdef add_sums_function add_sums
    cdef tuple kept_alive

    def __init__(self, *, int rows, int columns, int sectors, bint side_by_side, float background, float xray, dark,
                 inverse_gain, keep, least, int row_dark, float row_dark_level, half_row_gain, labels, int annuli,
                 pattern, str simd):
        if rows < 1 or columns < 1 or sectors < 1 or (columns if side_by_side else rows) % sectors:
            raise ValueError(f"{rows} x {columns} pixels do not divide into {sectors} sectors")
        for image in (dark, inverse_gain, keep, least, labels, pattern):
            if image is not None and image.shape != (rows, columns):
                raise ValueError("an image has another shape than the frames")
        if half_row_gain is not None and half_row_gain.shape != (rows, 2):
            raise ValueError("half_row_gain is not [rows, 2]")
        if least is None and not row_dark and not (dark is None and inverse_gain is None):
            raise ValueError("a dark or gain reference needs the least raw values of electrons")
        if row_dark and dark is not None:
            raise ValueError("row-dark takes the place of a dark reference")
        if pattern is None or not 0 <= annuli <= MOST_ANNULI or (annuli and labels is None) or not 0 <= row_dark <= 2:
            raise ValueError(f"wanting a pattern, labels of up to {MOST_ANNULI} annuli, and row_dark of 0 to 2")
        self.plan.rows = rows
        self.plan.columns = columns
        self.plan.sectors = sectors
        self.plan.side_by_side = side_by_side
        self.plan.background = background
        self.plan.xray = xray
        self.plan.dark = address_of_floats(dark)
        self.plan.inverse_gain = address_of_floats(inverse_gain)
        self.plan.half_row_gain = address_of_floats(half_row_gain)
        self.plan.keep = address_of_bytes(keep)
        self.sums.labels = address_of_bytes(labels)
        self.plan.least = address_of_pixels(least)
        cdef uint32_t[:, ::1] pattern_view = pattern
        self.sums.pattern = &pattern_view[0, 0]
        self.plan.row_dark = <row_dark_kind>row_dark
        self.plan.row_dark_level = row_dark_level
        self.sums.annuli = annuli
        spread_labels(self.spread)
        self.sums.spread = self.spread
        scratch = np.empty(counting_scratch_bytes(&self.plan) + 64, np.int8)
        cdef char[::1] bytes_of_scratch = scratch
        cdef char *first = &bytes_of_scratch[0]
        lay_out(&self.frame, &self.plan, first + (64 - <size_t>first % 64) % 64)
        self.kept_alive = (dark, inverse_gain, keep, least, half_row_gain, labels, pattern, scratch)
        self.choose(simd)

    cdef choose(self, str simd):
        cdef const counting_path *path = counting_paths()
        while path.name is not NULL and path.name.decode() != simd:
            path += 1
        if path.name is NULL:
            raise ValueError(f"this CPU has no {simd}")
        self.count_frame = path.count_frame
        self.add_sums = path.add_sums

    @property
    def most_electrons(self) -> int:
        """In one frame: no two maxima touch, so each square of 2 x 2 pixels holds one at most."""
        return ((self.plan.rows + 1) // 2) * ((self.plan.columns + 1) // 2)

    def count(self, const uint64_t[:, ::1] sector_addresses, uint32_t[::1] indices, int8_t[:, ::1] centroids,
              uint32_t[::1] counts, uint64_t[:, ::1] moments, uint64_t[:, ::1] on_annuli) -> int:
        """Counts the frames of uint64[n_frames, sectors] addresses; returns the total number of electrons.

        Each address points to the row-major little-endian uint16 pixels of one sector, at any alignment, or is 0
        where the sector is missing. ``indices`` holds n_frames * most_electrons, and so does ``centroids`` [:, 2]
        unless it is None; ``counts`` is [n_frames], ``moments`` [n_frames, 2], ``on_annuli`` [n_frames, annuli].
        """
        cdef Py_ssize_t n_frames = sector_addresses.shape[0]
        cdef Py_ssize_t most = n_frames * <Py_ssize_t>self.most_electrons
        cdef Py_ssize_t i
        cdef uint64_t total = 0
        cdef uint32_t *frame_indices
        cdef int8_t *frame_centroids
        if sector_addresses.shape[1] != self.plan.sectors:
            raise ValueError(f"{sector_addresses.shape[1]} addresses per frame, for {self.plan.sectors} sectors")
        if centroids is not None and (centroids.shape[0] < most or centroids.shape[1] != 2):
            raise ValueError("the output arrays are too small for the block")
        if indices.shape[0] < most or counts.shape[0] < n_frames:
            raise ValueError("the output arrays are too small for the block")
        if moments.shape[0] < n_frames or moments.shape[1] != 2:
            raise ValueError("the output arrays are too small for the block")
        if on_annuli.shape[0] < n_frames or on_annuli.shape[1] != self.sums.annuli:
            raise ValueError("the output arrays are too small for the block")
        if n_frames == 0:
            return 0
        cdef uint64_t *frame_on_annuli = NULL
        with nogil:
            for i in range(n_frames):
                frame_indices = &indices[0] + total
                frame_centroids = NULL if centroids is None else &centroids[0, 0] + 2 * total
                if self.sums.annuli:
                    frame_on_annuli = &on_annuli[i, 0]
                counts[i] = self.count_frame(&self.frame, &self.plan, &sector_addresses[i, 0], frame_indices,
                                             <int8_t (*)[2]>frame_centroids)
                self.add_sums(&self.sums, &self.plan, frame_indices, counts[i], &moments[i, 0], frame_on_annuli)
                total += counts[i]
        return total
