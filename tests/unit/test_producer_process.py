"""What a producer process does with the scans that it finds in etcd, over real sockets; etcd is made up."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from mpistream.acquisition import producer as producer_module
from mpistream.acquisition.spill import Spill, spill_path
from mpistream.control.registry import AggregatorEntry, ProducerEntry
from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.model.block_set import BlockSet
from mpistream.model.config import Config, StreamConfig
from mpistream.model.errors import EtcdUnreachable, MpistreamError
from mpistream.model.job_share import JobShare, JournalExtent
from mpistream.model.protocol import Ack, BlockHeader, Want
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.model.scan import ScanRecord, SectorEnd
from mpistream.pipeline.courier import Courier
from mpistream.pipeline.producing import sector_stream
from mpistream.pipeline.producing.news import Aggregators, News, NewTable, ScanChange, Stop
from mpistream.pipeline.producing.producer import Producer
from mpistream.transport.aggregator import Aggregator
from mpistream.transport.mailbox import Mailbox
from mpistream.transport.sockets import Sockets
from tests.unit.made_up_blocks import scan_record

HOST = "127.0.0.1"
SECTOR = 2
ME = ProducerEntry(SECTOR, SECTOR, "camera", 7, 77)
FIRST, SECOND = UUID(int=1 << 64), UUID(int=2 << 64)


def record_of(uid: UUID = FIRST, source: str = "sim:4x5?electrons=0", **changes: object) -> ScanRecord:
    """20 frames in blocks 0 to 9."""
    return scan_record(
        uid=uid, source=source, rows=4, columns=5, first_frame=0, last_frame=19, block_frames=2, **changes
    )


@dataclass
class MadeUpEtcd:
    """What the producer writes, and what it reads when it asks."""

    lease_seconds: int = 5
    is_away: bool = False
    tables: list[int] = field(default_factory=list)
    ends: list[tuple[UUID, SectorEnd]] = field(default_factory=list)
    faults: list[tuple[UUID, str, str]] = field(default_factory=list)
    said: list[tuple[str, str, Any]] = field(default_factory=list)
    latest: RoutingTable | None = None
    all_shares: dict[UUID, dict[str, JobShare]] = field(default_factory=dict)

    def _ask(self) -> None:
        if self.is_away:
            raise EtcdUnreachable("no etcd reachable")

    def update_producer(self, registration: object, entry: ProducerEntry) -> None:
        self._ask()
        self.tables.append(entry.table)

    def write_end(self, uid: UUID, end: SectorEnd) -> bool:
        self._ask()
        self.ends.append((uid, end))
        return True

    def write_fault(self, uid: UUID, who: str, error: MpistreamError) -> None:
        self._ask()
        self.faults.append((uid, who, error.message))

    def write_status(self, kind: str, name: str, value: Any) -> None:
        self._ask()
        self.said.append((kind, name, value))

    def latest_routing(self) -> RoutingTable | None:
        self._ask()
        return self.latest

    def shares(self, uid: UUID) -> dict[str, JobShare]:
        self._ask()
        return self.all_shares.get(uid, {})


class MadeUpDetector:
    stopped = False

    def was_stopped(self) -> bool:
        stopped, self.stopped = self.stopped, False
        return stopped


class Rank:
    """Keeps what comes, and acknowledges it unless it is ``deaf``."""

    def __init__(self, sockets: Sockets, incarnation: int) -> None:
        self._data, self.answers = sockets.data_inlet(HOST), sockets.answer_inlet(HOST)
        self.entry = RankEndpoints(
            0, 0, HOST, 1, incarnation, self._data.endpoint, self.answers.endpoint, f"job-{incarnation // 10}"
        )
        self.deaf = False
        self.came: list[BlockHeader] = []

    def receive(self) -> None:
        self.answers.receive()
        for packed, _ in self._data.receive():
            header = BlockHeader.unpack(packed)
            self.came.append(header)
            if not self.deaf:
                self.acknowledge(header)

    def acknowledge(self, header: BlockHeader) -> None:
        ack = Ack(
            header.producer_id,
            header.scan_uid,
            header.producer_incarnation,
            self.entry.incarnation,
            (header.block,),
        )
        self.answers.send(header.producer_id, ack.pack())

    def want(self, uid: UUID) -> None:
        self.answers.send(SECTOR, Want(SECTOR, uid.bytes, self.entry.incarnation).pack(), keep=False)

    def blocks(self, uid: UUID = FIRST) -> list[int]:
        return [header.block for header in self.came if header.scan_uid == uid.bytes]


class Bench:
    """A producer, aggregators and ranks; one thread takes turns with all of them."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.etcd = MadeUpEtcd()
        self.detector = MadeUpDetector()
        self.ranks: list[Rank] = []
        self.aggregators: list[Aggregator] = []
        self._theirs = Sockets()
        self._aggregators_sockets: list[Sockets] = []
        self.start_producer()

    def start_producer(self) -> None:
        self.sockets = Sockets()
        self.news: Mailbox[News] = Mailbox()
        self.sockets.wait_for(self.news)
        self.courier = Courier()
        etcd: Any = self.etcd
        registration: Any = None
        detector: Any = self.detector
        self.producer = Producer(self.config, ME, etcd, registration, self.courier, detector, self.sockets, self.news)

    def end_producer(self) -> None:
        self.news.put(Stop())
        self.producer.serve()
        self.courier.close(5.0)
        self.sockets.close()
        self.news.close()

    def rank(self, incarnation: int) -> Rank:
        rank = Rank(self._theirs, incarnation)
        self.ranks.append(rank)
        return rank

    def aggregator(self, name: str = "aggregator", incarnation: int = 1) -> AggregatorEntry:
        sockets = Sockets()
        made = Aggregator(sockets, sockets.data_inlet(HOST), sockets.answer_inlet(HOST))
        self._aggregators_sockets.append(sockets)
        self.aggregators.append(made)
        return AggregatorEntry(name, HOST, 1, made.data_inlet.endpoint, made.answer_inlet.endpoint, incarnation)

    def kill_aggregator(self) -> None:
        self.aggregators.clear()
        self._aggregators_sockets.pop().close()

    def table(self, version: int, *ranks: Rank, tell_producer: bool = True) -> RoutingTable:
        table = RoutingTable(version, ranks[0].entry.job, tuple(rank.entry for rank in ranks))
        for aggregator in self.aggregators:
            aggregator.adopt(table)
        if tell_producer:
            self.news.put(NewTable(table))
        return table

    def tell(self, uid: UUID, what: str, value: Any) -> None:
        self.news.put(ScanChange((f"{uid}/{what}", value)))

    def state(self, uid: UUID, state: ScanState, since: float = 1.5e9) -> None:
        self.tell(uid, "state", ScanStatus(state, since).to_json())

    def share(self, uid: UUID, blocks: list[int], *ranks: Rank, sealed: bool = False) -> JobShare:
        journals = tuple(JournalExtent(0, rank.entry.incarnation, "") for rank in ranks)
        share = JobShare("job", BlockSet.of(range(10), blocks), sealed=sealed, journals=journals)
        self.tell(uid, "shares/job", share.to_json())
        return share

    def streaming(self, record: ScanRecord, since: float = 1.5e9) -> None:
        self.state(record.uid, ScanState.ANNOUNCED)
        self.tell(record.uid, "record", record.model_dump(mode="json"))
        self.state(record.uid, ScanState.STREAMING, since)

    def until(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            if not self.producer.turn():
                self.sockets.wait(0.005)
            for aggregator in self.aggregators:
                aggregator.forward()
            for rank in self.ranks:
                rank.receive()

    def for_a_while(self, seconds: float = 0.3) -> None:
        deadline = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > deadline)

    def close(self) -> None:
        self.end_producer()
        for sockets in (self._theirs, *self._aggregators_sockets):
            sockets.close()


@pytest.fixture(autouse=True)
def nothing_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a rank asks for is sent again, however shortly before it went out."""
    monkeypatch.setattr(producer_module, "_ON_ITS_WAY_SECONDS", 0.0)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(stream=StreamConfig(patience_seconds=5, spill_directory=str(tmp_path / "spill")))


@pytest.fixture
def bench(config: Config) -> Iterator[Bench]:
    made = Bench(config)
    yield made
    made.close()


def ended(bench: Bench) -> list[UUID]:
    return [uid for uid, _ in bench.etcd.ends]


@pytest.mark.parametrize("direct", [False, True])
def test_a_scan_from_its_beginning_to_its_end(bench: Bench, direct: bool) -> None:
    if not direct:
        bench.news.put(Aggregators([bench.aggregator()]))
    first, second = bench.rank(1), bench.rank(2)
    bench.table(1, first, second)
    bench.streaming(record_of(direct=direct))
    bench.until(lambda: ended(bench) == [FIRST] and len(first.came) + len(second.came) == 10)
    assert sorted(first.blocks() + second.blocks()) == list(range(10))
    assert {header.destination for header in first.came} == {0}
    assert {header.destination for header in second.came} == {1}
    bench.until(lambda: bench.producer._streams[FIRST].is_idle)
    bench.until(lambda: bench.etcd.tables == [1] and bench.etcd.said)
    assert bench.etcd.said[-1][:2] == ("producers", "2")
    assert bench.etcd.said[-1][2]["sector"] == SECTOR
    for state in (ScanState.DRAINING, ScanState.ASSEMBLING):
        bench.state(FIRST, state)
        bench.for_a_while(0.05)
    assert bench.producer._streams == {}
    assert bench.etcd.ends[0][1].records == 20


def test_the_next_scans_source_is_open_before_its_turn(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several that are announced the first; nothing is opened between two scans."""
    bench.news.put(Aggregators([bench.aggregator()]))
    rank = bench.rank(1)
    bench.table(1, rank)
    bench.streaming(record_of())
    for uid, at in ((UUID(int=3 << 64), 1.7e9), (SECOND, 1.6e9)):
        bench.state(uid, ScanState.ANNOUNCED)
        bench.tell(uid, "record", record_of(uid, announced_unix_seconds=at).model_dump(mode="json"))
    bench.until(lambda: ended(bench) == [FIRST])
    monkeypatch.setattr(sector_stream, "open_source", None)
    bench.state(FIRST, ScanState.DRAINING)
    bench.state(SECOND, ScanState.STREAMING)
    bench.until(lambda: ended(bench) == [FIRST, SECOND] and rank.blocks(SECOND) == list(range(10)))


@pytest.mark.parametrize("direct", [False, True])
def test_a_want_reaches_the_producer(bench: Bench, direct: bool) -> None:
    if not direct:
        bench.news.put(Aggregators([bench.aggregator()]))
    rank = bench.rank(1)
    rank.deaf = True
    bench.table(1, rank)
    bench.streaming(record_of(direct=direct))
    bench.until(lambda: rank.blocks() == list(range(10)))
    bench.for_a_while(0.2)
    rank.acknowledge(rank.came[3])
    bench.until(lambda: bench.producer._streams[FIRST].sender.delivery.released == 1)
    rank.came.clear()
    rank.want(FIRST)
    bench.until(lambda: rank.blocks() == [0, 1, 2, 4, 5, 6, 7, 8, 9])


def test_another_start_of_the_aggregator_gets_what_was_under_way_again(bench: Bench) -> None:
    bench.news.put(Aggregators([bench.aggregator(incarnation=1)]))
    rank = bench.rank(1)
    rank.deaf = True
    bench.table(1, rank)
    bench.streaming(record_of())
    bench.until(lambda: rank.blocks() == list(range(10)))
    rank.acknowledge(rank.came[4])
    bench.until(lambda: bench.producer._streams[FIRST].sender.delivery.released == 1)
    bench.kill_aggregator()
    bench.news.put(Aggregators([]))
    rank.came.clear()
    bench.for_a_while(0.1)
    entry = bench.aggregator(incarnation=2)
    bench.table(1, rank, tell_producer=False)
    rank.deaf = False
    bench.news.put(Aggregators([entry]))
    bench.until(lambda: bench.producer._streams[FIRST].is_idle)
    assert rank.blocks() == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_an_aggregator_is_kept_while_it_is_registered(bench: Bench) -> None:
    one, other = bench.aggregator("b"), bench.aggregator("a")
    links = bench.producer.links
    assert links.choose_aggregator([one])
    assert not links.choose_aggregator([other, one])
    assert not links.choose_aggregator([])
    assert links.aggregator == one
    assert links.choose_aggregator([other, replace(one, incarnation=2)])
    assert links.aggregator == replace(one, incarnation=2)
    assert links.choose_aggregator([other])
    assert links.aggregator == other


def test_a_restarted_producer_goes_on_where_the_shares_end(bench: Bench) -> None:
    rank = bench.rank(1)
    bench.news.put(Aggregators([bench.aggregator()]))
    bench.table(1, rank)
    bench.share(FIRST, [0, 1, 2, 5], rank)
    bench.streaming(record_of())
    bench.until(lambda: bench.etcd.ends and rank.blocks() == [3, 4, 6, 7, 8, 9])
    undisturbed = Bench(bench.config)
    undisturbed.news.put(Aggregators([undisturbed.aggregator()]))
    undisturbed.table(1, undisturbed.rank(1))
    undisturbed.streaming(record_of())
    undisturbed.until(lambda: undisturbed.etcd.ends)
    undisturbed.close()
    ignored = {"seconds_reading": 0.0, "seconds_sending": 0.0}
    (_, end), (_, wanted) = bench.etcd.ends[0], undisturbed.etcd.ends[0]
    assert end.model_copy(update=ignored) == wanted.model_copy(update=ignored)


def test_a_producer_that_finds_its_end_record_serves_what_is_left_and_writes_no_other(bench: Bench) -> None:
    rank = bench.rank(1)
    bench.news.put(Aggregators([bench.aggregator()]))
    bench.table(1, rank)
    end = SectorEnd(
        sector=SECTOR,
        producer_id=SECTOR,
        blocks=10,
        records=20,
        digest=5,
        sectors_duplicate=0,
        sectors_rejected=0,
        seconds_reading=1,
        seconds_sending=1,
    )
    bench.tell(FIRST, f"ends/{SECTOR}", end.model_dump(mode="json"))
    bench.share(FIRST, list(range(9)), rank)
    bench.streaming(record_of())
    bench.state(FIRST, ScanState.DRAINING)
    bench.until(lambda: rank.blocks() == [9] and bench.producer._streams[FIRST].is_idle)
    bench.for_a_while(0.1)
    assert bench.etcd.ends == []


def test_a_sector_that_was_cut_is_left(bench: Bench) -> None:
    rank = bench.rank(1)
    rank.deaf = True
    bench.table(1, rank)
    bench.streaming(record_of(direct=True))
    bench.until(lambda: rank.came)
    end = bench.producer._streams[FIRST].sender.end()
    bench.tell(FIRST, "ends/3", end.model_copy(update={"sector": 3, "cut": "gone"}).model_dump(mode="json"))
    bench.for_a_while(0.1)
    assert FIRST in bench.producer._streams
    bench.tell(FIRST, f"ends/{SECTOR}", end.model_copy(update={"cut": "gone"}).model_dump(mode="json"))
    bench.until(lambda: not bench.producer._streams)
    rank.came.clear()
    bench.for_a_while(0.1)
    assert rank.came == []


def test_scans_are_served_in_the_order_in_which_they_began_to_stream(bench: Bench) -> None:
    rank = bench.rank(1)
    rank.deaf = True
    bench.table(1, rank)
    bench.streaming(record_of(SECOND, direct=True), since=200)
    bench.streaming(record_of(FIRST, direct=True))
    bench.state(FIRST, ScanState.DRAINING, since=150)
    bench.until(lambda: rank.blocks(FIRST) == list(range(10)))
    bench.for_a_while(0.1)
    assert rank.blocks(SECOND) == []
    rank.deaf = False
    rank.want(FIRST)
    bench.until(lambda: rank.blocks(SECOND) == list(range(10)))


def test_a_producer_comes_back_to_a_scan_that_a_job_lost_something_of(bench: Bench) -> None:
    rank, other = bench.rank(1), bench.rank(11)
    bench.table(1, rank)
    bench.streaming(record_of(FIRST, direct=True))
    bench.until(lambda: bench.producer._streams.get(FIRST) and bench.producer._streams[FIRST].is_idle)
    bench.state(FIRST, ScanState.DRAINING, since=150)
    rank.deaf = other.deaf = True
    bench.streaming(record_of(SECOND, direct=True), since=200)
    bench.until(lambda: len(rank.blocks(SECOND)) == 10)
    bench.table(2, other)
    bench.share(FIRST, [0, 1, 2, 3, 4, 5, 6, 9], rank, sealed=True)
    bench.until(lambda: other.blocks(FIRST) == [7, 8])
    bench.for_a_while(0.1)
    came_of_second = len(other.blocks(SECOND))
    assert came_of_second < 10  # the first scan has its turn
    other.deaf = False
    other.want(FIRST)
    bench.until(lambda: set(other.blocks(SECOND)) == set(range(10)))
    assert bench.etcd.tables[-1] == 2


def test_acknowledgements_stay_unread_until_a_process_that_was_stopped_has_asked_etcd(bench: Bench) -> None:
    rank, other = bench.rank(1), bench.rank(11)
    rank.deaf = True
    bench.table(1, rank)
    bench.streaming(record_of(direct=True))
    bench.until(lambda: rank.blocks() == list(range(10)))
    delivery = bench.producer._streams[FIRST].sender.delivery
    # while it is stopped: the rank is given up, and acknowledges nevertheless
    journals = (JournalExtent(0, 1, ""),)
    bench.etcd.all_shares = {
        FIRST: {"job": JobShare("job", BlockSet.of(range(10), [0, 1]), sealed=True, journals=journals)}
    }
    bench.etcd.latest = bench.table(2, other, tell_producer=False)
    bench.etcd.is_away = bench.detector.stopped = True
    for header in list(rank.came):
        rank.acknowledge(header)
    bench.for_a_while()
    assert delivery.released == 0
    bench.etcd.is_away = False
    bench.until(lambda: sorted(other.blocks()) == list(range(2, 10)))
    bench.until(lambda: bench.etcd.tables == [1, 2])
    bench.until(lambda: bench.producer._streams[FIRST].is_idle)


def test_the_stream_goes_on_while_etcd_is_away(bench: Bench) -> None:
    rank = bench.rank(1)
    bench.etcd.is_away = True
    bench.table(1, rank)
    bench.streaming(record_of(direct=True))
    bench.until(lambda: rank.blocks() == list(range(10)), seconds=2)
    bench.for_a_while(0.1)
    assert bench.etcd.ends == bench.etcd.tables == []
    bench.etcd.is_away = False
    bench.until(lambda: ended(bench) == [FIRST] and bench.etcd.tables == [1])


def test_a_source_that_fails_ends_its_scan_and_no_other(bench: Bench) -> None:
    rank = bench.rank(1)
    bench.table(1, rank)
    bench.streaming(record_of(FIRST, source="files:/nowhere", direct=True), since=100)
    bench.streaming(record_of(SECOND, direct=True), since=200)
    bench.until(lambda: ended(bench) == [SECOND] and len(bench.etcd.faults) == 1)
    assert bench.etcd.faults[0][:2] == (FIRST, "producer-2")
    assert "cannot read the directory /nowhere" in bench.etcd.faults[0][2]


def test_silence_is_waited_out(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.producer.config = Config(stream=StreamConfig(patience_seconds=0.4))
    rank = bench.rank(1)
    rank.deaf = True
    bench.table(1, rank)
    bench.streaming(record_of(FIRST, direct=True), since=100)
    bench.until(lambda: caplog.text.count("no rank acknowledged a block of sector 2") == 2)
    assert bench.etcd.faults == []
    again = bench.rank(2)
    bench.table(2, again)
    bench.until(lambda: len(set(again.blocks(FIRST))) == 10)
    bench.until(lambda: ended(bench) == [FIRST])


def test_a_live_scan_spills_and_leaves_no_file(bench: Bench, config: Config, tmp_path: Path) -> None:
    bench.producer.config = Config(
        stream=replace_stream(config, window_bytes=4 * 2 * 8 * 165904, block_frames=2), deployment=config.deployment
    )
    rank = bench.rank(1)
    rank.deaf = True
    bench.table(1, rank)
    record = record_of(source="sim:4x5?electrons=0&live=40&ring=10", direct=True)
    bench.streaming(record, since=time.time())
    path = spill_path(tmp_path / "spill", FIRST, SECTOR)
    bench.until(lambda: path.exists() and path.stat().st_size > 0 and time.time())
    bench.for_a_while(0.6)
    assert rank.blocks() == list(range(8))
    rank.deaf = False
    rank.want(FIRST)
    bench.until(lambda: ended(bench) == [FIRST] and bench.producer._streams[FIRST].is_idle)
    assert rank.blocks()[8:] == list(range(10))
    assert bench.etcd.ends[0][1].records == 20
    assert bench.etcd.ends[0][1].digest is not None
    bench.state(FIRST, ScanState.ASSEMBLING)
    bench.until(lambda: not bench.producer._streams)
    assert not path.exists()


def replace_stream(config: Config, **changes: object) -> StreamConfig:
    return StreamConfig.model_validate(config.stream.model_dump() | changes)


def test_files_of_scans_that_ended_meanwhile_are_removed(bench: Bench, tmp_path: Path) -> None:
    unknown = UUID(int=99)
    for uid in (FIRST, SECOND, unknown):
        Spill(spill_path(tmp_path / "spill", uid, SECTOR), SECTOR, 10**9).close(remove=False)
    bench.state(FIRST, ScanState.COMMITTED)
    bench.state(SECOND, ScanState.STREAMING)
    bench.news.put(Stop())
    bench.producer.serve()
    assert [spill_path(tmp_path / "spill", uid, SECTOR).exists() for uid in (FIRST, SECOND, unknown)] == [
        False,
        True,
        True,
    ]


def test_a_spill_disk_that_turns_read_only_ends_no_producer(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither at the end of a scan nor at a start after one."""

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    rank = bench.rank(1)
    bench.table(1, rank)
    bench.streaming(record_of(source="sim:4x5?electrons=0&live=1000", direct=True), since=time.time())
    bench.until(lambda: ended(bench) == [FIRST] and bench.producer._streams[FIRST].is_idle)
    path = spill_path(tmp_path / "spill", FIRST, SECTOR)
    assert path.exists()
    monkeypatch.setattr(Path, "unlink", read_only)
    for state in (ScanState.DRAINING, ScanState.ASSEMBLING, ScanState.COMMITTED):
        bench.state(FIRST, state)
    bench.until(lambda: not bench.producer._streams)
    bench.end_producer()
    bench.start_producer()
    bench.state(FIRST, ScanState.COMMITTED)
    bench.news.put(Stop())
    bench.producer.serve()
    monkeypatch.undo()
    assert path.exists()
    assert bench.etcd.faults == []


def test_what_others_wrote_into_etcd_by_hand_harms_nothing(bench: Bench) -> None:
    rank = bench.rank(1)
    bench.table(1, rank)
    for key, value in (
        ("nonsense/state", {}),
        (f"{SECOND}/state", 5),
        (f"{SECOND}/record", {"rows": 3}),
        (f"{SECOND}/shares/job", {"blocks": 7}),
        (f"{SECOND}/ends/{SECTOR}", []),
        (f"{SECOND}", None),
    ):
        bench.news.put(ScanChange((key, value)))
    bench.streaming(record_of(direct=True))
    bench.until(lambda: ended(bench) == [FIRST])
