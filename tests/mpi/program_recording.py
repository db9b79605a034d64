"""Recordings whose blocks came to several ranks and jobs become files. Runs on any number of ranks.

``program_recording FOLDER SEED``: what the ranks write into one file, in memory and in journals of jobs that were lost;
some blocks twice, some not whole; ranks without any.
"""

import sys
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from mpi4py import MPI

from mpistream.model.config import Config
from mpistream.model.counted_block import JournaledBlock
from mpistream.model.errors import MpistreamError, ScanFailed, StorageError
from mpistream.model.geometry import SECTORS
from mpistream.model.scan import ScanRecord, ScanSummary, SectorEnd
from mpistream.pipeline.ranks.assembly import gather_scan, summary_of_written, write_scan
from mpistream.pipeline.ranks.orders import CountedScan
from mpistream.pipeline.ranks.rank_scan import RankScan
from mpistream.reduction.scan_recording import ScanRecording
from mpistream.storage.recording_reader import open_recording
from mpistream.storage.recording_verify import verify_recording
from tests.unit.made_up_blocks import block_message, camera_frame
from tests.unit.made_up_recording import ends_of, recording_record

CONFIG = Config()
FRAMES = {"first_frame": 6, "last_frame": 27, "rows": 3, "columns": 8}
EMPTY = np.empty(0, np.uint32)


def sent(block: int, sector: int) -> int:
    """What the producers sent: of some blocks not all, of frame 17 nothing."""
    whole = {1: 0b1100, 4: 0b1101}.get(block, 0b1111)
    return 0 if block == 5 and sector == 2 else whole


def less(block: int, sector: int) -> int:
    """What a live source could send again, of some."""
    return sent(block, sector) if sector else 0


class Recorded:
    """A scan of which each rank has received some blocks."""

    def __init__(self, comm: MPI.Comm, folder: Path, number: int) -> None:
        self.comm, self.scans = comm, 0
        place = folder / f"scan-{number}"
        if comm.rank == 0:
            place.mkdir()
        comm.Barrier()
        self.record = recording_record(place, uid=UUID(int=number), **FRAMES)
        self.ranks: list[RankScan] = []

    def receive(self, incarnation: int, homes: dict[int, int], present=sent) -> list[JournaledBlock]:
        """What this rank has once the blocks have gone to the ranks of ``homes``."""
        rank = RankScan.prepare(self.record, self.comm.rank, incarnation)
        for block, home in homes.items():
            for sector in range(SECTORS):
                if home % self.comm.size == self.comm.rank:
                    message = block_message(self.record, block, sector, present(block, sector))
                    assembled = rank.receive(*message)
                    if assembled is not None:
                        rank.count(assembled)
        rank.journal_counted(1.0)
        assert not rank.problem, rank.problem
        self.ranks.append(rank)
        return rank.take_blocks()[0]

    def scan(self, blocks: list[JournaledBlock], journals: list[RankScan], **changes: object) -> CountedScan:
        self.scans += 1
        found = [(rank.journal.path, rank.journal.bytes) for rank in journals if rank.journal]
        every = tuple(journal for some in self.comm.allgather(found) for journal in some)
        output = Path(self.record.output)
        reduction = ScanRecording.prepare(self.record)
        scan = CountedScan(reduction, ends_of(self.record, sent), blocks, EMPTY, every, output, f"1-{self.scans}")
        return replace(scan, **changes)  # type: ignore[arg-type]

    def write(self, scan: CountedScan) -> ScanSummary:
        assert summary_of_written(self.comm, scan) is None
        return write_scan(self.comm, CONFIG, scan, gather_scan(self.comm, CONFIG, scan), "job")

    def fails(self, kind: type[MpistreamError], text: str, scan: CountedScan) -> None:
        with pytest.raises(MpistreamError) as caught:
            self.write(scan)
        error = caught.value
        assert len(set(self.comm.allgather((type(error), error.message, error.remedy)))) == 1
        assert type(error) is kind, error
        assert text in error.message, error
        assert error.remedy

    def check(self, scan: CountedScan, summary: ScanSummary) -> None:
        """The file has every record at its place and nothing else; by one rank."""
        self.comm.Barrier()
        if self.comm.rank == 0:
            check_file(self.record, scan.output)
        self.comm.Barrier()
        found = summary_of_written(self.comm, scan)
        assert found is not None
        assert found.counters == summary.counters
        assert found.recording
        for rank in self.ranks:
            rank.close(keep=False)


def check_file(record: ScanRecord, path: Path) -> None:
    verification = verify_recording(path)
    assert not verification.findings, verification
    assert {check.outcome for check in verification.checks} == {"good"}
    with open_recording(path) as recording:
        for frame in range(6, 28):
            for sector in range(SECTORS):
                pixels = recording.pixels(sector, frame - 6, frame - 5)[0]
                there = sent(frame // 4, sector) >> frame % 4 & 1
                expected = camera_frame(frame)[record.encoding.layout.sector_slices(sector)] * np.uint16(there)
                np.testing.assert_array_equal(pixels, expected, err_msg=f"sector {sector} of frame {frame}")


def check_in_one_go(comm: MPI.Comm, folder: Path, random: np.random.Generator) -> None:
    for number, homes in enumerate(({}, {1: 0}, {1: 0, 2: 1, 3: 2})):  # the others are everywhere
        recorded = Recorded(comm, folder, 100 + number)
        every = {block: int(random.integers(0, comm.size)) for block in recorded.record.block_range} | homes
        if not homes:
            every = dict.fromkeys(every, comm.size - 1)  # the other ranks have none
        scan = recorded.scan(recorded.receive(1, every), [])
        recorded.check(scan, recorded.write(scan))
        assert not (folder / f"scan-{100 + number}" / "journals" / "recording.h5").exists()


def check_after_a_lost_job(comm: MPI.Comm, folder: Path, random: np.random.Generator) -> None:
    """Its journals are read; some blocks came again, others only in part; some ranks have nothing."""
    recorded = Recorded(comm, folder, 200)
    blocks = recorded.record.block_range
    recorded.receive(1, {block: int(random.integers(0, 4)) for block in blocks[:4]})
    recorded.receive(2, {blocks[0]: 1, blocks[3]: 0}, less)
    again = recorded.receive(3, dict.fromkeys(blocks[2:], 0))
    scan = recorded.scan(again, recorded.ranks[:2])
    summary = recorded.write(scan)
    assert summary.complete
    assert summary.counters.blocks_repeated == 4
    assert summary.counters.frames == 21
    recorded.check(scan, summary)


def check_nothing_came(comm: MPI.Comm, folder: Path) -> None:
    recorded = Recorded(comm, folder, 250)
    recorded.receive(1, {})
    ends = tuple(SectorEnd.cut_short(sector, "gone") for sector in range(SECTORS))
    scan = recorded.scan([], [], ends=ends)
    summary = recorded.write(scan)
    assert not summary.complete
    assert (summary.counters.frames, summary.counters.frames_lost) == (0, 22)
    comm.Barrier()
    if comm.rank == 0:
        assert not verify_recording(scan.output).findings
    comm.Barrier()


def check_errors(comm: MPI.Comm, folder: Path) -> None:
    recorded = Recorded(comm, folder, 300)
    blocks = recorded.record.block_range
    mine = recorded.receive(1, {block: block for block in blocks})
    without = [block for block in mine if block.block != 3]
    recorded.fails(ScanFailed, f"{len(blocks) - 1} of {len(blocks)} blocks", recorded.scan(without, []))
    wrong = list(ends_of(recorded.record, sent))
    wrong[2] = wrong[2].model_copy(update={"digest": 5})
    recorded.fails(ScanFailed, "the frames of sector 2", recorded.scan(mine, [], ends=tuple(wrong)))
    nowhere = recorded.scan(mine, [], output=folder / "no" / "scan.h5")
    recorded.fails(StorageError, "does not exist", nowhere)
    output = Path(recorded.record.output)
    if comm.rank == 0:
        output.write_text("another file")
    comm.Barrier()
    recorded.fails(StorageError, "exists", recorded.scan(mine, []))
    comm.Barrier()
    if comm.rank == 0:
        assert output.read_text() == "another file"
        output.unlink()
    comm.Barrier()
    # after all of that everything is still there
    scan = recorded.scan(mine, [])
    recorded.check(scan, recorded.write(scan))


def check_another_file_system(comm: MPI.Comm, folder: Path, elsewhere: Path) -> None:
    """Where a scan was redirected to: the file is copied there, by all."""
    recorded = Recorded(comm, folder, 400)
    mine = recorded.receive(1, {block: block for block in recorded.record.block_range})
    scan = recorded.scan(mine, [], output=elsewhere / "redirected.h5")
    summary = recorded.write(scan)
    assert summary.dataset == str(scan.output)
    assert [path.name for path in elsewhere.iterdir()] == ["redirected.h5"]
    recorded.check(scan, summary)


def main() -> None:
    comm = MPI.COMM_WORLD.Dup()
    folder = Path(sys.argv[1])
    random = np.random.default_rng(int(sys.argv[2]))
    check_in_one_go(comm, folder, random)
    check_after_a_lost_job(comm, folder, random)
    check_nothing_came(comm, folder)
    check_errors(comm, folder)
    if len(sys.argv) > 3:
        check_another_file_system(comm, folder, Path(sys.argv[3]))
    comm.Free()
    print("recorded" if MPI.COMM_WORLD.rank == 0 else "", end="")


if __name__ == "__main__":
    main()
