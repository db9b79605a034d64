"""Calibration: exact statistics however the frames are divided, and thresholds from pedestals whose truth is known."""

import itertools
from functools import reduce
from operator import add

import numpy as np
import pytest

from mpistream.model.errors import CalibrationError, ProtocolError
from mpistream.model.geometry import FRAME_SHAPE, SECTORS, SectorLayout
from mpistream.model.scan import CALIBRATION_STATISTICS, CountingParameters, ScanRecord
from mpistream.reduction.calibration import (
    SampleStatistics,
    calibrated_thresholds,
    fit_sample,
    fit_thresholds,
    merge_sample,
    sample_block,
)
from tests.unit.made_up_blocks import scan_record


def pedestal_frames(mean: float, sigma: float, electrons: float = 0.02, frames: int = 2, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    shape = (frames, *FRAME_SHAPE)
    values = random.normal(mean, sigma, shape).round()
    values += (random.random(shape) < electrons) * random.gamma(2, 60, shape).round()
    return np.clip(values, 0, 0xFFFF).astype(np.uint16)


def addresses_of(frames: np.ndarray) -> np.ndarray:
    return np.array([[frame[144 * sector].ctypes.data for sector in range(SECTORS)] for frame in frames], np.uint64)


def sample(frames: np.ndarray, **references: np.ndarray) -> SampleStatistics:
    return sample_block(addresses_of(frames), SectorLayout.ROWS, **references)


def test_statistics_of_raw_pixels_are_exact() -> None:
    frames = pedestal_frames(30, 4)
    frames[0, 0, :2] = [0, 65535]
    statistics = sample(frames)
    values = frames.astype(object).ravel()
    assert statistics.frames == 2
    assert (statistics.minimum, statistics.maximum) == (0, 65535)
    assert (statistics.sum, statistics.square_sum) == (32 * values.sum(), 32**2 * (values**2).sum())
    assert statistics.first_bin == 0
    np.testing.assert_array_equal(statistics.histogram, np.bincount(frames.ravel()))
    assert statistics.mean == pytest.approx(frames.mean(), rel=1e-12)
    assert statistics.variance == pytest.approx(frames.var(ddof=1), rel=1e-12)


def test_statistics_of_corrected_pixels() -> None:
    random = np.random.default_rng(2)
    dark = random.normal(29.5, 2, FRAME_SHAPE).astype(np.float32)
    gain = random.normal(1.3, 0.1, FRAME_SHAPE).astype(np.float32)
    frames = pedestal_frames(30, 4)
    statistics = sample(frames, dark=dark, gain=gain)
    values = ((frames.astype(np.float32) - dark) * (np.float32(1) / gain)).astype(np.float64)
    assert statistics.raw is None, "row-dark is not possible with a dark reference"
    steps = (np.sign(values) * np.floor(np.abs(values) * 32 + 0.5)).astype(np.int64)
    bins = (np.sign(values) * np.floor(np.abs(values) + 0.5)).astype(np.int64)
    assert (statistics.minimum, statistics.maximum) == (values.min(), values.max())
    assert (statistics.sum, statistics.square_sum) == (steps.sum(), (steps**2).sum())
    assert statistics.first_bin == bins.min() < 0
    np.testing.assert_array_equal(statistics.histogram, np.bincount((bins - bins.min()).ravel()))
    assert statistics.mean == pytest.approx(values.mean(), abs=1e-3)
    assert statistics.variance == pytest.approx(values.var(), rel=1e-4)


def test_values_beyond_the_bins_count_at_their_ends() -> None:
    frames = np.zeros((1, *FRAME_SHAPE), np.uint16)
    frames[0, 1, 1] = 60000
    dark = np.zeros(FRAME_SHAPE, np.float32)
    dark[2, 2], dark[3, 3] = 1e6, 3e38
    statistics = sample(frames, dark=dark, gain=np.full(FRAME_SHAPE, 0.1))
    assert (statistics.minimum, statistics.maximum) == (-65536, 131071)
    assert (statistics.histogram[0], statistics.histogram[-1]) == (2, 1)
    assert statistics.pixels == frames.size
    largest = np.full((1, *FRAME_SHAPE), 65535, np.uint16)
    assert sample(largest, gain=np.full(FRAME_SHAPE, 0.1)).square_sum == (131071 * 32) ** 2 * largest.size


def in_columns(frames: np.ndarray) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """The addresses of the frames' sectors in the other layout, and the sectors, which keep them valid."""
    sectors = [
        [np.ascontiguousarray(frame[SectorLayout.COLUMNS.sector_slices(sector)]) for sector in range(SECTORS)]
        for frame in frames
    ]
    return np.array([[sector.ctypes.data for sector in row] for row in sectors], np.uint64), sectors


def test_raw_pixels_count_as_with_references_that_change_nothing() -> None:
    """Raw pixels take another way through the program."""
    random = np.random.default_rng(5)
    frames = np.concatenate([pedestal_frames(30, 4), random.integers(0, 65536, (2, *FRAME_SHAPE), np.uint16)])
    frames[0, :2, :5] = 65535
    mask = random.random(FRAME_SHAPE) < 0.3
    columns, _sectors = in_columns(frames)
    for pixel_mask in (None, mask):
        expected = sample(frames, dark=np.zeros(FRAME_SHAPE), pixel_mask=pixel_mask)
        assert sample(frames, pixel_mask=pixel_mask) == expected
        assert sample_block(columns, SectorLayout.COLUMNS, pixel_mask=pixel_mask) == expected


@pytest.mark.parametrize("masked", ["few", "most", "rows"])
@pytest.mark.parametrize("corrected", [False, True])
def test_masked_pixels_are_left_out(masked: str, corrected: bool) -> None:
    random = np.random.default_rng(6)
    mask = random.random(FRAME_SHAPE) < {"few": 1e-4, "most": 0.9, "rows": 0}[masked]
    if masked == "rows":
        mask[:10], mask[100, 5:], mask[575] = True, True, True
    references = {"dark": random.normal(20, 2, FRAME_SHAPE).astype(np.float32)} if corrected else {}
    frames = pedestal_frames(30, 4)
    frames[:, mask] = 60000
    columns, _sectors = in_columns(frames)
    found = sample(frames, pixel_mask=mask, **references)
    assert sample_block(columns, SectorLayout.COLUMNS, pixel_mask=mask * 7, **references) == found
    values = frames[:, ~mask].astype(np.float32) - (references["dark"][~mask] if corrected else np.float32(0))
    assert found.frames == 2
    assert found.pixels == values.size
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    assert found.mean == pytest.approx(values.mean(dtype=float), abs=0.02)
    assert found.maximum < 10000
    steps = np.floor(np.abs(values.astype(float)) * 32 + 0.5) * np.sign(values)
    assert found.sum == int(steps.sum())


def test_columns_layout_and_incomplete_frames() -> None:
    frames = pedestal_frames(30, 4, frames=3)
    addresses, _sectors = in_columns(frames)
    dark = np.random.default_rng(3).normal(20, 2, FRAME_SHAPE)
    assert sample_block(addresses, SectorLayout.COLUMNS, dark) == sample(frames, dark=dark)
    addresses[1, 2] = 0
    assert sample_block(addresses, SectorLayout.COLUMNS, dark) == sample(frames[::2], dark=dark)
    addresses[:, 0] = 0
    assert sample_block(addresses, SectorLayout.COLUMNS, dark) == SampleStatistics.empty()


def test_the_sum_does_not_depend_on_order_or_grouping() -> None:
    frames = np.concatenate([pedestal_frames(30, 4, frames=2), pedestal_frames(900, 40, frames=2)])
    dark = np.random.default_rng(4).normal(20, 2, FRAME_SHAPE).astype(np.float32)
    whole = sample(frames, dark=dark)
    singles = [sample(frames[i : i + 1], dark=dark) for i in range(4)]
    for order in itertools.permutations(singles):
        total = reduce(add, order, SampleStatistics.empty())
        assert total == whole
        assert total.to_bytes() == whole.to_bytes()
    assert (singles[0] + singles[3]) + (singles[1] + singles[2]) == whole
    assert singles[0] + singles[1] != whole
    assert SampleStatistics.empty() + SampleStatistics.empty() == SampleStatistics.empty()


def test_raw_pixels_travel_beside_those_after_a_gain() -> None:
    """Row-dark works on them."""
    random = np.random.default_rng(7)
    gain = random.uniform(0.5, 2, FRAME_SHAPE)
    mask = random.random(FRAME_SHAPE) < 0.01
    frames = pedestal_frames(30, 4, frames=3)
    whole = sample(frames, gain=gain, pixel_mask=mask)
    assert whole.raw == sample(frames, pixel_mask=mask)
    singles = [sample(frames[i : i + 1], gain=gain, pixel_mask=mask) for i in range(3)]
    for order in itertools.permutations(singles):
        total = reduce(add, order, SampleStatistics.empty())
        assert total == whole
        assert total.to_bytes() == whole.to_bytes()
    assert whole != sample(frames, gain=gain)
    assert sample(frames).raw is None


def test_over_the_wire() -> None:
    dark = np.full(FRAME_SHAPE, 35.25)
    frames = pedestal_frames(30, 4)
    samples = (sample(frames, dark=dark), sample(frames, gain=dark), sample(frames), SampleStatistics.empty())
    for statistics in samples:
        assert SampleStatistics.from_bytes(statistics.to_bytes()) == statistics
    data = statistics.to_bytes()
    for broken in (b"", data[:-1], data + b"\0" * 8, b"\xff" + data[1:]):
        with pytest.raises(ProtocolError):
            SampleStatistics.from_bytes(broken)
    data = samples[1].to_bytes()
    for broken in (data[:-1], data + b"\0" * 8):
        with pytest.raises(ProtocolError):
            SampleStatistics.from_bytes(broken)


@pytest.mark.parametrize("electrons", [0, 0.01, 0.1])
@pytest.mark.parametrize(("mean", "sigma"), [(30, 4), (5, 1), (10, 0.5), (200, 12), (1000, 50)])
def test_the_fit_finds_the_pedestal(mean: float, sigma: float, electrons: float) -> None:
    statistics = sample(pedestal_frames(mean, sigma, electrons))
    thresholds = fit_thresholds(statistics, 4.5, 175)
    # Rounding to whole units widens a peak by a twelfth of a unit squared; a tail as strong as 10 % moves it a little.
    width = np.sqrt(sigma**2 + 1 / 12)
    assert thresholds.statistics["optimized_mean"] == pytest.approx(mean, abs=0.2 * sigma)
    assert thresholds.statistics["optimized_std_dev"] == pytest.approx(width, rel=0.12)
    assert thresholds.calibrated
    assert thresholds.sample_frames == 2
    assert thresholds == fit_thresholds(statistics, 4.5, 175)


def test_the_thresholds_and_their_statistics() -> None:
    frames = pedestal_frames(30, 4)
    thresholds = fit_thresholds(sample(frames), 4, 10)
    found = thresholds.statistics
    assert thresholds.background == found["optimized_mean"] + 4 * found["optimized_std_dev"]
    assert thresholds.xray == pytest.approx(frames.mean() + 10 * frames.std())
    assert found == {
        "number_of_samples": 2,
        "min_sample": frames.min(),
        "max_sample": frames.max(),
        "mean": pytest.approx(frames.mean()),
        "variance": pytest.approx(frames.var(ddof=1)),
        "std_dev": pytest.approx(frames.std(ddof=1)),
        "number_of_bins": int(frames.max()) - int(frames.min()) + 1,
        "background_threshold_n_sigma": 4,
        "x_ray_threshold_n_sigma": 10,
        "optimized_mean": pytest.approx(30, abs=0.1),
        "optimized_std_dev": pytest.approx(4, rel=0.01),
    }
    assert tuple(found) == CALIBRATION_STATISTICS


@pytest.mark.parametrize("gain", [0.1, 0.5, 0.7, 3.0])
def test_the_fit_bears_the_gaps_that_a_gain_leaves(gain: float) -> None:
    statistics = sample(pedestal_frames(30, 4), dark=np.full(FRAME_SHAPE, 29.4), gain=np.full(FRAME_SHAPE, gain))
    found = fit_thresholds(statistics, 4.5, 175).statistics
    assert found["optimized_mean"] == pytest.approx(0.6 / gain, abs=max(0.2 / gain, 0.2))
    assert found["optimized_std_dev"] == pytest.approx(4 / gain, rel=0.05)


def two_values() -> np.ndarray:
    frames = np.zeros((1, *FRAME_SHAPE), np.uint16)
    frames[0, 0, 0] = 1
    return frames


@pytest.mark.parametrize(
    ("frames", "xray_sigmas", "message"),
    [
        (np.full((1, *FRAME_SHAPE), 7, np.uint16), 175, "all pixels .* value 7"),
        (two_values(), 175, "width"),
        (pedestal_frames(3, 30), 175, "no Gaussian fits"),
        (pedestal_frames(30, 4, electrons=0), 1, "not below the x-ray threshold"),
        (pedestal_frames(30, 4), 1e308, "x-ray threshold is infinite"),
    ],
)
def test_samples_that_give_no_thresholds(frames: np.ndarray, xray_sigmas: float, message: str) -> None:
    with pytest.raises(CalibrationError, match=message) as caught:
        fit_thresholds(sample(frames), 4.5, xray_sigmas)
    assert "--background and --xray" in caught.value.remedy


def test_a_dark_reference_of_another_detector_gives_no_thresholds() -> None:
    dark = np.full(FRAME_SHAPE, 5000, np.float32)
    with pytest.raises(CalibrationError, match="below 0: the pedestal lies at -4970") as caught:
        fit_thresholds(sample(pedestal_frames(30, 3), dark=dark), 4.5, 175)
    assert "mpistream dark" in caught.value.remedy


def test_no_complete_frame() -> None:
    with pytest.raises(CalibrationError, match="not one sample frame"):
        fit_thresholds(SampleStatistics.empty(), 4.5, 175)


RECORD = scan_record(rows=4, last_frame=19, block_frames=2, counting=CountingParameters(sample_frames=3))


def block_samples(complete_frames: dict[int, int], record: ScanRecord = RECORD) -> dict[int, bytes]:
    """For every sample block the statistics of so many frames; of 2 where nothing is said."""
    return {
        block: sample(pedestal_frames(30, 4, frames=complete_frames.get(block, 2), seed=block)).to_bytes()
        if complete_frames.get(block, 2)
        else SampleStatistics.empty().to_bytes()
        for block in record.sample_blocks
    }


def test_the_sample_is_the_lowest_blocks_whatever_comes_first() -> None:
    assert RECORD.sample_blocks == range(2, 8)
    samples = block_samples({})
    assert fit_sample({}, RECORD) is None
    assert fit_sample({block: samples[block] for block in range(3, 8)}, RECORD) is None
    assert fit_sample({2: samples[2]}, RECORD) is None
    fitted = fit_sample({7: samples[7], 3: samples[3], 2: samples[2]}, RECORD)
    assert fitted == fit_sample(samples, RECORD)
    assert fitted is not None
    thresholds, packed = fitted
    merged = SampleStatistics.from_bytes(samples[2]) + SampleStatistics.from_bytes(samples[3])
    assert SampleStatistics.from_bytes(packed) == merged
    assert thresholds == fit_thresholds(merged, 4.5, 175)
    assert thresholds.sample_frames == 4


@pytest.mark.parametrize(
    ("complete_frames", "used"), [({2: 0, 3: 1}, 3), ({2: 0, 3: 0, 4: 1, 5: 0, 6: 1, 7: 0}, 2), ({2: 1, 3: 1}, 4)]
)
def test_incomplete_frames_are_made_up_for_while_there_are_others(complete_frames: dict[int, int], used: int) -> None:
    """In the end the sample may be smaller than wanted; the number of frames says so."""
    fitted = fit_sample(block_samples(complete_frames), RECORD)
    assert fitted is not None
    assert fitted[0].sample_frames == used


def test_a_scan_that_was_cut_short_is_calibrated_from_what_there_is() -> None:
    """Holes included: no more blocks will come."""
    samples = block_samples({4: 1})
    fitted = fit_sample({4: samples[4]}, RECORD, with_less=True)
    assert fitted is not None
    assert fitted[0] == fit_thresholds(SampleStatistics.from_bytes(samples[4]), 4.5, 175)
    assert fitted[1] == samples[4]
    with_hole = fit_sample({7: samples[7], 4: samples[4]}, RECORD, with_less=True)
    assert with_hole is not None
    assert with_hole[0].sample_frames == 3
    assert fit_sample({7: samples[7], 4: samples[4]}, RECORD) is None
    assert fit_sample(samples, RECORD, with_less=True) == fit_sample(samples, RECORD)
    with pytest.raises(CalibrationError, match="not one sample frame"):
        fit_sample({}, RECORD, with_less=True)


def test_no_more_blocks_are_sampled_than_needed() -> None:
    one = sample(pedestal_frames(30, 4, frames=1))
    endless = itertools.repeat(one)
    assert merge_sample(endless, 3).frames == 3
    assert merge_sample([one], 3) == one
    assert merge_sample([], 3) == SampleStatistics.empty()


def test_row_dark_brings_half_rows_to_the_fitted_mean() -> None:
    statistics = sample(pedestal_frames(30, 4))
    plain = calibrated_thresholds(statistics, CountingParameters())
    assert plain == fit_thresholds(statistics, 4.5, 175)
    assert plain.row_dark_level is None
    with_level = calibrated_thresholds(statistics, CountingParameters(row_dark="median"))
    assert with_level.row_dark_level == plain.statistics["optimized_mean"]
    assert with_level.model_copy(update={"row_dark_level": None}) == plain


def test_with_a_gain_the_level_is_that_of_the_raw_pixels() -> None:
    gain = np.random.default_rng(8).uniform(1.5, 2.5, FRAME_SHAPE)
    frames = pedestal_frames(30, 4)
    statistics = sample(frames, gain=gain)
    found = calibrated_thresholds(statistics, CountingParameters(row_dark="median"))
    raw = fit_thresholds(sample(frames), 4.5, 175)
    assert found.row_dark_level == raw.statistics["optimized_mean"] == pytest.approx(30, abs=0.1)
    plain = calibrated_thresholds(statistics, CountingParameters())
    assert found.model_copy(update={"row_dark_level": None}) == plain
    assert plain.statistics["optimized_mean"] == pytest.approx(15, abs=1)


def part_of_a_pedestal(mean: float, sigma: float) -> np.ndarray:
    """Of a normal distribution, what pixels can show: from 0 to 65535."""
    values = np.random.default_rng(9).normal(mean, sigma, 8 * FRAME_SHAPE[0] * FRAME_SHAPE[1]).round()
    there = values[(values >= 0) & (values <= 0xFFFF)][: FRAME_SHAPE[0] * FRAME_SHAPE[1]]
    return there.astype(np.uint16).reshape(1, *FRAME_SHAPE)


@pytest.mark.parametrize("gain", [None, 2.0])
@pytest.mark.parametrize(("mean", "sigma"), [(-0.7, 2), (65535.7, 2)])
def test_row_dark_needs_a_pedestal_among_the_pixel_values(mean: float, sigma: float, gain: float | None) -> None:
    references = {"gain": np.full(FRAME_SHAPE, gain)} if gain else {}
    statistics = sample(part_of_a_pedestal(mean, sigma), **references)
    assert calibrated_thresholds(statistics, CountingParameters(background_sigmas=1)).calibrated
    with pytest.raises(
        CalibrationError, match=r"pedestal above 0 and no higher than 65535; .* is (-0\.|65535\.)"
    ) as caught:
        calibrated_thresholds(statistics, CountingParameters(row_dark="mean", background_sigmas=1))
    assert "--row-dark" in caught.value.remedy
