"""The simulated camera: repeatable, sector by sector, and with the statistics that it promises."""

import numpy as np
import pytest

from mpistream.acquisition import detector_model
from mpistream.acquisition.detector_model import DetectorModel, Hits
from mpistream.acquisition.simulation_options import SimulationOptions
from mpistream.acquisition.simulator import Simulator
from mpistream.acquisition.specimen import DISC_RADIUS, Specimen
from mpistream.model.errors import SourceError
from mpistream.model.geometry import (
    FRAME_SHAPE,
    HEADER_BYTES,
    RECORD_BYTES,
    RECORD_HEADER,
    SECTORS,
    SectorLayout,
)

BACKGROUND = 44.5  # pedestal + 4.5 sigma
XRAY = 1500.0
SMALL = SimulationOptions(rows=2, columns=3)


def changed(options: SimulationOptions, **changes: object) -> SimulationOptions:
    return SimulationOptions.model_validate({**options.model_dump(), **changes})


def record_of(simulator: Simulator, index: int, sector: int) -> bytes:
    buffer = bytearray(RECORD_BYTES)
    simulator.write_record(index, simulator.hits(index), sector, memoryview(buffer))
    return bytes(buffer)


def frame_of(simulator: Simulator, index: int) -> np.ndarray:
    frame = np.empty(FRAME_SHAPE, np.uint16)
    layout = simulator.options.layout
    for sector in range(SECTORS):
        pixels = np.frombuffer(record_of(simulator, index, sector), "<u2", offset=HEADER_BYTES)
        frame[layout.sector_slices(sector)] = pixels.reshape(layout.sector_shape)
    return frame


def hit_pixels(hits: Hits) -> tuple[np.ndarray, np.ndarray]:
    return np.floor(hits.rows + 0.5).astype(int), np.floor(hits.columns + 0.5).astype(int)


def one_hit(row: float, column: float, energy: float) -> Hits:
    return Hits(
        *(np.array([value], np.float32) for value in (row, column, energy)), 1, np.arange(SECTORS, dtype=np.uint64)
    )


NOTHING = Hits(*(np.empty(0, np.float32) for _ in range(3)), 0, np.arange(SECTORS, dtype=np.uint64))


def test_the_same_options_give_the_same_records_in_any_order() -> None:
    first, second = Simulator(SMALL), Simulator(SMALL)
    wanted = [(index, sector) for index in range(3) for sector in range(SECTORS)]
    records = {key: record_of(first, *key) for key in wanted}
    assert {key: record_of(second, *key) for key in reversed(wanted)} == records
    assert len(set(records.values())) == len(wanted)


def test_another_seed_gives_other_frames() -> None:
    assert record_of(Simulator(SMALL), 0, 0) != record_of(Simulator(changed(SMALL, seed=2)), 0, 0)


def test_numbering_changes_the_headers_only() -> None:
    plain = record_of(Simulator(SMALL), 4, 1)
    numbered = record_of(Simulator(changed(SMALL, first_frame=1000, scan_number=77)), 4, 1)
    assert np.frombuffer(plain, RECORD_HEADER, 1)[0].item() == (1, 4, 3, 2, 1, 1)
    assert np.frombuffer(numbered, RECORD_HEADER, 1)[0].item() == (77, 1004, 3, 2, 1, 1)
    assert plain[HEADER_BYTES:] == numbered[HEADER_BYTES:]


def test_a_sector_shows_what_the_whole_frame_shows_across_its_borders() -> None:
    """An electron on the border of two sectors leaves charge in both, whichever is made, and nothing elsewhere."""
    for layout, hit in ((SectorLayout.ROWS, (143.4, 300.0)), (SectorLayout.COLUMNS, (300.0, 143.4))):
        detector = DetectorModel(1, 0, 0, layout)
        difference = np.zeros(FRAME_SHAPE)
        for sector in range(SECTORS):
            with_hit, without = (np.empty(layout.sector_shape, np.uint16) for _ in range(2))
            detector.expose(one_hit(*hit, 1000.0), sector, with_hit)
            detector.expose(NOTHING, sector, without)
            difference[layout.sector_slices(sector)] = with_hit.astype(int) - without
        along = difference if layout is SectorLayout.ROWS else difference.T
        assert along[143, 300] > along[144, 300] > along[142, 300] > 0
        rows, columns = np.nonzero(difference)
        assert max(np.abs(rows - round(hit[0])).max(), np.abs(columns - round(hit[1])).max()) == 1
        assert difference.sum() == pytest.approx(1000, abs=10)


def test_charge_sharing_follows_the_place_inside_the_pixel() -> None:
    detector = DetectorModel(1, 0, 0, SectorLayout.ROWS)
    before, centred, between, corner = (np.empty((144, 576), np.int64) for _ in range(4))
    pixels = np.empty((144, 576), np.uint16)
    for image, hits in (
        (before, NOTHING),
        (centred, one_hit(50, 60, 1000)),
        (between, one_hit(50, 60.49, 1000)),
        (corner, one_hit(50.49, 60.49, 1000)),
    ):
        detector.expose(hits, 0, pixels)
        image[:] = pixels
    shares = [(image - before)[49:52, 59:62] / 1000 for image in (centred, between, corner)]
    np.testing.assert_allclose(shares[0], np.outer([0.077, 0.847, 0.077], [0.077, 0.847, 0.077]), atol=0.01)
    assert shares[1][1, 1] == pytest.approx(shares[1][1, 2], abs=0.03)
    np.testing.assert_allclose(shares[2][1:, 1:], 0.25, atol=0.03)


def test_dark_frames_have_the_pedestal_and_the_noise_of_the_maps() -> None:
    simulator = Simulator(changed(SMALL, columns=100, electrons=0, xrays=0, dead_pixels=0, hot_pixels=0))
    frames = np.stack([frame_of(simulator, index) for index in range(100)]).astype(np.float32)
    assert frames.mean() == pytest.approx(detector_model.PEDESTAL, abs=0.1)
    rounding = 1 / 12
    variance = frames.var(axis=0, ddof=1)
    assert variance.mean() == pytest.approx((simulator.detector.noise**2).mean() + rounding, rel=0.01)
    assert np.corrcoef(frames.mean(axis=0).ravel(), simulator.detector.pedestal.ravel())[0, 1] > 0.9
    assert np.corrcoef(np.sqrt(variance).ravel(), simulator.detector.noise.ravel())[0, 1] > 0.5
    deviation = (frames - simulator.detector.pedestal) / simulator.detector.noise
    for sigmas, expected in ((1, 0.3173), (3, 0.0027), (4.5, 6.8e-6)):
        beyond = (np.abs(deviation) > sigmas).mean()
        # Rounding to whole ADU widens the distribution a little, more so in its tails.
        assert expected * 0.95 < beyond < expected * 1.6
    # No frame's noise is that of another frame, nor is a pixel's that of its neighbour.
    assert abs(np.corrcoef(deviation[0].ravel(), deviation[1].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(deviation[0, :, 1:].ravel(), deviation[0, :, :-1].ravel())[0, 1]) < 0.01


def test_electrons_leave_a_landau_like_signal_where_the_truth_says() -> None:
    simulator = Simulator(changed(SMALL, electrons=400, xrays=0, hot_pixels=0))
    energies, found, electrons, false = [], 0, 0, 0
    for index in range(6):
        frame, hits = frame_of(simulator, index), simulator.hits(index)
        rows, columns = hit_pixels(hits)
        above = np.zeros(FRAME_SHAPE, bool)
        above[1:-1, 1:-1] = frame[1:-1, 1:-1] > BACKGROUND
        near = np.zeros(FRAME_SHAPE, bool)
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                near[(rows + down).clip(0, 575), (columns + right).clip(0, 575)] = True
        false += int((above & ~near).sum())
        found += int((frame[rows, columns] > BACKGROUND).sum())
        electrons += hits.electrons
        energies.append(hits.energies)
    assert electrons == pytest.approx(6 * 400, rel=0.1)
    assert found > 0.97 * electrons
    assert false < 6 * 10
    energy = np.concatenate(energies)
    assert energy.mean() == pytest.approx(detector_model.ELECTRON_MODE + 1.27 * detector_model.ELECTRON_SCALE, abs=4)
    assert np.mean(energy) > np.median(energy) + 3  # the tail is towards high energies
    assert energy.min() > 20


def test_xrays_come_at_their_rate_and_are_far_above_electrons() -> None:
    simulator = Simulator(changed(SMALL, columns=100, electrons=100, xrays=0.5, hot_pixels=0))
    all_hits = [simulator.hits(index) for index in range(200)]
    assert sum(len(hits.rows) - hits.electrons for hits in all_hits) == pytest.approx(100, abs=40)
    index = next(index for index, hits in enumerate(all_hits) if len(hits.rows) > hits.electrons)
    frame, hits = frame_of(simulator, index), all_hits[index]
    rows, columns = (values[hits.electrons :] for values in hit_pixels(hits))
    assert (frame[rows, columns] > XRAY).all()
    assert (frame > XRAY).sum() < 10 * len(rows)


def test_dead_and_hot_pixels() -> None:
    simulator = Simulator(changed(SMALL, dead_pixels=30, hot_pixels=40))
    detector = simulator.detector
    assert (detector.dead.sum(), detector.hot.sum(), (detector.dead & detector.hot).sum()) == (30, 40, 0)
    for index in range(2):
        frame = frame_of(simulator, index)
        assert not frame[detector.dead].any()
        assert (frame[detector.hot] > 300).all()
        assert (frame[~detector.dead] > 0).all()


def test_the_beam_is_in_the_discs_and_these_change_over_the_scan() -> None:
    """Bright field against dark field: holes are bright in one, particles in the other."""
    simulator = Simulator(changed(SMALL, rows=16, columns=17, flyback=True, xrays=0))
    bright, dark = np.zeros((16, 17)), np.zeros((16, 17))
    total = np.zeros((16, 17))
    for index in range(16 * 17):
        hits = simulator.hits(index)
        radius = np.hypot(hits.rows - 288, hits.columns - 288)
        place = divmod(index, 17)
        bright[place], dark[place] = (radius < DISC_RADIUS).sum(), (radius > 1.3 * DISC_RADIUS).sum()
        total[place] = hits.electrons
    scanned = (slice(None), slice(0, 16))
    assert total[scanned].mean() == pytest.approx(2400, rel=0.1)
    assert total[:, 16].max() < 0.3 * total[scanned].min()
    assert bright[scanned].max() > 1.6 * bright[scanned].min()
    assert np.corrcoef(bright[scanned].ravel(), dark[scanned].ravel())[0, 1] < -0.9
    assert (bright[scanned] > 0.2 * total[scanned]).all()


def test_particles_differ_in_their_bragg_discs() -> None:
    specimen = Specimen(1)
    places = [(row, column) for row in np.linspace(0.05, 0.95, 19) for column in np.linspace(0.05, 0.95, 19)]
    strongest = set()
    for row, column in places:
        pattern = specimen.pattern(row, column)
        shares = np.diff(pattern.cumulative, prepend=0)
        if shares[3:].sum() > 0.2:
            best = 3 + int(np.argmax(shares[3:]))
            offset = pattern.centres[best] - pattern.centres[0]
            assert 160 <= np.hypot(*offset) < 400
            strongest.add(tuple(np.round(offset).astype(int).tolist()))
    assert len(strongest) >= 5


def test_several_frames_at_a_position_show_the_same_pattern_with_other_electrons() -> None:
    simulator = Simulator(changed(SMALL, frames_per_position=3))
    assert simulator.options.frames == 18
    assert [simulator.position(index) for index in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    header = np.frombuffer(record_of(simulator, 11, 0), RECORD_HEADER, 1)[0]
    assert (header["y"], header["x"], header["frame_number"]) == (1, 0, 11)
    assert record_of(simulator, 0, 0)[HEADER_BYTES:] != record_of(simulator, 1, 0)[HEADER_BYTES:]


def test_options_as_texts() -> None:
    options = SimulationOptions.parse("64x65", {"seed": "3", "flyback": "yes", "loss": "0.5", "reorder": "16"})
    assert options == SimulationOptions(rows=64, columns=65, seed=3, flyback=True, loss=0.5, reorder=16)
    with pytest.raises(SourceError, match="loss=2: Input should be less than 1"):
        SimulationOptions.parse("64x65", {"loss": "2"})
