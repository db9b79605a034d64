"""A rank's receiving thread, over its real sockets: blocks in, acknowledgements and news out."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from mpistream.model.config import Config, NetworkConfig, WatchdogConfig
from mpistream.model.geometry import SECTORS
from mpistream.model.job_messages import JobMessage, JobMessageKind, LostMessageError
from mpistream.model.protocol import Ack, Hello, Want
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.model.scan import UNCOUNTED, CountingParameters, ScanRecord, SectorEnd, Thresholds
from mpistream.pipeline.ranks import job_talk
from mpistream.pipeline.ranks.orders import CountedScan, Order, StopOrder
from mpistream.pipeline.ranks.receiver import RankReceiver
from mpistream.pipeline.ranks.watchdog import StalledError, Watchdog
from mpistream.reduction.calibration import SampleStatistics
from mpistream.reduction.scan_reduction import ScanReduction
from mpistream.storage.journal import read_journal
from mpistream.storage.recording_pixels import RecordingPixels
from mpistream.transport.mailbox import Mailbox
from mpistream.transport.sockets import Sockets
from tests.unit.made_up_blocks import BACKGROUND, XRAY, block_message, scan_record

READY, COUNTED, FAULT, SAMPLE = (
    JobMessageKind.READY,
    JobMessageKind.COUNTED,
    JobMessageKind.FAULT,
    JobMessageKind.SAMPLE,
)
ROW_DARK = CountingParameters(background=BACKGROUND, xray=XRAY, row_dark="mean", row_dark_level=30)
THRESHOLDS = Thresholds(background=BACKGROUND, xray=XRAY, calibrated=False)
INCARNATION = 55


class OneRank:
    """The receiver of a job of one rank, what it tells its leader, and the four producers that send to it."""

    def __init__(self, folder: Path, stall_seconds: float = 10.0) -> None:
        self.orders: Mailbox[Order] = Mailbox()
        self.aborts: list[BaseException] = []
        limits = WatchdogConfig.model_construct(stall_seconds=stall_seconds, assembly_seconds=900.0)
        watchdog = Watchdog(limits, 0, peers=[0])
        self.receiver = RankReceiver(Config(), 0, 1, INCARNATION, self.orders, watchdog, self.aborts.append)
        self.folder = folder
        self._told: Mailbox[JobMessage] = Mailbox()
        self._news: list[JobMessage] = []
        self.receiver.talk.report_to(self._told.put)
        self.endpoints = self.receiver.endpoints(0, "node")
        self.receiver.start(self.receiver.talk.hub_endpoint)
        self.receiver.talk.wait_for_everybody(10)
        self.sockets = Sockets()
        self._outlet = self.sockets.data_outlet(self.endpoints.data_endpoint)
        self._answers = [
            self.sockets.answer_outlet(self.endpoints.answer_endpoint, Hello(sector)) for sector in range(SECTORS)
        ]
        self.acks: list[Ack] = []
        self.wants: list[Want] = []
        self.scans: list[UUID] = []

    def order(self, kind: JobMessageKind, binary: bytes = b"", **fields: object) -> None:
        self.receiver.talk.outbox.put(JobMessage(kind, 0, fields, binary))

    def prepare(self, record: ScanRecord) -> None:
        self.scans.append(record.uid)
        self.order(JobMessageKind.PREPARE, record=record.model_dump(mode="json"))

    def prepared(self, thresholds: Thresholds | None = THRESHOLDS, **changes: Any) -> ScanRecord:
        """A scan that the rank is ready for."""
        uid = uuid4()
        record = scan_record(uid=uid, journals=str(self.folder / str(uid)), **changes)
        self.prepare(record)
        self.says(record.uid, READY)
        if thresholds is not None:
            self.set_thresholds(record, thresholds)
        return record

    def set_thresholds(self, record: ScanRecord, thresholds: Thresholds = THRESHOLDS, binary: bytes = b"") -> None:
        fields = thresholds.model_dump(mode="json")
        self.order(JobMessageKind.THRESHOLDS, binary, uid=str(record.uid), thresholds=fields)

    def says(self, uid: UUID, kind: JobMessageKind, seconds: float = 10.0) -> JobMessage:
        """The next news of this kind about a scan."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for message in self._news:
                if message.fields.get("uid") == str(uid) and message.kind is kind:
                    self._news.remove(message)
                    return message
            self._news += self._told.wait(0.2)
        raise AssertionError(f"no {kind} about scan {uid}, but {self._news}; aborted: {self.aborts}")

    def counted(self, uid: UUID, *blocks: int) -> dict[str, Any]:
        """The fields of the news after which the leader knows exactly these blocks to be journaled."""
        found: list[int] = []
        while True:
            message = self.says(uid, COUNTED)
            found += np.frombuffer(message.binary, "<u8").tolist()
            if sorted(found) == sorted(blocks):
                return message.fields

    def flushed(self, uid: UUID) -> list[int]:
        """The blocks that the leader hears of until it is told that nothing is left."""
        found: list[int] = []
        while True:
            message = self.says(uid, COUNTED)
            found += np.frombuffer(message.binary, "<u8").tolist()
            if message.fields["flushed"]:
                return found

    def send(self, record: ScanRecord, block: int, *sectors: int, present: int = 0b1111) -> None:
        for sector in sectors or range(SECTORS):
            header, payload = block_message(record, block, sector, present)
            self._outlet.send(header.pack(), payload)

    def hear(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for outlet in self._answers:
                for answer in outlet.receive():
                    if isinstance(answer, Ack):
                        self.acks.append(answer)
                    else:
                        self.wants.append(answer)
            time.sleep(0.01)

    def acknowledged(self, record: ScanRecord) -> dict[int, set[int]]:
        """By sector."""
        found: dict[int, set[int]] = {sector: set() for sector in range(SECTORS)}
        for ack in self.acks:
            if ack.scan_uid == record.uid.bytes:
                assert ack.rank_incarnation == INCARNATION
                assert ack.producer_incarnation == 1000 + ack.producer_id
                found[ack.producer_id].update(ack.blocks)
        return found

    def gets(self, seconds: float = 10.0) -> Order:
        """The next order for the main thread."""
        (order,) = self.orders.wait(seconds)
        return order

    def close(self) -> None:
        self.receiver.stop()
        self.sockets.close()


@pytest.fixture
def fresh_rank(tmp_path: Path) -> Iterator[OneRank]:
    """One that has not heard of anything yet."""
    rank = OneRank(tmp_path)
    yield rank
    rank.close()
    assert rank.aborts == []


@pytest.fixture(scope="module")
def running_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneRank]:
    rank = OneRank(tmp_path_factory.mktemp("rank"))
    yield rank
    rank.close()


@pytest.fixture
def rank(running_rank: OneRank, tmp_path: Path) -> Iterator[OneRank]:
    """It goes from scan to scan."""
    running_rank.folder = tmp_path
    running_rank.acks.clear()
    yield running_rank
    assert running_rank.aborts == []
    for uid in running_rank.scans:
        running_rank.order(JobMessageKind.DISCARD, uid=str(uid), keep=False)
    running_rank.scans.clear()


def everywhere(*blocks: int) -> dict[int, set[int]]:
    return {sector: set(blocks) for sector in range(SECTORS)}


def test_a_rank_gets_ready_with_a_journal_of_its_own(rank: OneRank) -> None:
    record = scan_record(uid=uuid4(), journals=str(rank.folder / "journals"))
    for _ in range(2):
        rank.prepare(record)
        ready = rank.says(record.uid, READY)
        assert ready.fields["incarnation"] == INCARNATION
        assert ready.fields["journal"] == str(rank.folder / "journals" / f"rank-0-{INCARNATION}.journal")
    assert len(list((rank.folder / "journals").iterdir())) == 1


def test_blocks_are_counted_journaled_acknowledged_and_told(rank: OneRank) -> None:
    record = rank.prepared()
    rank.send(record, 2)
    rank.send(record, 1, 0, 1, 2)
    fields = rank.counted(record.uid, 2)
    rank.hear(0.3)
    assert rank.acknowledged(record) == everywhere(2)
    (journal,) = (rank.folder / str(record.uid)).iterdir()
    assert [block.block for block in read_journal(journal, fields["bytes"])] == [2]
    rank.send(record, 1, 3)
    fields = rank.counted(record.uid, 1)
    assert fields["totals"]["frames"] == 8
    rank.hear(0.3)
    assert rank.acknowledged(record) == everywhere(1, 2)


def test_nothing_is_acknowledged_before_it_can_be_counted(rank: OneRank) -> None:
    record = rank.prepared(thresholds=None)
    rank.send(record, 1)
    rank.hear(0.5)
    assert rank.acknowledged(record) == everywhere()
    rank.set_thresholds(record)
    rank.counted(record.uid, 1)
    rank.hear(0.3)
    assert rank.acknowledged(record) == everywhere(1)


def test_the_sample_goes_to_the_leader_and_comes_back_for_the_dataset(rank: OneRank) -> None:
    record = rank.prepared(thresholds=None, counting=CountingParameters(sample_frames=2))
    rank.send(record, 2)
    rank.send(record, 1, present=0b0111)
    packed = {}
    for _ in range(2):
        message = rank.says(record.uid, SAMPLE)
        packed[message.fields["block"]] = message.binary
    assert {block: SampleStatistics.from_bytes(binary).frames for block, binary in packed.items()} == {1: 3, 2: 4}
    calibrated = THRESHOLDS.model_copy(update={"calibrated": True})
    for _ in range(2):
        rank.set_thresholds(record, calibrated, packed[1])
    rank.counted(record.uid, 1, 2)
    rank.order(JobMessageKind.ASSEMBLE, uid=str(record.uid), ends=[], journals=[], output="x", attempt="1")
    order = rank.gets()
    assert isinstance(order, CountedScan)
    assert order.reduction.sample == SampleStatistics.from_bytes(packed[1])


def test_a_block_that_comes_again_is_acknowledged_again(rank: OneRank) -> None:
    record = rank.prepared()
    rank.send(record, 1)
    rank.counted(record.uid, 1)
    rank.hear(0.3)
    rank.acks.clear()
    rank.send(record, 1, 2)
    rank.hear(0.5)
    assert rank.acknowledged(record) == {**everywhere(), 2: {1}}


def test_what_belongs_to_no_scan_is_refused(rank: OneRank, caplog: pytest.LogCaptureFixture) -> None:
    record = rank.prepared()
    rank.send(scan_record(uid=uuid4()), 1)
    rank._outlet.send(b"nonsense", b"")
    rank.send(scan_record(uid=record.uid, first_frame=100, last_frame=200), 25)
    rank.send(record, 1)
    rank.counted(record.uid, 1)
    rank.hear(0.3)
    assert {ack.scan_uid for ack in rank.acks} == {record.uid.bytes}
    assert rank.acknowledged(record) == everywhere(1)
    assert "which is not being received" in caplog.text


def test_after_a_silence_the_producers_are_asked(fresh_rank: OneRank) -> None:
    """Not before, and not where there is no scan."""
    rank = fresh_rank
    rank.hear(1.5)
    assert rank.wants == []
    record = rank.prepared()
    rank.send(record, 1, 0)
    rank.hear(3.0)
    assert {want.producer_id for want in rank.wants} == set(range(SECTORS))
    assert {(want.scan_uid, want.rank_incarnation) for want in rank.wants} == {(record.uid.bytes, INCARNATION)}
    assert len(rank.wants) <= 3 * SECTORS


def test_a_first_block_after_a_long_rest_is_no_reason_to_be_patient(fresh_rank: OneRank) -> None:
    """How long nobody had anything to send says nothing about what may be lost now."""
    rank = fresh_rank
    rank.hear(4.0)
    record = rank.prepared()
    rank.send(record, 1, 0)
    rank.hear(3.0)
    assert rank.wants, "the first question after 1 s, not after 16"


def test_sectors_that_are_cut_are_waited_for_no_more(rank: OneRank) -> None:
    record = rank.prepared()
    rank.send(record, 1, 0, 1, 3)
    while rank.says(record.uid, COUNTED).fields["totals"]["blocks_partial"] != 1:
        pass
    rank.order(JobMessageKind.CUT, uid=str(record.uid), sectors=[2])
    fields = rank.counted(record.uid, 1)
    assert fields["totals"]["frames_incomplete"] == 4
    rank.hear(0.3)
    assert rank.acknowledged(record) == {**everywhere(1), 2: set()}


def test_a_flush_is_told_when_nothing_is_left(rank: OneRank) -> None:
    record = rank.prepared()
    rank.send(record, 2, 1)
    rank.order(JobMessageKind.CUT, uid=str(record.uid), sectors=[0, 1, 2, 3])
    rank.order(JobMessageKind.FLUSH, uid=str(record.uid))
    assert rank.flushed(record.uid) == [2]


def table(rank: OneRank, mine: bool) -> RoutingTable:
    other = RankEndpoints(0, 0, "node", 7, INCARNATION + 1, "tcp://a:1", "tcp://a:2", "job-2")
    return RoutingTable(2, "job-1", (rank.endpoints if mine else other,))


@pytest.mark.parametrize("mine", [True, False])
def test_what_another_rank_will_get_is_forgotten(rank: OneRank, mine: bool) -> None:
    record = rank.prepared()
    rank.send(record, 1, 0, 1)
    while rank.says(record.uid, COUNTED).fields["totals"]["blocks_partial"] != 1:
        pass
    rank.order(JobMessageKind.TABLE, table=table(rank, mine).to_json())
    rank.hear(0.3)
    rank.send(record, 1, 2, 3)
    if mine:
        rank.counted(record.uid, 1)
    else:
        rank.send(record, 1, 0)
        rank.hear(0.3)
        assert rank.acknowledged(record) == everywhere(), "sector 1 is wanted again"
        rank.send(record, 1, 1)
        rank.counted(record.uid, 1)
    rank.hear(0.3)
    assert rank.acknowledged(record) == everywhere(1)


def test_a_dataset_is_ordered_with_what_was_counted(rank: OneRank) -> None:
    record = rank.prepared()
    rank.send(record, 1)
    rank.counted(record.uid, 1)
    ends = [SectorEnd.cut_short(sector, "gone") for sector in range(SECTORS)]
    fields: dict[str, Any] = {
        "uid": str(record.uid),
        "ends": [end.model_dump(mode="json") for end in ends],
        "journals": [["/journals/rank-7.journal", 1234]],
        "output": "/data/scan.h5",
        "attempt": "5-0",
    }
    rank.order(JobMessageKind.ASSEMBLE, **fields)
    order = rank.gets()
    assert isinstance(order, CountedScan)
    assert (order.record, order.ends, order.attempt) == (record, tuple(ends), "5-0")
    assert (order.output, order.journals) == (Path("/data/scan.h5"), ((Path("/journals/rank-7.journal"), 1234),))
    assert [block.block for block in order.blocks] == [1]
    assert order.diffraction_sum.sum() == len(order.blocks[0].events.indices)
    assert order.journals_folder == rank.folder / str(record.uid)
    rank.order(JobMessageKind.ASSEMBLE, **fields | {"attempt": "5-1"})
    again = rank.gets()
    assert isinstance(again, CountedScan)
    assert (again.blocks, again.attempt) == ([], "5-1")
    assert again.diffraction_sum.sum() == 0


def test_a_scan_that_is_discarded_is_received_no_more(rank: OneRank) -> None:
    record = rank.prepared()
    rank.order(JobMessageKind.DISCARD, uid=str(record.uid), keep=False)
    rank.order(JobMessageKind.DISCARD, uid=str(record.uid), keep=False)
    following = rank.prepared()
    rank.send(record, 1)
    rank.send(following, 1)
    rank.counted(following.uid, 1)
    rank.hear(0.3)
    assert rank.acknowledged(record) == everywhere()
    assert rank.acknowledged(following) == everywhere(1)


def test_a_rank_that_is_told_to_stop_tells_its_main_thread(rank: OneRank) -> None:
    rank.order(JobMessageKind.STOP)
    assert rank.gets() == StopOrder()


def test_a_request_to_stop_goes_to_the_leader(rank: OneRank) -> None:
    rank.receiver.request_stop()
    assert rank.gets() == StopOrder(), "rank 0 tells all ranks at once"


# faults


def test_thresholds_that_cannot_be_counted_with_end_their_scan_only(rank: OneRank) -> None:
    without_level = Thresholds(background=BACKGROUND, xray=XRAY, calibrated=False)
    record = rank.prepared(without_level, counting=ROW_DARK)
    fault = rank.says(record.uid, FAULT)
    assert "row-dark" in fault.fields["message"]
    assert fault.fields["remedy"]
    assert fault.fields["fatal"] is True
    rank.order(JobMessageKind.DISCARD, uid=str(record.uid), keep=False)
    following = rank.prepared()
    rank.send(following, 1)
    rank.counted(following.uid, 1)


def test_a_scan_that_cannot_be_prepared_may_be_later(rank: OneRank) -> None:
    folder = rank.folder / "journals"
    folder.write_text("in the way")
    record = scan_record(uid=uuid4(), journals=str(folder))
    rank.prepare(record)
    fault = rank.says(record.uid, FAULT)
    assert (str(folder) in fault.fields["message"], fault.fields["fatal"]) == (True, False)
    assert fault.fields["remedy"]
    folder.unlink()
    rank.prepare(record)
    rank.says(record.uid, READY)
    rank.set_thresholds(record)
    rank.send(record, 1)
    rank.counted(record.uid, 1)


def test_a_thread_that_fails_ends_the_job(tmp_path: Path) -> None:
    rank = OneRank(tmp_path)
    rank.order(JobMessageKind.TABLE, table={"nonsense": 1})
    deadline = time.monotonic() + 5
    while not rank.aborts and time.monotonic() < deadline:
        time.sleep(0.05)
    assert isinstance(rank.aborts[0], KeyError)
    rank.close()


# a rank that has much to do


SLOW_SECONDS, STALL_SECONDS, BLOCKS = 0.12, 1.0, range(20)


@pytest.fixture
def slow_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OneRank]:
    """Counting all blocks of a scan takes far longer than anybody may be silent."""
    count = ScanReduction.count

    def count_slowly(self: ScanReduction, block: Any) -> Any:
        if self.has_thresholds:
            time.sleep(SLOW_SECONDS)
        return count(self, block)

    monkeypatch.setattr(ScanReduction, "count", count_slowly)
    monkeypatch.setattr(job_talk, "_HEARTBEAT_SECONDS", 0.2)
    rank = OneRank(tmp_path, STALL_SECONDS)
    yield rank
    rank.close()


def scan_of_empty_blocks(rank: OneRank, thresholds: Thresholds | None = THRESHOLDS) -> ScanRecord:
    return rank.prepared(thresholds, rows=4, columns=5, first_frame=0, last_frame=BLOCKS[-1], block_frames=1)


def blocks_to_count_at_once(rank: OneRank, how: str) -> ScanRecord:
    record = scan_of_empty_blocks(rank, None if how == "held" else THRESHOLDS)
    sectors = (0, 1, 3) if how == "cut" else (0, 1, 2, 3)
    for block in BLOCKS:
        rank.send(record, block, *sectors, present=0)
    if how == "held":
        while rank.says(record.uid, COUNTED).fields["totals"]["blocks_held"] < len(BLOCKS):
            pass
        rank.set_thresholds(record)
    if how == "cut":
        while rank.says(record.uid, COUNTED).fields["totals"]["blocks_partial"] < len(BLOCKS):
            pass
        rank.order(JobMessageKind.CUT, uid=str(record.uid), sectors=[2])
    return record


@pytest.mark.parametrize("how", ["held", "cut", "sent"])
def test_whoever_counts_for_long_goes_on_talking(slow_rank: OneRank, how: str) -> None:
    """It hears that the others are alive, shows that it is, and acknowledges what is journaled; it asks for nothing."""
    rank = slow_rank
    record = blocks_to_count_at_once(rank, how)
    rank.hear(0.2)
    rank.wants.clear()  # of the time before
    beats, acknowledged = [time.monotonic()], [0]
    journaled: list[int] = []
    while len(journaled) < len(BLOCKS) and not rank.aborts:
        rank.hear(0.02)
        acknowledged.append(len(rank.acknowledged(record)[0]))
        for message in [*rank._news, *rank._told.take()]:
            if message.kind is JobMessageKind.HEARTBEAT:
                beats.append(time.monotonic())
            elif message.kind is COUNTED:
                journaled += np.frombuffer(message.binary, "<u8").tolist()
        rank._news.clear()
    assert rank.aborts == []
    assert journaled == list(BLOCKS), "in the order in which they came"
    assert max(np.diff(beats)) < STALL_SECONDS
    assert len(set(acknowledged)) > 4, "little by little"
    assert rank.wants == []
    rank.hear(0.3)
    assert rank.acknowledged(record)[0] == set(BLOCKS)


def test_a_flush_waits_for_what_is_still_to_be_counted(slow_rank: OneRank) -> None:
    rank = slow_rank
    record = blocks_to_count_at_once(rank, "cut")
    rank.order(JobMessageKind.FLUSH, uid=str(record.uid))
    assert rank.flushed(record.uid) == list(BLOCKS)
    assert rank.aborts == []


def test_who_writes_pixels_for_long_asks_for_nothing(fresh_rank: OneRank, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come and is not yet in a recording's file is not lost."""
    write = RecordingPixels.write

    def write_slowly(self: RecordingPixels, blocks: Any, seconds: float) -> int:
        time.sleep(SLOW_SECONDS)
        return write(self, blocks[:1], seconds)

    monkeypatch.setattr(RecordingPixels, "write", write_slowly)
    rank, scan = fresh_rank, {"rows": 4, "columns": 5, "first_frame": 0, "last_frame": BLOCKS[-1], "block_frames": 1}
    record = rank.prepared(None, recording=True, counting=UNCOUNTED, **scan)
    for block in BLOCKS:
        rank.send(record, block, present=0)
    rank.hear(0.2)
    rank.wants.clear()  # of the time before
    while rank.acknowledged(record) != everywhere(*BLOCKS) and not rank.aborts:
        rank.hear(0.05)
    assert rank.wants == []
    assert rank.aborts == []


def test_what_waits_to_be_counted_goes_with_its_scan(slow_rank: OneRank) -> None:
    rank = slow_rank
    record = blocks_to_count_at_once(rank, "cut")
    following = scan_of_empty_blocks(rank)
    rank.order(JobMessageKind.DISCARD, uid=str(record.uid), keep=False)
    started = time.monotonic()
    rank.send(following, 1, present=0)
    rank.counted(following.uid, 1)
    assert time.monotonic() - started < len(BLOCKS) * SLOW_SECONDS / 2
    assert rank.aborts == []


# the other ranks


class TwoRanks:
    """Rank 0 of a job of two, without a leader yet, and the other one's end of the star."""

    def __init__(self) -> None:
        self.orders: Mailbox[Order] = Mailbox()
        self.aborts: list[BaseException] = []
        config = Config()
        watchdog = Watchdog(config.watchdog, 0, peers=[0, 1])
        self.receiver = RankReceiver(config, 0, 2, INCARNATION, self.orders, watchdog, self.aborts.append)
        self.receiver.start(self.receiver.talk.hub_endpoint)
        self.sockets = Sockets()
        self.other = self.sockets.job_spoke(self.receiver.talk.hub_endpoint, 1)

    def says(self, kind: JobMessageKind) -> None:
        self.other.tell(JobMessage(kind, 1))

    def hears(self, kind: JobMessageKind, seconds: float = 5.0) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if kind in [message.kind for message in self.other.receive()]:
                return True
            time.sleep(0.02)
        return False

    def close(self) -> None:
        self.receiver.stop()
        self.sockets.close()


@pytest.fixture
def two_ranks() -> Iterator[TwoRanks]:
    two = TwoRanks()
    yield two
    two.close()


def test_a_rank_that_is_asked_to_end_before_there_is_a_leader_is_heard(two_ranks: TwoRanks) -> None:
    two_ranks.says(JobMessageKind.STOP)
    two_ranks.receiver.talk.wait_for_everybody(5)
    time.sleep(0.2)
    news: Mailbox[JobMessage] = Mailbox()
    two_ranks.receiver.talk.report_to(news.put)
    heard: list[JobMessage] = []
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and JobMessage(JobMessageKind.STOP, 1) not in heard:
        heard += news.wait(0.2)
    assert heard.count(JobMessage(JobMessageKind.STOP, 1)) == 1
    assert two_ranks.aborts == []


def test_a_leader_that_is_asked_to_end_before_all_ranks_are_there_tells_all_of_them(two_ranks: TwoRanks) -> None:
    two_ranks.receiver.request_stop()
    assert two_ranks.orders.wait(1.5) == [], "nobody may leave the others behind"
    two_ranks.says(JobMessageKind.HEARTBEAT)
    assert two_ranks.hears(JobMessageKind.STOP)
    assert two_ranks.orders.wait(5) == [StopOrder()]


def test_ranks_that_never_come_are_counted(two_ranks: TwoRanks) -> None:
    with pytest.raises(StalledError, match="only 1 of 2 ranks"):
        two_ranks.receiver.talk.wait_for_everybody(2.0)


def test_a_lost_message_ends_the_job(two_ranks: TwoRanks) -> None:
    two_ranks.says(JobMessageKind.HEARTBEAT)
    assert two_ranks.hears(JobMessageKind.HEARTBEAT)
    two_ranks.other._leader.pack([])  # as if one had gone out that never arrives
    two_ranks.says(JobMessageKind.HEARTBEAT)
    deadline = time.monotonic() + 5
    while not two_ranks.aborts and time.monotonic() < deadline:
        time.sleep(0.05)
    (error,) = two_ranks.aborts
    assert isinstance(error, LostMessageError)
    assert error.remedy


def test_what_is_connected_to_from_outside_is_published_under_a_name_of_its_own() -> None:
    """The ranks among themselves keep to the interface."""
    network = NetworkConfig(interface="lo", external_name="localhost")
    watchdog = Watchdog(WatchdogConfig(), 0, peers=[0])
    receiver = RankReceiver(Config(network=network), 0, 1, INCARNATION, Mailbox(), watchdog, lambda error: None)
    try:
        endpoints = receiver.endpoints(0, "node")
        for endpoint in (endpoints.data_endpoint, endpoints.answer_endpoint):
            name, port = endpoint.removeprefix("tcp://").split(":")
            assert name == "localhost"
            with socket.create_connection(("127.0.0.1", int(port)), timeout=10):
                pass
        assert receiver.talk.hub_endpoint.startswith("tcp://127.0.0.1:")
    finally:
        receiver._sockets.close()
