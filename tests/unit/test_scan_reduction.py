"""One scan on one rank: held until the thresholds are known, counted once."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpistream.model.counted_block import CountedBlock
from mpistream.model.errors import CalibrationError, ReferenceImageError
from mpistream.model.geometry import RECORD_BYTES, SECTORS
from mpistream.model.scan import CountingParameters, ScanRecord, Thresholds
from mpistream.model.virtual_images import VirtualDetectors
from mpistream.reduction.calibration import SampleStatistics, fit_sample
from mpistream.reduction.frame_assembly import AssembledBlock
from mpistream.reduction.scan_reduction import ScanReduction
from tests.unit.made_up_blocks import BACKGROUND, XRAY, block_message, camera_frame, scan_record
from tests.unit.slow_reference import count_frame

THRESHOLDS = Thresholds(background=BACKGROUND, xray=XRAY, calibrated=False)
#: 16 frames in blocks 2 to 9; the sample's 2 complete frames are looked for in the first 4 of them.
CALIBRATED = scan_record(
    rows=4, last_frame=19, block_frames=2, counting=CountingParameters(sample_frames=2, xray_sigmas=50)
)


def assemble(scan: ScanReduction, block: int, present: Sequence[int] | None = None) -> AssembledBlock:
    masks = present or [(1 << scan.record.block_frames) - 1] * SECTORS
    for sector in range(SECTORS):
        assembled = scan.assemble(*block_message(scan.record, block, sector, masks[sector]))
    assert assembled is not None
    return assembled


def prepared(record: ScanRecord, detectors: VirtualDetectors | None = None) -> ScanReduction:
    return ScanReduction.prepare(record.model_copy(update={"detectors": detectors or VirtualDetectors()}))


def counted(scan: ScanReduction, block: int, present: Sequence[int] | None = None) -> CountedBlock:
    """The block, assembled and counted with thresholds that are known."""
    found = scan.count(assemble(scan, block, present))
    assert found is not None
    return found


def test_blocks_are_held_until_the_thresholds_are_known_and_counted_once() -> None:
    record = scan_record()
    scan = prepared(record)
    blocks = [assemble(scan, block) for block in record.block_range]
    assert scan.count(blocks[0]) is None
    assert (scan.blocks_held, scan.has_thresholds) == (1, False)
    assert scan.diffraction_sum.shape == (576, 576)
    assert not scan.diffraction_sum.any()
    assert scan.set_thresholds(THRESHOLDS) == [blocks[0]]
    assert (scan.blocks_held, scan.has_thresholds) == (0, True)
    assert scan.thresholds is THRESHOLDS
    found = [scan.count(block) for block in blocks]
    assert [block.block for block in found if block] == list(record.block_range)
    for block, number in zip(found, (4, 8), strict=True):
        assert block is not None
        assert block.events.frame_number.tolist() == list(range(number, number + 4))
        assert block.events.scan_position.tolist() == list(range(number - 4, number))
        block.events.validate(positions=8)
        expected = [count_frame(camera_frame(number + frame), BACKGROUND, XRAY) for frame in range(4)]
        np.testing.assert_array_equal(block.events.indices, np.concatenate(expected))
        assert len(block.events.indices) > 500
    assert scan.diffraction_sum.sum() == sum(len(block.events.indices) for block in found if block)


def test_a_counted_block_tells_what_came_of_each_sector() -> None:
    scan = prepared(scan_record())
    scan.set_thresholds(THRESHOLDS)
    for sector, present in ((0, 0b1111), (1, 0), (2, 0b0110)):
        message = block_message(scan.record, 1, sector, present, bad={5: {0: {"rows": 9}, 2: {"rows": 9}}})
        assert scan.assemble(*message) is None
    (block,) = scan.assembly.cut([3])
    found = scan.count(block)
    assert found is not None
    assert (found.block, found.sectors) == (1, 0b0111)
    assert found.frames_present == (0b1111, 0, 0b0110, 0)
    assert found.frames_rejected == (0b0010, 0, 0b0010, 0)
    assert (found.records, found.records_rejected) == (4, 2)
    assert found.raw_bytes == 6 * RECORD_BYTES
    assert found.events.frame_number.tolist() == [4, 6, 7]
    assert found.events.missing_sectors.tolist() == [0b1110, 0b1010, 0b1110]
    assert len(found.sums) == 3


def test_a_block_counts_alike_on_every_rank() -> None:
    blocks = []
    for order in (range(SECTORS), range(SECTORS)[::-1]):
        scan = prepared(scan_record(), VirtualDetectors(center=(250.0, 300.0)))
        scan.set_thresholds(THRESHOLDS)
        counted(scan, 2)
        for sector in order:
            assembled = scan.assemble(*block_message(scan.record, 1, sector, producer_incarnation=sector + order[0]))
        assert assembled is not None
        blocks.append(scan.count(assembled))
    assert blocks[0] is not None
    assert blocks[1] is not None
    assert blocks[0].checksum() == blocks[1].checksum()


def test_the_times_of_first_and_last_block_are_those_of_their_arrival() -> None:
    scan = prepared(scan_record())
    scan.count(assemble(scan, 1))
    first = scan.first_block_unix_seconds
    scan.count(assemble(scan, 2))
    assert 0 < first == scan.first_block_unix_seconds <= scan.last_block_unix_seconds
    last = scan.last_block_unix_seconds
    time.sleep(0.01)
    for held in scan.set_thresholds(THRESHOLDS):
        scan.count(held)
    assert scan.last_block_unix_seconds == last
    assert scan.seconds_counting > 0


@pytest.mark.parametrize(("center", "annuli"), [(None, 0), ((250.0, 300.0), 2)])
def test_every_block_has_the_sums_that_the_detectors_need(center: tuple[float, float] | None, annuli: int) -> None:
    scan = prepared(scan_record(), VirtualDetectors(center=center))
    scan.set_thresholds(THRESHOLDS)
    assert scan.annuli == annuli
    for block, frames in ((counted(scan, 1), 4), (counted(scan, 2, [0] * SECTORS), 0)):
        block.sums.validate(len(block.events))
        assert block.sums.annuli.shape == (frames, annuli)


def test_with_given_thresholds_nothing_is_sampled() -> None:
    scan = prepared(scan_record())
    assert scan.sample_block(assemble(scan, 1)) is None


def test_only_sample_blocks_are_sampled_and_only_until_the_thresholds_are_known() -> None:
    scan = prepared(CALIBRATED)
    assert CALIBRATED.sample_blocks == range(2, 6)
    blocks = [assemble(scan, block) for block in CALIBRATED.block_range]
    assert [scan.sample_block(block) is not None for block in blocks] == [True] * 4 + [False] * 4
    scan.set_thresholds(THRESHOLDS)
    assert scan.sample_block(blocks[0]) is None


def samples_of(record: ScanRecord, present: dict[int, list[int]] | None = None) -> dict[int, bytes]:
    scan, samples = prepared(record), {}
    for block in record.sample_blocks:
        statistics = scan.sample_block(assemble(scan, block, (present or {}).get(block)))
        assert statistics is not None
        samples[block] = statistics
    return samples


@settings(max_examples=20)
@given(st.data())
def test_the_calibration_does_not_depend_on_the_order_of_arrival(data: st.DataObject) -> None:
    """Thresholds are fixed as soon as the sample is complete, and are then always the same."""
    samples = FULL_SAMPLES
    arriving = data.draw(st.permutations(sorted(samples)))
    arrived: dict[int, bytes] = {}
    for block in arriving:
        arrived[block] = samples[block]
        fitted = fit_sample(arrived, CALIBRATED)
        if fitted is not None:
            break
    assert fitted == fit_sample(samples, CALIBRATED)
    assert fitted is not None
    thresholds, sample = fitted
    assert SampleStatistics.from_bytes(sample).frames == thresholds.sample_frames
    assert thresholds.calibrated
    assert thresholds.sample_frames == 2
    assert 30 < thresholds.background < 60


FULL_SAMPLES = samples_of(CALIBRATED)


def thresholds_from(samples: dict[int, bytes]) -> Thresholds:
    fitted = fit_sample(samples, CALIBRATED)
    assert fitted is not None
    return fitted[0]


def test_the_sample_waits_for_its_lowest_block() -> None:
    assert fit_sample({}, CALIBRATED) is None
    assert fit_sample({3: FULL_SAMPLES[3]}, CALIBRATED) is None
    assert fit_sample({2: FULL_SAMPLES[2]}, CALIBRATED) is not None


def test_incomplete_frames_are_no_sample() -> None:
    """The next complete frames take their place, and the number of frames says how many there were."""
    samples = samples_of(CALIBRATED, {2: [0b11, 0b11, 0b01, 0b11]})
    assert fit_sample({2: samples[2]}, CALIBRATED) is None
    assert thresholds_from(samples).sample_frames == 3
    nothing = [0] * SECTORS
    assert thresholds_from(samples_of(CALIBRATED, dict.fromkeys((2, 3, 4), nothing))).sample_frames == 2
    samples = samples_of(CALIBRATED, {2: nothing, 3: [0b11, 0b11, 0b10, 0b11], 4: nothing, 5: nothing})
    assert thresholds_from(samples).sample_frames == 1


def test_without_a_complete_frame_there_is_no_threshold() -> None:
    samples = samples_of(CALIBRATED, {block: [0b11, 0b11, 0b11, 0] for block in CALIBRATED.sample_blocks})
    with pytest.raises(CalibrationError, match="not one sample frame"):
        fit_sample(samples, CALIBRATED)


def test_dark_and_gain_take_part(tmp_path: Path) -> None:
    dark, gain = np.full((576, 576), 12.0, np.float32), np.full((576, 576), 2.0, np.float32)
    np.save(tmp_path / "dark.npy", dark)
    np.save(tmp_path / "gain.npy", gain)
    counting = CountingParameters(
        background=24.0, xray=1500.0, dark=str(tmp_path / "dark.npy"), gain=str(tmp_path / "gain.npy")
    )
    scan = prepared(scan_record(counting=counting))
    scan.set_thresholds(Thresholds(background=24.0, xray=1500.0, calibrated=False))
    expected = [count_frame(camera_frame(number), 24.0, 1500.0, dark, gain) for number in range(4, 8)]
    np.testing.assert_array_equal(counted(scan, 1).events.indices, np.concatenate(expected))


def test_what_is_added_up_while_counting(tmp_path: Path) -> None:
    """Sums, centroids and the pixel mask take part; the sums are those of the events."""
    mask = np.zeros((576, 576), bool)
    mask[4:300:4, ::3] = True
    np.save(tmp_path / "mask.npy", mask)
    counting = CountingParameters(
        background=BACKGROUND, xray=XRAY, pixel_mask=str(tmp_path / "mask.npy"), centroids=True
    )
    record = scan_record(counting=counting, rows=1, columns=4, first_frame=4, last_frame=7)
    detectors = VirtualDetectors((0.0, 90.0), (100.0, 200.0), center=(250.0, 300.0))
    scan = prepared(record, detectors)
    scan.set_thresholds(THRESHOLDS)
    found = counted(scan, 1)
    events, sums = found.events, found.sums
    sums.validate(len(events))
    expected = [count_frame(camera_frame(number), BACKGROUND, XRAY, pixel_mask=mask) for number in range(4, 8)]
    np.testing.assert_array_equal(events.indices, np.concatenate(expected))
    assert events.centroids is not None
    assert events.centroids.shape == (len(events.indices), 2)
    assert np.abs(events.centroids).max() > 20
    np.testing.assert_array_equal(scan.diffraction_sum.ravel(), np.bincount(events.indices, minlength=576 * 576))
    for within, inside in zip(sums.annuli.T, detectors.masks((576, 576), (250.0, 300.0)), strict=True):
        np.testing.assert_array_equal(within, [inside.ravel()[frame].sum() for frame in expected])
    np.testing.assert_array_equal(sums.moments, [np.sum(np.divmod(frame, 576), axis=1) for frame in expected])
    assert sums.moments.dtype == sums.annuli.dtype == np.uint32


def test_row_dark_takes_part() -> None:
    counting = CountingParameters(background=33.0, xray=900.0, row_dark="median", row_dark_level=20.0)
    scan = prepared(scan_record(counting=counting))
    scan.set_thresholds(Thresholds(background=33.0, xray=900.0, row_dark_level=20.0, calibrated=False))
    expected = [
        count_frame(camera_frame(number), 33.0, 900.0, row_dark="median", row_dark_level=20.0) for number in range(4, 8)
    ]
    np.testing.assert_array_equal(counted(scan, 1).events.indices, np.concatenate(expected))


def test_a_reference_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    counting = CountingParameters(background=1.0, xray=2.0, dark=str(tmp_path / "absent.npy"))
    with pytest.raises(ReferenceImageError, match=r"absent\.npy"):
        prepared(scan_record(counting=counting))
