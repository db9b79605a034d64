"""The field's own tool, event by event: stempy with the same thresholds, and its calibration of the same frames.

stempy 3.6.0 agrees to the pixel, edges and corners included, except that without a gain it cuts the fraction off a
dark reference and subtracts in uint16, where a pixel darker than its dark becomes one of about 65535. Such a pixel
mostly counts as an x-ray, hence as 0, as it does here.
"""

from pathlib import Path

import numpy as np
import pytest
import stempy.image
import stempy.io
from stempy import _image

from mpistream.model.geometry import FRAME_SHAPE, RECORD_HEADER, SECTORS, SectorLayout
from mpistream.reduction.calibration import fit_thresholds, sample_block
from mpistream.reduction.electron_counting import ElectronCounter, count_electrons

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


def ours(frame: np.ndarray, background: float, **references: np.ndarray) -> list[int]:
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


def write_sector_files(folder: Path, frames: np.ndarray, missing: set[tuple[int, int]]) -> tuple[list[str], np.ndarray]:
    """Version 5 files of a scan of one row; returns their paths and the addresses of ``frames``' sectors."""
    addresses = np.zeros((len(frames), SECTORS), np.uint64)
    paths = []
    for sector in range(SECTORS):
        paths.append(str(folder / f"data_scan0000000007_module{sector}.data"))
        with open(paths[-1], "wb") as file:
            for i, frame in enumerate(frames):
                if (i, sector) in missing:
                    continue
                pixels = frame[SectorLayout.ROWS.sector_slices(sector)]
                file.write(np.array((7, i, len(frames), 1, i, 0), RECORD_HEADER).tobytes() + pixels.tobytes())
                addresses[i, sector] = pixels.ctypes.data
    return paths, addresses


def test_sector_files_with_missing_sectors(tmp_path: Path) -> None:
    frames = frames_of((9, *FRAME_SHAPE), 5)
    # stempy samples the first frames; they are whole.
    paths, addresses = write_sector_files(tmp_path, frames, missing={(6, 0), (7, 1), (7, 2), (8, 3)})
    reader = stempy.io.reader(paths, stempy.io.FileVersion.VERSION5, backend="multi-pass")
    counted = stempy.image.electron_count(reader, np.zeros(FRAME_SHAPE), number_of_samples=4, scan_dimensions=(9, 1))
    thresholds = counted.metadata["electron_counting"]
    counter = ElectronCounter(SectorLayout.ROWS, thresholds["background_threshold"], thresholds["x_ray_threshold"])
    indices, counts = counter.count_block(addresses)
    of_frames = np.split(indices, np.cumsum(counts)[:-1])
    assert counts.min() > 500
    for i in range(len(frames)):
        np.testing.assert_array_equal(of_frames[i], np.sort(counted.data[i, 0]))


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
