"""Assembles scans whose blocks lie in memories and journals, some of them several times. Runs on any number of ranks.

``program_assembly FOLDER SEED``
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from mpi4py import MPI

from mpistream.model.config import Config
from mpistream.model.counted_block import CountedBlock, diffraction_sum_of
from mpistream.model.errors import MpistreamError, ScanFailed, StorageError
from mpistream.model.geometry import SECTORS
from mpistream.model.protocol import blocks_digest
from mpistream.model.scan import Durability, ScanRecord, ScanSummary, SectorEnd, Thresholds
from mpistream.pipeline.ranks.assembly import gather_scan, summary_of_written, write_scan
from mpistream.pipeline.ranks.orders import CountedScan
from mpistream.reduction.scan_reduction import ScanReduction
from mpistream.storage.journal import JournalWriter
from mpistream.storage.reader import open_dataset
from tests.unit.made_up_blocks import BACKGROUND, XRAY, block_message, scan_record

CONFIG = Config()
RECORD = scan_record(first_frame=4, last_frame=11, block_frames=1)  # blocks 4 to 11, one frame each
FULL, PARTIAL = (1, 1, 1, 1), (1, 1, 1, 0)


def counted(record: ScanRecord, reduction: ScanReduction, block: int, present: tuple[int, ...]) -> CountedBlock:
    for sector in range(SECTORS):
        assembled = reduction.assembly.add(*block_message(record, block, sector, present[sector]))
    assert assembled is not None
    found = reduction.count(assembled)
    assert found is not None
    return found


def prepared(record: ScanRecord) -> ScanReduction:
    reduction = ScanReduction.prepare(record)
    reduction.set_thresholds(Thresholds(background=BACKGROUND, xray=XRAY, calibrated=False))
    return reduction


@dataclass(frozen=True)
class Copy:
    """One counted version of a block, in a rank's memory or in the journal of a job that was lost."""

    block: int
    full: bool
    rank: int
    journaled: bool


def distribution(random: np.random.Generator, size: int, whole: bool = True) -> list[Copy]:
    """Of every block some copies, at least one of them full."""
    copies = []
    for block in RECORD.block_range:
        for number in range(random.integers(1, 5)):
            full = bool(number == 0 and whole) or bool(random.integers(0, 2))
            copies.append(Copy(block, full, int(random.integers(0, size)), bool(random.integers(0, 2))))
    return [copies[index] for index in random.permutation(len(copies))]


class Assembly:
    """One scan, its blocks counted once, in a folder of its own."""

    def __init__(self, comm: MPI.Comm, folder: Path) -> None:
        self.comm, self.folder = comm, folder
        reduction = prepared(RECORD)
        self.versions = {(block, True): counted(RECORD, reduction, block, FULL) for block in RECORD.block_range}
        reduction = prepared(RECORD)
        self.versions |= {(block, False): counted(RECORD, reduction, block, PARTIAL) for block in RECORD.block_range}
        self.scans = 0

    def scan(self, copies: list[Copy], ends: tuple[SectorEnd, ...], **changes: object) -> CountedScan:
        """As every rank gets it from its receiver; the journals are written by those who have journaled copies."""
        self.scans += 1
        record = RECORD.model_copy(
            update={"uid": UUID(int=self.scans), "journals": str(self.folder / f"journals-{self.scans}")}
        )
        mine = [copy for copy in copies if copy.rank == self.comm.rank]
        blocks = [self.versions[copy.block, copy.full] for copy in mine if not copy.journaled]
        journals = []
        for number in range(2):  # two incarnations of the rank
            path = Path(record.journals) / f"rank-{self.comm.rank}-{number}.journal"
            writer = JournalWriter.create(path, record.uid, number, Durability.WRITE)
            writer.append([self.versions[copy.block, copy.full] for copy in mine[number::2] if copy.journaled])
            writer.close()
            journals.append((path, writer.bytes))
        with path.open("ab") as file:
            file.write(b"torn")
        scan = CountedScan(
            prepared(record),
            ends,
            blocks,
            diffraction_sum_of(blocks),
            tuple(journal for some in self.comm.allgather(journals) for journal in some),
            self.folder / f"scan-{self.scans}.h5",
            "1-0",
        )
        return replace(scan, **changes)  # type: ignore[arg-type]

    def write(self, scan: CountedScan) -> ScanSummary:
        return write_scan(self.comm, CONFIG, scan, gather_scan(self.comm, CONFIG, scan), "job")

    def fails(self, kind: type[MpistreamError], text: str, action: Callable[[], object]) -> None:
        """The same error on every rank."""
        with pytest.raises(MpistreamError) as caught:
            action()
        error = caught.value
        messages = self.comm.allgather((type(error), error.message, error.remedy))
        assert len(set(messages)) == 1, messages
        assert type(error) is kind, error
        assert text in error.message, error
        assert error.remedy

    def check_dataset(self, copies: list[Copy], ends: tuple[SectorEnd, ...]) -> None:
        scan = self.scan(copies, ends)
        assert summary_of_written(self.comm, scan) is None
        summary = self.write(scan)
        assert len(set(self.comm.allgather(summary.counters.model_dump_json()))) == 1
        best = {copy.block: any(other.full for other in copies if other.block == copy.block) for copy in copies}
        winners = [self.versions[block, full] for block, full in sorted(best.items())]
        assert summary.complete == (not any(end.cut for end in ends))
        assert summary.counters.frames == len(winners)
        assert summary.counters.blocks_repeated == len(copies) - len(winners)
        assert summary.counters.raw_bytes == sum(block.raw_bytes for block in winners)
        assert summary.counters.frames_incomplete == list(best.values()).count(False)
        assert summary.counters.frames_lost == len(RECORD.block_range) - len(winners)
        with open_dataset(scan.output) as dataset:
            np.testing.assert_array_equal(dataset.frame_number, sorted(best))
            expected = [block.events.indices for block in winners]
            np.testing.assert_array_equal(dataset.events.indices, np.concatenate([np.empty(0, np.uint32), *expected]))
            np.testing.assert_array_equal(dataset.missing_sectors, [0 if best[frame] else 8 for frame in sorted(best)])
            np.testing.assert_array_equal(dataset.diffraction_sum(), diffraction_sum_of(winners))
        self.check_found_again(scan, summary)

    def check_found_again(self, scan: CountedScan, summary: ScanSummary) -> None:
        """By a job that takes over, whatever it knows, and though the scan was redirected meanwhile: the dataset is
        there; what other attempts left is removed.
        """
        record = scan.record.model_copy(update={"output": str(scan.output)})
        elsewhere = scan.output.with_name(f"redirected-{scan.output.name}")
        for redirected in (scan, replace(scan, reduction=prepared(record), output=elsewhere)):
            places = {scan.output, redirected.output}
            partials = [place.with_name(f"{place.name}.partial.{record.uid.hex}.7-3") for place in places]
            if self.comm.rank == 0:
                for partial in partials:
                    partial.write_bytes(b"left")
            self.comm.Barrier()
            found = summary_of_written(self.comm, replace(redirected, blocks=[], journals=()))
            assert found is not None
            assert (found.counters, found.dataset) == (summary.counters, summary.dataset)
            assert not any(partial.exists() for partial in partials)
            self.comm.Barrier()


def ends_of(present: dict[int, tuple[int, ...]], cut: tuple[int, ...] = ()) -> tuple[SectorEnd, ...]:
    """What producers say who sent these bit maps, by block."""
    ends = []
    for sector in range(SECTORS):
        end = SectorEnd.cut_short(sector, "gone")
        if sector not in cut:
            digest = blocks_digest(sector, present, [maps[sector] for maps in present.values()])
            end = end.model_copy(update={"cut": "", "digest": digest, "blocks": len(present)})
        ends.append(end)
    return tuple(ends)


ALL_SENT = ends_of(dict.fromkeys(RECORD.block_range, FULL))


def check_errors(assembly: Assembly, random: np.random.Generator) -> None:
    comm = assembly.comm
    copies = distribution(random, comm.size)
    without = [copy for copy in copies if copy.block != 7]
    count = len(RECORD.block_range)
    scan = assembly.scan(without, ALL_SENT)
    assembly.fails(ScanFailed, f"{count - 1} of {count} blocks", lambda: gather_scan(comm, CONFIG, scan))
    assert not scan.output.exists()

    wrong = (*ALL_SENT[:2], ALL_SENT[2].model_copy(update={"digest": 5}), ALL_SENT[3])
    scan = assembly.scan(copies, wrong)
    assembly.fails(ScanFailed, "the frames of sector 2", lambda: gather_scan(comm, CONFIG, scan))

    # one bit of one electron, on the last rank only
    good = [copy for copy in copies if copy.full or copy.block != 5]
    scan = assembly.scan([*good, Copy(5, True, 0, False)], ALL_SENT)
    if comm.rank == comm.size - 1:
        block = assembly.versions[5, True]
        indices = block.events.indices.copy()
        indices[0] ^= 1
        scan = replace(scan, blocks=[*scan.blocks, replace(block, events=replace(block.events, indices=indices))])
    assembly.fails(ScanFailed, "of block 5", lambda: gather_scan(comm, CONFIG, scan))

    # a journal that has been shortened, one that is not there: another rank than its own reads it
    journaled = [replace(copy, journaled=True) for copy in copies]
    for spoil in (lambda path: path.write_bytes(path.read_bytes()[:-40]), Path.unlink):
        scan = assembly.scan(journaled, ALL_SENT)
        path = max(scan.journals, key=lambda journal: journal[1])[0]
        if comm.rank == 0:
            spoil(path)
        comm.Barrier()
        assembly.fails(StorageError, str(path), lambda scan=scan: gather_scan(comm, CONFIG, scan))  # type: ignore[misc]

    # the communicator is as it was
    assembly.check_dataset(copies, ALL_SENT)


def check_other_files(assembly: Assembly) -> None:
    """A dataset of another scan is not taken for this one."""
    scan = assembly.scan(distribution(np.random.default_rng(1), assembly.comm.size), ALL_SENT)
    assembly.write(scan)
    other = replace(scan, reduction=prepared(scan.record.model_copy(update={"uid": UUID(int=99)})))
    assert summary_of_written(assembly.comm, other) is None
    assert scan.output.exists()


def main() -> None:
    comm = MPI.COMM_WORLD.Dup()
    random = np.random.default_rng(int(sys.argv[2]))
    assembly = Assembly(comm, Path(sys.argv[1]))
    for _ in range(2):
        assembly.check_dataset(distribution(random, comm.size), ALL_SENT)
    # nothing of sector 3 came of some blocks, which its end says, or which nobody can tell
    copies = distribution(random, comm.size, whole=False)
    sent = {
        block: FULL if any(copy.full for copy in copies if copy.block == block) else PARTIAL
        for block in RECORD.block_range
    }
    assembly.check_dataset(copies, ends_of(sent))
    assembly.check_dataset(copies, ends_of(sent, cut=(3,)))
    some = [copy for copy in copies if copy.block in (5, 6, 10)]
    assembly.check_dataset(some, ends_of({}, cut=(0, 1, 2, 3)))
    assembly.check_dataset([], ends_of({}, cut=(0, 1, 2, 3)))
    check_errors(assembly, random)
    check_other_files(assembly)
    comm.Free()
    print("assembled" if MPI.COMM_WORLD.rank == 0 else "", end="")


if __name__ == "__main__":
    main()
