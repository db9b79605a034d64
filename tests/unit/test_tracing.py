"""Where a frame is: in no journal yet, in one, in the dataset."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpistream.control.coordination import Coordination
from mpistream.control.run_state import ScanState
from mpistream.launch.inspection import find_scan
from mpistream.launch.tracing import Trace, trace_frame
from mpistream.model import h5_layout as layout
from mpistream.model.block_set import BlockSet
from mpistream.model.counted_block import CountedBlock
from mpistream.model.electron_events import ElectronEvents
from mpistream.model.errors import ConfigError, ScanFailed
from mpistream.model.frame_sums import FrameSums
from mpistream.model.job_share import JobShare, JournalExtent
from mpistream.model.scan import CountingParameters, Durability, ScanRecord, SectorEnd
from mpistream.storage.journal import FILE_HEAD_BYTES, JournalWriter
from tests.unit.registered import RANKS, Deployment, deployment, scan_record, summary


def counted_block(
    block: int, present: tuple[int, int, int, int] = (255, 255, 255, 255), **changes: object
) -> CountedBlock:
    """8 frames, each with an electron."""
    events = ElectronEvents.from_counts(
        np.arange(8, dtype=np.uint32),
        np.arange(8 * block, 8 * block + 8, dtype=np.uint64),
        np.zeros(8, np.uint8),
        np.ones(8, np.uint32),
        np.arange(8, dtype=np.uint32),
    )
    sums = FrameSums(np.zeros((8, 2), np.uint32), np.zeros((8, 0), np.uint32))
    return replace(CountedBlock(block, 15, present, (0, 0, 0, 0), 1000, events, sums), **changes)


class Tracing:
    """A scan that streams, in a deployment of one job."""

    def __init__(self, running: Deployment, folder: Path) -> None:
        self.running = running
        self.registry = running.registry
        self.folder = folder
        self.record: ScanRecord = scan_record(journals=str(folder))
        self.registry.announce(self.record)
        self.registry.set_state(self.record.uid, ScanState.STREAMING)

    def journal(self, *blocks: CountedBlock, rank: int = 1) -> JournalExtent:
        path = self.folder / f"rank-{rank}.journal"
        writer = JournalWriter.create(path, self.record.uid, RANKS[rank].incarnation, Durability.WRITE)
        writer.append(blocks)
        writer.close()
        return JournalExtent(rank, RANKS[rank].incarnation, str(path), writer.bytes)

    def share(self, journals: tuple[JournalExtent, ...], *blocks: int) -> None:
        share = JobShare("job", BlockSet.of(self.record.block_range, blocks), ready=True, journals=journals)
        assert self.registry.write_share(self.record.uid, share, None)

    def commit(self, dataset: Path) -> None:
        for state in (ScanState.DRAINING, ScanState.ASSEMBLING):
            self.registry.set_state(self.record.uid, state)
        self.registry.write_summary(self.record.uid, summary(dataset=str(dataset)))
        self.registry.set_state(self.record.uid, ScanState.COMMITTED)
        self.registry.delete_shares(self.record.uid)

    def trace(self, frame: int) -> Trace:
        return trace_frame(self.registry, find_scan(self.registry, "latest"), frame)


@pytest.fixture
def tracing(etcd: Coordination, tmp_path: Path) -> Iterator[Tracing]:
    with deployment(etcd) as running:
        role = running.registry.take_conductor("job", "node", 100, lambda: None)
        assert role is not None
        running.registry.publish_routing(role, RANKS)
        yield Tracing(running, tmp_path)
        role.close()


def write_dataset(path: Path, uid: str, frames: list[int]) -> None:
    """A scan of 8 x 8 positions with one frame each; frame n has n electrons and misses sector n % 4."""
    with h5py.File(path, "w") as file:
        file.attrs[layout.FORMAT_ATTRIBUTE] = layout.FORMAT_NAME
        file.attrs[layout.FORMAT_VERSION_ATTRIBUTE] = layout.FORMAT_VERSION
        file.attrs[layout.SCAN_SHAPE_ATTRIBUTE] = (8, 8)
        file.attrs[layout.FRAME_SHAPE_ATTRIBUTE] = (576, 576)
        file.attrs[layout.SCAN_UID_ATTRIBUTE] = uid
        file.attrs[layout.SCAN_NUMBER_ATTRIBUTE] = 3
        number = np.array(frames, np.uint64)
        file[layout.FRAME_NUMBER] = number
        file[layout.SCAN_POSITION] = number.astype(np.uint32)
        file[layout.MISSING_SECTORS] = np.uint8(1) << (number % 4).astype(np.uint8)
        file[layout.OFFSETS] = np.concatenate([[0], np.cumsum(number)]).astype(np.uint64)
        file[layout.INDICES] = np.zeros(sum(frames), np.uint32)


def test_a_frame_on_its_way(tracing: Tracing) -> None:
    for sector in (0, 3):
        said = {"scan": str(tracing.record.uid), "sector": sector, "sent": 5, "owed": 3}
        tracing.registry.write_status("producers", str(sector), said)
    tracing.registry.write_status("producers", "1", {"scan": "another", "sector": 1})
    found = tracing.trace(21)
    assert (found.uid, found.state, found.frame, found.block) == (tracing.record.uid, ScanState.STREAMING, 21, 2)
    to = RANKS[(int.from_bytes(tracing.record.uid.bytes[:4], "little") + 2) % 2]
    assert found.destination is not None
    assert (found.destination.rank, found.destination.job, found.destination.pid) == (to.rank, "job", to.pid)
    assert (found.counted_by, found.journals, found.rows) == ((), (), ())
    assert {sector: said["owed"] for sector, said in found.senders.items()} == {0: 3, 3: 3}


def test_a_table_whose_job_is_gone_leads_nowhere(tracing: Tracing) -> None:
    tracing.running.end("groups/0")
    assert tracing.trace(21).destination is None


def test_a_frame_in_a_journal(tracing: Tracing) -> None:
    """With the byte at which its block begins, and what is missing of the frame."""
    first, second = counted_block(0), counted_block(2, (255, 255 ^ 1 << 5, 255, 255), frames_rejected=(0, 0, 32, 0))
    journals = tracing.journal(first, rank=0), tracing.journal(first, second)
    tracing.share(journals, 0, 2)
    found = tracing.trace(21)
    assert found.counted_by == ("job",)
    assert found.senders == {}
    (place,) = found.journals
    assert (place.rank, place.path, place.missing_sectors) == (1, journals[1].path, (1, 2))
    record = Path(place.path).read_bytes()[place.byte :]
    assert record.startswith(b"MPJR")
    assert place.byte is not None
    assert place.byte > FILE_HEAD_BYTES
    assert tracing.trace(20).journals[0].missing_sectors == ()
    assert [place.rank for place in tracing.trace(1).journals] == [0, 1]
    assert tracing.trace(63).journals == ()


def test_a_journal_that_cannot_be_seen(tracing: Tracing) -> None:
    tracing.share((JournalExtent(0, 5, "/on/another/host.journal", 100),), 2)
    (place,) = tracing.trace(21).journals
    assert (place.byte, place.missing_sectors, place.problem) == (None, None, "it cannot be seen from here")


def test_a_sector_that_was_cut(tracing: Tracing) -> None:
    numbers = dict.fromkeys(("producer_id", "blocks", "records", "sectors_duplicate", "sectors_rejected"), 0)
    end = SectorEnd(sector=2, cut="gone", digest=None, seconds_reading=0, seconds_sending=0, **numbers)
    tracing.registry.write_end(tracing.record.uid, end)
    assert tracing.trace(21).cut == {2: "gone"}


def test_a_frame_in_the_dataset(tracing: Tracing, tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_dataset(path, str(tracing.record.uid), [number for number in range(64) if number != 30])
    tracing.commit(path)
    found = tracing.trace(21)
    assert (found.state, found.destination, found.has_dataset) == (ScanState.COMMITTED, None, True)
    (row,) = found.rows
    assert (row.path, row.index, row.row, row.column) == (str(path), 21, 2, 5)
    assert (row.electrons, row.missing_sectors) == (21, (1,))
    assert tracing.trace(30).rows == ()
    assert tracing.trace(31).rows[0].index == 30


def test_a_dataset_that_is_not_there_any_more(tracing: Tracing, tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    tracing.commit(path)
    assert "is not there" in tracing.trace(21).dataset_problem
    write_dataset(path, "another", [21])
    assert "has become the dataset of another scan" in tracing.trace(21).dataset_problem


def test_a_scan_without_a_dataset(tracing: Tracing) -> None:
    tracing.registry.set_state(tracing.record.uid, ScanState.ABORTED, ScanFailed("enough"))
    found = tracing.trace(21)
    assert (found.has_dataset, found.rows, found.dataset_problem, found.destination) == (False, (), "", None)


def test_a_frame_that_the_scan_does_not_have(tracing: Tracing) -> None:
    with pytest.raises(ConfigError, match="has the frames 0 to 63, not 64") as caught:
        tracing.trace(64)
    assert caught.value.remedy


def test_samples_go_to_the_conducting_job(etcd: Coordination, tmp_path: Path) -> None:
    with deployment(etcd) as running:
        role = running.registry.take_conductor("job", "node", 100, lambda: None)
        assert role is not None
        others = tuple(replace(rank, rank=rank.rank + 2, job="other") for rank in RANKS)
        running.registry.publish_routing(role, others + RANKS)
        record = scan_record(counting=CountingParameters())
        running.registry.announce(record)
        scan = find_scan(running.registry, "latest")
        jobs = {trace_frame(running.registry, scan, frame).destination.job for frame in range(0, 64, 8)}  # type: ignore[union-attr]
        assert jobs == {"job"}
        role.close()
