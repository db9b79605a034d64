"""Checks a dataset from end to end: that nothing is lost, torn or altered. Needs neither etcd nor MPI.

The file is read once, a part at a time. Beside that part there are one byte per frame number of the scan, and images.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mpistream.model import h5_layout as layout
from mpistream.model.geometry import ALL_SECTORS, SECTORS
from mpistream.model.protocol import MAX_BLOCK_FRAMES
from mpistream.model.scan import SectorEnd
from mpistream.model.virtual_images import frame_runs
from mpistream.storage.checksums import SlabChecksums
from mpistream.storage.delivery import SectorTotals, frames_of, mark_rejected, mark_rows
from mpistream.storage.reader import Dataset, whole_dataset
from mpistream.storage.recounted_images import RecountedImages

REMEDY = "take a copy that is right, if there is one; otherwise stream the scan again"

#: Frames of which all but the events is in memory at a time, and blocks whose bit maps are.
_CHUNK_FRAMES = 1 << 18
_CHUNK_BLOCKS = 1 << 16
#: More frame numbers than a camera can count.
_MOST_FRAMES = 1 << 32


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and how it was found; ``unknown`` where the file does not say enough."""

    name: str
    outcome: Literal["good", "bad", "unknown"]
    text: str


@dataclass(frozen=True)
class Verification:
    """All that was looked at in one dataset."""

    path: Path
    scan_uid: str
    frames: int
    electrons: int
    checks: tuple[Check, ...]

    @property
    def findings(self) -> tuple[str, ...]:
        """What is wrong; nothing in a dataset that is as it should be."""
        return tuple(f"{check.name}: {check.text}" for check in self.checks if check.outcome == "bad")

    def to_json(self) -> dict[str, Any]:
        return {
            "file": str(self.path),
            "scan_uid": self.scan_uid,
            "good": not self.findings,
            "frames": self.frames,
            "electrons": self.electrons,
            "checks": [asdict(check) for check in self.checks],
        }


def verify_dataset(path: Path) -> Verification:
    """Raises StorageError for what is no dataset, or cannot be read to its end."""
    with whole_dataset(path) as dataset:
        return Verification(path, dataset.scan_uid, dataset.n_frames, dataset.n_electrons, inspect_dataset(dataset))


def inspect_dataset(dataset: Dataset) -> tuple[Check, ...]:
    """All checks of an open dataset. Raises what reading a damaged file raises."""
    return tuple(_Inspection(dataset).run())


@dataclass
class Faults:
    """Of each kind of fault how often there is one, and in which row the first is."""

    found: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, kind: str, wrong: npt.NDArray[np.bool_], first_row: int) -> None:
        """``wrong`` is of the rows from ``first_row`` on."""
        if count := int(np.count_nonzero(wrong)):
            before, row = self.found.get(kind, (0, first_row + int(np.argmax(wrong))))
            self.found[kind] = before + count, row

    def check(self, name: str, good: str) -> Check:
        if not self.found:
            return Check(name, "good", good)
        kinds = (f"{count} {kind} (first in row {row})" for kind, (count, row) in self.found.items())
        return Check(name, "bad", "; ".join(kinds))


class _Inspection:
    """The work of ``verify_dataset``."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._delivery = dataset.delivery
        record = dataset.provenance["scan_record"]
        self._block_frames = int(record["block_frames"])
        self._frames = range(int(record["first_frame"]), int(record["last_frame"]) + 1)
        if not (0 < len(self._frames) <= _MOST_FRAMES and 1 <= self._block_frames <= MAX_BLOCK_FRAMES):
            raise ValueError(f"its record tells of {self._frames} in blocks of {self._block_frames}")
        first, last = self._frames[0] // self._block_frames, self._frames[-1] // self._block_frames
        self._blocks = range(first, last + 1)
        self._marked = frames_of(self._blocks, self._block_frames)
        self._marks = np.zeros(len(self._marked), np.uint8)
        self._in_frames, self._in_events = Faults(), Faults()
        self._images = RecountedImages(dataset)
        self._frames_incomplete = self._sectors_missing = 0
        # of the frame before, (scan position, frame number)
        self._before: tuple[int, int] = (0, -1)

    def run(self) -> Iterator[Check]:
        """Everything is read before the first check is told."""
        slabs = self._slabs()
        wrong: list[str] = []
        for first_frame, n_frames, _, _, *stored in (
            [(0, self._dataset.n_frames, 0, 0)] if slabs is None else slabs.tolist()
        ):
            sums = self._read_slab(first_frame, n_frames)
            names = layout.CHECKSUM_NAMES
            differing = [name for name, one, other in zip(names, sums.values, stored, strict=False) if one != other]
            if differing:
                wrong.append(f"{', '.join(differing)} of the {n_frames} frames from row {first_frame}")
        totals = SectorTotals()
        yield from self._check_deliveries(totals)
        unlike = self._dataset.n_frames - totals.rows
        if unlike:
            kind = "rows too many: of frames that have another row or are outside the scan"
            self._in_frames.found.setdefault(kind, (unlike, 0))
        yield self._in_frames.check("frames", f"{self._dataset.n_frames} in order, each with one row")
        yield self._in_events.check("electrons", f"{self._dataset.n_electrons} in order, each on a pixel of the frame")
        yield self._check_checksums(slabs, wrong)
        yield self._check_images()
        yield self._check_counters()

    def _slabs(self) -> npt.NDArray[np.void] | None:
        """The table of checksums; None where there is none, or it does not cover the file."""
        if self._delivery is None:
            return None
        slabs = self._delivery.checksums
        for kind, rows in (("frame", self._dataset.n_frames), ("event", self._dataset.n_electrons)):
            count, first = slabs[f"n_{kind}s"], slabs[f"first_{kind}"]
            if first.tolist() != (np.cumsum(count) - count).tolist() or int(count.sum()) != rows:
                return None
        return slabs if slabs.dtype == np.dtype(layout.CHECKSUM_DTYPE) else None

    def _read_slab(self, first: int, count: int) -> SlabChecksums:
        sums, end = SlabChecksums(), first + count
        for begin in range(first, end, _CHUNK_FRAMES):
            stop = min(begin + _CHUNK_FRAMES, end)
            offsets = self._dataset.read(layout.OFFSETS, begin, stop + 1)
            sums.add(layout.OFFSETS, offsets[:-1])
            names = layout.SCAN_POSITION, layout.FRAME_NUMBER, layout.MISSING_SECTORS
            columns = [self._dataset.read(name, begin, stop) for name in names]
            for name, values in zip(names, columns, strict=True):
                sums.add(name, values)
            position, number, missing = columns
            self._look_at_frames(begin, position, number, missing)
            if self._look_at_offsets(begin, offsets):
                self._read_events(position, offsets, sums)
        sums.add(layout.OFFSETS, self._dataset.read(layout.OFFSETS, end, end + 1))
        return sums

    def _look_at_frames(
        self,
        row: int,
        position: npt.NDArray[np.uint32],
        number: npt.NDArray[np.uint64],
        missing: npt.NDArray[np.uint8],
    ) -> None:
        rows, columns = self._dataset.scan_shape
        faults = self._in_frames
        faults.add("scan positions outside the scan", position >= rows * columns, row)
        outside = (number < self._frames.start) | (number >= self._frames.stop)
        faults.add("frame numbers outside the scan", outside, row)
        faults.add("missing sectors that no frame has", missing > ALL_SECTORS, row)
        faults.add("frames of which no sector came", missing == ALL_SECTORS, row)
        before = self._before
        positions = np.concatenate(([before[0]], position.astype(np.int64)))
        numbers = np.concatenate(([before[1]], number.astype(np.int64)))
        steps = np.diff(positions)
        faults.add("frames out of order", (steps < 0) | ((steps == 0) & (np.diff(numbers) <= 0)), row)
        self._before = int(positions[-1]), int(numbers[-1])
        mark_rows(self._marks, self._marked, number, missing)
        self._frames_incomplete += int(np.count_nonzero(missing & ALL_SECTORS))
        self._sectors_missing += sum(int(np.count_nonzero(missing >> sector & 1)) for sector in range(SECTORS))

    def _look_at_offsets(self, row: int, offsets: npt.NDArray[np.uint64]) -> bool:
        """Whether they can be followed to the events."""
        falling = offsets[1:] < offsets[:-1]
        beyond = offsets[1:] > self._dataset.n_electrons
        pixels = self._dataset.frame_shape[0] * self._dataset.frame_shape[1]
        too_many = ~falling & (offsets[1:] - offsets[:-1] > pixels)
        wrong = falling | beyond | too_many
        self._in_frames.add("offsets that do not rise from 0 to the last electron", wrong, row)
        return not wrong.any()

    def _read_events(
        self, position: npt.NDArray[np.uint32], offsets: npt.NDArray[np.uint64], sums: SlabChecksums
    ) -> None:
        pixels = self._dataset.frame_shape[0] * self._dataset.frame_shape[1]
        for frames in frame_runs(offsets):
            begin, stop = int(offsets[frames.start]), int(offsets[frames.stop])
            indices = self._dataset.read(layout.INDICES, begin, stop)
            sums.add(layout.INDICES, indices)
            if self._dataset.has_centroids:
                sums.add(layout.CENTROIDS, self._dataset.read(layout.CENTROIDS, begin, stop))
            bounds = offsets[frames.start : frames.stop + 1] - np.uint64(begin)
            self._in_events.add("electrons outside the frame", indices >= pixels, begin)
            self._in_events.add("electrons out of order, or twice", _not_ascending(indices, bounds), begin)
            if not (self._in_events.found or self._in_frames.found):
                self._images.add(position[frames], bounds, indices)

    def _check_deliveries(self, totals: SectorTotals) -> Iterator[Check]:
        """What came of each sector and what its producer says it sent. Fills ``totals``."""
        both = 0
        if self._delivery is not None:
            both = mark_rejected(self._marks, self._marked, self._delivery.rejected)
        for first in range(0, len(self._blocks), _CHUNK_BLOCKS):
            blocks, frames = self._blocks[first : first + _CHUNK_BLOCKS], first * self._block_frames
            totals.add(self._marks[frames : frames + len(blocks) * self._block_frames], blocks, self._block_frames)
        if self._delivery is None:
            text = "the file does not say what was sent: it has no metadata/delivery"
            yield Check("deliveries", "unknown", text)
            return
        if both:
            yield Check("rejected", "bad", f"{both} records are called rejected, and are there all the same")
        yield from check_ends(totals, self._delivery.ends)

    def _check_checksums(self, slabs: npt.NDArray[np.void] | None, wrong: list[str]) -> Check:
        if self._delivery is None:
            return Check("checksums", "unknown", "the file has none: it has no metadata/delivery")
        if slabs is None:
            return Check("checksums", "bad", "they are not those of the file's arrays: other sizes")
        if wrong:
            return Check("checksums", "bad", "; ".join(wrong))
        return Check("checksums", "good", f"as written, of all arrays in {len(slabs)} parts")

    def _check_images(self) -> Check:
        if self._in_frames.found or self._in_events.found:
            return Check("images", "unknown", "not compared, since the frames or electrons are wrong")
        differing = self._images.differing()
        if differing:
            return Check("images", "bad", f"{', '.join(differing)}: not what the electrons add up to")
        return Check("images", "good", "what the electrons add up to")

    def _check_counters(self) -> Check:
        expected = {
            "frames": self._dataset.n_frames,
            "electrons": self._dataset.n_electrons,
            "frames_incomplete": self._frames_incomplete,
            "sectors_missing": self._sectors_missing,
            "frames_lost": len(self._frames) - self._dataset.n_frames,
        }
        counters = self._dataset.counters
        wrong = [
            f"{name} is {counters.get(name)}, the arrays have {count}"
            for name, count in expected.items()
            if counters.get(name) != count
        ]
        return (
            Check("counters", "bad", "; ".join(wrong)) if wrong else Check("counters", "good", "as the arrays have it")
        )


def check_ends(totals: SectorTotals, all_ends: Iterable[SectorEnd]) -> Iterator[Check]:
    """Of each sector: are there exactly the records that its producer says it sent?"""
    ends = {end.sector: end for end in all_ends}
    for sector in range(SECTORS):
        name, records = f"sector {sector}", totals.records[sector]
        if sector not in ends:
            yield Check(name, "unknown", f"{records} records; the file does not say what was sent")
        elif (as_sent := totals.is_as_sent(ends[sector])) is None:
            reason = ends[sector].cut or "its producer was started again and does not know"
            yield Check(name, "unknown", f"{records} records; what was sent is not known: {reason}")
        elif as_sent:
            yield Check(name, "good", f"{records} records, exactly those that its producer sent")
        else:
            yield Check(name, "bad", totals.contradiction(ends[sector]))


def _not_ascending(indices: npt.NDArray[np.uint32], bounds: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """bool[n]: the events that do not lie behind the one before of the same frame."""
    wrong = np.zeros(len(indices), bool)
    np.less_equal(indices[1:], indices[:-1], out=wrong[1:])
    firsts = bounds[:-1].astype(np.intp)
    wrong[firsts[firsts < len(indices)]] = False
    return wrong
