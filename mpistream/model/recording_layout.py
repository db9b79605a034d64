"""Names, types and places in the file of a raw recording, format version 1. See docs/file-format.md, "Raw recordings".

The pixels of every record have their place from the beginning, which follows from the frame numbers alone: so every
rank can put them there as they come, and the file needs no second copy of them.
"""

from dataclasses import dataclass

from mpistream.model.geometry import SECTOR_BYTES, SECTORS, SectorLayout
from mpistream.model.protocol import Encoding

FORMAT_NAME = "mpistream-recording"
FORMAT_VERSION = 1

#: Attribute of the root, beside those that datasets have: which version of the raw format the sectors are of.
ENCODING_ATTRIBUTE = "encoding"

RECORDING = "recording"
FRAME_NUMBER = f"{RECORDING}/frame_number"
SCAN_POSITION = f"{RECORDING}/scan_position"
MISSING_SECTORS = f"{RECORDING}/missing_sectors"
CHECKSUMS = f"{RECORDING}/checksums"
#: The four sectors of each frame put together: a view of them, without pixels of its own.
FULL_FRAMES = f"{RECORDING}/full_frames"
PIXEL_DTYPE = "<u2"

#: name of an array with a row per frame -> dtype, columns (0: it has none)
INDEX_ARRAYS = {
    FRAME_NUMBER: ("<u8", 0),
    SCAN_POSITION: ("<u4", 0),
    MISSING_SECTORS: ("u1", 0),
    CHECKSUMS: ("<u4", SECTORS),
}
#: The scan position of a frame of which no sector came.
NOWHERE = 0xFFFFFFFF

#: HDF5 puts large arrays at multiples of this many bytes; what is before the first one is its own.
ALIGNMENT_BYTES = 1 << 20
#: Arrays of fewer bytes are not aligned. A sector of one frame is larger.
LEAST_ALIGNED_BYTES = 1 << 16


def sector_name(sector: int) -> str:
    """The dataset with the pixels of a sector."""
    return f"{RECORDING}/sector_{sector}"


@dataclass(frozen=True)
class PixelPlaces:
    """Where the pixels of a recording of so many frame numbers, the lost ones included, lie in its file, in bytes."""

    frames: int
    layout: SectorLayout

    @classmethod
    def of(cls, first_frame: int, last_frame: int, encoding: Encoding) -> "PixelPlaces":
        return cls(last_frame - first_frame + 1, encoding.layout)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the dataset of one sector: frames, sector rows, sector columns."""
        return self.frames, *self.layout.sector_shape

    def begin(self, sector: int, row: int = 0) -> int:
        """The first byte of a sector of the frame in this row."""
        aligned = -(-self.frames * SECTOR_BYTES // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return ALIGNMENT_BYTES + sector * aligned + row * SECTOR_BYTES

    @property
    def end(self) -> int:
        """Behind the last pixel."""
        return self.begin(SECTORS - 1, self.frames)
