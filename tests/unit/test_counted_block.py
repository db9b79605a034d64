"""Counted blocks: what tells the fuller of two, and that equal ones are equal to the bit."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mpistream.model.counted_block import CountedBlock, diffraction_sum_of
from mpistream.model.electron_events import ElectronEvents
from mpistream.model.frame_sums import FrameSums


def counted_block(
    block: int = 5,
    present: tuple[int, int, int, int] = (0b11,) * 4,
    rejected: tuple[int, int, int, int] = (0, 0, 0, 0),
    seed: int = 1,
    centroids: bool = False,
    electrons: int = 20,
) -> CountedBlock:
    """Two frames of random electrons: the same for the same seed."""
    random = np.random.default_rng(seed)
    pixels = np.sort(random.choice(576 * 576, (2, electrons // 2), replace=False), axis=1)
    events = ElectronEvents.from_counts(
        np.array([3, 4], np.uint32),
        np.array([2 * block, 2 * block + 1], np.uint64),
        np.zeros(2, np.uint8),
        np.array([electrons // 2] * 2, np.uint32),
        pixels.ravel().astype(np.uint32),
        random.integers(-127, 128, (electrons, 2)).astype(np.int8) if centroids else None,
    )
    sums = FrameSums(random.integers(0, 2**32, (2, 2), np.uint32), random.integers(0, 9, (2, 1), np.uint32))
    return CountedBlock(block, 0b1111, present, rejected, 1000, events, sums)


def test_good_records_are_those_that_came_and_were_not_rejected() -> None:
    block = counted_block(present=(0b1111, 0b0111, 0, 1 << 63), rejected=(0b0001, 0b0110, 0, 0))
    assert (block.records, block.records_rejected) == (5, 3)
    assert counted_block(present=(0, 0, 0, 0)).records == 0


def test_the_checksum_is_that_of_the_content() -> None:
    for centroids in (True, False):
        assert counted_block(centroids=centroids).checksum() == counted_block(centroids=centroids).checksum()
    block = counted_block(centroids=True)
    elsewhere = ElectronEvents(
        *(np.repeat(array, 2, axis=0)[::2] for array in (block.events.scan_position, block.events.frame_number)),
        block.events.missing_sectors,
        block.events.offsets,
        np.repeat(block.events.indices, 3)[::3],
        np.asfortranarray(block.events.centroids),
    )
    assert replace(block, events=elsewhere).checksum() == block.checksum(), "however it lies in memory"
    assert replace(block, raw_bytes=5).checksum() == block.checksum(), "how much was sent is no part of it"


def _other(array: Any) -> Any:
    changed = array.copy()
    changed.flat[-1] ^= 1
    return changed


@pytest.mark.parametrize(
    "name", ["scan_position", "frame_number", "missing_sectors", "indices", "centroids", "moments", "annuli"]
)
def test_one_bit_makes_another_checksum(name: str) -> None:
    block = counted_block(centroids=True)
    if name in ("moments", "annuli"):
        changed = replace(block, sums=replace(block.sums, **{name: _other(getattr(block.sums, name))}))
    else:
        changed = replace(block, events=replace(block.events, **{name: _other(getattr(block.events, name))}))
    assert changed.checksum() != block.checksum()


def test_electrons_of_another_frame_make_another_checksum() -> None:
    block = counted_block()
    offsets = block.events.offsets.copy()
    offsets[1] -= 1
    assert replace(block, events=replace(block.events, offsets=offsets)).checksum() != block.checksum()


@pytest.mark.parametrize("field", ["block", "frames_present", "frames_rejected"])
def test_the_bit_maps_are_part_of_the_checksum(field: str) -> None:
    block = counted_block()
    changed = replace(block, **{field: 6 if field == "block" else (0b11, 0b11, 0b11, 0b10)})
    assert changed.checksum() != block.checksum()


@pytest.mark.parametrize("blocks", [0, 1, 127, 128, 129, 300])
def test_the_electrons_of_many_blocks_add_up_on_their_pixels(blocks: int) -> None:
    """However many are taken at a time."""
    made = [counted_block(block, seed=block, electrons=6) for block in range(blocks)]
    empty = replace(made[0], events=made[0].events[:0], sums=FrameSums.concatenate([], 1)) if made else None
    pattern = diffraction_sum_of([*made, empty] if empty else made)
    assert (pattern.dtype, pattern.shape) == (np.uint32, (576, 576))
    expected = np.zeros(576 * 576, np.uint32)
    for block in made:
        np.add.at(expected, block.events.indices, 1)
    np.testing.assert_array_equal(pattern.ravel(), expected)
