"""What is added up while a scan is counted."""

import numpy as np
import pytest

from mpistream.model.scan_sums import ScanSums
from mpistream.model.virtual_images import VirtualDetectors
from tests.scans import make_frames, to_sums

ROWS, COLUMNS = 5, 7
DETECTORS = VirtualDetectors((0, 100), (100, 250), (280.5, 290.25))
FRAMES = make_frames(6, ROWS, COLUMNS, frames_at_most=3, mean_events=30)


def add(sums: ScanSums, frames: list) -> None:
    """What the kernel knows of frames that it counted."""
    masks = DETECTORS.masks((576, 576), DETECTORS.center)
    pixels = [np.array(events, np.uint32) for _, _, _, events in frames]
    sums.add_frames(
        np.array([position for position, _, _, _ in frames], np.uint32),
        np.array([len(events) for events in pixels], np.uint32),
        np.array([np.sum(np.divmod(events, 576), axis=1) for events in pixels], np.uint64).reshape(-1, 2),
        np.array([[mask.ravel()[events].sum() for mask in masks] for events in pixels], np.uint64).reshape(-1, 2),
    )


@pytest.mark.parametrize("block", [1, 8, len(FRAMES)])
def test_blocks_of_frames_add_up_position_by_position(block: int) -> None:
    """With several frames of one position in a block, and in several blocks."""
    sums = ScanSums.zeros((ROWS, COLUMNS), 2, np.zeros((576, 576), np.uint32))
    for first in range(0, len(FRAMES), block):
        add(sums, FRAMES[first : first + block])
    expected = to_sums(FRAMES, ROWS, COLUMNS, DETECTORS)
    for name, shape in {"electron_count": (), "moments": (2,), "center_of_mass": (2,)}.items():
        assert getattr(sums, name).shape == (ROWS, COLUMNS, *shape)
        np.testing.assert_array_equal(getattr(sums, name), getattr(expected, name), name)
    assert sums.annuli.shape == (2, ROWS, COLUMNS)
    np.testing.assert_array_equal(sums.annuli, expected.annuli)
    assert sums.annuli[0].sum() != sums.annuli[1].sum() > 0
    assert {sums.electron_count.dtype, sums.moments.dtype, sums.annuli.dtype} == {np.dtype(np.uint64)}


def test_frames_of_one_position_add_up() -> None:
    sums = ScanSums.zeros((1, 2), 0, np.zeros((2, 2), np.uint32))
    ones = np.ones(3, np.uint32)
    sums.add_frames(
        np.array([1, 1, 1], np.uint32), ones, np.full((3, 2), 2**40, np.uint64), np.empty((3, 0), np.uint64)
    )
    sums.add_frames(np.array([], np.uint32), ones[:0], np.empty((0, 2), np.uint64), np.empty((0, 0), np.uint64))
    assert sums.electron_count.tolist() == [[0, 3]]
    assert sums.moments.tolist() == [[[0, 0], [3 * 2**40, 3 * 2**40]]]
    assert sums.annuli.shape == (0, 1, 2)


def test_the_center_of_mass_is_that_of_the_electrons() -> None:
    sums = ScanSums(np.array([[[4, 6, 1000], [0, 0, 0]]], np.uint64), np.zeros((2, 2), np.uint32))
    np.testing.assert_array_equal(sums.center_of_mass, [[[1.5, 250.0], [np.nan, np.nan]]])


def test_a_position_outside_the_scan_is_refused() -> None:
    sums = ScanSums.zeros((1, 2), 0, np.zeros((2, 2), np.uint32))
    with pytest.raises(IndexError):
        sums.add_frames(
            np.array([2], np.uint32), np.ones(1, np.uint32), np.ones((1, 2), np.uint64), np.empty((1, 0), np.uint64)
        )


def test_the_pattern_goes_on_being_added_to_where_it_is() -> None:
    pattern = np.zeros((3, 4), np.uint32)
    sums = ScanSums.zeros((1, 2), 0, pattern)
    pattern[1, 2] += 5
    assert sums.diffraction_sum[1, 2] == 5
