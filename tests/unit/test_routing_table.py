"""Routing: a pure function that spreads blocks evenly and sends all sectors of a block to the same rank."""

import json
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from mpistream.model.routing_table import RankEndpoints, RoutingTable

uids = st.binary(min_size=16, max_size=16)
blocks = st.integers(0, 2**63)


def table(ranks: int, version: int = 1, conducting: str = "job-1") -> RoutingTable:
    return RoutingTable(
        version,
        conducting,
        tuple(
            RankEndpoints(
                rank, 0, "node", 100 + rank, 1000 + rank, f"tcp://a:{rank}", f"tcp://b:{rank}", f"job-{rank % 3}"
            )
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
@given(uids, blocks, st.integers(2, 40))
def test_a_sample_goes_round_the_ranks_of_the_conducting_job(uid: bytes, first: int, ranks: int) -> None:
    routing = table(ranks)
    own = [index for index in range(ranks) if routing.ranks[index].job == "job-1"]
    loads = Counter(routing.rank_of(uid, block, for_conductor=True) for block in range(first, first + 2 * len(own)))
    assert loads == dict.fromkeys(own, 2)


def test_a_table_names_its_jobs_and_whose_acknowledgements_count() -> None:
    assert table(2).jobs == {"job-0", "job-1"}
    assert table(3).incarnations == {1000, 1001, 1002}
    assert table(0).jobs == table(0).incarnations == frozenset()


def test_scans_of_one_block_do_not_all_go_to_the_same_rank() -> None:
    assert {table(4).rank_of(bytes([number]) + bytes(15), 0) for number in range(8)} == {0, 1, 2, 3}


@settings(max_examples=40)
@given(st.integers(0, 20), st.integers(1, 2**31))
def test_a_table_is_read_as_it_was_written(ranks: int, version: int) -> None:
    written = table(ranks, version)
    assert RoutingTable.from_json(json.loads(json.dumps(written.to_json()))) == written
