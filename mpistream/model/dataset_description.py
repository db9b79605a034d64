"""What a dataset says about itself beside its events, and what is known once it is written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from mpistream.model.geometry import FRAME_SHAPE
from mpistream.model.scan import Counters, ScanRecord, Thresholds
from mpistream.model.virtual_images import VirtualDetectors


@dataclass(frozen=True)
class DatasetDescription:
    """The same on every rank. ``thresholds.statistics`` are best named as stempy names them (mean, std_dev, ...).

    dark, gain    float32[frame rows, frame columns] as used for counting, None where there was none
    seconds       how long the stages before the writing took
    provenance    anything else that says where the dataset comes from; values that JSON can hold
    """

    scan: ScanRecord
    thresholds: Thresholds
    counters: Counters
    frame_shape: tuple[int, int] = FRAME_SHAPE
    dark: npt.NDArray[Any] | None = None
    gain: npt.NDArray[Any] | None = None
    detectors: VirtualDetectors = field(default_factory=VirtualDetectors)
    seconds: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scan_shape(self) -> tuple[int, int]:
        return self.scan.rows, self.scan.columns


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
