"""Do the pixels look as if the sector files were of the other version of the raw format?

Nothing in versions 4 and 5 tells them apart but the image: pixels that follow each other by 144 are neighbours within
a column of a version 4 sector (576 rows x 144 columns) and far apart in one of version 5 (144 rows x 576 columns),
where neighbours follow by 576.
"""

import numpy as np
import numpy.typing as npt

from mpistream.acquisition.sector_files import FileSectorSource, SectorIndex
from mpistream.model.geometry import HEADER_BYTES, RECORD_BYTES, SectorLayout

_RECORDS = 8
#: Correlations of unrelated pixels scatter by 1 / sqrt(82944) = 0.0035.
_CLEARLY_CORRELATED = 0.035
_UNCORRELATED = 0.0175


def looks_like_other_layout(indices: list[SectorIndex], layout: SectorLayout) -> bool:
    """Whether the pixels of the first frames clearly contradict ``layout``. Without structure there is no telling."""
    sums = [_sum_of_first_records(sector, index) for sector, index in enumerate(indices) if len(index.frame_numbers)]
    by_144, by_576 = np.mean([(_correlation(pixels, 144), _correlation(pixels, 576)) for pixels in sums], axis=0)
    if layout is SectorLayout.ROWS:
        return bool(by_144 > _CLEARLY_CORRELATED and by_144 > 0.5 * by_576)
    return bool(by_576 > _CLEARLY_CORRELATED and by_144 < _UNCORRELATED)


def _sum_of_first_records(sector: int, index: SectorIndex) -> npt.NDArray[np.float64]:
    source = FileSectorSource(sector, index)
    buffer = memoryview(bytearray(RECORD_BYTES))
    total = np.zeros((RECORD_BYTES - HEADER_BYTES) // 2)
    try:
        for frame_number in index.frame_numbers[:_RECORDS].tolist():
            source.read_block(frame_number, 1, buffer)
            total += np.frombuffer(buffer, "<u2", offset=HEADER_BYTES)
    finally:
        source.close()
    return total


def _correlation(pixels: npt.NDArray[np.float64], distance: int) -> float:
    """Of pixels ``distance`` apart. Dead and hot pixels are cut off: they would outweigh all others."""
    clipped = np.clip(pixels, *np.percentile(pixels, (1, 99)))
    deviation = clipped - clipped.mean()
    variance = float(np.mean(deviation**2))
    return float(np.mean(deviation[distance:] * deviation[:-distance])) / variance if variance else 0.0
