"""Scans recorded without being counted, and replayed: the dataset is that of the scan itself, byte by byte."""

import os
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.system.command_line import CommandLine, finish, wait_until
from tests.system.datasets import assert_frames_of, assert_same_events, same_bytes
from tests.system.sector_writer import BACKGROUND, XRAY, MadeUpScan, sector_pixels

SCAN = MadeUpScan(7, 5, 2, 1001, 3, seed=8, sectors_lost=0.04, frames_lost=(40,), sectors_twice=0.1)
GIVEN = ("--background", BACKGROUND, "--xray", XRAY)
COUNTERS = ("frames", "frames_incomplete", "sectors_missing", "sectors_duplicate", "sectors_rejected", "frames_lost")


@pytest.fixture(scope="module")
def whole(testbed: CommandLine, place: Path) -> Path:
    """A recording of 64 frames, some sectors of which are missing."""
    path = place / "whole.h5"
    source = "sim:8x8?electrons=20&loss=0.05"
    testbed.run("testbed", "scan", "--source", source, "--raw", "--output", path).succeeded()
    return path


def check_pixels(path: Path, version: int) -> None:
    """Every sector of every frame, with plain h5py."""
    with h5py.File(path) as file:
        group = file["recording"]
        np.testing.assert_array_equal(group["frame_number"], np.arange(SCAN.n_frames) + SCAN.first_frame)
        np.testing.assert_array_equal(group["missing_sectors"], SCAN.missing)
        there = SCAN.missing != 15
        np.testing.assert_array_equal(group["scan_position"][:][there], SCAN.position[there])
        for number in range(SCAN.n_frames):
            for sector in range(4):
                expected = sector_pixels(SCAN.frame(number), sector, version)
                missing = np.uint16(1 - (SCAN.missing[number] >> sector & 1))
                np.testing.assert_array_equal(group[f"sector_{sector}"][number], expected * missing)


@pytest.mark.parametrize("version", [5, 4])
def test_a_replay_counts_to_the_same_dataset(testbed: CommandLine, place: Path, output: Path, version: int) -> None:
    sectors = SCAN.write(place / f"sectors-{version}", version, files_per_sector=2, shuffled=True)
    recorded, direct = output.with_name("recorded.h5"), output.with_name("direct.h5")
    source = f"files:{sectors}?version={version}"
    found = testbed.run("testbed", "scan", "--source", source, "--raw", "--output", recorded, "--json").last_json
    assert (found["recording"], found["complete"], "background" in found) == (True, True, False)
    check_pixels(recorded, version)
    testbed.run("verify", recorded).succeeded()
    assert "recording" in testbed.run("info", recorded).succeeded().stdout

    counting = ("--sample-frames", 24, "--centroids", "--json")
    expected = testbed.run("testbed", "scan", "--source", source, "--output", direct, *counting).last_json
    report = testbed.run("testbed", "scan", "--source", f"raw:{recorded}", "--output", output, *counting).last_json
    assert same_bytes(direct, output)
    assert_frames_of(output, SCAN)
    assert_same_events(output, SCAN.expected_events(report["background"], report["xray"], version))
    for name in COUNTERS:
        assert report[name] == expected[name] == found[name], name

    # a recording of a recording
    again = output.with_name("again.h5")
    testbed.run("testbed", "scan", "--source", f"raw:{recorded}", "--raw", "--direct", "--output", again).succeeded()
    check_pixels(again, version)


def test_a_dark_reference_from_a_recording(testbed: CommandLine, output: Path) -> None:
    source, recorded = "sim:4x4?electrons=0", output.with_name("dark.h5")
    testbed.run("testbed", "scan", "--source", source, "--raw", "--output", recorded).succeeded()
    for name, given in (("one", source), ("other", f"raw:{recorded}?rate=0.1")):
        testbed.run("dark", given, "--output", output.with_name(f"{name}.npy")).succeeded()
    one, other = (np.load(output.with_name(f"{name}.npy")) for name in ("one", "other"))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("who", ["a rank", "mpiexec"])
def test_a_killed_job_goes_on_with_the_recording(testbed: CommandLine, whole: Path, output: Path, who: str) -> None:
    """Paced, so that it dies in the middle."""
    command = testbed.start("testbed", "scan", "--source", f"raw:{whole}?rate=12", "--raw", "--output", output)
    testbed.wait_for_stream(command, 8)
    running = testbed.processes("consume")
    launchers = [pid for pid, line in running.items() if line.startswith("mpiexec")]
    victim = launchers[0] if who == "mpiexec" else max(set(running) - set(launchers))
    os.kill(victim, signal.SIGKILL)
    finish(command).succeeded()
    assert victim not in testbed.processes("consume")
    testbed.run("verify", output).succeeded()
    with h5py.File(whole) as one, h5py.File(output) as other:
        for name, array in one["recording"].items():
            np.testing.assert_array_equal(array[:], other["recording"][name][:], err_msg=name)


def test_a_replay_keeps_its_rate(testbed: CommandLine, whole: Path, output: Path) -> None:
    replay = ("--source", f"raw:{whole}?rate=16", "--output", output, "--json", *GIVEN)
    report = testbed.run("testbed", "scan", *replay).last_json
    assert report["frames"] == 64
    # from the first block's last frame to the scan's last one: 7 to 63
    assert report["seconds_streaming"] > 3


def test_an_aborted_recording_is_kept_as_far_as_it_came(testbed: CommandLine, whole: Path, output: Path) -> None:
    command = testbed.start("testbed", "scan", "--source", f"raw:{whole}?rate=8", "--raw", "--output", output)
    testbed.wait_for_stream(command, 16)
    testbed.run("scan", "abort", "latest", "--keep").succeeded()
    assert finish(command).status == 3
    testbed.run("verify", output).succeeded()
    with h5py.File(output) as file:
        assert not file["metadata/delivery"].attrs["complete"]
        came = file["recording/missing_sectors"][:] != 15
        assert 16 <= came.sum() < 64
        with h5py.File(whole) as expected:
            for sector in range(4):
                there = file["recording/missing_sectors"][:] >> sector & 1 == 0
                pixels, sent = (some[f"recording/sector_{sector}"][:] for some in (file, expected))
                np.testing.assert_array_equal(pixels[there], sent[there])


def test_a_discarded_recording_leaves_nothing(testbed: CommandLine, whole: Path, output: Path) -> None:
    command = testbed.start("testbed", "scan", "--source", f"raw:{whole}?rate=8", "--raw", "--output", output)
    testbed.wait_for_stream(command, 8)
    testbed.run("scan", "abort", "latest", "--discard").succeeded()
    assert finish(command).status == 1
    wait_until(lambda: [path.name for path in output.parent.iterdir()] == [], 10, "tidiness")


def test_what_cannot_be_recorded(testbed: CommandLine, output: Path) -> None:
    scan = ("testbed", "scan", "--source", "sim:2x2", "--output", output, "--raw")
    testbed.run(*scan, "--centroids").failed_with("a raw recording is not counted, so it has no centroids")
    testbed.run(*scan, *GIVEN).failed_with("it has no background, xray")
    testbed.run("testbed", "scan", "--source", f"raw:{output}", "--output", output).failed_with(str(output))
    assert list(output.parent.iterdir()) == []
