"""What people do with scans that are under way: look, end them, send the dataset elsewhere, find a frame."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.command_line import CommandLine, finish, wait_until
from tests.system.datasets import assert_same_events, frames_of

THRESHOLDS = ("--background", 60, "--xray", 2000)
SCAN = ("--source", "sim:40x40?electrons=50", *THRESHOLDS)
#: Far more than can be streamed while a test lasts.
LONG = ("--source", "sim:400x400?electrons=20", *THRESHOLDS)
COUNTED_BEFORE = 100


@pytest.fixture(scope="module")
def journals(place: Path) -> Path:
    folder = place / "journals"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def testbed(cli: CommandLine, journals: Path) -> Iterator[CommandLine]:
    """Its journals lie in a folder of their own, none of which is left in the end."""
    config = cli.folder / "journals.toml"
    config.write_text(f'[journal]\ndirectory = "{journals}"\n')
    cli.run("testbed", "up", "--config", config, "--groups", 1).succeeded()
    yield cli
    cli.run("testbed", "down").succeeded()
    assert list(journals.iterdir()) == []


def status(testbed: CommandLine) -> dict[str, Any]:
    return testbed.run("status", "--json").last_json


def test_status(testbed: CommandLine, output: Path) -> None:
    command = testbed.start("testbed", "scan", *LONG, "--output", output)
    testbed.wait_for_stream(command, COUNTED_BEFORE)
    found = status(testbed)
    assert found["problems"] == []
    (scan,) = found["scans"]
    assert (scan["state"], scan["frames"], scan["output"]) == ("streaming", 160_000, str(output))
    assert scan["progress"]["frames"] >= COUNTED_BEFORE
    assert 0 < scan["blocks_journaled"] < scan["blocks"] == 20_000
    assert scan["rates"]["frames"] > 0
    (job,) = found["jobs"]
    assert [rank["rank"] for rank in job["ranks"]] == [0, 1]
    assert all(rank["scans"][scan["uid"]]["frames"] > 0 for rank in job["ranks"])
    for producer in found["producers"]:
        assert producer["status"]["scan"] == scan["uid"]
        assert producer["status"]["sent"] >= producer["status"]["released"] > 0
    text = testbed.run("status").succeeded().stdout
    for words in (scan["uid"], "streaming", "frames/s", "producer 3", "conducts", "problems     none"):
        assert words in text
    listed = testbed.run("scan", "list", "--json").last_json
    assert [entry["uid"] for entry in listed][-1] == scan["uid"]
    end = testbed.run("scan", "abort", scan["uid"][:8], "--discard").succeeded()
    assert "there is no dataset" in end.stdout
    finish(command).failed_with("ended by the operator")
    assert list(output.parent.iterdir()) == []
    testbed.run("scan", "abort", "latest").failed_with("has ended already")


def test_a_scan_that_is_ended_keeps_what_had_arrived(testbed: CommandLine, output: Path) -> None:
    """The scan command then has the exit status 3."""
    command = testbed.start("testbed", "scan", *LONG, "--output", output, "--json")
    testbed.wait_for_stream(command, COUNTED_BEFORE)
    end = testbed.run("scan", "abort", "latest", "--json").last_json
    assert (end["state"], end["dataset"]) == ("aborted", str(output))
    assert end["frames"] == len(frames_of(output)) >= COUNTED_BEFORE
    ended = finish(command)
    assert ended.status == 3, ended
    assert "the scan is aborted: ended by the operator" in ended.stderr
    assert '"complete": false' in ended.stdout


def test_tracing_a_frame(testbed: CommandLine, output: Path) -> None:
    command = testbed.start("testbed", "scan", *LONG, "--output", output)
    testbed.wait_for_stream(command, COUNTED_BEFORE)

    def trace(frame: int) -> dict[str, Any]:
        return testbed.run("trace", "--frame", frame, "--json").last_json

    counted = wait_until(lambda: (found := trace(9))["counted_by"] and found, 20, "the counting of frame 9")
    (place,) = counted["journals"]
    assert Path(place["path"]).read_bytes()[place["byte"] :].startswith(b"MPJR")
    assert place["missing_sectors"] == []
    coming = trace(159_999)
    assert (coming["counted_by"], coming["journals"], coming["block"]) == ([], [], 19_999)
    assert coming["destination"]["rank"] in (0, 1)
    assert set(coming["senders"]) == {"0", "1", "2", "3"}
    assert "owed" in testbed.run("trace", "--frame", 159_999).succeeded().stdout
    testbed.run("trace", "--frame", 160_000).failed_with("has the frames 0 to 159999")
    testbed.run("scan", "abort", "latest", "--keep").succeeded()
    finish(command)
    (row,) = trace(9)["rows"]
    assert (row["path"], row["index"], row["row"], row["column"]) == (str(output), 9, 0, 9)
    assert row["electrons"] == len(frames_of(output)[9])
    assert trace(159_999)["rows"] == []


def test_a_dataset_that_cannot_be_written_waits(testbed: CommandLine, output: Path) -> None:
    """What is counted is safe; another place for the dataset can be given."""
    testbed.run("testbed", "scan", *SCAN, "--output", output).succeeded()
    expected = frames_of(output)
    folder, other = output.parent / "removed", output.with_name("other.h5")
    folder.mkdir()
    command = testbed.start("testbed", "scan", *SCAN, "--output", folder / "scan.h5")
    testbed.wait_for_stream(command, COUNTED_BEFORE)
    shutil.rmtree(folder)
    wait_until(lambda: "waits: " in str(status(testbed)["problems"]), 60, "the attempt to write")
    testbed.run("scan", "redirect", "latest", "--output", output).failed_with("exists")
    testbed.run("scan", "redirect", "latest", "--output", other).succeeded()
    ended = finish(command).succeeded()
    assert "waiting: " in ended.stderr
    assert str(other) in ended.stdout
    assert_same_events(other, expected)


def test_scans_that_there_are_not(testbed: CommandLine) -> None:
    for command in (("abort", "ffff"), ("redirect", "ffff", "--output", "x.h5")):
        testbed.run("scan", *command).failed_with("no scan ffff")
    testbed.run("trace", "--frame", 1, "--scan", "ffff").failed_with("no scan ffff")


@pytest.mark.parametrize(
    "command", [("status",), ("scan", "list"), ("scan", "abort", "latest"), ("trace", "--frame", 1)]
)
def test_without_a_testbed(cli: CommandLine, command: tuple[object, ...]) -> None:
    folder = cli.folder / "nothing-here"
    cli.run(*command, "--folder", folder).failed_with("no testbed is running", str(folder))
