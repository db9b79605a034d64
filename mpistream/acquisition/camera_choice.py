"""Which scan a message of the camera belongs to, though scan numbers are used again. Pure."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from mpistream.acquisition.camera_end import SectorEndDetector


class Heard(Protocol):
    """A scan of which this sector has heard, in the order in which they began."""

    scan_number: int
    has_ended: bool
    end: SectorEndDetector

    @property
    def is_complete(self) -> bool: ...


Scan = TypeVar("Scan", bound=Heard)

#: Instead of a scan: the message comes too late, or begins another scan of its number.
LATE, BEGINS = "late", "begins"


def scan_of(scan_number: int, scans: Sequence[Scan], now: float) -> Scan | str:
    """Where a message with ``scan_number`` goes: to the latest scan of that number while it has not ended.

    Afterwards the message is late as long as one of this scan still may come: for a while after its last message, and
    while a scan that began after it has not ended. From then on it begins another scan of the same number.
    """
    for place in reversed(range(len(scans))):
        scan = scans[place]
        if scan.scan_number != scan_number:
            continue
        if not scan.has_ended:
            return scan
        later_one_is_under_way = any(not later.has_ended for later in scans[place + 1 :])
        return LATE if later_one_is_under_way or scan.end.may_be_late(now, scan.is_complete) else BEGINS
    return BEGINS


def is_forgotten(place: int, scans: Sequence[Heard], now: float) -> bool:
    """Whether the scan at ``place`` decides nothing any more: its messages are not late, but of another scan.

    The last three are remembered: whichever of them is under way, there is one before it.
    """
    scan = scans[place]
    still_counts = not scan.has_ended or scan.end.may_be_late(now, scan.is_complete)
    return not still_counts and len(scans) - place > 3
