"""A scan as the leader of a job sees it: what its ranks say becomes the job's share, and what is to be done next."""

from typing import Any
from uuid import UUID

import numpy as np
import pytest

from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.control.scan_facts import ScanFacts
from mpistream.model.block_set import BlockSet
from mpistream.model.errors import ScanFailed, StorageError
from mpistream.model.job_messages import JobMessage, JobMessageKind
from mpistream.model.job_share import JobShare, JournalExtent
from mpistream.model.scan import Durability
from mpistream.pipeline.leading.job_scan import JobScan
from tests.unit.made_up_blocks import scan_record

BLOCKS = scan_record().block_range
TOTALS = {"frames": 4, "electrons": 100, "raw_bytes": 1000, "frames_incomplete": 1, "blocks_repeated": 2}


def job_scan(state: ScanState = ScanState.STREAMING, size: int = 2, **record: Any) -> JobScan:
    return JobScan(ScanFacts(UUID(int=1), scan_record(**record), ScanStatus(state, 1.0)), "me", size)


def ready(scan: JobScan, *ranks: int, incarnation: int = 70) -> None:
    for rank in ranks:
        fields = {"incarnation": incarnation + rank, "journal": f"/journals/{rank}"}
        scan.told(JobMessage(JobMessageKind.READY, rank, fields), 0.0)


def counted(scan: JobScan, rank: int, *blocks: int, **fields: Any) -> None:
    told = {"bytes": 500, "totals": TOTALS, "flushed": False, "problem": "", **fields}
    scan.told(JobMessage(JobMessageKind.COUNTED, rank, told, np.array(blocks, "<u8").tobytes()), 0.0)


def fault(scan: JobScan, rank: int, fatal: bool, now: float = 0.0) -> None:
    fields = {"message": "no reference", "remedy": "give one", "fatal": fatal}
    scan.told(JobMessage(JobMessageKind.FAULT, rank, fields), now)


# what the ranks say


def test_a_job_is_ready_when_every_rank_is() -> None:
    scan = job_scan()
    assert not scan.share().ready
    ready(scan, 1)
    assert not scan.share().ready
    ready(scan, 0)
    assert scan.share().ready
    assert scan.share().journals == (JournalExtent(0, 70, "/journals/0"), JournalExtent(1, 71, "/journals/1"))


def test_what_the_ranks_have_counted_adds_up() -> None:
    scan = job_scan()
    ready(scan, 0, 1)
    counted(scan, 0, 1)
    counted(scan, 1, 2, bytes=900, totals={**TOTALS, "electrons": 11})
    counted(scan, 1, bytes=950, totals={**TOTALS, "electrons": 12})
    share = scan.share()
    assert share.blocks == BlockSet.of(BLOCKS, BLOCKS)
    assert share.totals == {
        "frames": 8,
        "electrons": 112,
        "raw_bytes": 2000,
        "frames_incomplete": 2,
        "blocks_repeated": 4,
    }
    assert [journal.bytes for journal in share.journals] == [500, 950]
    assert scan.totals[1]["electrons"] == 12


def test_a_job_has_flushed_when_every_rank_has() -> None:
    scan = job_scan()
    ready(scan, 0, 1)
    counted(scan, 0, flushed=True)
    assert not scan.share().flushed
    counted(scan, 1, flushed=True)
    assert scan.share().flushed


def test_a_rank_that_says_again_that_it_is_ready_has_lost_nothing() -> None:
    """The leader tells all of them to prepare once more when one of them could not."""
    scan = job_scan()
    ready(scan, 0, 1)
    counted(scan, 0, 1)
    ready(scan, 0, 1)
    assert scan.share().journals[0].bytes == 500


def test_what_is_wrong_is_said_until_it_is_over() -> None:
    scan = job_scan()
    ready(scan, 0, 1)
    counted(scan, 0, problem="the disk is full")
    counted(scan, 1, problem="the disk is full")
    assert scan.share().problem == "the disk is full", "once for all ranks"
    counted(scan, 0)
    counted(scan, 1)
    assert scan.share().problem == ""


def test_samples_are_collected_by_block() -> None:
    scan = job_scan()
    scan.told(JobMessage(JobMessageKind.SAMPLE, 0, {"block": 2}, b"statistics"), 0.0)
    assert scan.samples == {2: b"statistics"}


def test_late_news_of_a_scan_that_was_forgotten_are_left_out() -> None:
    scan = JobScan(ScanFacts(UUID(int=1)), "me", 1)
    counted(scan, 0, 1)
    ready(scan, 0)
    scan = job_scan()
    counted(scan, 0, 1)
    assert len(scan.blocks) == 0


# ranks that cannot


@pytest.mark.parametrize(("state", "fatal"), [(ScanState.ANNOUNCED, False), (ScanState.STREAMING, True)])
def test_a_rank_that_cannot_prepare_fails_a_scan_that_has_not_begun(state: ScanState, fatal: bool) -> None:
    scan = job_scan(state)
    fault(scan, 1, fatal)
    assert scan.faults_to_write == {"me-rank-1": ("no reference", "give one")}
    scan.facts.faults["me-rank-1"] = "no reference", "give one"
    assert scan.faults_to_write == {}, "they are there"


def test_a_scan_under_way_does_not_fail_for_a_job_that_cannot_join() -> None:
    """What others have counted is not thrown away; it is tried again every 5 s."""
    scan = job_scan()
    assert scan.should_prepare(0.0)
    scan.prepared = True
    ready(scan, 0)
    fault(scan, 1, fatal=False, now=10.0)
    assert scan.faults_to_write == {}
    assert scan.share().problem == "no reference"
    assert [scan.should_prepare(now) for now in (10.0, 14.9, 15.0, 15.1)] == [False, False, True, False]
    ready(scan, 1)
    assert scan.share().ready
    assert scan.share().problem == ""


# when the share is written


def wrote(scan: JobScan, now: float) -> JobShare:
    share = scan.share_to_write(now)
    assert share is not None
    scan.wrote(share, now)
    return share


def test_nothing_is_written_before_there_is_something_to_say() -> None:
    scan = job_scan()
    ready(scan, 0)
    assert scan.share_to_write(0.0) is None
    fault(scan, 1, fatal=False)
    assert wrote(scan, 0.0).problem == "no reference"


def test_what_others_wait_for_is_written_at_once_the_rest_once_a_second() -> None:
    scan = job_scan()
    ready(scan, 0, 1)
    assert wrote(scan, 10.0).ready
    assert scan.share_to_write(20.0) is None, "it stands there"
    counted(scan, 0, 1)
    wrote(scan, 20.0)
    counted(scan, 0, 2)
    assert scan.share_to_write(20.9) is None
    assert len(wrote(scan, 21.0).blocks) == 2
    counted(scan, 0, problem="the disk is full")
    assert wrote(scan, 21.1).problem
    counted(scan, 0)
    assert not wrote(scan, 21.2).problem
    counted(scan, 0, flushed=True)
    counted(scan, 1, flushed=True)
    assert wrote(scan, 21.3).flushed


def test_while_a_scan_drains_everybody_waits_for_the_last_blocks() -> None:
    scan = job_scan(ScanState.DRAINING)
    ready(scan, 0, 1)
    wrote(scan, 10.0)
    counted(scan, 0, 1)
    assert scan.share_to_write(10.1) is None
    assert len(wrote(scan, 10.25).blocks) == 1


def test_the_job_itself_decides_by_what_it_knows_though_it_is_not_written_yet() -> None:
    scan = job_scan()
    scan.use_latest_share()
    assert scan.facts.shares == {}, "but not before any of it stands in etcd: nobody could seal its journals"
    ready(scan, 0, 1)
    wrote(scan, 10.0)
    counted(scan, 0, 1)
    scan.use_latest_share()
    assert set(scan.facts.blocks_journaled) == {1}
    assert scan.written is not None
    assert len(scan.written.blocks) == 0


def test_a_share_that_was_written_does_not_change_with_what_is_counted_next() -> None:
    scan = job_scan()
    ready(scan, 0, 1)
    written = wrote(scan, 10.0)
    counted(scan, 0, 1)
    assert len(written.blocks) == 0


# the dataset


def test_what_is_not_in_memory_is_read_from_journals() -> None:
    scan = job_scan()
    ready(scan, 0, 1)
    counted(scan, 0, 1)
    scan.facts.shares = {
        "me": scan.share(),
        "lost": JobShare(
            "lost", BlockSet(BLOCKS), journals=(JournalExtent(0, 1, "/lost/0", 77), JournalExtent(1, 2, ""))
        ),
    }
    assert scan.journals_to_read() == [("/lost/0", 77)]
    scan.attempts = 1
    assert scan.journals_to_read() == [("/lost/0", 77), ("/journals/0", 500)], "memory is spent by the first attempt"


def test_a_dataset_that_could_not_be_written_is_tried_again_ever_more_rarely() -> None:
    scan = job_scan(ScanState.ASSEMBLING)
    waits = []
    for _ in range(6):
        scan.assembling, scan.attempts = True, scan.attempts + 1
        scan.assembly_failed(StorageError("the disk is full", "free space"), 100.0)
        assert not scan.assembling
        waits.append(scan.retry_at - 100.0)
    assert waits == [5, 10, 20, 30, 30, 30]


def test_only_writing_can_be_tried_again_and_only_with_journals() -> None:
    full, wrong = StorageError("the disk is full", "free space"), ScanFailed("blocks are missing", "")
    for error, durability, expected in [
        (full, Durability.WRITE, True),
        (full, Durability.NONE, False),
        (wrong, Durability.WRITE, False),
    ]:
        scan = job_scan(ScanState.ASSEMBLING, durability=durability)
        scan.assembly_failed(error, 0.0)
        assert scan.can_be_tried_again == expected
