# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Copying of many rows of events from one order into another."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

#: What is kept of an event: its pixel, or both halves of its centroid in one piece.
ctypedef fused Event:
    uint16_t
    uint32_t


def copy_rows(
    const Event[::1] source,
    const uint64_t[::1] source_begin,
    Event[::1] target,
    const uint64_t[::1] target_begin,
    const uint32_t[::1] counts,
):
    """For each i: ``target[target_begin[i]:][:counts[i]] = source[source_begin[i]:][:counts[i]]``.

    ``source`` and ``target`` have the same dtype, uint16 or uint32, and must not overlap. Raises ValueError for arrays
    of unlike lengths, IndexError (and copies nothing) for a row that reaches beyond ``source`` or ``target``.
    """
    cdef Py_ssize_t rows = counts.shape[0], i
    cdef uint64_t source_events = source.shape[0], target_events = target.shape[0]
    cdef bint outside = False
    if source_begin.shape[0] != rows or target_begin.shape[0] != rows:
        raise ValueError(f"{rows} counts for {source_begin.shape[0]} and {target_begin.shape[0]} beginnings")
    with nogil:
        for i in range(rows):
            # begin and count apart, since their sum could wrap around
            if source_begin[i] > source_events or counts[i] > source_events - source_begin[i]:
                outside = True
            if target_begin[i] > target_events or counts[i] > target_events - target_begin[i]:
                outside = True
        if not outside:
            for i in range(rows):
                if counts[i]:
                    memcpy(&target[target_begin[i]], &source[source_begin[i]], counts[i] * sizeof(Event))
    if outside:
        raise IndexError(f"a row reaches beyond the {source_events} source or {target_events} target events")
