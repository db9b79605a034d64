"""Simulated scans in files: they hold what the simulator makes, with the truth beside it, or nothing at all."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import stempy.io

from mpistream.acquisition.simulated_files import simulate_to_files
from mpistream.acquisition.simulation_options import SimulationOptions
from mpistream.acquisition.simulator import Simulator
from mpistream.acquisition.source import describe_source, open_source
from mpistream.model.errors import StorageError
from mpistream.model.geometry import HEADER_BYTES, RECORD_BYTES, RECORD_HEADER, SECTORS
from mpistream.model.protocol import Encoding
from tests.unit.test_simulator import SMALL, changed, frame_of


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
    reader = stempy.io.reader([str(path) for path in paths], getattr(stempy.io.FileVersion, f"VERSION{version}"))
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


def third_rename_fails(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    before, renamed = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        renamed.append(target)
        if len(renamed) == 3:
            raise error
        return before(self, target)

    monkeypatch.setattr(Path, "rename", rename)


def test_a_name_that_cannot_be_given_leaves_the_old_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = changed(SMALL, electrons=10)
    old = simulate_to_files(options, tmp_path)
    before = sorted(tmp_path.iterdir())
    third_rename_fails(monkeypatch, OSError(5, "Input/output error"))
    with pytest.raises(StorageError, match="Input/output error"):
        simulate_to_files(changed(options, scan_number=2), tmp_path, overwrite=True)
    monkeypatch.undo()
    assert sorted(tmp_path.iterdir()) == before
    assert describe_source(f"files:{tmp_path}").records == len(old) * 6


def test_no_name_is_ever_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = changed(SMALL, electrons=10)
    old = simulate_to_files(options, tmp_path)
    third_rename_fails(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        simulate_to_files(changed(options, seed=9), tmp_path, overwrite=True)
    monkeypatch.undo()
    assert all(path.exists() for path in old)


def test_old_files_that_cannot_be_removed_cost_no_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = changed(SMALL, electrons=10)
    old = simulate_to_files(options, tmp_path)
    monkeypatch.setattr(Path, "unlink", refusing(old))
    with pytest.raises(StorageError, match="old ones cannot be removed: Operation not permitted") as caught:
        simulate_to_files(changed(options, scan_number=2), tmp_path, overwrite=True)
    monkeypatch.undo()
    assert caught.value.remedy
    for path in old:
        path.unlink()
    assert describe_source(f"files:{tmp_path}").scan_number == 2


def refusing(paths: list[Path]) -> Callable[..., None]:
    unlink = Path.unlink

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self in paths:
            raise OSError(1, "Operation not permitted")
        unlink(self, missing_ok)

    return refuse


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


@pytest.mark.parametrize("written", [4, 5])
def test_files_read_as_the_other_version_are_noticed(tmp_path: Path, written: int) -> None:
    simulate_to_files(SimulationOptions.parse("2x4", {"version": str(written)}), tmp_path)
    hint = f"version={written} reads them so"
    assert not any(hint in note for note in describe_source(f"files:{tmp_path}?version={written}").notes)
    assert any(hint in note for note in describe_source(f"files:{tmp_path}?version={9 - written}").notes)
