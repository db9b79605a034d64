"""What a producer reads from, whatever it is."""

from typing import Protocol


class SectorSource(Protocol):
    """One sector of one scan. Raises SourceError when it cannot be read any more.

    sectors_duplicate  records that occur again; the first in the order of file names and records is used
    sectors_rejected   records left out because they are bad
    is_live            it does not wait: what is not read in time is gone, and nothing can be read again for long
    frames_lost        of those that were asked for, how many were gone; 0 where nothing goes
    """

    sector: int
    sectors_duplicate: int
    sectors_rejected: int
    is_live: bool
    frames_lost: int

    def read_block(self, block: int, block_frames: int, buffer: memoryview) -> int:
        """Writes the records (verbatim: header and pixels) of frames block * block_frames and following to ``buffer``.

        They lie one behind the other in ascending order of frames from the beginning of ``buffer``, which has
        block_frames * RECORD_BYTES writable bytes. Returns the bit map of the frames present.
        """
        ...

    def frames_present(self, block: int, block_frames: int) -> int | None:
        """The bit map that ``read_block`` returns, without reading pixels; None where only reading tells."""
        ...

    def seconds_until(self, block: int, block_frames: int) -> float:
        """When all frames of the block will be there; 0 where they are."""
        ...

    def close(self) -> None: ...
