"""A live session under Slurm: five scans back to back, and a node that is killed in the middle of one."""

import json
from pathlib import Path

import psutil
import pytest

from tests.slurm.batch_jobs import Session, is_like_testbed_run, started_session
from tests.slurm.cluster import Cluster
from tests.system.command_line import wait_until

SCANS = 5
#: Long enough that a node can be killed in the middle, short enough for a slow machine.
SOURCE = "sim:32x32?electrons=50&seed={seed}"


@pytest.fixture
def session(cluster: Cluster, tmp_path: Path) -> Session:
    return started_session(cluster, tmp_path, "live")


@pytest.mark.timeout(900)
def test_five_scans_with_a_node_killed_in_the_middle(session: Session, tmp_path: Path) -> None:
    cluster = session.cluster
    number = session.submit("live", "--nodes", 4, "--time", "00:20:00")
    wait_until(lambda: session.groups(number) == 4, 120, "four rank groups")
    scans = [session.start_scan(SOURCE.format(seed=seed)) for seed in range(SCANS)]
    wait_until(lambda: session.frames(scans[2]) > 100, 300, "the third scan to stream")
    cluster.kill_node("c3")
    wait_until(lambda: session.ended(scans) == SCANS, 500, "the end of all scans")
    session.stop()
    job = session.wait_for_end(number)
    assert job["state"] == "ended"
    assert job["bad_nodes"] == ["c3"]
    first, second = job["steps"]
    assert first["nodes"] == ["c1", "c2", "c3", "c4"]
    assert second["nodes"] == ["c1", "c2", "c4"]
    assert "silent" in first["how"] or first["exit_status"] != 0
    assert cluster.jobs() == []
    for seed, scan in enumerate(scans):
        assert scan.state() == "committed"
        assert is_like_testbed_run(scan, SOURCE.format(seed=seed), tmp_path)
    assert {path.name for path in session.folder.glob("*")} == {"jobs", *(scan.dataset.name for scan in scans)}
    assert session.registry.groups() == []
    said = json.loads(cluster.cli.run("job", "list", "--all", "--folder", cluster.folder, "--json").succeeded().stdout)
    assert [known["state"] for known in said if known["scheduled"] == number] == ["ended"]


@pytest.mark.timeout(600)
def test_a_drained_node_is_used_no_more(session: Session, tmp_path: Path) -> None:
    """What runs on it goes on; the next job step leaves it out."""
    cluster = session.cluster
    number = session.submit("live", "--nodes", 2, "--time", "00:20:00")
    wait_until(lambda: session.groups(number) == 2, 120, "two rank groups")
    first, second = session.job(number)["steps"][0]["nodes"]
    scan = session.start_scan(SOURCE.format(seed=6))
    wait_until(lambda: session.frames(scan) > 100, 120, "the stream")
    cluster.run("scontrol", "update", f"nodename={second}", "state=drain", "reason=test").succeeded()
    psutil.Process(cluster.ranks(first)[0]).kill()
    wait_until(lambda: session.ended([scan]) == 1, 200, "the end of the scan")
    session.stop()
    assert [step["nodes"] for step in session.wait_for_end(number)["steps"]] == [[first, second], [first]]
    assert is_like_testbed_run(scan, SOURCE.format(seed=6), tmp_path)


@pytest.mark.timeout(600)
def test_two_jobs_serve_one_session(session: Session, tmp_path: Path) -> None:
    """The second joins while the first one's scan streams, and stays when the first one leaves."""
    first = session.submit("live", "--nodes", 2, "--time", "00:20:00")
    wait_until(lambda: session.groups(first) == 2, 120, "the first job")
    scan = session.start_scan(SOURCE.format(seed=1))
    second = session.submit("live", "--nodes", 1, "--time", "00:20:00")
    wait_until(lambda: session.groups(second) == 1, 120, "the second job")
    session.cluster.cli.run("job", "cancel", first, "--folder", session.cluster.folder).succeeded()
    assert session.wait_for_end(first)["state"] == "ended"
    wait_until(lambda: session.ended([scan]) == 1, 200, "the end of the scan")
    other = session.start_scan(SOURCE.format(seed=2))
    wait_until(lambda: session.ended([other]) == 1, 200, "the end of the other scan")
    for seed, streamed in ((1, scan), (2, other)):
        assert streamed.state() == "committed"
        assert is_like_testbed_run(streamed, SOURCE.format(seed=seed), tmp_path)
    assert session.groups(first) == 0
    session.stop()
    assert session.wait_for_end(second)["state"] == "ended"
