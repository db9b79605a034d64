"""The field's own tool, event by event: stempy with the same thresholds, and its calibration of the same frames.

stempy 3.6.0 agrees to the pixel, edges and corners included, except that without a gain it works in uint16: it cuts
the fraction off a dark reference and off what row-dark gives, and a pixel darker than its dark becomes one of about
65535. Such a pixel mostly counts as an x-ray, hence as 0, as it does here. In its row-dark, pixels of missing sectors
take part as zeros, and a half-row of zeros becomes NaN, which hides the electrons beside it.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import stempy.image
import stempy.io
from stempy import _image

from mpistream.model.geometry import FRAME_SHAPE, RECORD_HEADER, SECTORS, SectorLayout
from mpistream.reduction.calibration import fit_thresholds, sample_block
from mpistream.reduction.electron_counting import ElectronCounter, count_electrons
from tests.unit.slow_reference import corrected_values, is_electron

XRAY = 300.5


def frames_of(shape: tuple[int, ...], seed: int, pedestal: float = 30) -> np.ndarray:
    random = np.random.default_rng(seed)
    frames = random.normal(pedestal, 4, shape).round()
    frames += (random.random(shape) < 0.02) * random.gamma(2, 60, shape).round()
    frames[random.random(shape) < 1e-4] = 20000
    return np.clip(frames, 0, 0xFFFF).astype(np.uint16)


def of_stempy(frame: np.ndarray, background: float, **references: np.ndarray) -> list[int]:
    found = stempy.image.electron_count_frame(frame, background_threshold=background, xray_threshold=XRAY, **references)
    return sorted(found.data[0, 0].tolist())


def ours(frame: np.ndarray, background: float, **references: Any) -> list[int]:
    return count_electrons(frame[np.newaxis], background=background, xray=XRAY, **references)[0].tolist()


@pytest.mark.parametrize("shape", [FRAME_SHAPE, (2, 2), (3, 50), (50, 2)])
@pytest.mark.parametrize("background", [0.0, 33.0, 47.3])
def test_counting(shape: tuple[int, int], background: float) -> None:
    random = np.random.default_rng(2)
    frame = frames_of(shape, 1)
    dark = random.normal(10, 2, shape).astype(np.float32)
    whole_dark = random.integers(0, 12, shape).astype(np.float32)
    gain = random.normal(1, 0.1, shape).astype(np.float32)

    electrons = ours(frame, background)
    assert electrons == of_stempy(frame, background)
    assert len(electrons) > frame.size / 1000 or frame.size < 1000
    assert ours(frame, background, dark=whole_dark) == of_stempy(frame, background, darkreference=whole_dark)
    assert ours(frame, background, gain=gain) == of_stempy(frame, background, gain=gain)
    # With a gain stempy calculates in float32, and negative values count too.
    for background_or_less in (background, background - 40):
        assert ours(frame, background_or_less, dark=dark, gain=gain) == of_stempy(
            frame, background_or_less, darkreference=dark, gain=gain
        )


def test_stempy_cuts_the_dark_without_a_gain() -> None:
    frame = frames_of(FRAME_SHAPE, 4, pedestal=60)
    dark = np.random.default_rng(3).normal(10, 2, FRAME_SHAPE).astype(np.float32)
    assert of_stempy(frame, 33.3, darkreference=dark) == ours(frame, 33.3, dark=np.trunc(dark))
    assert of_stempy(frame, 33.3, darkreference=dark) != ours(frame, 33.3, dark=dark)


def test_stempy_wraps_below_zero_without_a_gain() -> None:
    frame, dark = np.full((5, 5), 20, np.uint16), np.full((5, 5), 10, np.float32)
    frame[2, 2] = 7
    found = stempy.image.electron_count_frame(frame, background_threshold=15, xray_threshold=7e4, darkreference=dark)
    assert found.data[0, 0].tolist() == [12]
    assert count_electrons(frame[np.newaxis], background=15, xray=7e4, dark=dark)[0].tolist() == []


# --- row-dark

LEVEL = 29.7
ONES = np.ones(FRAME_SHAPE, np.float32)


def row_dark_of_stempy(frame: np.ndarray, background: float, row_dark: str, gain: np.ndarray | None) -> list[int]:
    options = _image.ElectronCountOptionsClassic()
    options.background_threshold, options.x_ray_threshold = background, XRAY
    options.scan_dimensions = (1, 1)
    options.apply_row_dark_subtraction = True
    options.apply_row_dark_use_mean = row_dark == "mean"
    options.optimized_mean = LEVEL
    if gain is not None:
        options.gain = np.power(gain, -1)
    reader = stempy.io.PyReader(frame[np.newaxis], np.arange(1), (1, 1), 1, 1)
    return sorted(_image.electron_count(reader.begin(), reader.end(), options).data[0][0].tolist())


def uneven_frame(seed: int, pedestal: float = 30) -> np.ndarray:
    """With another pedestal in every half-row."""
    offsets = np.random.default_rng(seed).integers(-10, 11, (FRAME_SHAPE[0], 2))
    return (frames_of(FRAME_SHAPE, seed, pedestal) + np.repeat(offsets, FRAME_SHAPE[1] // 2, axis=1)).astype(np.uint16)


@pytest.mark.parametrize("row_dark", ["mean", "median"])
@pytest.mark.parametrize("background", [0.0, 40.0, 47.3])
def test_row_dark_with_a_gain(row_dark: str, background: float) -> None:
    gain = np.random.default_rng(8).normal(1, 0.1, FRAME_SHAPE).astype(np.float32)
    frame = uneven_frame(7)
    options = {"row_dark": row_dark, "row_dark_level": LEVEL}
    electrons = ours(frame, background, **options)
    assert len(electrons) > 3000
    assert electrons == row_dark_of_stempy(frame, background, row_dark, ONES)
    assert electrons != ours(frame, background)
    assert ours(frame, background, gain=gain, **options) == row_dark_of_stempy(frame, background, row_dark, gain)


@pytest.mark.parametrize("row_dark", ["mean", "median"])
def test_stempy_cuts_what_row_dark_gives_without_a_gain(row_dark: str) -> None:
    frame = uneven_frame(9)
    cut = np.trunc(corrected_values(frame, row_dark=row_dark, row_dark_level=LEVEL))
    theirs = row_dark_of_stempy(frame, 45.0, row_dark, None)
    assert theirs == np.flatnonzero(is_electron(cut, 45.0, XRAY)).tolist()
    electrons = ours(frame, 45.0, row_dark=row_dark, row_dark_level=LEVEL)
    # Cut to integers, more neighbours are equal: plateaus, which are no electrons.
    assert len(set(electrons) - set(theirs)) > 20


def test_a_half_row_of_zeros_hides_electrons_from_stempy() -> None:
    frame = np.full(FRAME_SHAPE, 30, np.uint16)
    frame[100, 50] = frame[102, 50] = frame[300, 50] = 200
    frame[101, : FRAME_SHAPE[1] // 2] = 0
    assert ours(frame, 45.0, row_dark="mean", row_dark_level=LEVEL) == [100 * 576 + 50, 102 * 576 + 50, 300 * 576 + 50]
    assert row_dark_of_stempy(frame, 45.0, "mean", ONES) == [300 * 576 + 50]


# --- missing sectors

# stempy samples the first frames of a scan: they are whole.
MISSING = {(6, 0), (7, 1), (7, 2), (8, 3)}


def write_sector_files(folder: Path, frames: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Version 5 files of a scan of one row; returns their paths and the addresses of ``frames``' sectors."""
    addresses = np.zeros((len(frames), SECTORS), np.uint64)
    paths = []
    for sector in range(SECTORS):
        paths.append(str(folder / f"data_scan0000000007_module{sector}.data"))
        with open(paths[-1], "wb") as file:
            for i, frame in enumerate(frames):
                if (i, sector) in MISSING:
                    continue
                pixels = frame[SectorLayout.ROWS.sector_slices(sector)]
                file.write(np.array((7, i, len(frames), 1, i, 0), RECORD_HEADER).tobytes() + pixels.tobytes())
                addresses[i, sector] = pixels.ctypes.data
    return paths, addresses


@pytest.mark.parametrize("row_dark", [None, "mean", "median"])
def test_sector_files_with_missing_sectors(tmp_path: Path, row_dark: Literal["mean", "median"] | None) -> None:
    frames = np.stack([uneven_frame(20 + i) for i in range(9)])
    paths, addresses = write_sector_files(tmp_path, frames)
    reader = stempy.io.reader(paths, stempy.io.FileVersion.VERSION5, backend="multi-pass")
    theirs = stempy.image.electron_count(
        reader,
        np.zeros(FRAME_SHAPE),
        number_of_samples=4,
        scan_dimensions=(9, 1),
        gain=None if row_dark is None else ONES,
        apply_row_dark=row_dark is not None,
        apply_row_dark_use_mean=row_dark == "mean",
    )
    found = theirs.metadata["electron_counting"]
    level = None if row_dark is None else found["optimized_mean"]
    counter = ElectronCounter(
        SectorLayout.ROWS,
        found["background_threshold"],
        found["x_ray_threshold"],
        row_dark=row_dark,
        row_dark_level=level,
    )
    counted = counter.count_block(addresses)
    of_frames = np.split(counted.indices, np.cumsum(counted.counts)[:-1])
    assert counted.counts.min() > 500
    for i in range(len(frames)):
        incomplete = any(frame == i for frame, _sector in MISSING)
        # The rows of a missing sector become NaN in stempy's row-dark and hide electrons of the rows beside them.
        hidden = len(of_frames[i]) - len(theirs.data[i, 0])
        if row_dark and incomplete:
            assert hidden > 0
            assert set(theirs.data[i, 0].tolist()) < set(of_frames[i].tolist())
        else:
            np.testing.assert_array_equal(of_frames[i], np.sort(theirs.data[i, 0]))


def test_the_zeros_of_a_missing_sector_take_part_in_the_statistics_of_stempy() -> None:
    layout = SectorLayout.COLUMNS
    frame = uneven_frame(30)
    frame[layout.sector_slices(1)] = 0
    sectors = [np.ascontiguousarray(frame[layout.sector_slices(sector)]) for sector in range(SECTORS)]
    addresses = np.array([[sector.ctypes.data for sector in sectors]], np.uint64)
    addresses[0, 1] = 0
    counter = ElectronCounter(layout, 45.0, XRAY, row_dark="mean", row_dark_level=LEVEL)
    electrons = set(counter.count_block(addresses).indices.tolist())
    theirs = set(row_dark_of_stempy(frame, 45.0, "mean", ONES))
    right_half = {index for index in electrons | theirs if index % 576 > 288}
    assert electrons & right_half == theirs & right_half
    # They halve the mean of the left half: twice as bright, most of its noise lies above the threshold.
    assert len(theirs - right_half) > 3 * len(electrons - right_half)


# --- calibration


@pytest.mark.parametrize("pedestal", [12, 30, 1000])
def test_calibration(pedestal: float) -> None:
    frame = frames_of((1, *FRAME_SHAPE), 6, pedestal)
    # One frame to choose from: stempy's random samples are all the same.
    block = stempy.io.PyReader(frame, np.arange(1), (1, 1), 1, 1).read()
    theirs = _image.calculate_thresholds([block._block], np.zeros(FRAME_SHAPE, np.float32), 3, 4.5, 175.0)
    addresses = np.array([[frame[0, 144 * sector].ctypes.data for sector in range(SECTORS)]], np.uint64)
    thresholds = fit_thresholds(sample_block(addresses, SectorLayout.ROWS), 4.5, 175)
    statistics = thresholds.statistics
    assert thresholds.background == pytest.approx(theirs.background_threshold, rel=1e-4)
    assert thresholds.xray == pytest.approx(theirs.xray_threshold, rel=1e-4)
    assert statistics["optimized_mean"] == pytest.approx(theirs.optimized_mean, rel=1e-4)
    assert statistics["optimized_std_dev"] == pytest.approx(theirs.optimized_std_dev, rel=1e-4)
    assert statistics["mean"] == pytest.approx(theirs.mean)
    assert (statistics["min_sample"], statistics["max_sample"]) == (theirs.min_sample, theirs.max_sample)
