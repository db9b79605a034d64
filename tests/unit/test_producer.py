"""A sector's sender and its window, over real sockets."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpistream.acquisition import producer as producer_module
from mpistream.acquisition.block_supply import ReadableBlocks, SendWindow
from mpistream.acquisition.producer import SectorSender
from mpistream.model.block_set import BlockSet
from mpistream.model.errors import SourceError
from mpistream.model.geometry import RECORD_BYTES
from mpistream.model.job_share import JobShare, JournalExtent
from mpistream.model.protocol import Ack, BlockHeader, Hello, Want, blocks_digest
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.model.scan import SectorEnd
from mpistream.transport.sockets import AnswerOutlet, Sockets
from tests.unit.made_up_blocks import scan_record

HOST = "127.0.0.1"
INCARNATION, RANK = 77, 5
RECORD = scan_record(first_frame=0, last_frame=39, block_frames=4, rows=5, columns=8)  # blocks 0 to 9


def frames_of(block: int, block_frames: int) -> range:
    return range(block * block_frames, (block + 1) * block_frames)


@dataclass
class Source:
    """Frames 0 to 39 but for ``lost``; every byte of a record is the frame's number. ``pause_seconds`` by block."""

    sector: int = 2
    sectors_duplicate: int = 3
    sectors_rejected: int = 1
    is_live: bool = False
    frames_lost: int = 0
    lost: frozenset[int] = frozenset({5, 12, 13, 14, 15})
    pause_seconds: dict[int, float] = field(default_factory=dict)
    most_buffers: dict[int, object] = field(default_factory=dict)
    blocks_read: list[int] = field(default_factory=list)

    def read_block(self, block: int, block_frames: int, buffer: memoryview) -> int:
        time.sleep(self.pause_seconds.get(block, 0))
        assert len(buffer) == block_frames * RECORD_BYTES
        self.most_buffers[id(buffer.obj)] = buffer.obj
        self.blocks_read.append(block)
        there = [number for number in frames_of(block, block_frames) if number not in self.lost]
        for place, number in enumerate(there):
            buffer[place * RECORD_BYTES : (place + 1) * RECORD_BYTES] = bytes([number]) * RECORD_BYTES
        return self.frames_present(block, block_frames)

    def frames_present(self, block: int, block_frames: int) -> int:
        return sum((number not in self.lost) << bit for bit, number in enumerate(frames_of(block, block_frames)))

    def seconds_until(self, block: int, block_frames: int) -> float:
        return 0.0

    def close(self) -> None:
        """Nothing is open."""


class Rank:
    """Receives blocks in a thread of its own, and acknowledges them as ``answers(header)`` says: seconds from now."""

    incarnation = RANK

    def __init__(self, answers: Callable[[BlockHeader], list[float]]) -> None:
        self._answers = answers
        self._sockets = Sockets()
        self._data = self._sockets.data_inlet(HOST)
        self._inlet = self._sockets.answer_inlet(HOST)
        self.data_endpoint, self.answer_endpoint = self._data.endpoint, self._inlet.endpoint
        self.arrived: list[tuple[BlockHeader, bytes]] = []
        self.most_unacknowledged = 0
        self._unacknowledged: set[int] = set()
        self._due: list[tuple[float, BlockHeader]] = []
        self._failure: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Rank":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._thread.join(timeout=5)
        assert not self._thread.is_alive()
        self._sockets.close()
        if self._failure:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._closed:
                self._sockets.wait(0.01)
                self._inlet.receive()
                for packed, payload in self._data.receive():
                    header = BlockHeader.unpack(packed)
                    self.arrived.append((header, bytes(payload)))
                    self._unacknowledged.add(header.block)
                    self.most_unacknowledged = max(self.most_unacknowledged, len(self._unacknowledged))
                    self._due += [(time.monotonic() + delay, header) for delay in self._answers(header)]
                now = time.monotonic()
                for header in [header for due, header in self._due if due <= now]:
                    self._unacknowledged.discard(header.block)
                    self._inlet.send(
                        header.producer_id,
                        Ack(
                            header.producer_id, header.scan_uid, header.producer_incarnation, RANK, (header.block,)
                        ).pack(),
                    )
                self._due = [(due, header) for due, header in self._due if due > now]
        except BaseException as error:
            self._failure = error


def table(version: int, *incarnations: int) -> RoutingTable:
    ranks = tuple(RankEndpoints(0, 0, HOST, 1, incarnation, "", "", "job") for incarnation in incarnations)
    return RoutingTable(version, "job", ranks)


@dataclass
class Sending:
    """A sender joined to a rank."""

    sender: SectorSender
    rank: Rank
    source: Source
    sockets: Sockets
    answers: AnswerOutlet
    note: str = ""

    def step(self) -> bool:
        for answer in self.answers.receive():
            self.sender.take(answer)
        has_sent = self.sender.send_next()
        if not has_sent:
            self.note = self.sender.silence() or self.note
        return has_sent

    def until(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            if not self.step():
                self.sockets.wait(0.05)

    def send(self) -> SectorEnd:
        self.until(lambda: self.sender.has_sent_all)
        end = self.sender.end()
        self.until(lambda: self.sender.is_complete)
        assert len(self.sender.supply.window) == 0
        return end

    def arrived(self) -> list[int]:
        return [header.block for header, _ in self.rank.arrived]

    def until_arrived(self, blocks: list[int]) -> None:
        self.until(lambda: self.arrived() == blocks)


@contextmanager
def sending(
    answers: Callable[[BlockHeader], list[float]],
    source: Source | None = None,
    window: int = 3,
    patience_seconds: float = 10.0,
    incarnation: int = INCARNATION,
) -> Iterator[Sending]:
    source = source or Source()
    sockets = Sockets()
    with Rank(answers) as rank:
        outlet = sockets.data_outlet(rank.data_endpoint)
        supply = ReadableBlocks(RECORD, source, SendWindow(window, RECORD.block_frames * RECORD_BYTES))
        sender = SectorSender(
            RECORD, source, supply, source.sector, incarnation, lambda destination: outlet, patience_seconds
        )
        sender.adopt(table(1, RANK))
        heard = sockets.answer_outlet(rank.answer_endpoint, Hello(source.sector))
        try:
            yield Sending(sender, rank, source, sockets, heard)
        finally:
            sockets.close()


def at_once(header: BlockHeader) -> list[float]:
    return [0.0]


def never(header: BlockHeader) -> list[float]:
    return []


def ack(*blocks: int, producer: int = INCARNATION, rank: int = RANK) -> Ack:
    return Ack(2, RECORD.uid.bytes, producer, rank, blocks)


def share(blocks: list[int], sealed: bool = False) -> dict[str, JobShare]:
    journals = (JournalExtent(0, RANK, ""),)
    return {"job": JobShare("job", BlockSet.of(RECORD.block_range, blocks), sealed=sealed, journals=journals)}


def check_end(end: SectorEnd) -> None:
    """It tells of all that the source has."""
    source = Source()
    present = [source.frames_present(block, 4) for block in RECORD.block_range]
    assert (end.sector, end.producer_id, end.blocks, end.records, end.cut) == (2, 2, 10, 35, "")
    assert (end.sectors_duplicate, end.sectors_rejected) == (3, 1)
    assert end.digest == blocks_digest(2, RECORD.block_range, present)


def check_arrivals(sending: Sending, end: SectorEnd, blocks: list[int] | None = None) -> None:
    """Every block came once, or as ``blocks`` say, with the records that the source wrote."""
    assert sending.arrived() == (list(RECORD.block_range) if blocks is None else blocks)
    for header, payload in sending.rank.arrived:
        there = [number for number in frames_of(header.block, 4) if number not in sending.source.lost]
        assert payload == b"".join(bytes([number]) * RECORD_BYTES for number in there)
        assert (header.sector, header.producer_id, header.producer_incarnation) == (2, 2, INCARNATION)
        assert header.scan_uid == RECORD.uid.bytes
        assert header.destination == 0
    check_end(end)


def test_every_block_is_sent_once_and_in_order() -> None:
    with sending(at_once) as it:
        end = it.send()
        check_arrivals(it, end)
        assert {header.routing_version for header, _ in it.rank.arrived} == {1}
        assert 0 <= end.seconds_reading <= end.seconds_sending


def test_the_window_bounds_what_is_under_way_and_its_buffers_are_used_again() -> None:
    """A buffer that were used again too early would be seen in what arrives."""
    with sending(lambda header: [0.03], window=2) as it:
        check_arrivals(it, it.send())
        assert it.rank.most_unacknowledged == 2
        assert len(it.source.most_buffers) == 2


def test_acknowledgements_come_late_twice_and_out_of_order() -> None:
    with sending(lambda header: [0.05 if header.block % 2 else 0.01, 0.06]) as it:
        check_arrivals(it, it.send())
        assert it.rank.most_unacknowledged <= 3


def test_an_acknowledgement_of_a_rank_that_is_not_in_the_table_frees_nothing() -> None:
    with sending(never, patience_seconds=0.6) as it:
        it.sender.take(ack(*range(10), rank=RANK + 1))
        it.until(lambda: it.note)
        assert it.note == "no rank acknowledged a block of sector 2 for 1 s"
        assert len(it.sender.supply.window) == 3
    assert it.arrived() == [0, 1, 2]


def test_a_block_that_an_earlier_start_sent_is_released_but_its_buffer_is_not_used_again() -> None:
    """ZeroMQ may still be sending this process's own copy of it."""
    with sending(never, window=2) as it:
        it.until_arrived([0, 1])
        it.sender.take(ack(0, producer=INCARNATION - 1))
        it.until_arrived([0, 1, 2])
        assert len(it.source.most_buffers) == 3
        it.sender.take(ack(1))
        it.until_arrived([0, 1, 2, 3])
        assert len(it.source.most_buffers) == 3


def test_the_buffer_of_a_block_that_was_sent_twice_is_not_used_again() -> None:
    with sending(never, window=2) as it:
        it.until_arrived([0, 1])
        it.sender.resend_all()
        it.until_arrived([0, 1, 0, 1])
        it.sender.take(ack(0))
        it.until_arrived([0, 1, 0, 1, 2])
        assert len(it.source.most_buffers) == 3
        assert it.source.blocks_read == [0, 1, 2]


@pytest.fixture
def nothing_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producer_module, "_ON_ITS_WAY_SECONDS", 0.0)


def test_a_want_does_not_bring_what_was_sent_just_before_it() -> None:
    with sending(never, window=3) as it:
        it.until_arrived([0, 1, 2])
        it.sender.take(Want(2, RECORD.uid.bytes, RANK))
        assert not it.step()
        time.sleep(0.6)
        it.sender.take(ack(0))
        it.until_arrived([0, 1, 2, 3])
        it.sender.take(Want(2, RECORD.uid.bytes, RANK))
        it.until_arrived([0, 1, 2, 3, 1, 2])
        assert not it.step()


@pytest.mark.usefixtures("nothing_is_on_its_way")
def test_a_want_brings_what_is_under_way_again() -> None:
    with sending(never) as it:
        it.until_arrived([0, 1, 2])
        it.sender.take(ack(1))
        it.until_arrived([0, 1, 2, 3])
        it.sender.take(Want(2, RECORD.uid.bytes, RANK + 1))
        it.sender.take(Want(2, RECORD.uid.bytes, RANK))
        it.until_arrived([0, 1, 2, 3, 0, 2, 3])


@pytest.mark.usefixtures("nothing_is_on_its_way")
def test_a_rank_asks_over_its_own_socket() -> None:
    with sending(never, window=1) as it:
        it.until_arrived([0])
        it.rank._inlet.send(2, Want(2, RECORD.uid.bytes, RANK).pack())
        it.until_arrived([0, 0])


def test_a_new_table_stamps_anew_what_is_sent_again() -> None:
    with sending(never, window=2) as it:
        it.until_arrived([0, 1])
        it.sender.adopt(table(3, RANK + 1, RANK + 2))
        it.until_arrived([0, 1, 0, 1])
        turn = int.from_bytes(RECORD.uid.bytes[:4], "little")
        assert [(header.routing_version, header.destination) for header, _ in it.rank.arrived[2:]] == [
            (3, turn % 2),
            (3, (turn + 1) % 2),
        ]
        it.sender.take(ack(0, 1))  # of a rank that the new table leaves out
        assert it.sender.delivery.released == 0


def test_a_restarted_producer_sends_what_is_in_no_share_and_ends_as_an_undisturbed_one() -> None:
    with sending(at_once) as it:
        it.sender.reconcile(share([0, 1, 2, 5, 9]))
        end = it.send()
        check_arrivals(it, end, [3, 4, 6, 7, 8])
        assert it.source.blocks_read == [3, 4, 6, 7, 8]


def test_what_a_sealed_job_lost_is_read_and_sent_again() -> None:
    with sending(at_once) as it:
        check_arrivals(it, it.send())
        it.sender.reconcile(share(list(range(10))))
        assert it.sender.is_complete
        it.sender.adopt(table(2, RANK + 1))
        it.sender.reconcile(share([0, 1, 2, 3, 5, 6, 7, 9], sealed=True))
        it.until_arrived([*range(10), 4, 8])
        it.sender.take(ack(4, 8, rank=RANK + 1))
        assert it.sender.is_complete
        check_end(it.sender.end())


def test_the_lowest_block_goes_out_even_where_the_window_is_full() -> None:
    """Otherwise sectors could wait for one another: each window full of blocks that lack what another cannot send."""
    with sending(at_once, window=2) as it:
        it.until(lambda: it.sender.delivery.released >= 4)
    with sending(never, window=2) as it:
        it.sender.reconcile(share([0, 1]))
        it.until_arrived([2, 3])
        it.sender.reconcile(share([], sealed=True))
        it.until_arrived([2, 3, 0])
        it.sender.take(ack(2))
        assert not it.sender.send_next()  # sealed: not to be believed
        it.sender.adopt(table(2, RANK + 1))
        it.until_arrived([2, 3, 0, 0])
        it.sender.take(ack(0, rank=RANK + 1))
        it.until_arrived([2, 3, 0, 0, 1, 2, 3])


def test_nothing_is_read_before_there_is_a_way_to_send_it() -> None:
    source = Source()
    supply = ReadableBlocks(RECORD, source, SendWindow(3, 4 * RECORD_BYTES))
    sender = SectorSender(RECORD, source, supply, 2, INCARNATION, lambda destination: None, 0.3)
    assert not sender.send_next()
    assert "there was no rank to send sector 2 to" in note_in_time(sender)
    sender.adopt(table(1, RANK))
    assert not sender.send_next()
    assert "there was no aggregator to send sector 2 to" in note_in_time(sender)
    assert source.blocks_read == []


def note_in_time(sender: SectorSender) -> str:
    for _ in range(100):
        if note := sender.silence():
            return note
        time.sleep(0.01)
    return ""


def test_patience_is_about_silence_not_about_the_whole() -> None:
    """10 blocks one after the other, each acknowledged within the limit, take longer than the limit."""
    with sending(lambda header: [0.1], window=1, patience_seconds=0.6) as it:
        end = it.send()
        assert end.seconds_sending > 0.6
        assert not it.note


def test_a_source_that_pauses_does_not_use_up_the_ranks_patience() -> None:
    with sending(lambda header: [0.1], Source(pause_seconds={9: 0.8}), window=1, patience_seconds=0.5) as it:
        check_arrivals(it, it.send())
        assert not it.note


def test_a_new_share_is_news() -> None:
    with sending(never, window=1, patience_seconds=0.4) as it:
        for blocks in range(8):
            it.sender.reconcile(share(list(range(blocks))))
            deadline = time.monotonic() + 0.1
            it.until(lambda deadline=deadline: time.monotonic() > deadline)
        assert not it.note


def test_a_source_that_fails_ends_the_scan() -> None:
    class Broken(Source):
        def read_block(self, block: int, block_frames: int, buffer: memoryview) -> int:
            raise SourceError("cannot read the disk")

    with sending(at_once, Broken()) as it, pytest.raises(SourceError, match="cannot read the disk"):
        it.send()


def test_the_status_tells_how_far_it_is() -> None:
    with sending(never, window=2) as it:
        it.sender.reconcile(share([0]))
        it.until_arrived([1, 2])
        status = it.sender.status()
    assert status == {
        "scan": str(RECORD.uid),
        "sent": 2,
        "released": 1,
        "owed": 7,
        "window_bytes": 8 * RECORD_BYTES,
        "unreleased_bytes": 7 * RECORD_BYTES,  # frame 5 is lost
        "spilled_bytes": 0,
        "dropped": 0,
        "frames_lost": 0,
        "table": 1,
    }


@given(st.integers(1, 5), st.lists(st.integers(0, 8)))
def test_a_window_never_holds_more_than_it_may(limit: int, operations: list[int]) -> None:
    """A number takes room for the next block, or releases that block, whether it is in the window or not."""
    window, held, buffers, block = SendWindow(limit, 16), {}, set(), 0
    for operation in operations:
        if operation >= 4 and window.has_room:
            held[block] = window.hold(block, window.buffer(), 0)
            held[block].sends = 1
            buffers.add(id(held[block].buffer.obj))
            block += 1
        else:
            window.release(operation, came_with_own=True)
            held.pop(operation, None)
        assert len(window) == len(held) <= limit
        assert window.has_room == (len(held) < limit)
        assert len({id(kept.buffer.obj) for kept in held.values()}) == len(held)
    assert len(buffers) <= limit
