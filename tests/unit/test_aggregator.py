"""The aggregator between a real producer's sockets and those of ranks."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from uuid import UUID

import pytest

from mpistream.model.geometry import RECORD_BYTES
from mpistream.model.protocol import Ack, BlockHeader, Encoding, Hello, Want
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.transport.aggregator import Aggregator
from mpistream.transport.sockets import AnswerInlet, AnswerOutlet, DataInlet, DataOutlet, Sockets

HOST = "127.0.0.1"
UID = UUID(int=5 << 64).bytes
PAYLOAD = os.urandom(2 * RECORD_BYTES)
HEADER = BlockHeader(Encoding.RECORDS_ROWS, 1, 8, 1, 0, 3, UID, 77, 0, 0b11, len(PAYLOAD))


@dataclass
class Rank:
    """The sockets of a rank."""

    data: DataInlet
    answers: AnswerInlet
    came: list[tuple[BlockHeader, bytes]] = field(default_factory=list)

    def entry(self, number: int, incarnation: int = 1) -> RankEndpoints:
        return RankEndpoints(number, 0, HOST, 1, incarnation, self.data.endpoint, self.answers.endpoint)

    def receive(self) -> None:
        self.answers.receive()
        self.came += [(BlockHeader.unpack(header), bytes(payload)) for header, payload in self.data.receive()]

    def blocks(self) -> list[int]:
        return [header.block for header, _ in self.came]

    def want(self, producer_id: int) -> None:
        self.answers.send(producer_id, Want(producer_id, UID, 1).pack(), keep=False)

    def acknowledge(self, producer_id: int, *blocks: int) -> None:
        self.answers.send(producer_id, Ack(producer_id, UID, 77, 1, blocks).pack())


class Bench:
    """An aggregator with ranks and a producer; one thread takes turns with all of them."""

    def __init__(self) -> None:
        self._mine, self._theirs = Sockets(), Sockets()
        self.aggregator = Aggregator(self._mine, self._mine.data_inlet(HOST), self._mine.answer_inlet(HOST))
        self.ranks: list[Rank] = []
        self.producer: DataOutlet = self._theirs.data_outlet(self.aggregator.data_inlet.endpoint)

    def rank(self, port: int = 0) -> Rank:
        rank = Rank(self._theirs.data_inlet(HOST, port), self._theirs.answer_inlet(HOST))
        self.ranks.append(rank)
        return rank

    def adopt(self, version: int, *ranks: Rank) -> RoutingTable:
        table = RoutingTable(version, "job", tuple(rank.entry(i) for i, rank in enumerate(ranks)))
        self.aggregator.adopt(table)
        return table

    def ear(self, producer_id: int) -> AnswerOutlet:
        return self._theirs.answer_outlet(self.aggregator.answer_inlet.endpoint, Hello(producer_id))

    def send(self, block: int, version: int = 1, producer_id: int = 3, destination: int = 0) -> None:
        header = replace(HEADER, block=block, routing_version=version, producer_id=producer_id, destination=destination)
        self.producer.send(header.pack(), PAYLOAD)

    def forwarded(self, *producer_ids: int, version: int = 1) -> None:
        """A block of each of these producers has passed through."""
        blocks = self.aggregator.blocks_forwarded + len(producer_ids)
        for producer_id in producer_ids:
            self.send(0, version, producer_id)
        self.until(lambda: self.aggregator.blocks_forwarded == blocks)

    def until(self, condition: Callable[[], object], seconds: float = 5.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            self._mine.wait(0.01)
            self.aggregator.forward()
            for rank in self.ranks:
                rank.receive()

    def restart_aggregator(self) -> None:
        """Nothing of it is left; another one is at other ports."""
        self._mine.close()
        self._mine = Sockets()
        self.aggregator = Aggregator(self._mine, self._mine.data_inlet(HOST), self._mine.answer_inlet(HOST))
        self.producer = self._theirs.data_outlet(self.aggregator.data_inlet.endpoint)

    def close(self) -> None:
        self._mine.close()
        self._theirs.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def test_blocks_go_to_their_destination_untouched(bench: Bench) -> None:
    """Which one that is, the producer says, not the aggregator."""
    first, second = bench.rank(), bench.rank()
    bench.adopt(1, first, second)
    for block in range(20):
        bench.send(block, destination=int(block < 12))
    bench.until(lambda: len(first.came) + len(second.came) == 20)
    assert (first.blocks(), second.blocks()) == (list(range(12, 20)), list(range(12)))
    for rank in bench.ranks:
        assert all(payload == PAYLOAD and header.scan_uid == UID for header, payload in rank.came)
    assert (bench.aggregator.blocks_forwarded, bench.aggregator.refused) == (20, 0)


def test_a_rank_that_the_table_does_not_have_is_refused(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    rank = bench.rank()
    bench.adopt(1, rank)
    bench.send(0, destination=1)
    bench.send(1)
    bench.until(lambda: rank.came)
    assert rank.blocks() == [1]
    assert bench.aggregator.refused == 1
    assert "a block for rank 1 of table 1, which has 1 ranks" in caplog.text


def test_a_rank_asks_every_producer_through_the_aggregator(bench: Bench) -> None:
    rank = bench.rank()
    bench.adopt(1, rank)
    ears = {producer_id: bench.ear(producer_id) for producer_id in range(4)}
    bench.until(lambda: all(map(bench.aggregator.answer_inlet.knows, ears)) and rank.answers.knows_an_aggregator)
    for producer_id in ears:
        rank.want(producer_id)
    heard: list[tuple[int, object]] = []
    bench.until(
        lambda: heard.extend((number, a) for number, ear in ears.items() for a in ear.receive()) or len(heard) == 4
    )
    assert dict(heard) == {producer_id: Want(producer_id, UID, 1) for producer_id in range(4)}


def test_ranks_and_producers_find_another_aggregator(bench: Bench) -> None:
    """On other ports; the producer sends again what was under way."""
    rank = bench.rank()
    bench.adopt(1, rank)
    bench.forwarded(3)
    rank.came.clear()
    bench.restart_aggregator()
    bench.adopt(1, rank)
    ear, heard = bench.ear(3), []
    bench.send(0)
    bench.until(lambda: rank.came)
    rank.acknowledge(3, 0)
    bench.until(lambda: heard.extend(ear.receive()) or heard)
    assert heard[0].blocks == (0,)


def test_acknowledgements_come_back_to_their_producer(bench: Bench) -> None:
    first, second = bench.rank(), bench.rank()
    bench.adopt(1, first, second)
    bench.forwarded(3, 4)
    ears = {producer_id: bench.ear(producer_id) for producer_id in (3, 4)}
    first.acknowledge(3, 0, 2)
    second.acknowledge(4, 1)
    heard: dict[int, list[int]] = {3: [], 4: []}

    def listen() -> bool:
        for producer_id, ear in ears.items():
            heard[producer_id] += [block for ack in ear.receive() for block in ack.blocks]
        return heard == {3: [0, 2], 4: [1]}

    bench.until(listen)


def test_acknowledgements_for_another_aggregators_producers_are_left_to_it(bench: Bench) -> None:
    """Ranks tell every aggregator that they know; what was kept for a producer that never comes would pile up."""
    rank = bench.rank()
    bench.adopt(1, rank)
    bench.forwarded(3)
    rank.acknowledge(4, 1)
    rank.acknowledge(3, 7)
    ear, heard = bench.ear(3), []
    bench.until(lambda: heard.extend(ear.receive()) or heard)
    assert heard[0].blocks == (7,)
    stranger = bench.ear(4)
    bench.until(lambda: bench.aggregator.answer_inlet.knows(4))
    rank.acknowledge(4, 3)
    heard.clear()
    bench.until(lambda: heard.extend(stranger.receive()) or heard)
    assert [ack.blocks for ack in heard] == [(3,)], "what came before the greeting was not kept"


def test_a_request_that_nobody_can_be_given_is_dropped(bench: Bench) -> None:
    """An acknowledgement is kept for a producer that is on its way back."""
    rank = bench.rank()
    bench.adopt(1, rank)
    bench.forwarded(3)
    rank.want(3)
    rank.acknowledge(3, 0)
    bench.until(lambda: bench.aggregator.answer_inlet.waiting)
    ear, heard = bench.ear(3), []
    bench.until(lambda: heard.extend(ear.receive()) or heard)
    assert [type(answer) for answer in heard] == [Ack]


def test_an_acknowledgement_waits_for_a_producer_that_does_not_listen_yet(bench: Bench) -> None:
    rank = bench.rank()
    bench.adopt(1, rank)
    bench.forwarded(3)
    rank.acknowledge(3, 7)
    deadline = time.monotonic() + 0.2
    bench.until(lambda: time.monotonic() > deadline)
    ear, heard = bench.ear(3), []
    bench.until(lambda: heard.extend(ear.receive()) or heard)
    assert heard[0].blocks == (7,)


GARBAGE = {
    "one part": [b"hello"],
    "three parts": [HEADER.pack(), PAYLOAD, b"more"],
    "no header": [b"hello", PAYLOAD],
    "empty": [b"", b""],
    "another version": [HEADER.pack()[:4] + b"\x01" + HEADER.pack()[5:], PAYLOAD],
    "a sector that no frame has": [replace(HEADER, sector=4).pack(), PAYLOAD],
    "an acknowledgement": [Ack(3, UID, 77, 1, (0,)).pack(), b""],
}


@pytest.mark.parametrize("parts", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_refused_counted_and_harms_nothing(
    bench: Bench, parts: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    rank = bench.rank()
    bench.adopt(1, rank)
    with caplog.at_level(logging.ERROR):
        bench.producer.socket.send_multipart(parts)
        bench.send(0)
        bench.until(lambda: rank.came)
    assert bench.aggregator.refused == 1
    assert "refused a message" in caplog.text
    assert rank.blocks() == [0]


def test_blocks_of_a_table_that_is_not_known_yet_wait_for_it(bench: Bench) -> None:
    first, second = bench.rank(), bench.rank()
    bench.adopt(1, first)
    bench.send(0, version=2)
    bench.send(1, version=99)
    bench.send(2, version=1)
    bench.until(lambda: first.came)
    assert (first.blocks(), second.blocks(), bench.aggregator.waiting) == ([2], [], 2)
    bench.adopt(2, second)
    bench.until(lambda: second.came)
    assert (first.blocks(), second.blocks(), bench.aggregator.refused) == ([2], [0], 0)
    bench.adopt(100, first)
    assert (bench.aggregator.waiting, bench.aggregator.dropped) == (0, 1)


def test_an_aggregator_that_starts_is_told_old_tables_too_in_any_order(bench: Bench) -> None:
    """etcd lists keys as texts: 1, 10, 11, 2. Blocks may have come before."""
    old, latest = bench.rank(), bench.rank()
    bench.send(0, version=2)
    deadline = time.monotonic() + 0.2
    bench.until(lambda: time.monotonic() > deadline)
    for version in (1, 10, 11, 2):
        bench.adopt(version, latest if version == 11 else old)
    bench.send(1, version=11)
    bench.until(lambda: latest.came)
    assert (old.blocks(), latest.blocks(), bench.aggregator.dropped) == ([], [1], 1)


def test_the_table_before_stays_in_use_and_older_ones_do_not(bench: Bench) -> None:
    ranks = [bench.rank() for _ in range(3)]
    for version, rank in enumerate(ranks, 1):
        bench.adopt(version, rank)
    for version in (1, 2, 3):
        bench.send(version, version)
    bench.until(lambda: ranks[1].came and ranks[2].came)
    assert [rank.blocks() for rank in ranks] == [[], [2], [3]]
    assert (bench.aggregator.refused, bench.aggregator.dropped) == (0, 1)
    assert bench.aggregator.status() == {"blocks_forwarded": 2, "refused": 0, "dropped": 1, "waiting": 0}


def test_a_table_may_be_adopted_again(bench: Bench) -> None:
    rank = bench.rank()
    bench.aggregator.adopt(bench.adopt(1, rank))
    bench.send(0)
    bench.until(lambda: rank.came)
    assert rank.blocks() == [0]


def test_a_rank_that_took_the_port_of_an_earlier_one_is_heard(bench: Bench) -> None:
    """Its data come to the same endpoint as the earlier rank's, its answers from another one."""
    earlier = bench.rank()
    bench.adopt(1, earlier)
    later = Rank(earlier.data, bench.rank().answers)
    bench.ranks = [later]
    bench.adopt(2, later)
    bench.forwarded(3, version=2)
    later.acknowledge(3, 7)
    ear, heard = bench.ear(3), []
    bench.until(lambda: heard.extend(ear.receive()) or heard)
    assert heard[0].blocks == (7,)


def test_a_malformed_acknowledgement_harms_nothing(bench: Bench) -> None:
    rank = bench.rank()
    bench.adopt(1, rank)
    bench.forwarded(3)
    rank.answers.send(3, b"MPIS\x09\x00\x02\x00")
    rank.acknowledge(3, 7)
    ear, heard = bench.ear(3), []
    bench.until(lambda: heard.extend(ear.receive()) or heard)
    assert heard[0].blocks == (7,)
