"""Routing: a pure function that spreads blocks evenly and sends all sectors of a block to the same rank."""

import json
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from mpistream.model.routing_table import RankEndpoints, RoutingTable

uids = st.binary(min_size=16, max_size=16)
blocks = st.integers(0, 2**63)


def table(ranks: int, version: int = 1) -> RoutingTable:
    return RoutingTable(
        version,
        "node-17",
        tuple(
            RankEndpoints(rank, rank // 2, "node", 100 + rank, 5, f"tcp://a:{rank}", f"tcp://b:{rank}")
            for rank in range(ranks)
        ),
    )


@settings(max_examples=40)
@given(uids, blocks, st.integers(1, 40))
def test_a_block_belongs_to_one_of_the_ranks_always_the_same(uid: bytes, block: int, ranks: int) -> None:
    rank = table(ranks).rank_of(uid, block)
    assert 0 <= rank < ranks
    assert RoutingTable.from_json(table(ranks).to_json()).rank_of(uid, block) == rank


@settings(max_examples=40)
@given(uids, blocks, st.integers(1, 40))
def test_consecutive_blocks_go_round_all_ranks(uid: bytes, first: int, ranks: int) -> None:
    loads = Counter(table(ranks).rank_of(uid, block) for block in range(first, first + 2 * ranks))
    assert loads == dict.fromkeys(range(ranks), 2)


@settings(max_examples=40)
@given(uids, blocks, st.integers(0, 100), st.integers(1, 40))
def test_the_blocks_of_a_rank_are_those_that_are_routed_to_it(uid: bytes, first: int, count: int, ranks: int) -> None:
    whole, routing = range(first, first + count), table(ranks)
    for rank in range(ranks):
        wanted = [block for block in whole if routing.rank_of(uid, block) == rank]
        assert list(routing.blocks_of(rank, uid, whole)) == wanted


def test_scans_of_one_block_do_not_all_go_to_the_same_rank() -> None:
    assert {table(4).rank_of(bytes([number]) + bytes(15), 0) for number in range(8)} == {0, 1, 2, 3}


@settings(max_examples=40)
@given(st.integers(0, 20), st.integers(1, 2**31))
def test_a_table_is_read_as_it_was_written(ranks: int, version: int) -> None:
    written = table(ranks, version)
    assert RoutingTable.from_json(json.loads(json.dumps(written.to_json()))) == written
