"""The ledger of a sector's blocks: what is owed, to whom it goes, and what lets go of it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mpistream.acquisition.delivery import Delivery, destination_of
from mpistream.model.block_set import BlockSet
from mpistream.model.job_share import JobShare, JournalExtent
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.model.scan import CountingParameters
from tests.unit.made_up_blocks import scan_record

BLOCKS = range(5, 17)


def rank(incarnation: int, job: str = "a") -> RankEndpoints:
    return RankEndpoints(0, 0, "node", 1, incarnation, f"tcp://a:{incarnation}", f"tcp://b:{incarnation}", job)


def table(version: int, *incarnations: int, conducting: str = "a") -> RoutingTable:
    """Ranks of job a are 1 to 9, those of job b 11 to 19, ..."""
    ranks = tuple(rank(incarnation, "abc"[incarnation // 10]) for incarnation in incarnations)
    return RoutingTable(version, conducting, ranks)


def share(job: str, blocks: Iterable[int], *ranks: int, sealed: bool = False) -> JobShare:
    journals = tuple(JournalExtent(0, incarnation, "") for incarnation in ranks)
    return JobShare(job, BlockSet.of(BLOCKS, blocks), sealed=sealed, journals=journals)


def by_number(routing: RoutingTable, block: int) -> int | None:
    return block % len(routing.ranks) if routing.ranks else None


def delivery(*incarnations: int) -> Delivery:
    made = Delivery(BLOCKS, by_number)
    made.adopt(table(1, *incarnations))
    return made


def send(sector: Delivery, most: int = 100) -> list[int]:
    sent: list[int] = []
    while len(sent) < most and (block := sector.next_block()) is not None:
        sector.sent(block)
        sent.append(block)
    return sent


def test_blocks_go_out_in_ascending_order_each_once() -> None:
    sector = delivery(1, 2)
    assert send(sector) == list(BLOCKS)
    assert sector.next_block() is None
    assert (sector.owed, sector.under_way, sector.released, sector.is_complete) == (0, 12, 0, False)


def test_nothing_goes_out_without_a_table_or_without_ranks() -> None:
    sector = Delivery(BLOCKS, by_number)
    assert sector.next_block() is None
    sector.adopt(table(1))
    assert sector.next_block() is None
    sector.adopt(table(2, 1))
    assert sector.next_block() == 5


def test_what_is_not_to_be_sent_is_not_taken_for_sent() -> None:
    sector = delivery(1)
    sector.sent(5)
    with pytest.raises(ValueError, match="block 5 was not to be sent"):
        sector.sent(5)
    with pytest.raises(ValueError, match="was not to be sent"):
        Delivery(BLOCKS, by_number).sent(5)


def test_an_acknowledgement_releases_each_block_once() -> None:
    sector = delivery(1, 2)
    send(sector, 4)
    assert sector.acknowledge([6, 5, 99, 4], 1) == [6, 5]
    assert sector.acknowledge([5, 7], 2) == [7]
    assert sector.acknowledge([9], 2) == [9]  # of an earlier start of the producer: not sent by this one
    assert send(sector) == [10, 11, 12, 13, 14, 15, 16]
    assert (sector.released, sector.under_way) == (4, 8)
    assert sector.acknowledge(BLOCKS, 1) == [8, *range(10, 17)]
    assert sector.is_complete


def test_only_ranks_of_the_latest_table_are_believed() -> None:
    sector = Delivery(BLOCKS, by_number)
    assert sector.acknowledge(BLOCKS, 1) == []
    sector.adopt(table(1, 1, 11))
    sector.adopt(table(2, 11))
    send(sector)
    assert sector.acknowledge([5], 1) == []
    assert sector.acknowledge([5], 11) == [5]


def test_an_older_table_changes_nothing() -> None:
    sector = delivery(1)
    assert sector.adopt(table(3, 2))
    send(sector, 2)
    assert not sector.adopt(table(2, 3))
    assert not sector.adopt(table(3, 2))
    assert sector.under_way == 2
    assert sector.acknowledge([5], 2) == [5]


def test_a_new_table_sends_what_is_not_released_again() -> None:
    sector = delivery(1, 2)
    send(sector, 5)
    sector.acknowledge([6], 2)
    sector.adopt(table(2, 2, 3))
    assert send(sector) == [block for block in BLOCKS if block != 6]


def test_a_rank_gets_again_what_is_under_way_to_it() -> None:
    sector = delivery(1, 2)
    send(sector, 6)
    sector.acknowledge([8], 1)
    assert sector.want(1) == [6, 10]
    assert (sector.under_way, send(sector, 2)) == (3, [6, 10])
    assert sector.want(3) == []
    assert Delivery(BLOCKS, by_number).want(1) == []


def test_another_way_to_the_ranks_sends_everything_under_way_again() -> None:
    sector = delivery(1)
    send(sector, 3)
    sector.acknowledge([6], 1)
    assert sector.resend_all() == [5, 7]
    assert send(sector, 3) == [5, 7, 8]


def test_what_is_in_any_share_is_released() -> None:
    sector = delivery(1)
    send(sector, 2)
    shares = {"a": share("a", [5, 8], 1), "b": share("b", [9], 11, sealed=True)}
    assert sector.reconcile(shares) == ([5, 8, 9], [])
    assert sector.reconcile(shares) == ([], [])
    assert send(sector, 3) == [7, 10, 11]


def test_a_seal_brings_back_what_its_job_acknowledged_and_has_not() -> None:
    sector = delivery(1, 2, 11)
    send(sector)
    sector.acknowledge([5, 6, 7], 1)
    sector.acknowledge([8], 2)
    sector.acknowledge([9], 11)
    assert sector.reconcile({"a": share("a", [5], 1, 2), "b": share("b", [], 11)}) == ([], [])
    sealed = {"a": share("a", [5], 1, 2, sealed=True), "b": share("b", [7], 11)}
    assert sector.reconcile(sealed) == ([], [6, 8])
    assert not sector.is_released(6)
    assert sector.is_released(9)
    assert sector.acknowledge([6], 1) == []  # fenced, though the table still has it
    assert sector.acknowledge([6], 11) == [6]
    assert sector.reconcile(sealed) == ([], [])


def test_a_block_that_two_ranks_acknowledged_is_kept_by_the_other() -> None:
    sector = delivery(1, 11)
    send(sector)
    sector.acknowledge([5], 1)
    sector.acknowledge([5], 11)
    assert sector.reconcile({"a": share("a", [], 1, sealed=True)}) == ([], [])


def test_what_a_share_loses_when_it_is_sealed_is_owed_again() -> None:
    """The end of a journal can be lost with its node."""
    sector = delivery(11)
    assert sector.reconcile({"a": share("a", [5, 6], 1)}) == ([5, 6], [])
    assert sector.reconcile({"a": share("a", [5], 1, sealed=True)}) == ([], [6])
    assert send(sector, 2) == [6, 7]


def test_the_lowest_block_is_known() -> None:
    sector = delivery(1)
    assert sector.is_lowest(5)
    send(sector, 2)
    assert not sector.is_lowest(7)
    sector.acknowledge([5, 6], 1)
    assert sector.is_lowest(7)


def test_the_blocks_of_a_sample_go_to_the_conducting_job() -> None:
    record = scan_record(
        first_frame=0, last_frame=39, rows=5, columns=8, block_frames=4, counting=CountingParameters(sample_frames=4)
    )
    assert record.sample_blocks == range(4)
    destination, routing = destination_of(record), table(1, 1, 11, 12, 2, conducting="b")
    assert {destination(routing, block) for block in range(4)} == {1, 2}
    assert {destination(routing, block) for block in range(4, 10)} == {0, 1, 2, 3}
    assert destination(table(2, 1, conducting="b"), 0) is None
    assert destination(table(2, 1, conducting="b"), 4) == 0
    given_thresholds = destination_of(scan_record(first_frame=0, last_frame=39))
    assert {given_thresholds(routing, block) for block in range(4)} == {0, 1, 2, 3}


@dataclass
class Model:
    """The same by sets, slowly."""

    released: set[int] = field(default_factory=set)
    under_way: dict[int, int] = field(default_factory=dict)  # block -> incarnation of its rank
    acked_by: dict[int, int] = field(default_factory=dict)


class DeliveryMachine(RuleBasedStateMachine):
    """Any order of tables, acknowledgements (late, fenced, repeated), shares and requests."""

    def __init__(self) -> None:
        super().__init__()
        self.sector = Delivery(BLOCKS, by_number)
        self.model = Model()
        self.version = 0
        self.believed: set[int] = set()
        self.sealed: set[int] = set()
        self.latest: RoutingTable | None = None

    incarnations = st.sampled_from([1, 2, 11, 12, 21])
    some_blocks = st.lists(st.sampled_from(BLOCKS), max_size=5)

    @rule(ranks=st.sets(incarnations, max_size=3), step=st.integers(-1, 2))
    def adopt(self, ranks: set[int], step: int) -> None:
        routing = table(self.version + step, *sorted(ranks))
        is_newer = self.latest is None or step > 0
        assert self.sector.adopt(routing) == is_newer
        if is_newer:
            self.version, self.latest = routing.version, routing
            self.model.under_way.clear()

    @rule(most=st.integers(1, 4))
    def send(self, most: int) -> None:
        for block in send(self.sector, most):
            assert self.latest is not None
            lower = set(range(BLOCKS.start, block))
            assert lower <= self.model.released | self.model.under_way.keys()
            self.model.under_way[block] = self.latest.ranks[block % len(self.latest.ranks)].incarnation

    @rule(blocks=some_blocks, incarnation=incarnations)
    def acknowledge(self, blocks: list[int], incarnation: int) -> None:
        believed = self.latest is not None and incarnation in self.latest.incarnations - self.sealed
        expected = [block for block in dict.fromkeys(blocks) if believed and block not in self.model.released]
        assert self.sector.acknowledge(blocks, incarnation) == expected
        if believed:
            self.model.acked_by |= dict.fromkeys(blocks, incarnation)
            self.model.released |= set(expected)

    @rule(has=st.tuples(*[some_blocks] * 3), seals=st.tuples(*[st.booleans()] * 3))
    def reconcile(self, has: tuple[list[int], ...], seals: tuple[bool, ...]) -> None:
        ranks = {"a": (1, 2), "b": (11, 12), "c": (21,)}
        shares = {
            job: share(job, blocks, *ranks[job], sealed=sealed)
            for job, blocks, sealed in zip(ranks, has, seals, strict=True)
        }
        self.sealed = {number for job, numbers in ranks.items() if shares[job].sealed for number in numbers}
        journaled = set().union(*has)
        believed = {block for block, by in self.model.acked_by.items() if by not in self.sealed}
        owed_again = {block for block in self.model.released - journaled if block not in believed}
        expected = sorted(journaled - self.model.released), sorted(owed_again)
        assert self.sector.reconcile(shares) == expected
        self.model.released = (self.model.released | journaled) - owed_again

    @rule(incarnation=incarnations)
    def want(self, incarnation: int) -> None:
        wanted = [
            block
            for block, to in sorted(self.model.under_way.items())
            if to == incarnation and block not in self.model.released
        ]
        assert self.sector.want(incarnation) == wanted
        for block in wanted:
            del self.model.under_way[block]

    @precondition(lambda self: self.model.under_way)
    @rule()
    def resend_all(self) -> None:
        self.sector.resend_all()
        self.model.under_way.clear()

    @invariant()
    def counts_agree(self) -> None:
        for block in self.model.released:
            self.model.under_way.pop(block, None)
        assert self.sector.released == len(self.model.released)
        assert self.sector.under_way == len(self.model.under_way)
        assert self.sector.owed == len(BLOCKS) - len(self.model.released) - len(self.model.under_way)
        assert self.sector.is_complete == (self.model.released == set(BLOCKS))
        assert {block for block in BLOCKS if self.sector.is_released(block)} == self.model.released


DeliveryMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestDelivery = DeliveryMachine.TestCase
