"""What a dataset says about itself beside its events, and what is known once it is written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpistream.model.geometry import FRAME_SHAPE
from mpistream.model.h5_layout import REJECTED_DTYPE
from mpistream.model.scan import Counters, ScanRecord, SectorEnd, Thresholds
from mpistream.model.virtual_images import VirtualDetectors


@dataclass(frozen=True, eq=False)
class SampleHistogram:
    """How often each pixel value occurs in the frames from which thresholds were calibrated.

    first_bin   value in ADU at the middle of the first bin; each bin is 1 ADU wide
    pixels      uint64[n]: pixels in each bin
    """

    first_bin: int
    pixels: npt.NDArray[np.uint64]

    @property
    def values(self) -> npt.NDArray[np.int64]:
        """int64[n]: the value at the middle of each bin, in ADU."""
        return self.first_bin + np.arange(len(self.pixels))


@dataclass(frozen=True)
class DatasetDescription:
    """The same on every rank, but for ``rejected``.

    ``thresholds.statistics`` are best named as stempy names them (mean, std_dev, ...).

    dark, gain        float32[frame rows, frame columns] as used for counting, None where there was none
    pixel_mask        [frame rows, frame columns], not 0 where a pixel was left out; None where there was none
    sample_histogram  of the calibration's sample; None for given thresholds. Only rank 0's counts
    seconds           how long the stages before the writing took
    provenance        anything else that says where the dataset comes from; values that JSON can hold
    ends              what each sector's producer sent; without them nothing can be compared with what is written
    rejected          h5_layout.REJECTED_DTYPE: records that came and count as missing because they were bad, each on
                      one rank or on several
    complete          whether the scan ran to its end with all its producers
    """

    scan: ScanRecord
    thresholds: Thresholds
    counters: Counters
    frame_shape: tuple[int, int] = FRAME_SHAPE
    dark: npt.NDArray[Any] | None = None
    gain: npt.NDArray[Any] | None = None
    pixel_mask: npt.NDArray[Any] | None = None
    sample_histogram: SampleHistogram | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    ends: tuple[SectorEnd, ...] = ()
    rejected: npt.NDArray[np.void] = field(default_factory=lambda: np.empty(0, REJECTED_DTYPE))
    complete: bool = True

    @property
    def scan_shape(self) -> tuple[int, int]:
        return self.scan.rows, self.scan.columns

    @property
    def detectors(self) -> VirtualDetectors:
        return self.scan.detectors

    @property
    def centroids(self) -> bool:
        """Whether the events have centroids."""
        return self.scan.counting.centroids


@dataclass(frozen=True, eq=False)
class Delivery:
    """What a dataset knows of how it came together.

    rejected   as in DatasetDescription, each record once, ordered by frame and sector
    checksums  h5_layout.CHECKSUM_DTYPE[slabs]
    """

    complete: bool
    ends: tuple[SectorEnd, ...]
    rejected: npt.NDArray[np.void]
    checksums: npt.NDArray[np.void]


@dataclass(frozen=True)
class WriteReport:
    """How the dataset was written; the same on every rank.

    ``file_bytes`` is the size of the file, ``seconds_events`` the time for the event arrays alone, ``seconds`` the
    time for everything, checks and flushing included. ``warning`` says why one rank wrote for all, if that was not
    asked for.
    """

    path: Path
    file_bytes: int
    event_bytes: int
    writing_ranks: int
    parallel: bool
    seconds_events: float
    seconds: float
    warning: str | None = None
