"""One scan on one rank, with a real journal: what is acknowledged is in it."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpistream.model.errors import ProtocolError, ReferenceImageError, StorageError
from mpistream.model.geometry import RECORD_BYTES, SECTORS
from mpistream.model.protocol import Ack
from mpistream.model.scan import CountingParameters, Durability, ScanRecord, Thresholds
from mpistream.pipeline.ranks.rank_scan import RankScan
from mpistream.storage.journal import FILE_HEAD_BYTES, read_journal
from tests.unit.made_up_blocks import BACKGROUND, XRAY, block_message, scan_record

THRESHOLDS = Thresholds(background=BACKGROUND, xray=XRAY, calibrated=False)
INCARNATION = 77


class OneRank:
    """A rank's part of a scan, and the messages that it gets. ``now`` is its clock, in seconds."""

    def __init__(self, folder: Path, with_thresholds: bool = True, **changes: Any) -> None:
        self.record: ScanRecord = scan_record(journals=str(folder / "journals"), **changes)
        self.scan = RankScan.prepare(self.record, 3, INCARNATION)
        self.now = 1000.0
        if with_thresholds:
            self.set_thresholds()

    def set_thresholds(self) -> None:
        for block in self.scan.set_thresholds(THRESHOLDS, None):
            self.scan.count(block)

    def receive(self, block: int, present: int = 0b1111, incarnation: int = 1000) -> None:
        """All four sectors of a block; one that gets complete is counted."""
        for sector in range(SECTORS):
            self.receive_sector(block, sector, present, incarnation)

    def receive_sector(self, block: int, sector: int, present: int = 0b1111, incarnation: int = 1000) -> None:
        message = block_message(self.record, block, sector, present, producer_incarnation=incarnation + sector)
        assembled = self.scan.receive(*message)
        if assembled is not None:
            self.scan.count(assembled)

    def turn(self, seconds: float = 0.01) -> list[Ack]:
        """What the receiving thread does once each turn; returns what is told to the producers."""
        self.now += seconds
        self.scan.journal_counted(self.now)
        return self.scan.take_acknowledgements()

    def reported(self) -> list[int]:
        """The blocks that the leader hears of now."""
        report = self.scan.report()
        return [] if report is None else np.frombuffer(report[1], "<u8").tolist()

    @property
    def journaled(self) -> list[int]:
        """What stands in the journal, as far as the leader is told that it is good."""
        journal = self.scan.journal
        assert journal is not None
        return [block.block for block in read_journal(journal.path, journal.bytes, scan_uid=self.record.uid)]


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[OneRank]:
    rank = OneRank(tmp_path)
    yield rank
    rank.scan.close(keep=True)


def acks_of(record: ScanRecord, blocks: tuple[int, ...], incarnation: int = 1000) -> list[Ack]:
    return [Ack(sector, record.uid.bytes, incarnation + sector, INCARNATION, blocks) for sector in range(SECTORS)]


@contextmanager
def full_disk(rank: OneRank, room: int = 0) -> Iterator[None]:
    """No write of this process reaches further into a file than the journal's good bytes and ``room`` more."""
    assert rank.scan.journal is not None
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (rank.scan.journal.bytes + room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# journaled, then acknowledged


def test_a_journal_is_begun_with_the_scan_under_a_name_of_its_own(rank: OneRank, tmp_path: Path) -> None:
    assert rank.scan.journal is not None
    assert rank.scan.journal.path == tmp_path / "journals" / f"rank-3-{INCARNATION}.journal"
    assert rank.scan.journal.path.stat().st_size == FILE_HEAD_BYTES
    with pytest.raises(StorageError, match="exists"):
        RankScan.prepare(rank.record, 3, INCARNATION)
    other = RankScan.prepare(rank.record, 3, INCARNATION + 1)
    other.close(keep=True)


def test_a_block_is_acknowledged_once_it_is_journaled(rank: OneRank) -> None:
    for sector in range(SECTORS - 1):
        rank.receive_sector(1, sector)
    assert (rank.turn(), rank.journaled) == ([], [])
    rank.receive_sector(1, SECTORS - 1)
    assert rank.scan.take_acknowledgements() == [], "it is counted only"
    assert rank.journaled == []
    assert rank.turn() == acks_of(rank.record, (1,))
    assert rank.journaled == [1]
    assert rank.turn() == []


def test_blocks_of_one_turn_are_journaled_and_acknowledged_together(rank: OneRank) -> None:
    rank.receive(2)
    rank.receive(1)
    assert rank.turn() == acks_of(rank.record, (2, 1))
    assert rank.journaled == [2, 1]


def test_what_is_held_is_acknowledged_only_after_the_thresholds_are_known(tmp_path: Path) -> None:
    rank = OneRank(tmp_path, with_thresholds=False)
    rank.receive(1)
    assert rank.turn() == []
    report = rank.scan.report()
    assert report is not None
    assert report[0]["totals"]["blocks_held"] == 1
    rank.set_thresholds()
    assert rank.turn() == acks_of(rank.record, (1,))
    assert rank.journaled == [1]
    rank.scan.close(keep=True)


@pytest.mark.parametrize("room", [0, 1, 5000])
def test_what_cannot_be_journaled_is_not_acknowledged_and_tried_again(rank: OneRank, room: int) -> None:
    rank.receive(1)
    with full_disk(rank, room):
        assert rank.turn() == []
        assert "journal" in rank.scan.problem
        assert rank.reported() == []
        rank.receive(2)
        for _ in range(5):
            assert rank.turn(0.3) == []
    report = rank.scan.report()
    assert report is None or report[0]["problem"] == rank.scan.problem
    assert rank.journaled == []
    assert rank.turn(1.0) == acks_of(rank.record, (1, 2))
    assert rank.scan.problem == ""
    assert rank.journaled == [1, 2]
    report = rank.scan.report()
    assert report is not None
    assert (report[0]["problem"], np.frombuffer(report[1], "<u8").tolist()) == ("", [1, 2])


def test_a_journal_that_cannot_be_written_is_not_tried_at_every_turn(
    rank: OneRank, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[float] = []

    def refuse(blocks: object) -> None:
        attempts.append(rank.now)
        raise StorageError("the journal cannot be written", "")

    monkeypatch.setattr(rank.scan.journal, "append", refuse)
    rank.receive(1)
    for _ in range(300):
        rank.turn(0.01)
    assert 3 <= len(attempts) <= 4
    assert rank.scan.problem == "the journal cannot be written"


def test_a_block_that_waits_for_its_journal_and_comes_again_is_not_acknowledged(rank: OneRank) -> None:
    rank.receive(1)
    with full_disk(rank):
        assert rank.turn() == []
        rank.receive(1)
        assert rank.turn() == []
    assert rank.turn(1.5) == acks_of(rank.record, (1,))
    assert rank.journaled == [1]


def test_a_folder_that_is_not_there_is_made_and_one_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "journals").write_text("a file")
    with pytest.raises(StorageError, match="journal") as caught:
        OneRank(tmp_path)
    assert caught.value.remedy


def test_a_reference_that_is_not_there_begins_no_journal(tmp_path: Path) -> None:
    counting = CountingParameters(background=1.0, xray=2.0, dark=str(tmp_path / "absent.npy"))
    with pytest.raises(ReferenceImageError):
        OneRank(tmp_path, counting=counting)
    assert not (tmp_path / "journals").exists()


# blocks that come again


def test_a_block_that_is_journaled_is_acknowledged_at_once_when_it_comes_again(rank: OneRank) -> None:
    """To the start of the producer that asks now."""
    rank.receive(1)
    rank.turn()
    rank.receive_sector(1, 2, incarnation=2000)
    assert rank.scan.take_acknowledgements() == [Ack(2, rank.record.uid.bytes, 2002, INCARNATION, (1,))]
    assert rank.turn() == []
    assert rank.journaled == [1]
    assert len(rank.scan.blocks) == 1
    report = rank.scan.report()
    assert report is not None
    assert report[0]["totals"]["blocks_repeated"] == 1
    assert report[0]["totals"]["frames"] == 4


def test_two_starts_of_a_producer_are_answered_apart(rank: OneRank) -> None:
    rank.receive(1)
    rank.turn()
    for incarnation in (1000, 5000, 5000):
        rank.receive_sector(1, 0, incarnation=incarnation)
    acks = rank.turn()
    assert {(ack.producer_incarnation, ack.blocks) for ack in acks} == {(1000, (1,)), (5000, (1, 1))}


def test_a_message_that_contradicts_the_scan_is_refused(rank: OneRank) -> None:
    with pytest.raises(ProtocolError):
        rank.scan.receive(*block_message(rank.record, 9, 0, 0))
    rank.receive(1)
    assert rank.turn() == acks_of(rank.record, (1,))


# the leader


def test_the_leader_hears_of_each_block_once(rank: OneRank) -> None:
    first = rank.scan.report()
    assert first is not None
    assert (first[0]["bytes"], first[0]["flushed"], first[0]["problem"], first[1]) == (FILE_HEAD_BYTES, False, "", b"")
    assert rank.scan.report() is None
    rank.receive(2)
    rank.turn()
    report = rank.scan.report()
    assert report is not None
    fields, packed = report
    assert np.frombuffer(packed, "<u8").tolist() == [2]
    assert rank.scan.journal is not None
    assert fields["bytes"] == rank.scan.journal.bytes > FILE_HEAD_BYTES
    electrons = len(rank.scan.blocks[0].events.indices)
    assert fields["totals"] == {
        "frames": 4,
        "electrons": electrons,
        "raw_bytes": 16 * RECORD_BYTES,
        "frames_incomplete": 0,
        "blocks_partial": 0,
        "blocks_held": 0,
        "blocks_repeated": 0,
    }
    assert electrons > 500
    assert rank.scan.report() is None
    rank.receive_sector(1, 0)
    assert rank.turn() == []
    report = rank.scan.report()
    assert report is not None
    assert (report[0]["totals"]["blocks_partial"], report[1]) == (1, b"")


@pytest.mark.parametrize("durability", list(Durability))
def test_the_leader_hears_of_empty_blocks_too(tmp_path: Path, durability: Durability) -> None:
    rank = OneRank(tmp_path, durability=durability)
    rank.scan.report()
    for block in rank.record.block_range:
        rank.receive(block, 0)
        assert rank.turn() == acks_of(rank.record, (block,))
        assert rank.reported() == [block]
    rank.scan.close(keep=True)


def test_what_is_reported_stands_in_the_journal(rank: OneRank) -> None:
    """The bytes that the leader is told hold all blocks that it is told of."""
    told: list[int] = []
    for block in rank.record.block_range:
        rank.receive(block)
        rank.turn()
        report = rank.scan.report()
        assert report is not None
        told += np.frombuffer(report[1], "<u8").tolist()
        assert rank.scan.journal is not None
        found = read_journal(rank.scan.journal.path, report[0]["bytes"], scan_uid=rank.record.uid)
        assert [block.block for block in found] == told


def test_a_flush_is_done_when_all_that_came_is_journaled(tmp_path: Path) -> None:
    rank = OneRank(tmp_path, with_thresholds=False)

    def flushed() -> bool:
        rank.scan._reported = {}
        report = rank.scan.report()
        assert report is not None
        return bool(report[0]["flushed"])

    rank.receive(1)
    rank.scan.nothing_came()
    assert not flushed(), "nobody has asked for it"
    rank.scan.flush()
    assert not flushed(), "something may wait to be received"
    rank.scan.nothing_came()
    assert not flushed(), "a block is held"
    rank.set_thresholds()
    rank.scan.nothing_came()
    assert not flushed(), "it is counted only"
    rank.turn()
    rank.scan.nothing_came()
    assert flushed()
    rank.receive(2)
    rank.scan.nothing_came()
    assert flushed(), "once it is said, it is said"
    rank.scan.close(keep=True)


# the dataset


def check_taken(rank: OneRank, blocks: list[int]) -> None:
    taken, pattern = rank.scan.take_blocks()
    assert [block.block for block in taken] == blocks
    expected = np.zeros(576 * 576, np.uint32)
    for block in taken:
        np.add.at(expected, block.events.indices, 1)
    assert (pattern.dtype, pattern.shape) == (np.uint32, (576, 576))
    np.testing.assert_array_equal(pattern.ravel(), expected)


def test_the_pattern_is_that_of_the_blocks(rank: OneRank) -> None:
    check_taken(rank, [])
    rank.receive(1)
    rank.receive(2)
    rank.turn()
    check_taken(rank, [1, 2])
    check_taken(rank, [])


def test_the_pattern_is_that_of_the_blocks_though_more_was_counted(rank: OneRank) -> None:
    rank.receive(1)
    rank.turn()
    rank.receive(2)
    with full_disk(rank):
        rank.turn()
        check_taken(rank, [1])
    rank.turn(1.5)
    check_taken(rank, [2])


def test_the_journal_has_what_was_taken_before(rank: OneRank) -> None:
    """For another attempt to write the dataset."""
    rank.receive(1)
    rank.turn()
    (taken,), _ = rank.scan.take_blocks()
    assert rank.scan.journal is not None
    (read,) = read_journal(rank.scan.journal.path, rank.scan.journal.bytes)
    assert read.checksum() == taken.checksum()
    rank.receive(1)
    assert rank.turn() == acks_of(rank.record, (1,))
    assert rank.scan.blocks == []


@pytest.mark.parametrize("durability", list(Durability))
def test_every_durability_acknowledges(tmp_path: Path, durability: Durability) -> None:
    rank = OneRank(tmp_path, durability=durability)
    rank.receive(1)
    assert rank.turn() == acks_of(rank.record, (1,))
    report = rank.scan.report()
    assert report is not None
    assert np.frombuffer(report[1], "<u8").tolist() == [1]
    if durability is Durability.NONE:
        assert rank.scan.journal is None
        assert report[0]["bytes"] == 0
        assert not (tmp_path / "journals").exists()
    else:
        assert rank.journaled == [1]
    check_taken(rank, [1])
    rank.scan.close(keep=True)


# whatever happens


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_is_acknowledged_is_in_the_journal_whatever_happens(tmp_path: Path, data: st.DataObject) -> None:
    """Sectors in any order, again and again, of empty and of full blocks, on a disk that is full now and then."""
    rank = OneRank(
        tmp_path / str(uuid4()), with_thresholds=False, rows=1, columns=4, first_frame=0, last_frame=3, block_frames=1
    )
    acknowledged: dict[int, set[int]] = {block: set() for block in rank.record.block_range}
    told: set[int] = set()

    def look() -> None:
        for ack in rank.turn(0.6):
            for block in ack.blocks:
                acknowledged[block].add(ack.producer_id)
        there = rank.journaled
        assert len(there) == len(set(there))
        assert {block for block, sectors in acknowledged.items() if sectors} <= set(there)
        reported = rank.reported()
        assert not told & set(reported)
        told.update(reported)
        assert told == set(there)

    steps = st.one_of(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 1)), st.sampled_from(["full", "know", "turn"])
    )
    for step in data.draw(st.lists(steps, max_size=40)):
        if isinstance(step, tuple):
            rank.receive_sector(*step)
        elif step == "know" and not rank.scan.reduction.has_thresholds:
            rank.set_thresholds()
        elif step == "full":
            with full_disk(rank):
                look()
        else:
            look()
    if not rank.scan.reduction.has_thresholds:
        rank.set_thresholds()
    for block in rank.record.block_range:
        rank.receive(block)
    look()
    look()
    for block in rank.record.block_range:
        rank.receive(block)
    look()
    assert all(sectors == set(range(SECTORS)) for sectors in acknowledged.values())
    check_taken(rank, rank.journaled)
    rank.scan.close(keep=True)
