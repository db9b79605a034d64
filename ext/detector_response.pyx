# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Loops of the simulated detector: sharing of charge between pixels, and read noise with digitisation.

The checks of shapes are in ``mpistream.acquisition.detector_model``.
"""

from libc.math cimport floorf
from libc.stdint cimport uint16_t, uint32_t, uint64_t


cdef inline uint64_t splitmix64(uint64_t counter) noexcept nogil:
    # Steele, Lea and Flood, OOPSLA 2014. By counter, not by state: consecutive numbers do not wait for each other.
    cdef uint64_t value = counter * <uint64_t>0x9E3779B97F4A7C15
    value = (value ^ (value >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * <uint64_t>0x94D049BB133111EB
    return value ^ (value >> 31)


cdef inline float normal(uint32_t uniform, const float* centre, const float* tail) noexcept nogil:
    """The quantile of a uniform 32-bit number, linear between 4096 points, and between 4096 more in either tail."""
    cdef uint32_t segment = uniform >> 20
    cdef uint32_t rest = uniform & 0xFFFFF
    if 0 < segment < 4095:
        return centre[segment] + (centre[segment + 1] - centre[segment]) * (<float>rest * <float>(1.0 / 1048576.0))
    if segment:
        rest = 0xFFFFF - rest
    cdef uint32_t fine = rest >> 8
    cdef float value = tail[fine] + (tail[fine + 1] - tail[fine]) * (<float>(rest & 0xFF) * <float>(1.0 / 256.0))
    return -value if segment else value


cdef inline uint16_t digital(float value) noexcept nogil:
    value = value + <float>0.5
    if value < 0:
        return 0
    return 65535 if value >= 65535 else <uint16_t>value


def deposit_charge(
    float[:, ::1] signal,
    const float[::1] rows,
    const float[::1] columns,
    const float[::1] energies,
    const float[:, ::1] sharing,
    int first_row,
    int first_column,
):
    """Adds to float32[rows, columns] ``signal`` the charge of hits, each spread over 3 x 3 pixels.

    ``rows`` and ``columns`` are positions in the frame (pixel i reaches from i - 0.5 to i + 0.5), ``signal`` begins at
    pixel (first_row, first_column). ``sharing`` float32[bins, 3] holds the fractions that the pixel before, the pixel
    hit and the pixel behind get, for ``bins`` positions inside the pixel. What falls outside ``signal`` is left out.
    """
    cdef Py_ssize_t height = signal.shape[0], width = signal.shape[1], bins = sharing.shape[0]
    cdef Py_ssize_t hit, row, column, row_bin, column_bin, down, right
    cdef float row_floor, column_floor, part
    with nogil:
        for hit in range(rows.shape[0]):
            row_floor = floorf(rows[hit] + <float>0.5)
            row = <Py_ssize_t>row_floor - first_row
            if row < -1 or row > height:
                continue
            column_floor = floorf(columns[hit] + <float>0.5)
            column = <Py_ssize_t>column_floor - first_column
            if column < -1 or column > width:
                continue
            row_bin = min(<Py_ssize_t>((rows[hit] - row_floor + <float>0.5) * bins), bins - 1)
            column_bin = min(<Py_ssize_t>((columns[hit] - column_floor + <float>0.5) * bins), bins - 1)
            for down in range(3):
                if row + down < 1 or row + down > height:
                    continue
                part = energies[hit] * sharing[row_bin, down]
                for right in range(3):
                    if column + right < 1 or column + right > width:
                        continue
                    signal[row + down - 1, column + right - 1] += part * sharing[column_bin, right]


def digitise(
    float[:, ::1] signal,
    const float[:, ::1] pedestal,
    const float[:, ::1] noise,
    uint64_t stream,
    const float[::1] centre,
    const float[::1] tail,
    uint16_t[:, ::1] pixels,
):
    """uint16 ``pixels`` = pedestal + noise * normal + signal, rounded and clipped; sets ``signal`` back to zero.

    All of one shape with an even number of pixels. ``stream`` selects the random numbers: two pixels for each 64 bits.
    ``centre`` float32[4097] and ``tail`` float32[4097] are quantiles of the normal distribution at multiples of 2**-12
    and of 2**-24.
    """
    cdef Py_ssize_t count = signal.shape[0] * signal.shape[1]
    cdef Py_ssize_t pixel
    cdef uint64_t draw, counter = stream
    cdef float* charge = &signal[0, 0]
    cdef const float* offset = &pedestal[0, 0]
    cdef const float* sigma = &noise[0, 0]
    cdef const float* centre_table = &centre[0]
    cdef const float* tail_table = &tail[0]
    cdef uint16_t* output = &pixels[0, 0]
    with nogil:
        for pixel in range(0, count - 1, 2):
            draw = splitmix64(counter)
            counter += 1
            output[pixel] = digital(
                offset[pixel] + charge[pixel]
                + sigma[pixel] * normal(<uint32_t>draw, centre_table, tail_table)
            )
            output[pixel + 1] = digital(
                offset[pixel + 1] + charge[pixel + 1]
                + sigma[pixel + 1] * normal(<uint32_t>(draw >> 32), centre_table, tail_table)
            )
            charge[pixel] = 0
            charge[pixel + 1] = 0
