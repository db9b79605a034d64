"""What a rank's receiving thread orders its main thread to do."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mpistream.model.counted_block import JournaledBlock
from mpistream.model.scan import ScanRecord, SectorEnd
from mpistream.reduction.scan_reduction import ScanReduction


@dataclass(frozen=True)
class CountedScan:
    """Write the dataset.

    blocks    what this rank has counted, where it still has it in memory, and the electrons on each pixel of that
    journals  what is to be read from disk besides, by all ranks together: paths, and how many bytes are good
    attempt   tells this attempt to write the dataset from all others
    """

    reduction: ScanReduction
    ends: tuple[SectorEnd, ...]
    blocks: list[JournaledBlock]
    diffraction_sum: npt.NDArray[np.uint32]
    journals: tuple[tuple[Path, int], ...]
    output: Path
    attempt: str

    @property
    def record(self) -> ScanRecord:
        return self.reduction.record

    @property
    def journals_folder(self) -> Path:
        return Path(self.record.journals)


@dataclass(frozen=True)
class StopOrder:
    """End."""


Order = CountedScan | StopOrder
