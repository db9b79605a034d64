"""CRC-32 of each slab's part of each event array, by which a dataset can be checked later."""

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from mpistream.model import h5_layout as layout
from mpistream.model.electron_events import Slab

_CHUNK_ROWS = 1 << 20


class SlabChecksums:
    """The checksums of one slab, from its arrays as they come by, part after part."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys((*layout.EVENT_DTYPES, layout.CENTROIDS), 0)

    def add(self, name: str, values: npt.NDArray[Any]) -> None:
        """``values`` are the next rows of the array ``name``, as they are in the file."""
        self._sums[name] = zlib.crc32(np.ascontiguousarray(values).data, self._sums[name])

    @property
    def values(self) -> tuple[int, ...]:
        """In the order of CHECKSUM_DTYPE."""
        return tuple(self._sums.values())


def checksum_row(slab: Slab) -> tuple[int, ...]:
    """A row of CHECKSUM_DTYPE."""
    events, sums = slab.events, SlabChecksums()
    for first in range(0, len(events.offsets), _CHUNK_ROWS):
        offsets = events.offsets[first : first + _CHUNK_ROWS] + np.uint64(slab.first_event)
        sums.add(layout.OFFSETS, offsets.astype("<u8"))
    sums.add(layout.INDICES, events.indices)
    sums.add(layout.SCAN_POSITION, events.scan_position)
    sums.add(layout.FRAME_NUMBER, events.frame_number)
    sums.add(layout.MISSING_SECTORS, events.missing_sectors)
    if events.centroids is not None:
        sums.add(layout.CENTROIDS, events.centroids)
    return slab.first_frame, len(events), slab.first_event, len(events.indices), *sums.values
