"""Checks a raw recording from end to end: every record that was sent is there, and its pixels are those that came."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mpistream.model import recording_layout as layout
from mpistream.model.geometry import ALL_SECTORS, SECTORS
from mpistream.storage.delivery import SectorTotals, frames_of, mark_rejected, mark_rows
from mpistream.storage.recording_reader import Recording, open_recording
from mpistream.storage.verify import Check, Faults, Verification, check_ends

#: Frames of one sector in memory at a time, 166 kB each.
_FRAMES_AT_A_TIME = 64


def verify_recording(path: Path) -> Verification:
    """Raises StorageError for what is no recording, or cannot be read to its end."""
    with open_recording(path) as recording:
        checks = tuple(_Inspection(recording).run())
        return Verification(path, recording.scan_uid, recording.counters.get("frames", 0), 0, checks)


class _Inspection:
    """The work of ``verify_recording``. The index is in memory, 29 bytes per frame; the pixels are read once."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        record = recording.provenance["scan_record"]
        self._frames = range(int(record["first_frame"]), int(record["last_frame"]) + 1)
        self._block_frames = int(record["block_frames"])
        rows = recording.rows
        self._number, self._position, self._missing, self._checksums = (
            recording.read(name, 0, rows) for name in layout.INDEX_ARRAYS
        )

    def run(self) -> Iterator[Check]:
        yield self._check_frames()
        yield from self._check_deliveries()
        yield self._check_pixels()
        yield self._check_counters()

    def _check_frames(self) -> Check:
        faults, nothing = Faults(), self._missing == ALL_SECTORS
        rows, columns = self._recording.scan_shape
        if self._number.tolist() != list(self._frames):
            faults.found["rows too many or too few, or not in the order of frame numbers"] = len(self._number), 0
        faults.add("scan positions outside the scan", ~nothing & (self._position >= rows * columns), 0)
        faults.add("scan positions of frames that never came", nothing & (self._position != layout.NOWHERE), 0)
        faults.add("missing sectors that no frame has", self._missing > ALL_SECTORS, 0)
        return faults.check("frames", f"{np.count_nonzero(~nothing)} of {len(self._frames)} frame numbers, in order")

    def _check_deliveries(self) -> Iterator[Check]:
        first, last = self._frames[0] // self._block_frames, self._frames[-1] // self._block_frames
        blocks, totals = range(first, last + 1), SectorTotals()
        marks: npt.NDArray[np.uint8] = np.zeros(len(blocks) * self._block_frames, np.uint8)
        here = self._missing != ALL_SECTORS
        frames = frames_of(blocks, self._block_frames)
        mark_rows(marks, frames, self._number[here], self._missing[here])
        if both := mark_rejected(marks, frames, self._recording.rejected):
            yield Check("rejected", "bad", f"{both} records are called rejected, and are there all the same")
        totals.add(marks, blocks, self._block_frames)
        yield from check_ends(totals, self._recording.ends)

    def _check_pixels(self) -> Check:
        wrong, records = [], 0
        for sector in range(SECTORS):
            there = np.flatnonzero(self._missing >> sector & 1 == 0)
            records += len(there)
            for first in range(0, self._recording.rows, _FRAMES_AT_A_TIME):
                begin, end = np.searchsorted(there, [first, first + _FRAMES_AT_A_TIME])
                if some := there[begin:end].tolist():
                    pixels = self._recording.pixels(sector, first, min(first + _FRAMES_AT_A_TIME, self._recording.rows))
                    wrong += [
                        f"sector {sector} of frame {self._number[row]}"
                        for row in some
                        if zlib.crc32(pixels[row - first].data) != self._checksums[row, sector]
                    ]
        if wrong:
            more = f" and {len(wrong) - 1} others" if len(wrong) > 1 else ""
            return Check("pixels", "bad", f"not as they came: {wrong[0]}{more}")
        return Check("pixels", "good", f"of {records} records, as they came")

    def _check_counters(self) -> Check:
        here = self._missing[self._missing != ALL_SECTORS]
        expected = {
            "frames": len(here),
            "frames_incomplete": int(np.count_nonzero(here)),
            "sectors_missing": sum(int(np.count_nonzero(here >> sector & 1)) for sector in range(SECTORS)),
            "frames_lost": len(self._frames) - len(here),
        }
        counters = self._recording.counters
        wrong = [
            f"{name} is {counters.get(name)}, the index has {count}"
            for name, count in expected.items()
            if counters.get(name) != count
        ]
        return Check("counters", "bad", "; ".join(wrong)) if wrong else Check("counters", "good", "as the index has it")
