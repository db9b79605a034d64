"""The 4D Camera: four sectors make a frame; the records in which a sector of a frame is stored and sent.

Source: the raw format that the camera writes and stempy reads (versions 4 and 5).
Shapes are (rows, columns) throughout.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

SECTORS = 4
ALL_SECTORS = (1 << SECTORS) - 1
FRAME_SHAPE = (576, 576)
FRAME_PIXELS = FRAME_SHAPE[0] * FRAME_SHAPE[1]
PIXEL_DTYPE = np.dtype("<u2")

#: Header of one record: one sector of one frame. ``x`` is the scan column, ``y`` the scan row.
RECORD_HEADER = np.dtype(
    [
        ("scan_number", "<u4"),
        ("frame_number", "<u4"),
        ("columns", "<u2"),
        ("rows", "<u2"),
        ("x", "<u2"),
        ("y", "<u2"),
    ]
)
HEADER_BYTES = RECORD_HEADER.itemsize
SECTOR_BYTES = FRAME_PIXELS // SECTORS * PIXEL_DTYPE.itemsize
RECORD_BYTES = HEADER_BYTES + SECTOR_BYTES


class SectorLayout(IntEnum):
    """How the pixels of a sector lie in the frame; the value is the version of the raw format."""

    COLUMNS = 4
    ROWS = 5

    @property
    def sector_shape(self) -> tuple[int, int]:
        """Shape (rows, columns) of one sector, row-major in its record."""
        rows, columns = FRAME_SHAPE
        return (rows, columns // SECTORS) if self is SectorLayout.COLUMNS else (rows // SECTORS, columns)

    def sector_slices(self, sector: int) -> tuple[slice, slice]:
        """The (rows, columns) of a frame that ``sector`` fills."""
        rows, columns = self.sector_shape
        if self is SectorLayout.COLUMNS:
            return slice(0, rows), slice(sector * columns, (sector + 1) * columns)
        return slice(sector * rows, (sector + 1) * rows), slice(0, columns)


@dataclass(frozen=True)
class ScanShape:
    """A grid of probe positions; ``position = row * columns + column``."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if not (1 <= self.rows <= 0xFFFF and 1 <= self.columns <= 0xFFFF):
            raise ValueError(f"a scan has 1 to 65535 rows and columns, not {self.rows} x {self.columns}")

    @property
    def positions(self) -> int:
        return self.rows * self.columns

    @classmethod
    def parse(cls, text: str) -> "ScanShape":
        """``"64x65"`` is 64 rows of 65 columns. Raises ValueError."""
        rows, separator, columns = text.lower().partition("x")
        if not (separator and rows.isdecimal() and columns.isdecimal()):
            raise ValueError(f"{text!r} is no scan shape; write ROWSxCOLUMNS, for instance 64x65")
        return cls(int(rows), int(columns))

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns}"
