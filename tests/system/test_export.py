"""What one gets out of a dataset: info, pictures, the stempy format, and the Python interface."""

import json
from pathlib import Path

import numpy as np
import pytest
import stempy.io as stempy_io
from stempy.io.sparse_array import SparseArray

from mpistream import open_dataset
from tests.system.command_line import CommandLine
from tests.system.datasets import event_arrays, frames_of
from tests.system.sector_writer import BACKGROUND, FRAME, XRAY, MadeUpScan

SCAN = MadeUpScan(4, 5, 2, 100, 9, seed=6, sectors_lost=0.05, frames_lost=(7, 8))
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def counted(cli: CommandLine) -> tuple[Path, dict]:
    """A dataset and the report about it."""
    folder, path = SCAN.write(cli.folder / "sectors"), cli.folder / "scan.h5"
    report = cli.run(
        *("testbed", "run", "--source", f"files:{folder}", "--output", path, "--groups", 1, "--json"),
        *("--background", BACKGROUND, "--xray", XRAY),
    ).last_json
    return path, report


@pytest.fixture(scope="module")
def exported(cli: CommandLine, counted: tuple[Path, dict]) -> Path:
    path = cli.folder / "stempy.h5"
    cli.run("export", counted[0], "--to", "stempy", path).succeeded()
    return path


def images(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Electrons per scan position and per pixel, straight from the event arrays."""
    arrays = event_arrays(path)
    per_frame = np.diff(arrays["offsets"].astype(np.int64))
    scan = np.bincount(arrays["scan_position"], per_frame, SCAN.rows * SCAN.columns).reshape(SCAN.rows, SCAN.columns)
    return scan, np.bincount(arrays["indices"], minlength=FRAME * FRAME).reshape(FRAME, FRAME)


@pytest.mark.parametrize("load", [stempy_io.load_electron_counts, SparseArray.from_hdf5], ids=["counts", "sparse"])
def test_stempy_opens_the_export_with_equal_sums(counted: tuple[Path, dict], exported: Path, load) -> None:
    electrons = load(str(exported))
    scan, diffraction = images(counted[0])
    assert electrons.scan_shape == (SCAN.rows, SCAN.columns)
    assert electrons.frame_shape == (FRAME, FRAME)
    assert electrons.num_frames_per_scan == 2
    np.testing.assert_array_equal(electrons.sum((0, 1)), diffraction)
    np.testing.assert_array_equal(electrons.sum((2, 3)), scan)
    assert electrons.sum((0, 1)).sum() == counted[1]["electrons"] > 0


def test_an_export_is_not_replaced_unasked(cli: CommandLine, counted: tuple[Path, dict], exported: Path) -> None:
    before = exported.stat().st_mtime_ns
    cli.run("export", counted[0], "--to", "stempy", exported).failed_with("exists")
    assert exported.stat().st_mtime_ns == before
    cli.run("export", counted[0], "--to", "stempy", exported, "--overwrite").succeeded()
    assert exported.stat().st_mtime_ns != before


def test_info_agrees_with_the_report(cli: CommandLine, counted: tuple[Path, dict]) -> None:
    path, report = counted
    text = cli.run("info", path).succeeded().stdout
    for number in ("frames", "electrons", "frames_incomplete", "sectors_missing"):
        assert str(report[number]) in text.replace(",", ""), number
    assert "4 x 5" in text


def test_show_draws_a_picture(cli: CommandLine, counted: tuple[Path, dict], place: Path) -> None:
    picture = place / "overview.png"
    assert str(picture) in cli.run("show", counted[0], "--output", picture).succeeded().stdout
    assert picture.read_bytes().startswith(PNG)


def test_python_agrees_with_the_report(counted: tuple[Path, dict]) -> None:
    path, report = counted
    scan, diffraction = images(path)
    frames = frames_of(path)
    with open_dataset(path) as dataset:
        assert list(dataset.scan_shape) == report["scan_shape"]
        assert dataset.frame_shape == (FRAME, FRAME)
        assert len(dataset) == report["frames"]
        assert {name: report[name] for name in dataset.counters} == dataset.counters
        for row, events in enumerate(frames):
            np.testing.assert_array_equal(dataset.frame(row), events)
        at = dataset.frames_at(1, 2)
        assert len(at) == np.count_nonzero(SCAN.position[SCAN.present] == 1 * SCAN.columns + 2)
        np.testing.assert_array_equal(dataset.virtual_image(0, 2 * FRAME), scan)
        np.testing.assert_array_equal(dataset.diffraction_sum(), diffraction)
        np.testing.assert_array_equal(dataset.to_stempy().sum((0, 1)), diffraction)
        assert dataset.provenance["scan_record"]["scan_number"] == SCAN.scan_number
        assert json.dumps(dataset.thresholds["background_threshold"]) == json.dumps(BACKGROUND)


@pytest.mark.parametrize("command", [("info",), ("show",), ("export", "--to", "stempy", "out.h5")], ids=" ".join)
@pytest.mark.parametrize("wrong", ["nothing", "no-hdf5", "folder", "stempy"])
def test_files_that_are_no_dataset(
    cli: CommandLine, exported: Path, output: Path, command: tuple[str, ...], wrong: str
) -> None:
    name, *rest = command
    path = {"stempy": exported, "folder": output.parent}.get(wrong, output.with_name("wrong.h5"))
    if wrong == "no-hdf5":
        path.write_text("not an HDF5 file")
    result = cli.run(name, path, *[output.with_name(word) if word == "out.h5" else word for word in rest])
    result.failed_with(str(path))
    assert not output.with_name("out.h5").exists()
