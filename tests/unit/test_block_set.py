"""Sets of block numbers do what Python's sets do, and survive a way through JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpistream.model.block_set import BlockSet

RANGES = st.builds(lambda first, blocks: range(first, first + blocks), st.integers(0, 2**40), st.integers(0, 70))


@st.composite
def numbers(draw: st.DrawFn, blocks: range) -> set[int]:
    """Some of ``blocks``, and some around them."""
    return draw(st.sets(st.integers(blocks.start - 5, blocks.stop + 5), max_size=80))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[range, set[int], set[int]]:
    blocks = draw(RANGES)
    return blocks, draw(numbers(blocks)), draw(numbers(blocks))


def inside(blocks: range, chosen: set[int]) -> set[int]:
    return {number for number in chosen if number in blocks}


@given(pairs())
def test_a_set_holds_what_was_put_into_it_in_ascending_order(given_: tuple[range, set[int], set[int]]) -> None:
    blocks, first, second = given_
    chosen = BlockSet.of(blocks, first)
    chosen.add(second)
    expected = inside(blocks, first | second)
    assert list(chosen) == sorted(expected)
    assert len(chosen) == len(expected)
    assert all((number in chosen) == (number in expected) for number in range(blocks.start - 6, blocks.stop + 6))


@given(pairs())
def test_what_is_taken_out_is_gone(given_: tuple[range, set[int], set[int]]) -> None:
    blocks, first, second = given_
    chosen = BlockSet.of(blocks, first)
    chosen.discard(second)
    assert set(chosen) == inside(blocks, first - second)


@given(pairs())
def test_sets_of_one_scan_are_joined_and_compared(given_: tuple[range, set[int], set[int]]) -> None:
    blocks, first, second = given_
    left, right = BlockSet.of(blocks, first), BlockSet.of(blocks, second)
    assert set(left | right) == inside(blocks, first | second)
    assert set(left - right) == inside(blocks, first - second)
    assert (left == right) == (inside(blocks, first) == inside(blocks, second))
    assert set(left.missing) == set(blocks) - first
    assert left.is_complete == (set(blocks) <= first)
    assert set(left) == inside(blocks, first), "operators change neither of them"
    left.update(right)
    assert set(left) == inside(blocks, first | second)


@given(pairs())
def test_a_copy_goes_its_own_way(given_: tuple[range, set[int], set[int]]) -> None:
    blocks, first, second = given_
    chosen = BlockSet.of(blocks, first)
    copy = chosen.copy()
    copy.add(second)
    assert set(chosen) == inside(blocks, first)


@given(pairs())
def test_a_set_is_read_as_it_was_written(given_: tuple[range, set[int], set[int]]) -> None:
    blocks, first, _ = given_
    chosen = BlockSet.of(blocks, first)
    read = BlockSet.from_json(json.loads(json.dumps(chosen.to_json())))
    assert read == chosen
    assert read.blocks == blocks


def test_sets_of_different_scans_are_not_equal() -> None:
    assert BlockSet(range(0, 3)) != BlockSet(range(1, 4))
    assert BlockSet(range(3)) != {0, 1, 2}


def test_a_set_can_be_changed_and_so_has_no_hash() -> None:
    with pytest.raises(TypeError):
        hash(BlockSet(range(3)))


def test_a_set_says_how_many_of_which() -> None:
    assert repr(BlockSet.of(range(5, 9), [6, 7])) == "<2 of the blocks 5 to 8>"


def test_a_scan_of_a_million_frames_takes_little_room_in_etcd() -> None:
    """A share is written once a second; etcd refuses values beyond 1.5 MB."""
    every_third = BlockSet.of(range(125_000), range(0, 125_000, 3))
    assert len(json.dumps(every_third.to_json())) < 2_000


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": "no base64 !"},
        {"bits": "bm90IHpsaWI="},
        {"bits": None},
        {"blocks": 9},
        {"blocks": "many"},
        {"first": None},
    ],
)
def test_what_is_no_set_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        BlockSet.from_json(BlockSet.of(range(8), [1]).to_json() | changes)


@pytest.mark.parametrize("name", ["first", "blocks", "bits"])
def test_a_set_of_which_something_is_wanting_is_refused(name: str) -> None:
    value = BlockSet.of(range(8), [1]).to_json()
    del value[name]
    with pytest.raises(KeyError):
        BlockSet.from_json(value)
