"""Row-dark, centroids and the sums beside the electrons, by examples that can be checked by hand."""

from typing import Any

import numpy as np
import pytest

from mpistream.model.geometry import FRAME_SHAPE
from mpistream.reduction.electron_counting import FrameCounter, simd_levels
from tests.unit.counting_cases import electrons_of

COLUMNS = FRAME_SHAPE[1]


def counter_of(shape: tuple[int, int], **options: Any) -> FrameCounter:
    """For whole frames with a background of 10 and x-rays from 1000."""
    return FrameCounter(shape, 1, False, 10, 1000, **options)


def addresses_of(frames: np.ndarray) -> np.ndarray:
    return np.array([[frame.ctypes.data] for frame in frames], np.uint64)


def assert_value(frame: np.ndarray, index: int, value: float, **options: Any) -> None:
    """The electron at ``index`` has exactly this corrected value."""
    assert index in electrons_of(frame, np.nextafter(value, -np.inf), np.inf, **options)
    assert index not in electrons_of(frame, value, np.inf, **options)


@pytest.mark.parametrize(
    ("row_dark", "left", "right", "statistics"),
    [
        ("mean", [10, 20, 90], [100, 140, 120, 120], (40, 120)),
        ("median", [0, 40, 900], [100, 110, 170, 120], (40, 115)),  # of an even number: between the two
    ],
)
def test_row_dark_brings_each_half_row_to_the_level(
    row_dark: str, left: list[int], right: list[int], statistics: tuple[int, int]
) -> None:
    frame = np.zeros((3, 7), np.uint16)
    frame[1] = left + right
    options = {"row_dark": row_dark, "row_dark_level": 20.3}
    for half, statistic in zip((left, right), statistics, strict=True):
        value = np.float32(max(half)) * (np.float32(20.3) / np.float32(statistic))
        index = 7 + (left + right).index(max(half))
        assert_value(frame, index, float(value), **options)
        gain = np.full((3, 7), 1.7)
        assert_value(frame, index, float(value * (np.float32(1) / np.float32(1.7))), gain=gain, **options)


def test_the_mean_is_that_of_the_whole_sum() -> None:
    frame = np.zeros((3, COLUMNS), np.uint16)
    frame[1] = np.random.default_rng(3).integers(60000, 65535, COLUMNS)
    frame[1, 100] = 65535
    total, length = int(frame[1, : COLUMNS // 2].sum(dtype=int)), COLUMNS // 2
    # the sum does not fit into float32
    assert np.float32(total) / np.float32(length) != np.float32(total / length)
    value = np.float32(65535) * (np.float32(1000.25) / np.float32(total / length))
    assert_value(frame, COLUMNS + 100, float(value), row_dark="mean", row_dark_level=1000.25)


@pytest.mark.parametrize("simd", simd_levels())
def test_row_dark_takes_the_statistic_of_what_is_there(simd: str) -> None:
    sectors = np.zeros((4, 4, 2), np.uint16)  # four side by side make 4 x 8 pixels
    sectors[0, 1] = 30, 300
    addresses = np.array([[sectors[0].ctypes.data, 0, sectors[2].ctypes.data, 0]], np.uint64)
    mask = np.zeros((4, 8), bool)
    mask[1, 0] = True
    for pixel_mask, statistic in ((None, 165), (mask, 300)):
        value = float(np.float32(300) * (np.float32(60) / np.float32(statistic)))
        for background, electrons in ((np.nextafter(value, 0), [9]), (value, [])):
            options = {"row_dark": "mean", "row_dark_level": 60, "pixel_mask": pixel_mask, "simd": simd}
            counter = FrameCounter((4, 8), 4, True, background, np.inf, **options)
            assert counter.count_block(addresses).indices.tolist() == electrons


def test_a_half_row_whose_statistic_is_zero_is_zero() -> None:
    frame = np.zeros((3, 6), np.uint16)
    frame[1, 1], frame[2, 4] = 900, 40
    options = {"row_dark": "median", "row_dark_level": 30}
    assert electrons_of(frame, 0, np.inf, **options) == []
    frame[2, 3:] = 20, 40, 20
    assert electrons_of(frame, 0, np.inf, **options) == [16]


def test_centroids_come_from_the_pixels_in_line_over_the_lowest_around() -> None:
    frame = np.full((5, 5), 8, np.uint16)
    frame[1:4, 1:4] = [[8, 18, 28], [10, 48, 28], [8, 8, 8]]
    # In the column: 10, 40 and 0 above the lowest; in the row: 2, 40 and 20. The diagonal 28 is not in line.
    counted = counter_of((5, 5), centroids=True).count_block(addresses_of(frame[np.newaxis]))
    assert counted.indices.tolist() == [12]
    assert counted.centroids is not None
    assert counted.centroids.tolist() == [[round(-10 / 50 * 128), round(18 / 62 * 128)]]


def test_sums_of_frames_and_of_all_that_were_counted() -> None:
    frames = np.zeros((3, 6, 7), np.uint16)
    frames[0, 1, 2] = frames[0, 5, 6] = frames[2, 1, 2] = 50
    top, corner = np.zeros((2, 6, 7), bool)
    top[:3], corner[5, 6] = True, True
    counter = counter_of((6, 7), annuli=[top, corner, top | corner])
    for _ in range(2):
        counted = counter.count_block(addresses_of(frames))
        assert counted.counts.tolist() == [2, 0, 1]
        assert counted.moments.tolist() == [[6, 8], [0, 0], [1, 2]]
        assert counted.annuli.tolist() == [[1, 1, 2], [0, 0, 0], [1, 0, 1]]
    np.testing.assert_array_equal(counter.diffraction_sum, 2 * np.count_nonzero(frames, axis=0))
