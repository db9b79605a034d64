# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""A pass that only reads and compares the pixels of sectors: the limit in ``mpistream bench counting``."""

from libc.stdint cimport uint8_t, uint16_t, uint64_t, uintptr_t


cdef extern from "memory_limit.h" nogil:
    int any_above(const uint8_t *bytes, size_t pixels, uint16_t background)
    int has_64_byte_vectors()


def vector_bytes() -> int:
    """Bytes per load: 64 with AVX-512; otherwise 0, where the compiler has chosen."""
    return 64 if has_64_byte_vectors() else 0


def sectors_above(const uint64_t[:, ::1] sector_addresses, size_t sector_pixels, uint16_t background) -> int:
    """How many sectors at uint64[n_frames, n_sectors] addresses have a uint16 pixel above ``background``.

    Every pixel of every sector is read once. Address 0 is a missing sector. The caller keeps that memory alive.
    """
    cdef Py_ssize_t frame, sector
    cdef int found = 0
    with nogil:
        for frame in range(sector_addresses.shape[0]):
            for sector in range(sector_addresses.shape[1]):
                if sector_addresses[frame, sector]:
                    found += any_above(<const uint8_t *><uintptr_t>sector_addresses[frame, sector], sector_pixels,
                                       background)
    return found
