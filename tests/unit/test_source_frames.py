"""The frames of a source in one process are those that a scan's ranks put together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpistream.acquisition.simulation_options import SimulationOptions
from mpistream.acquisition.simulator import Simulator
from mpistream.model.errors import ReferenceImageError, SourceError
from mpistream.model.geometry import FRAME_SHAPE
from mpistream.model.scan import CountingParameters
from mpistream.pipeline.source_frames import record_of_source, sample_source, source_blocks
from mpistream.reduction.calibration import SampleStatistics, calibrated_thresholds, sample_block
from mpistream.reduction.electron_counting import ElectronCounter
from mpistream.reduction.reference_images import References
from tests.system.sector_writer import MadeUpScan


def test_all_frames_in_order_with_their_sectors(tmp_path: Path) -> None:
    scan = MadeUpScan(3, 4, 1, 21, 5, seed=1, sectors_lost=0.1, frames_lost=(4,))
    folder = scan.write(tmp_path / "scan", shuffled=True)
    record, notes = record_of_source(f"files:{folder}", 5, CountingParameters(background=45.0, xray=2500.0))
    assert (record.rows, record.columns, record.first_frame, record.last_frame) == (3, 4, 21, 32)
    assert notes == ()
    blocks = list(source_blocks(record))
    assert [block.block for block in blocks] == list(record.block_range) == [4, 5, 6]
    numbers = np.concatenate([block.frame_number for block in blocks]) - 21
    np.testing.assert_array_equal(numbers, np.sort(scan.present))
    np.testing.assert_array_equal(np.concatenate([block.missing_sectors for block in blocks]), scan.missing[numbers])
    np.testing.assert_array_equal(np.concatenate([block.scan_position for block in blocks]), scan.position[numbers])
    some = list(source_blocks(record, record.block_range[1:2]))
    assert [block.block for block in some] == [5]
    np.testing.assert_array_equal(some[0].frame_number, blocks[1].frame_number)


def test_the_pixels_are_the_source_s() -> None:
    record, _ = record_of_source("sim:2x3?seed=9&version=4", 4, CountingParameters())
    sample = sample_source(record)
    simulator = Simulator(SimulationOptions(rows=2, columns=3, seed=9, version=4))
    frames = np.empty((6, *FRAME_SHAPE), np.uint16)
    for index in range(6):
        hits = simulator.hits(index)
        for sector in range(4):
            sector_pixels = np.empty(simulator.detector.layout.sector_shape, np.uint16)
            simulator.detector.expose(hits, sector, sector_pixels)
            frames[index][simulator.detector.layout.sector_slices(sector)] = sector_pixels
    assert sample.frames == 6
    np.testing.assert_array_equal(sample.histogram, np.bincount(frames.ravel())[sample.first_bin :])


def test_the_sample_is_that_of_a_scan(tmp_path: Path) -> None:
    """With references and a mask, and with fewer complete frames in a block than it has."""
    np.save(tmp_path / "dark.npy", np.full(FRAME_SHAPE, 30.25))
    np.save(tmp_path / "gain.npy", np.full(FRAME_SHAPE, 1.25))
    mask = np.zeros(FRAME_SHAPE, bool)
    mask[5] = True
    np.save(tmp_path / "mask.npy", mask)
    counting = CountingParameters(
        sample_frames=9,
        dark=str(tmp_path / "dark.npy"),
        gain=str(tmp_path / "gain.npy"),
        pixel_mask=str(tmp_path / "mask.npy"),
    )
    record, _ = record_of_source("sim:8x8?loss=0.1", 4, counting)
    total = SampleStatistics.empty()
    for block in source_blocks(record):
        total += sample_block(
            block.sector_addresses,
            record.encoding.layout,
            np.full(FRAME_SHAPE, 30.25),
            np.full(FRAME_SHAPE, 1.25),
            mask,
        )
        if total.frames >= 9:
            break
    assert sample_source(record) == total
    assert total.pixels == total.frames * 575 * 576


def electrons_of(counting: CountingParameters) -> int:
    record, _ = record_of_source("sim:8x8?xrays=0", 8, counting)
    thresholds = calibrated_thresholds(sample_source(record), counting)
    used = References.load(counting)
    counter = ElectronCounter(
        record.encoding.layout,
        thresholds.background,
        thresholds.xray,
        used.dark,
        used.gain,
        row_dark=counting.row_dark,
        row_dark_level=thresholds.row_dark_level,
    )
    return sum(len(counter.count_block(block.sector_addresses).indices) for block in source_blocks(record))


@pytest.mark.parametrize("row_dark", [None, "mean"])
def test_a_gain_that_is_the_same_everywhere_leaves_the_electrons(tmp_path: Path, row_dark: Any) -> None:
    """Up to the rounding of the fit: with row-dark too, which brings half rows to a level before the gain."""
    np.save(tmp_path / "gain.npy", np.full(FRAME_SHAPE, 2.0))
    plain = electrons_of(CountingParameters(row_dark=row_dark))
    assert plain > 100_000
    with_gain = electrons_of(CountingParameters(row_dark=row_dark, gain=str(tmp_path / "gain.npy")))
    assert with_gain == pytest.approx(plain, rel=0.01)


def test_a_short_source_gives_a_smaller_sample() -> None:
    record, _ = record_of_source("sim:2x3", 8, CountingParameters())
    assert sample_source(record).frames == 6


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        record_of_source(f"files:{tmp_path}", 8, CountingParameters())
    record, _ = record_of_source("sim:2x3", 8, CountingParameters(pixel_mask="absent.npy"))
    with pytest.raises(ReferenceImageError, match=r"absent\.npy"):
        sample_source(record)
