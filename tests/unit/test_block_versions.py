"""The fullest version of each block is chosen, once; on made-up communicators of several ranks, each a thread."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpistream.model.counted_block import CountedBlock
from mpistream.model.errors import ScanFailed
from mpistream.reduction.block_versions import choose_versions
from tests.unit.test_counted_block import counted_block


@dataclass
class MadeUpCommunicator:
    """What MPI does, among threads."""

    size: int
    rank: int = 0
    _meeting: Any = None
    _given: list[Any] = field(default_factory=list)

    def ranks(self) -> "list[MadeUpCommunicator]":
        meeting, given = threading.Barrier(self.size, timeout=10), [None] * self.size
        return [MadeUpCommunicator(self.size, rank, meeting, given) for rank in range(self.size)]

    def allgather(self, sendobj: Any) -> list[Any]:
        self._given[self.rank] = sendobj
        self._meeting.wait()
        everything = list(self._given)
        self._meeting.wait()
        return everything


def choose(blocks: Sequence[Sequence[CountedBlock]]) -> list[Any]:
    """What each rank gets: its two lists, or the error that it raises."""
    results: list[Any] = [None] * len(blocks)

    def run(comm: MadeUpCommunicator) -> None:
        try:
            results[comm.rank] = choose_versions(comm, blocks[comm.rank])
        except BaseException as error:
            results[comm.rank] = error

    ranks = MadeUpCommunicator(len(blocks)).ranks()
    threads = [threading.Thread(target=run, args=[comm]) for comm in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    return results


FULL = counted_block(5)
WITHOUT_ONE = counted_block(5, present=(0b11, 0b11, 0b11, 0b01), seed=2)
EMPTY = replace(
    counted_block(5, present=(0, 0, 0, 0)),
    events=FULL.events[:0],
    sums=replace(FULL.sums, moments=FULL.sums.moments[:0]),
)


def test_nobody_has_a_block() -> None:
    assert choose([[]]) == [([], [])]
    assert choose([[], [], []]) == [([], [])] * 3


def test_blocks_of_which_there_is_one_version_are_kept_in_their_order() -> None:
    mine = [counted_block(block) for block in (9, 2, 7)]
    others = [counted_block(block) for block in (8, 1)]
    assert choose([mine, [], others]) == [(mine, []), ([], []), (others, [])]


@pytest.mark.parametrize("fullest", [0, 1, 2])
def test_the_fullest_version_wins_wherever_it_is(fullest: int) -> None:
    blocks = [[WITHOUT_ONE], [EMPTY], [WITHOUT_ONE]]
    blocks[fullest] = [FULL]
    for rank, (kept, superfluous) in enumerate(choose(blocks)):
        assert (kept, superfluous) == (([FULL], []) if rank == fullest else ([], blocks[rank]))


def test_rejected_records_make_a_version_no_fuller() -> None:
    rejected = counted_block(5, present=(0b1111,) * 4, rejected=(0b1110,) * 4, seed=3)
    assert rejected.records == 4 < FULL.records
    assert choose([[rejected], [FULL]]) == [([], [rejected]), ([FULL], [])]


def test_of_equal_versions_one_is_kept() -> None:
    again = counted_block(5)
    assert again is not FULL
    assert choose([[], [FULL], [again]]) == [([], []), ([FULL], []), ([], [again])]
    assert choose([[again, FULL]]) == [([again], [FULL])], "also on one rank"


def test_a_version_with_other_records_need_not_be_equal() -> None:
    """As many, but not the same ones: both are right."""
    other = counted_block(5, present=(0b11, 0b11, 0b01, 0b11), seed=7)
    assert other.records == WITHOUT_ONE.records
    assert choose([[other], [WITHOUT_ONE]]) == [([other], []), ([], [WITHOUT_ONE])]


def test_an_empty_message_and_none_make_no_difference_to_the_electrons() -> None:
    """Of a sector that was cut one rank had heard an empty message, another one nothing at all."""
    heard = counted_block(5, present=(0b11, 0b11, 0, 0b11))
    silent = replace(heard, sectors=0b1011)
    kept = [kept for kept, _ in choose([[heard], [silent]])]
    assert kept == [[heard], []]


def test_equal_records_with_other_electrons_end_the_scan_on_every_rank() -> None:
    other = counted_block(5, seed=8)
    more = counted_block(6)
    for blocks in ([[FULL], [other], [more]], [[more], [], [FULL, other]], [[FULL], [FULL], [other]]):
        errors = choose(blocks)
        assert len({str(error) for error in errors}) == 1
        for error in errors:
            assert isinstance(error, ScanFailed)
            assert "block 5" in error.message
            assert error.remedy


def test_versions_that_lose_need_not_be_equal() -> None:
    other = counted_block(5, present=WITHOUT_ONE.frames_present, seed=9)
    assert choose([[WITHOUT_ONE, other], [FULL]]) == [([], [WITHOUT_ONE, other]), ([FULL], [])]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 3)), max_size=25))
def test_each_block_is_chosen_once_and_none_is_fuller(versions: list[tuple[int, int, int]]) -> None:
    """On 4 ranks: versions are rank, block, how many sectors came."""
    blocks: list[list[CountedBlock]] = [[] for _ in range(4)]
    for rank, number, sectors in versions:
        present = (0b11,) * sectors + (0,) * (4 - sectors)
        blocks[rank].append(counted_block(number, (present[0], present[1], present[2], present[3]), seed=sectors))
    results = choose(blocks)
    kept = [block for chosen, _ in results for block in chosen]
    assert sorted(block.block for block in kept) == sorted({number for _, number, _ in versions})
    for block in kept:
        assert block.records == max(2 * sectors for _, number, sectors in versions if number == block.block)
    for mine, (chosen, superfluous) in zip(blocks, results, strict=True):
        assert sorted(map(id, mine)) == sorted(map(id, [*chosen, *superfluous]))
    assert len({id(block) for block in kept}) == len(kept)


def test_large_numbers_of_blocks() -> None:
    last = replace(FULL, block=2**64 - 1)
    assert choose([[last], [replace(last, block=2**64 - 2)]])[0] == ([last], [])
