"""Batch jobs whose source is the camera: its next scans become what the job is for, pushed in its own wire format."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest

from mpistream.control.registry import Registry
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.cluster.services import Services
from mpistream.launch.local import MPI_ENVIRONMENT
from mpistream.model.config import Config
from mpistream.model.session import BatchJobState, ReferenceKind
from mpistream.pipeline.process import connect_etcd, open_registry
from tests.system.batch_jobs import THRESHOLDS, Microscope
from tests.system.camera_push import CameraSession, Pusher, RasterScan
from tests.system.command_line import CommandLine, finish, wait_until
from tests.system.datasets import assert_same_events
from tests.system.test_camera import CameraDeployment
from tests.system.test_processes import AGGREGATOR, PRODUCERS

DARK = "sim:6x6?electrons=0&seed=2"
SMALL = "sim:6x6?electrons=200&seed=3"


class CameraMicroscope(Microscope):
    """Its producers listen to the camera; nobody else announces scans."""

    deployment: CameraDeployment

    def camera_sends(self, source: str, number: int) -> None:
        send = ("camera", "send", "--source", source, "--to", self.deployment.camera_address, "--scan-number", number)
        self.cli.run(*send).succeeded()

    def wait_until_expected(self, number: int) -> None:
        wait_until(lambda: len(self.registry.expected.waiting()) == number, 90, f"{number} scans that are expected")

    def wait_for_scans(self, number: int) -> None:
        wait_until(lambda: len(self.states()) == number, 30, f"{number} scans")


@pytest.fixture(scope="module")
def scope(place: Path) -> Iterator[CameraMicroscope]:
    cli = CommandLine(place)
    cli.environment.update(MPI_ENVIRONMENT)
    services = Services(place)
    config = place / "mpistream.toml"
    deployment = CameraDeployment(cli, config, {})
    try:
        endpoint = services.start_etcd("127.0.0.1")
        config.write_text(
            f'deployment = "by-hand"\n[etcd]\nendpoints = ["{endpoint}"]\nlease_seconds = 3\n'
            "[stream]\npatience_seconds = 60.0\n[ranks]\nranks_per_group = 2\n[camera]\nsilence_seconds = 4.0\n"
        )
        for name in (*PRODUCERS, AGGREGATOR):
            deployment.start(name)
        loaded = Config.load(config)
        with connect_etcd(loaded) as etcd:
            registry: Registry = open_registry(loaded, etcd)
            wait_until(lambda: len(registry.producers()) == 4 and registry.aggregators(), 60, "the microscope")
            microscope = CameraMicroscope(cli, config, registry, SessionRegistry(etcd))
            microscope.deployment = deployment
            yield microscope
    finally:
        for command in deployment.commands.values():
            command.terminate()
        for command in deployment.commands.values():
            finish(command, 60)
        services.close()


@pytest.fixture(scope="module")
def session(scope: CameraMicroscope, place: Path) -> Path:
    """The folder of the session "night"."""
    folder = place / "session"
    folder.mkdir()
    scope.start_session("night", folder)
    return folder


def record_of(dataset: Path) -> dict[str, Any]:
    with h5py.File(dataset) as file:
        return dict(json.loads(file["metadata/provenance"].attrs["scan_record"]))


def test_a_dark_scan_that_the_camera_pushes_leaves_a_reference(
    scope: CameraMicroscope, session: Path, output: Path
) -> None:
    job = scope.job_run("dark", "--session", "night", "--source", "camera", "--name", "blanked")
    scope.wait_until_expected(1)
    shown = scope.cli.run("session", "show", "night", "--config", scope.config).succeeded().stdout
    assert f"expected     batch job local-{job.pid} (dark) waits for the camera's next scan" in shown
    assert "(dark) waits for the camera's next scan" in scope.cli.run("status", "--config", scope.config).stdout
    scope.camera_sends(DARK, 31)
    finish(job).succeeded()
    assert scope.job_of(job).state is BatchJobState.ENDED
    dark, mask = (scope.sessions.reference(kind, "blanked") for kind in (ReferenceKind.DARK, ReferenceKind.MASK))
    assert dark is not None
    assert mask is not None
    assert str(dark.about["source"]).startswith("camera:31?generation=1")
    expected = {"--output": output.with_name("dark.npy"), "--mask": output.with_name("mask.npy")}
    scope.cli.run("dark", DARK, *(word for option in expected.items() for word in option)).succeeded()
    for reference, path in zip((dark, mask), expected.values(), strict=True):
        np.testing.assert_array_equal(np.load(reference.path), np.load(path))
    assert not list(session.glob("**/*.recording.h5"))
    assert scope.registry.expected.waiting() == []
    counted = scope.job_run(
        *("single", "--session", "night", "--source", "camera", "--dark", "ref:blanked", "--output", output)
    )
    scope.wait_until_expected(1)
    scope.camera_sends(SMALL, 32)
    finish(counted).succeeded()
    record = record_of(output)
    assert (record["counting"]["dark"], record["references"]) == (dark.path, {"dark": "blanked"})


def test_calibrate_takes_thresholds_from_what_the_camera_pushes(scope: CameraMicroscope, session: Path) -> None:
    job = scope.job_run("calibrate", "--session", "night", "--source", "camera", "--name", "low-dose")
    scope.wait_until_expected(1)
    scope.camera_sends(SMALL, 33)
    finish(job).succeeded()
    reference = scope.sessions.reference(ReferenceKind.THRESHOLDS, "low-dose")
    assert reference is not None
    assert json.loads(Path(reference.path).read_text())["thresholds"]["calibrated"]


def test_a_raw_recording_of_what_the_camera_pushes_counts_to_the_same_events(
    scope: CameraMicroscope, output: Path
) -> None:
    """Without a session; with gaps and duplicates."""
    scan = RasterScan(5, 6, 1, 1000, 40, seed=40, sectors_lost=0.04, frames_lost=(7,), sectors_twice=0.1)
    recording = output.with_name("recording.h5")
    job = scope.job_run("raw", "--source", "camera", "--output", recording)
    scope.wait_until_expected(1)
    pusher = Pusher([f"tcp://127.0.0.1:{port}" for port in scope.deployment.ports])
    try:
        pusher.push(CameraSession(scan).messages())
    finally:
        pusher.close()
    finish(job).succeeded()
    scope.cli.run("count", "--source", f"raw:{recording}", "--output", output, *THRESHOLDS).succeeded()
    assert_same_events(output, scan.expected_events())


def test_tilts_are_taken_in_order_however_fast_the_camera_is(scope: CameraMicroscope, output: Path) -> None:
    job = scope.job_run(
        *("tomography", "--source", "camera", "--tilts=-10:10:10", *THRESHOLDS, "--output", output.parent)
    )
    scope.wait_until_expected(3)
    for number in (51, 52, 53):
        scope.camera_sends("sim:3x4?electrons=50&seed=5", number)
    finish(job).succeeded()
    records = [record_of(path) for path in sorted(output.parent.glob("tilt-*.h5"))]
    assert [record["labels"]["tilt_degrees"] for record in records] == [-10.0, 0.0, 10.0]
    assert [record["scan_number"] for record in records] == [51, 52, 53]
    assert (output.parent / "tilts.h5").exists()


def test_a_timeseries_of_the_camera_becomes_one_dataset(scope: CameraMicroscope, output: Path) -> None:
    options = ("--scans", 2, "--join", *THRESHOLDS, "--output", output)
    job = scope.job_run("timeseries", "--source", "camera", *options)
    scope.wait_until_expected(2)
    for number in (61, 62):
        scope.camera_sends("sim:3x4?electrons=50&seed=6", number)
    finish(job).succeeded()
    assert output.exists()
    records = [record_of(path) for path in sorted(output.with_suffix(".scans").iterdir())]
    assert [record["labels"]["time_index"] for record in records] == [0, 1]


def kill_with_children(job: "subprocess.Popen[str]") -> None:
    """As a node that fails does."""
    processes = [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    finish(job)


@pytest.mark.parametrize("how", ["told", "killed"])
def test_a_job_that_is_gone_expects_nothing(scope: CameraMicroscope, session: Path, output: Path, how: str) -> None:
    """One that was killed as long as its lease lasts; the scan that comes then is the open session's."""
    job = scope.job_run("raw", "--source", "camera", "--output", output.with_name("recording.h5"))
    scope.wait_until_expected(1)
    if how == "told":
        job.terminate()
        scope.wait_until_expected(0)
        finish(job)
    else:
        kill_with_children(job)
        scope.wait_until_expected(0)
    before = len(scope.states())
    number = 70 + (how == "told")
    scope.camera_sends("sim:3x4?electrons=50&seed=7", number)
    scope.wait_for_scans(before + 1)
    records = [scope.registry.record(uid) for uid in scope.registry.scans()]
    (record,) = [record for record in records if record and record.scan_number == number]
    assert (record.session, record.recording) == ("night", False)
    assert Path(record.output).parent == session
    scope.cli.run("scan", "abort", record.uid, "--discard", "--config", scope.config)


def test_where_the_camera_can_be_no_source_that_is_said(scope: CameraMicroscope, output: Path) -> None:
    for mode, options, message in (
        ("replay", ("--output", output), "mode replay has no --source camera"),
        ("raw", ("--output", output, "--producers-here"), "--producers-here has no effect with --source camera"),
    ):
        finish(scope.job_run(mode, "--source", "camera", *options)).failed_with(message)
    without_session = finish(scope.job_run("dark", "--source", "camera", "--name", "a"))
    assert without_session.status == 1
    assert "a dark job needs a session; give --session NAME" in without_session.stdout
