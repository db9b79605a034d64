"""The simulated camera: repeatable, sector by sector, and with the statistics that it promises."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import stempy.io

from mpistream.acquisition import detector_model
from mpistream.acquisition.detector_model import DetectorModel, Hits
from mpistream.acquisition.simulated_files import simulate_to_files
from mpistream.acquisition.simulation_options import SimulationOptions
from mpistream.acquisition.simulator import Simulator
from mpistream.acquisition.source import describe_source, open_source
from mpistream.acquisition.specimen import DISC_RADIUS, Specimen
from mpistream.model.errors import SourceError, StorageError
from mpistream.model.geometry import (
    FRAME_SHAPE,
    HEADER_BYTES,
    RECORD_BYTES,
    RECORD_HEADER,
    SECTORS,
    SectorLayout,
)
from mpistream.model.protocol import Encoding

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


def test_a_source_makes_its_sector_as_files_would_hold_it(tmp_path: Path) -> None:
    options = changed(
        SMALL, rows=4, frames_per_position=2, first_frame=1001, loss=0.3, duplicates=0.3, files_per_sector=3, reorder=6
    )
    simulate_to_files(options, tmp_path)
    query = "seed=1&frames_per_position=2&first_frame=1001&loss=0.3&duplicates=0.3"
    simulated, recorded = f"sim:4x3?{query}", f"files:{tmp_path}"
    expected, description = describe_source(simulated), describe_source(recorded)
    assert description.scan_shape == expected.scan_shape
    assert (expected.first_frame, expected.last_frame) == (1001, 1024)
    assert 0 < description.records == expected.records < 24 * SECTORS
    assert 0 < description.sectors_duplicate == expected.sectors_duplicate
    for sector in range(SECTORS):
        sources = [open_source(simulated, sector), open_source(recorded, sector)]
        assert sources[0].sectors_duplicate == sources[1].sectors_duplicate
        for block in range(1000 // 8, 1025 // 8 + 2):
            buffers = [bytearray(8 * RECORD_BYTES) for _ in sources]
            maps = [source.read_block(block, 8, memoryview(b)) for source, b in zip(sources, buffers, strict=True)]
            assert maps[0] == maps[1]
            assert buffers[0] == buffers[1]
        for source in sources:
            source.close()


@pytest.mark.parametrize("version", [4, 5])
def test_the_truth_beside_the_files(tmp_path: Path, version: int) -> None:
    options = changed(SMALL, version=version, loss=0.2, duplicates=0.2, electrons=300, xrays=2, reorder="all")
    paths = simulate_to_files(options, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*(p.name for p in paths), "ground_truth.h5"])
    description = describe_source(f"files:{tmp_path}?version={version}")
    assert description.encoding is Encoding(version)
    simulator = Simulator(options)
    with h5py.File(tmp_path / "ground_truth.h5") as truth:
        assert SimulationOptions.model_validate(dict(truth.attrs)) == options
        missing = truth["frames/missing_sectors"][:]
        assert int(np.bitwise_count(missing).sum()) == 6 * SECTORS - description.records > 0
        duplicated = truth["frames/duplicated_sectors"][:]
        assert int(np.bitwise_count(duplicated).sum()) == description.sectors_duplicate > 0
        assert not (missing & duplicated).any()
        assert truth["frames/number"][:].tolist() == truth["frames/position"][:].tolist() == list(range(6))
        np.testing.assert_array_equal(truth["detector/dead"], simulator.detector.dead)
        np.testing.assert_array_equal(truth["detector/hot"], simulator.detector.hot)
        for index in range(6):
            hits = simulator.hits(index)
            for kind, part in (("electrons", slice(hits.electrons)), ("xrays", slice(hits.electrons, None))):
                first, last = truth[f"{kind}/offsets"][index : index + 2]
                np.testing.assert_array_equal(truth[f"{kind}/row"][first:last], hits.rows[part])
                np.testing.assert_array_equal(truth[f"{kind}/column"][first:last], hits.columns[part])
        assert len(truth["xrays/energy"]) == truth["xrays/offsets"][-1] > 0
    for sector in range(SECTORS):
        source = open_source(f"files:{tmp_path}?version={version}", sector)
        present = source.read_block(0, 8, memoryview(bytearray(8 * RECORD_BYTES)))
        assert [present >> index & 1 for index in range(6)] == [int(not bits >> sector & 1) for bits in missing]


@pytest.mark.parametrize("version", [4, 5])
def test_stempy_reads_the_files(tmp_path: Path, version: int) -> None:
    options = changed(SMALL, version=version, files_per_sector=2, reorder=3)
    paths = simulate_to_files(options, tmp_path)
    reader = stempy.io.reader([str(path) for path in paths], stempy.io.FileVersion(version))
    simulator = Simulator(options)
    seen = set()
    while (block := reader.read()) is not None:
        assert block.header.scan_dimensions == (3, 2)  # (columns, rows)
        for position, frame in zip(block.header.image_numbers, block.data, strict=True):
            np.testing.assert_array_equal(frame, frame_of(simulator, position))
            seen.add(position)
    assert seen == set(range(6))


def test_reordered_records_are_no_further_from_their_place_than_asked(tmp_path: Path) -> None:
    orders = {}
    for reorder in (0, 4, "all"):
        options = changed(SMALL, rows=10, electrons=10, reorder=reorder)
        path = simulate_to_files(options, tmp_path / str(reorder))[2]
        headers = np.memmap(path, np.uint8, "r").reshape(-1, RECORD_BYTES)[:, :HEADER_BYTES]
        orders[reorder] = np.ascontiguousarray(headers).view(RECORD_HEADER)["frame_number"].ravel().astype(int)
    assert orders[0].tolist() == list(range(30))
    moved = np.abs(orders[4] - np.arange(30)).max()
    assert 0 < moved < 4
    assert np.abs(orders["all"] - np.arange(30)).max() > 8
    assert all(sorted(order) == list(range(30)) for order in orders.values())


def test_several_processes_write_the_same_files(tmp_path: Path) -> None:
    options = changed(SMALL, rows=12, files_per_sector=2, reorder=5, duplicates=0.1)
    done: list[tuple[int, int]] = []
    alone = simulate_to_files(options, tmp_path / "alone", processes=1)
    together = simulate_to_files(
        options, tmp_path / "together", lambda frames, all_frames: done.append((frames, all_frames)), processes=2
    )
    assert len(alone) == 8
    assert [path.name for path in alone] == [path.name for path in together]
    for one, other in zip(alone, together, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert done == [(32, 36), (36, 36)]


def test_files_are_not_overwritten_unasked(tmp_path: Path) -> None:
    options = changed(SMALL, electrons=10)
    (old,) = {path.name for path in simulate_to_files(options, tmp_path) if "module3" in path.name}
    before = (tmp_path / old).read_bytes()
    other = changed(options, scan_number=2)
    with pytest.raises(StorageError, match="4 sector files already") as raised:
        simulate_to_files(other, tmp_path)
    assert "overwrite" in raised.value.remedy
    assert (tmp_path / old).read_bytes() == before
    simulate_to_files(other, tmp_path, overwrite=True)
    assert describe_source(f"files:{tmp_path}").scan_number == 2
    assert not (tmp_path / old).exists()


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"needs \d+\.\d GB, .* has \d+\.\d GB left"):
        simulate_to_files(SimulationOptions(rows=20_000, columns=1_000), tmp_path)
    assert list(tmp_path.iterdir()) == []


WRITE_UNTIL_THE_LIMIT = """
import resource, sys
from pathlib import Path
from mpistream.acquisition.simulated_files import simulate_to_files
from mpistream.acquisition.simulation_options import SimulationOptions

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
    options = SimulationOptions(rows=8, columns=10, electrons=10)
    simulate_to_files(options, Path(sys.argv[1]), processes=int(sys.argv[2]), overwrite=True)
"""


# The smaller limits stop the truth (3.3 MB of maps), the greater ones the sector files.
@pytest.mark.parametrize(("processes", "limit"), [(1, 1_600_000), (1, 3_317_000), (1, 5_000_000), (2, 5_000_000)])
def test_a_failed_write_removes_what_was_written_and_nothing_else(tmp_path: Path, processes: int, limit: int) -> None:
    directory = tmp_path / "scan"
    old = simulate_to_files(changed(SMALL, electrons=10), directory)
    before = sorted(directory.iterdir())
    script = tmp_path / "write.py"
    script.write_text(WRITE_UNTIL_THE_LIMIT)
    command = [sys.executable, script, directory, str(processes), str(limit)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert "StorageError: cannot write the simulated scan to" in run.stderr
    assert "File too large" in run.stderr
    assert sorted(directory.iterdir()) == before
    assert describe_source(f"files:{directory}").records == len(old) * 6


def test_an_interrupt_removes_what_was_written(tmp_path: Path) -> None:
    def interrupt(frames: int, all_frames: int) -> None:
        raise KeyboardInterrupt

    options = changed(SMALL, rows=20, columns=20, electrons=10)
    with pytest.raises(KeyboardInterrupt):
        simulate_to_files(options, tmp_path, interrupt, processes=2)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot write to .*file/scan: Not a directory"):
        simulate_to_files(SMALL, tmp_path / "file" / "scan")


def test_leftovers_of_a_killed_run_do_no_harm(tmp_path: Path) -> None:
    options = changed(SMALL, electrons=10)
    clean = [path.read_bytes() for path in simulate_to_files(options, tmp_path / "clean")]
    dirty = tmp_path / "dirty"
    dirty.mkdir()
    for sector in range(SECTORS):
        (dirty / f"data_scan0000000001_module{sector}_part000.data.partial").write_bytes(bytes(9 * RECORD_BYTES))
    assert [path.read_bytes() for path in simulate_to_files(options, dirty)] == clean
    assert not list(dirty.glob("*.partial"))


def test_options_as_texts() -> None:
    options = SimulationOptions.parse("64x65", {"seed": "3", "flyback": "yes", "loss": "0.5", "reorder": "16"})
    assert options == SimulationOptions(rows=64, columns=65, seed=3, flyback=True, loss=0.5, reorder=16)
    with pytest.raises(SourceError, match="loss=2: Input should be less than 1"):
        SimulationOptions.parse("64x65", {"loss": "2"})
