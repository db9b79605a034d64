"""Dark references: against slow code, against the simulator's truth, and for scans that are not dark."""

import weakref
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

from mpistream.acquisition.detector_model import DetectorModel
from mpistream.model.errors import CalibrationError, ConfigError
from mpistream.model.geometry import SectorLayout
from mpistream.model.scan import CountingParameters, ScanRecord
from mpistream.pipeline.source_frames import record_of_source, source_blocks
from mpistream.reduction.dark_reference import SAMPLE_FRAMES, DarkReference, dark_reference
from mpistream.reduction.frame_assembly import AssembledBlock
from tests.system.sector_writer import FRAME, SECTORS, MadeUpScan, file_name, pack_record, sector_pixels

SIGMAS = 5.0


def record_of(source: str, block_frames: int = 8) -> ScanRecord:
    return record_of_source(source, block_frames, CountingParameters())[0]


def dark_of(source: str, sigmas: float = SIGMAS, block_frames: int = 8) -> DarkReference:
    record = record_of(source, block_frames)
    return dark_reference(source_blocks(record), record.encoding.layout, sigmas)


class DarkScan(MadeUpScan):
    """Pixels from 5 to 40000 with their own noise; few outliers; a dead, a hot and two noisy pixels."""

    DEAD, HOT, BLINKING, NOISY = (3, 4), (143, 575), (300, 7), (575, 0)

    @cached_property
    def centre(self) -> np.ndarray:
        centre = self._random(3).uniform(20, 30, (FRAME, FRAME))
        centre[100, :50] = np.linspace(5, 35, 50)
        return centre

    def frame(self, number: int) -> np.ndarray:
        return self.frames[number]

    @cached_property
    def frames(self) -> list[np.ndarray]:
        return [self._make(number) for number in range(self.n_frames)]

    def _make(self, number: int) -> np.ndarray:
        random = self._random(1000 + number)
        image = self.centre + random.normal(0, 3, (FRAME, FRAME))
        hits = random.integers(0, FRAME, (6, 2))
        image[tuple(hits.T)] = random.uniform(60, 65535, len(hits))
        image[self.DEAD] = 0
        image[self.HOT] += 40000
        image[self.BLINKING] = 900 if number % 4 == 0 else 25
        image[self.BLINKING] += number % 3
        image[self.NOISY] = random.normal(200, 40)
        return np.clip(np.rint(image), 0, 65535).astype(np.uint16)


def slow_dark(scan: MadeUpScan, version: int, sigmas: float) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Mean, noise, the fraction of values left out, and the number of frames, as docs/counting.md says."""
    numbers = [number for number in range(scan.n_frames) if scan.missing[number] != 15]
    frames = np.array([scan.frame(number) for number in numbers])
    complete = frames[scan.missing[numbers] == 0][:64].astype(np.float32)
    centre = np.median(complete, axis=0)
    sigma = 1.4826 * np.median(np.abs(complete - centre), axis=0)
    sigma = np.maximum(sigma, max(np.median(sigma), 1.0))
    values = np.full((len(numbers), FRAME, FRAME), np.nan, np.float32)
    for row, number in enumerate(numbers):
        for sector in range(SECTORS):
            if not scan.missing[number] >> sector & 1:
                place = SectorLayout(version).sector_slices(sector)
                values[row][place] = sector_pixels(frames[row], sector, version)
    seen = np.count_nonzero(~np.isnan(values))
    values[np.abs(values - centre) > sigmas * sigma] = np.nan
    left_out = 1 - np.count_nonzero(~np.isnan(values)) / seen
    mean, noise = np.nanmean(values, axis=0, dtype=float), np.nanstd(values, axis=0, ddof=1, dtype=float)
    return mean, noise, left_out, len(numbers)


@pytest.mark.parametrize("version", [4, 5])
def test_against_slow_code(version: int, tmp_path: Path) -> None:
    """With missing sectors, records in any order, and frames beyond those that the bounds come from."""
    scan = DarkScan(9, 9, 1, 1005, 3, seed=version, sectors_lost=0.03, frames_lost=(5, 6))
    scan.write(tmp_path / "dark", version=version, shuffled=True)
    source = f"files:{tmp_path / 'dark'}?version={version}"
    found = dark_of(source)
    mean, noise, left_out, frames = slow_dark(scan, version, SIGMAS)
    np.testing.assert_array_equal(found.mean, mean.astype(np.float32))
    np.testing.assert_allclose(found.noise, noise, rtol=1e-6, atol=1e-6)
    assert (found.mean.dtype, found.noise.dtype) == (np.float32, np.float32)
    assert found.rejected == pytest.approx(left_out, rel=1e-9)
    assert found.frames == frames == 79
    assert [tuple(place) for place in np.argwhere(found.dead)] == [scan.DEAD]
    assert [tuple(place) for place in np.argwhere(found.hot)] == [scan.HOT, scan.NOISY]
    assert [tuple(place) for place in np.argwhere(found.noisy)] == [scan.BLINKING]
    np.testing.assert_array_equal(found.mask, found.dead | found.hot | found.noisy)
    assert list(found.notes) == []
    other = dark_of(source, block_frames=5)
    assert other.mean.tobytes() == found.mean.tobytes()
    assert other.noise.tobytes() == found.noise.tobytes()


@pytest.mark.parametrize("xrays", [0, 2])
def test_against_the_truth(xrays: float) -> None:
    found = dark_of(f"sim:16x12?electrons=0&xrays={xrays}&seed=4")
    detector = DetectorModel(4, 20, 10, SectorLayout.ROWS)
    np.testing.assert_array_equal(found.dead, detector.dead)
    np.testing.assert_array_equal(found.hot, detector.hot)
    assert not found.noisy.any()
    good = ~detector.dead & ~detector.hot
    error = (found.mean - detector.pedestal)[good]
    expected = 3.0 / np.sqrt(192)
    assert abs(error.mean()) < 0.01
    assert error.std() == pytest.approx(expected, rel=0.02)
    assert np.abs(error).max() < 6.5 * expected
    # rounding to whole units widens the noise
    noise = np.sqrt(detector.noise[good] ** 2 + 1 / 12)
    assert (found.noise[good] - noise).mean() == pytest.approx(0, abs=0.01)
    assert (found.noise[good] - noise).std() == pytest.approx(3.0 / np.sqrt(2 * 192), rel=0.05)
    assert list(found.notes) == []


def test_few_electrons_are_outliers_and_many_no_dark_scan() -> None:
    stray = dark_of("sim:8x8?electrons=30")
    detector = DetectorModel(1, 20, 10, SectorLayout.ROWS)
    assert abs((stray.mean - detector.pedestal)[~detector.dead].mean()) < 0.01
    assert any("was the beam blanked?" in note for note in stray.notes)
    for electrons in (500, 20000):
        with pytest.raises(CalibrationError, match="does not look dark") as caught:
            dark_of(f"sim:5x5?electrons={electrons}")
        assert "blanked" in caught.value.remedy


def test_few_frames_are_noted_and_fewer_refused() -> None:
    assert ["better" in note or "uncertain" in note for note in dark_of("sim:5x5?electrons=0").notes] == [True]
    with pytest.raises(CalibrationError, match="are 15 complete frames") as caught:
        dark_of("sim:3x5?electrons=0")
    assert "16" in caught.value.remedy


def test_the_frames_that_bounds_come_from_do_not_depend_on_blocks() -> None:
    """Of few complete ones among the first 256 frames, those after them are none."""
    source = "sim:19x19?electrons=0&loss=0.4&seed=2"
    whole, *others = (dark_of(source, block_frames=block_frames) for block_frames in (8, 50, 64))
    for other in others:
        assert other.mean.tobytes() == whole.mean.tobytes()
        assert other.rejected == whole.rejected


def write_constant(folder: Path, sectors: range) -> str:
    folder.mkdir()
    for sector in sectors:
        pixels = np.full(FRAME * FRAME // SECTORS, 30 + sector, np.uint16)
        records = [pack_record(1, number, 4, 5, number, pixels) for number in range(20)]
        (folder / file_name(1, sector)).write_bytes(b"".join(records))
    return f"files:{folder}"


def test_a_sector_that_never_came(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no frame has sector 3"):
        dark_of(write_constant(tmp_path / "three", range(3)))


def test_pixels_that_never_change(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"100% of the pixels look bad \(331776 dead, 0 hot, 0 noisy\)"):
        dark_of(write_constant(tmp_path / "constant", range(4)))


@pytest.mark.parametrize("sigmas", [1.9, -5, float("nan")])
def test_bounds_that_leave_too_little(sigmas: float) -> None:
    with pytest.raises(ConfigError, match="outlier_sigmas"):
        dark_of("sim:5x5?electrons=0", sigmas)


def test_the_outlier_sigmas_have_an_effect() -> None:
    strict, loose = (dark_of("sim:8x8?electrons=0&xrays=0", sigmas).rejected for sigmas in (3.5, 50))
    assert loose == 0
    assert 1e-4 < strict < 1e-3


def test_memory_does_not_grow_with_the_scan() -> None:
    """Blocks are let go of once they are added, but for those that the bounds come from."""
    record = record_of("sim:12x12?electrons=0")
    made: list[weakref.ref[AssembledBlock]] = []
    most = 0

    def blocks() -> Iterator[AssembledBlock]:
        nonlocal most
        for block in source_blocks(record):
            made.append(weakref.ref(block))
            most = max(most, sum(reference() is not None for reference in made))
            yield block
            del block

    assert dark_reference(blocks(), SectorLayout.ROWS, SIGMAS).frames == 144
    assert most <= SAMPLE_FRAMES // record.block_frames + 3
