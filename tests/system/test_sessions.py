"""Sessions of many scans on one testbed, references by name, labels."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpistream import open_dataset
from mpistream.control.coordination import Change
from mpistream.model.config import Config
from mpistream.pipeline.process import connect_etcd
from tests.system.command_line import THRESHOLDS, CommandLine, finish, wait_until
from tests.system.datasets import same_bytes

SOURCE = "sim:8x8?electrons=300"
SAMPLE = ("--sample-frames", 20)
#: Far more than can be streamed while a test lasts.
LONG = "sim:400x400?electrons=20"


@pytest.fixture(scope="module")
def testbed(cli: CommandLine) -> Iterator[CommandLine]:
    cli.run("testbed", "up", "--groups", 1).succeeded()
    yield cli
    cli.run("testbed", "down").succeeded()


@pytest.fixture
def datasets(place: Path, request: pytest.FixtureRequest) -> Path:
    folder = place / request.node.name
    folder.mkdir()
    return folder


def start(testbed: CommandLine, session: str, *options: object, source: str = SOURCE) -> Any:
    return testbed.run("scan", "start", "--session", session, "--source", source, *options, "--json").last_json


def shown(testbed: CommandLine, session: str) -> Any:
    return testbed.run("session", "show", session, "--json").last_json


def states(testbed: CommandLine, session: str) -> list[str]:
    return [scan["state"] for scan in shown(testbed, session)["scans"]]


@contextmanager
def state_changes(testbed: CommandLine) -> Iterator[list[tuple[str, str]]]:
    """The states that scans take from here on, with their uids, in the order in which etcd has them."""
    changes: list[tuple[str, str]] = []

    def note(change: Change) -> None:
        key, value = change
        uid, _, what = key.partition("/")
        if what == "state" and value is not None and (uid, value["state"]) not in changes:
            changes.append((uid, value["state"]))

    etcd = connect_etcd(Config.load(testbed.folder / "testbed" / "mpistream.toml"))
    watch = etcd.watch("scans/", note)
    try:
        yield changes
    finally:
        watch.close()
        etcd.close()


def test_references_by_name_from_their_making_to_the_dataset(testbed: CommandLine, datasets: Path) -> None:
    """Thresholds that were found with a dark reference, both by name: the same bytes as with the files' paths."""
    testbed.run("session", "start", "first", "--datasets", datasets).succeeded()
    named = ("--name", "night", "--session", "first")
    made = testbed.run("dark", "sim:10x10?electrons=0", *named, "--json").last_json
    dark, mask = made["files"]
    assert Path(dark).parent == datasets / "references"
    by_name = ("--dark", "ref:night", "--pixel-mask", "ref:night")
    (thresholds,) = testbed.run("calibrate", SOURCE, *by_name, *SAMPLE, *named, "--json").last_json["files"]
    assert [entry["kind"] for entry in testbed.run("reference", "list", "--json").last_json] == [
        "dark",
        "mask",
        "thresholds",
    ]
    options = ("--datasets", datasets, *by_name, "--thresholds", "ref:night")
    testbed.run("session", "start", "named", *options).succeeded()
    report = start(testbed, "named", "--label", "tilt_degrees=-60.5", "--label", "place=edge")
    by_path = datasets / "by_path.h5"
    paths = ("--dark", dark, "--pixel-mask", mask, "--thresholds", thresholds)
    testbed.run("testbed", "scan", "--source", SOURCE, "--output", by_path, *paths).succeeded()
    assert same_bytes(Path(report["dataset"]), by_path)
    with open_dataset(report["dataset"]) as dataset:
        assert dataset.labels == {"tilt_degrees": -60.5, "place": "edge"}
        assert dataset.session == "named"
        names = dataset.provenance["scan_record"]["references"]
        assert Path(report["dataset"]).name == f"scan_0001_{dataset.scan_uid[:8]}.h5"
    assert names == dict.fromkeys(("dark", "pixel_mask", "thresholds"), "night")
    info = testbed.run("info", report["dataset"]).succeeded().stdout
    for words in ("session      named", "labels       place edge, tilt_degrees -60.5", "dark (night)", "(night)"):
        assert words in info
    # what the session says, a scan may say otherwise
    other = start(testbed, "named", *THRESHOLDS, "--output", datasets / "other.h5")
    assert (other["background"], other["xray"], other["dataset"]) == (60, 2000, str(datasets / "other.h5"))
    # a file that was altered is refused, until it is made anew
    np.save(dark, np.load(dark) + 1)
    scan = ("scan", "start", "--session", "named", "--source", SOURCE)
    refused = testbed.run(*scan).failed_with("has changed since it became dark reference night")
    assert "--name night" in refused.stderr
    assert "has changed" in testbed.run("reference", "show", "dark", "night").succeeded().stdout
    testbed.run("dark", "sim:10x10?electrons=0", *named).succeeded()
    testbed.run(*scan).succeeded()
    testbed.run("reference", "forget", "dark", "night").succeeded()
    testbed.run(*scan).failed_with("there is no dark reference night")
    testbed.run("testbed", "scan", "--source", SOURCE, "--output", datasets / "x.h5", "--dark", "ref:no").failed_with(
        "there is no dark reference no"
    )
    assert len(shown(testbed, "named")["scans"]) == 3


def test_scans_follow_each_other_without_waiting_for_datasets(testbed: CommandLine, datasets: Path) -> None:
    """The next one streams once all of the one before is sent, whatever has become of its dataset."""
    for session in ("before", "queue"):
        testbed.run("session", "start", session, "--datasets", datasets, *THRESHOLDS).succeeded()
    before = start(testbed, "before", "--no-wait", source=LONG)
    announced = [start(testbed, "queue", "--no-wait", source="sim:16x16?electrons=300") for _ in range(4)]
    with state_changes(testbed) as changes:
        testbed.run("scan", "abort", before["uid"], "--discard").succeeded()
        wait_until(lambda: states(testbed, "queue") == ["committed"] * 4, 120, "four datasets")
    places = {change: place for place, change in enumerate(changes)}
    uids = [scan["uid"] for scan in announced]
    assert any(places[next_uid, "streaming"] < places[uid, "committed"] for uid, next_uid in pairwise(uids))
    assert all(places[next_uid, "streaming"] > places[uid, "streaming"] for uid, next_uid in pairwise(uids))
    found = shown(testbed, "queue")
    assert [scan["uid"] for scan in found["scans"]] == [scan["uid"] for scan in announced]
    assert [scan["dataset"] for scan in found["scans"]] == [scan["output"] for scan in announced]
    assert [Path(scan["output"]).name[:10] for scan in announced] == [f"scan_000{n}_" for n in (1, 2, 3, 4)]
    assert len({scan["scan_number"] for scan in found["scans"]}) == 1
    assert all(same_bytes(Path(announced[0]["output"]), Path(scan["output"])) for scan in announced)
    text = testbed.run("session", "show", "queue").succeeded().stdout
    for words in ("4 scans: 4 committed", "256 of 256 frames", "169.9 MB raw", "last frame to dataset"):
        assert words in text
    assert any(
        line.startswith("queue ") and line.endswith("4 scans: 4 committed")
        for line in testbed.run("session", "list").succeeded().stdout.splitlines()
    )


def test_a_session_is_stopped(testbed: CommandLine, datasets: Path) -> None:
    testbed.run("session", "start", "short", "--datasets", datasets, *THRESHOLDS).succeeded()
    testbed.run("session", "start", "short", "--datasets", datasets).failed_with("there is a session short already")
    uid = start(testbed, "short", "--no-wait", source=LONG)["uid"]
    stopped = testbed.run("session", "stop", "short", "--reason", "the beam is gone").succeeded()
    assert f"scan 1 ({uid[:8]}) is" in stopped.stdout
    refused = testbed.run("scan", "start", "--session", "short", "--source", SOURCE)
    refused.failed_with("session short has been stopped: the beam is gone")
    testbed.run("session", "stop", "short", "--wait", "--timeout", 0.5).failed_with(
        "after 0.5 s 1 scan", "is unfinished"
    )
    waiting = testbed.start("session", "stop", "short", "--wait")
    wait_until(lambda: states(testbed, "short") == ["streaming"], 120, "the stream")
    testbed.run("scan", "abort", uid, "--discard").succeeded()
    assert "1 scan: 1 aborted" in finish(waiting).succeeded().stdout
    text = testbed.run("session", "show", "short").succeeded().stdout
    for words in ("stopped", "the beam is gone", "why: ended by the operator"):
        assert words in text
    assert list(datasets.glob("*.h5")) == []
    testbed.run("scan", "start", "--session", "no", "--source", SOURCE).failed_with("there is no session no")


def test_nobody_serves_a_session(testbed: CommandLine, datasets: Path) -> None:
    """A deployment without an MPI job: the message says so, and nothing is announced."""
    testbed.run("session", "start", "alone", "--datasets", datasets, *THRESHOLDS).succeeded()
    (endpoint,) = (
        line.split('"')[1]
        for line in (testbed.folder / "testbed" / "mpistream.toml").read_text().splitlines()
        if line.startswith("endpoints")
    )
    config = datasets / "other.toml"
    config.write_text(f'deployment = "other"\n[etcd]\nendpoints = ["{endpoint}"]\nlease_seconds = 2\n')
    testbed.run("session", "start", "alone", "--datasets", datasets, *THRESHOLDS, "--config", config).succeeded()
    scan = ("scan", "start", "--session", "alone", "--source", SOURCE, "--config", config)
    refused = testbed.run(*scan).failed_with("no MPI job serves session alone")
    assert "mpistream job submit live --session alone" in refused.stderr
    found = testbed.run("session", "show", "alone", "--json", "--config", config).last_json
    assert (found["scans"], found["jobs"]) == ([], [])
    assert [name for name in os.listdir(datasets) if name != config.name] == []
