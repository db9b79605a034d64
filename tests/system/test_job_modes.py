"""What `mpistream job run` leaves in each mode, with real processes and without a scheduler."""

import json
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpistream.model.session import BatchJobState, ReferenceKind
from tests.system.batch_jobs import THRESHOLDS, Microscope, microscope
from tests.system.command_line import finish
from tests.system.datasets import same_bytes
from tests.system.sector_writer import MadeUpScan

pytestmark = pytest.mark.cluster
DARK = "sim:6x6?electrons=0&seed=2"
SMALL = "sim:6x6?electrons=200&seed=3"


@pytest.fixture(scope="module")
def scope(place: Path) -> Iterator[Microscope]:
    with microscope(place) as running:
        yield running


@pytest.fixture(scope="module")
def session(scope: Microscope, place: Path) -> Path:
    """The folder of the session "modes"."""
    folder = place / "session"
    folder.mkdir()
    scope.start_session("modes", folder)
    return folder


def test_dark_leaves_a_reference_that_scans_use_by_name(scope: Microscope, session: Path, output: Path) -> None:
    job = scope.job_run("dark", "--session", "modes", "--source", DARK, "--name", "monday")
    finish(job).succeeded()
    assert scope.job_of(job).state is BatchJobState.ENDED
    dark, mask = (scope.sessions.reference(kind, "monday") for kind in (ReferenceKind.DARK, ReferenceKind.MASK))
    assert dark is not None
    assert mask is not None
    expected = {"--output": output.with_name("dark.npy"), "--mask": output.with_name("mask.npy")}
    scope.cli.run("dark", DARK, *(word for option in expected.items() for word in option)).succeeded()
    for reference, path in zip((dark, mask), expected.values(), strict=True):
        np.testing.assert_array_equal(np.load(reference.path), np.load(path))
    assert {path.parent for path in map(Path, (dark.path, mask.path))} == {session / "references"}
    assert not list(session.glob("**/*.recording.h5"))
    scan = scope.job_run(
        *("single", "--session", "modes", "--source", SMALL, "--dark", "ref:monday", "--output", output)
    )
    finish(scan).succeeded()
    with h5py.File(output) as file:
        assert json.loads(file["metadata/provenance"].attrs["scan_record"])["counting"]["dark"] == dark.path


def test_calibrate_leaves_thresholds(scope: Microscope, session: Path, output: Path) -> None:
    job = scope.job_run("calibrate", "--session", "modes", "--source", SMALL, "--name", "low-dose")
    finish(job).succeeded()
    reference = scope.sessions.reference(ReferenceKind.THRESHOLDS, "low-dose")
    assert reference is not None
    thresholds = json.loads(Path(reference.path).read_text())["thresholds"]
    assert thresholds["calibrated"]
    scan = scope.job_run(
        *("single", "--session", "modes", "--source", SMALL, "--thresholds", "ref:low-dose", "--output", output)
    )
    finish(scan).succeeded()
    with h5py.File(output) as file:
        used = json.loads(file["metadata/provenance"].attrs["scan_record"])["counting"]
    assert (used["background"], used["xray"]) == (thresholds["background"], thresholds["xray"])


def test_a_raw_recording_is_replayed_by_producers_of_the_job(scope: Microscope, output: Path) -> None:
    counted, recording = output.with_name("counted.h5"), output.with_name("recording.h5")
    finish(scope.job_run("single", "--source", SMALL, *THRESHOLDS, "--output", counted)).succeeded()
    finish(scope.job_run("raw", "--source", SMALL, "--output", recording)).succeeded()
    replay = scope.job_run(
        *("replay", "--source", f"raw:{recording}", "--rate", 200, "--output", output, *THRESHOLDS),
        "--producers-here",
    )
    done = finish(replay).succeeded()
    assert same_bytes(output, counted)
    assert "the job is ended" in done.stdout
    # its deployment is its own: the microscope's has not seen the scan
    records = [scope.registry.record(uid) for uid in scope.registry.scans()]
    assert f"raw:{recording}?rate=200" not in [record.source for record in records if record]
    assert sorted(path.name for path in output.parent.iterdir()) == ["counted.h5", "recording.h5", "scan.h5"]


def test_a_replay_of_sector_files(scope: Microscope, output: Path) -> None:
    scan = MadeUpScan(3, 3, 1, 0, scan_number=4, seed=9)
    source = f"files:{scan.write(scope.cli.folder / 'sectors')}"
    finish(scope.job_run("replay", "--source", source, *THRESHOLDS, "--output", output, "--producers-here")).succeeded()
    with h5py.File(output) as file:
        assert len(file["electron_events/frame_number"]) == 9


def test_a_joined_timeseries(scope: Microscope, output: Path) -> None:
    source = "sim:3x4?electrons=50&seed={index}"
    options = ("--scans", 3, "--interval", 0.5, "--join", *THRESHOLDS)
    finish(scope.job_run("timeseries", "--source", source, *options, "--output", output)).succeeded()
    assert sorted(path.name for path in output.with_suffix(".scans").iterdir()) == [
        "scan-0.h5",
        "scan-1.h5",
        "scan-2.h5",
    ]
    assert output.exists()


def test_tomography_leaves_a_dataset_for_each_tilt_and_an_index(scope: Microscope, output: Path) -> None:
    job = scope.job_run(
        *("tomography", "--source", "sim:3x4?electrons=50&seed={index}", "--tilts=-10:10:10", *THRESHOLDS),
        *("--output", output.parent),
    )
    finish(job).succeeded()
    paths = sorted(output.parent.glob("tilt-*.h5"))
    tilts = []
    for path in paths:
        with h5py.File(path) as file:
            tilts.append(json.loads(file["metadata/provenance"].attrs["scan_record"])["labels"]["tilt_degrees"])
    assert tilts == [-10.0, 0.0, 10.0]
    assert (output.parent / "tilts.h5").exists()


def test_a_benchmark_brings_everything_along(scope: Microscope, output: Path) -> None:
    figures = output.with_suffix(".json")
    refused = scope.job_run("benchmark", "--scan", "16x16", "--output", figures, "--interface", "hsn7")
    assert "no interface 'hsn7'" in finish(refused).stdout
    assert scope.job_of(refused).state is BatchJobState.FAILED
    options = ("--scan", "16x16?electrons=50", "--repeat", 2, "--interface", "lo")
    job = scope.job_run("benchmark", *options, "--output", figures)
    done = finish(job).succeeded()
    said = json.loads(figures.read_text())
    assert [scan["frames"] for scan in said["repeats"]] == [256, 256]
    assert said["median"]["gigabytes_per_second"] > 0
    assert [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")] == [said]
    assert [path.name for path in output.parent.iterdir()] == [figures.name]
    assert scope.job_of(job).state is BatchJobState.ENDED
