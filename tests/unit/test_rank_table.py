"""Where ranks are, as it is logged."""

import os
from collections.abc import Iterable

import pytest

from mpistream.model.routing_table import RankEndpoints
from mpistream.pipeline.ranks.rank_table import own_cores, ranges, rank_table


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([7], "7"), ([1, 0], "0-1"), ({0, 1, 2, 3, 8, 10, 11}, "0-3,8,10-11")]
)
def test_numbers_in_a_row_are_a_range(numbers: Iterable[int], text: str) -> None:
    assert ranges(numbers) == text


def test_cores_are_those_that_this_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(before)})
        assert own_cores() == str(max(before))
    finally:
        os.sched_setaffinity(0, before)


def test_columns_stand_below_each_other() -> None:
    ranks = [
        RankEndpoints(0, 0, "c1", 100, 1, "tcp://10.0.0.1:5", "tcp://10.0.0.1:6", cores="0-3"),
        RankEndpoints(1, 1, "node-2", 7, 2, "tcp://10.0.0.22:5", "tcp://10.0.0.22:6", cores="0,2"),
    ]
    assert rank_table(ranks) == [
        "rank  group  node    pid  cores  blocks to          answers from",
        "0     0      c1      100  0-3    tcp://10.0.0.1:5   tcp://10.0.0.1:6",
        "1     1      node-2  7    0,2    tcp://10.0.0.22:5  tcp://10.0.0.22:6",
    ]
