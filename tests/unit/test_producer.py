"""The producer's window and its sending loop, over real sockets."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpistream.acquisition.producer import SectorSender, SendWindow
from mpistream.model.errors import ScanFailed, SourceError
from mpistream.model.geometry import RECORD_BYTES
from mpistream.model.protocol import Ack, BlockHeader, Hello, blocks_digest
from mpistream.model.scan import ScanRecord, SectorEnd
from mpistream.transport.sockets import Sockets
from tests.unit.made_up_blocks import scan_record

HOST = "127.0.0.1"
INCARNATION = 77
RECORD = scan_record(first_frame=0, last_frame=39, block_frames=4, rows=5, columns=8)  # blocks 0 to 9


@dataclass
class Source:
    """Frames 0 to 39 but for ``lost``; every byte of a record is the frame's number. ``pause_seconds`` by block."""

    sector: int = 2
    sectors_duplicate: int = 3
    sectors_rejected: int = 1
    lost: frozenset[int] = frozenset({5, 12, 13, 14, 15})
    pause_seconds: dict[int, float] = field(default_factory=dict)
    most_buffers: set[int] = field(default_factory=set)
    blocks_read: list[int] = field(default_factory=list)

    def read_block(self, block: int, block_frames: int, buffer: memoryview) -> int:
        time.sleep(self.pause_seconds.get(block, 0))
        assert len(buffer) == block_frames * RECORD_BYTES
        self.most_buffers.add(id(buffer.obj))
        self.blocks_read.append(block)
        present = written = 0
        for bit in range(block_frames):
            number = block * block_frames + bit
            if number not in self.lost:
                buffer[written : written + RECORD_BYTES] = bytes([number]) * RECORD_BYTES
                written += RECORD_BYTES
                present |= 1 << bit
        return present

    def close(self) -> None:
        """Nothing is open."""


class Rank:
    """Receives blocks in a thread of its own, and acknowledges them as ``answers(header)`` says: seconds from now."""

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
                            header.producer_id, header.scan_uid, header.producer_incarnation, 5, (header.block,)
                        ).pack(),
                    )
                self._due = [(due, header) for due, header in self._due if due > now]
        except BaseException as error:
            self._failure = error


@dataclass
class Sending:
    """A sender joined to a rank."""

    sender: SectorSender
    rank: Rank
    source: Source

    def send(self) -> SectorEnd:
        end = self.sender.send_all()
        assert end is not None
        self.sender.wait_until_acknowledged()
        assert len(self.sender.window) == 0
        return end


@contextmanager
def sending(
    answers: Callable[[BlockHeader], list[float]],
    source: Source | None = None,
    record: ScanRecord = RECORD,
    window: int = 3,
    patience_seconds: float = 10.0,
    still_wanted: Callable[[], bool] = lambda: True,
) -> Iterator[Sending]:
    source = source or Source()
    sockets = Sockets()
    with Rank(answers) as rank:
        outlet = sockets.data_outlet(rank.data_endpoint)
        sender = SectorSender(
            record,
            source,
            source.sector,
            INCARNATION,
            SendWindow(window, record.block_frames * RECORD_BYTES),
            sockets,
            lambda block: outlet,
            [sockets.answer_outlet(rank.answer_endpoint, Hello(source.sector))],
            still_wanted,
            patience_seconds,
        )
        try:
            yield Sending(sender, rank, source)
        finally:
            sockets.close()


def at_once(header: BlockHeader) -> list[float]:
    return [0.0]


def check_arrivals(sending: Sending, end: SectorEnd) -> None:
    """Every block came once, with the records that the source wrote, and the end record says so."""
    headers = [header for header, _ in sending.rank.arrived]
    assert [header.block for header in headers] == list(RECORD.block_range)
    for header, payload in sending.rank.arrived:
        numbers = range(header.first_frame, header.first_frame + 4)
        there = [number for number in numbers if number not in sending.source.lost]
        assert payload == b"".join(bytes([number]) * RECORD_BYTES for number in there)
        assert (header.sector, header.producer_id, header.producer_incarnation) == (2, 2, INCARNATION)
        assert (header.scan_uid, header.routing_version) == (RECORD.uid.bytes, RECORD.routing_version)
    assert (end.sector, end.producer_id, end.blocks, end.records) == (2, 2, 10, 35)
    assert (end.sectors_duplicate, end.sectors_rejected) == (3, 1)
    assert end.digest == blocks_digest(
        2, [header.block for header in headers], [header.frames_present for header in headers]
    )


def test_every_block_is_sent_once_and_in_order() -> None:
    with sending(at_once) as it:
        end = it.send()
        check_arrivals(it, end)
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


def test_acknowledgements_of_another_scan_or_an_earlier_start_free_nothing() -> None:
    with sending(lambda header: [], patience_seconds=0.6) as it:
        for ack in (
            Ack(2, bytes(16), INCARNATION, 5, tuple(range(10))),
            Ack(2, RECORD.uid.bytes, INCARNATION - 1, 5, tuple(range(10))),
        ):
            it.rank._inlet.send(2, ack.pack())
        with pytest.raises(ScanFailed, match=r"no rank acknowledged a block of sector 2 for 0\.6 s") as caught:
            it.sender.send_all()
        assert "patience_seconds" in caught.value.remedy
        assert len(it.sender.window) == 3
    assert [header.block for header, _ in it.rank.arrived] == [0, 1, 2]


def test_patience_is_about_silence_not_about_the_whole() -> None:
    """10 blocks one after the other, each acknowledged within the limit, take longer than the limit."""
    with sending(lambda header: [0.1], window=1, patience_seconds=0.6) as it:
        end = it.send()
        assert end.seconds_sending > 0.6


def test_a_source_that_pauses_does_not_use_up_the_ranks_patience() -> None:
    with sending(lambda header: [0.1], Source(pause_seconds={9: 0.8}), window=1, patience_seconds=0.5) as it:
        check_arrivals(it, it.send())


def test_a_scan_that_is_no_longer_wanted_is_left() -> None:
    wanted = threading.Event()
    wanted.set()
    with sending(lambda header: [], window=2, still_wanted=wanted.is_set) as it:
        threading.Timer(0.3, wanted.clear).start()
        started = time.monotonic()
        assert it.sender.send_all() is None
        it.sender.wait_until_acknowledged()
        assert time.monotonic() - started < 3
        assert len(it.sender.window) == 2


def test_a_scan_is_left_at_once_even_where_everything_is_acknowledged() -> None:
    turns: list[int] = []

    def wanted_for_four_turns() -> bool:
        turns.append(len(turns))
        return len(turns) <= 4

    with sending(at_once, window=10, still_wanted=wanted_for_four_turns) as it:
        assert it.sender.send_all() is None
        assert len(turns) == 5
        assert it.source.blocks_read == [0, 1, 2, 3]


def test_a_scan_that_was_not_wanted_from_the_start_is_not_read() -> None:
    with sending(at_once, still_wanted=lambda: False) as it:
        assert it.sender.send_all() is None
        assert it.source.blocks_read == []


def test_a_source_that_fails_ends_the_scan() -> None:
    class Broken(Source):
        def read_block(self, block: int, block_frames: int, buffer: memoryview) -> int:
            raise SourceError("cannot read the disk")

    with sending(at_once, Broken()) as it, pytest.raises(SourceError, match="cannot read the disk"):
        it.sender.send_all()


@given(st.integers(1, 5), st.lists(st.integers(0, 8)))
def test_a_window_never_holds_more_than_it_may(limit: int, operations: list[int]) -> None:
    """A number takes room for the next block, or acknowledges that block, whether it is under way or not."""
    window, under_way, buffers, block = SendWindow(limit, 16), {}, set(), 0
    for operation in operations:
        if operation >= 4 and window.has_room:
            under_way[block] = window.take(block)
            buffers.add(id(under_way[block].obj))
            block += 1
        else:
            window.acknowledge(operation)
            under_way.pop(operation, None)
        assert len(window) == len(under_way) <= limit
        assert window.has_room == (len(under_way) < limit)
        assert len({id(buffer.obj) for buffer in under_way.values()}) == len(under_way)
    assert len(buffers) <= limit
