"""How batch jobs end before they are done: scancel, the time limit with its signal, requeue; for real."""

import time
from pathlib import Path

import pytest

from tests.slurm.batch_jobs import Session, StartedScan, is_like_testbed_run, started_session
from tests.slurm.cluster import Cluster
from tests.system.command_line import wait_until

pytestmark = pytest.mark.cluster
FRAMES = 12 * 12


@pytest.fixture
def session(cluster: Cluster, tmp_path: Path) -> Session:
    return started_session(cluster, tmp_path, "limits")


@pytest.fixture(scope="module")
def sectors(tmp_path_factory: pytest.TempPathFactory, slurm_testbed: Cluster) -> Path:
    folder = tmp_path_factory.mktemp("sectors")
    slurm_testbed.cli.run("simulate", "--scan", "12x12", "--output", folder).succeeded()
    return folder


def slow_scan(session: Session, sectors: Path, seconds: float) -> StartedScan:
    """One that streams for so long, and does by now: an MPI job is there."""
    wait_until(session.registry.groups, 120, "an MPI job")
    scan = session.start_scan(f"files:{sectors}?rate={FRAMES / seconds:g}")
    wait_until(lambda: scan.state() == "streaming", 120, "a stream")
    return scan


@pytest.mark.timeout(900)
def test_a_cancelled_job_leaves_its_scan_to_the_next(session: Session, sectors: Path, tmp_path: Path) -> None:
    first = session.submit("live", "--nodes", 1, "--time", "00:20:00")
    scan = slow_scan(session, sectors, seconds=20)
    session.cluster.run("scancel", first).succeeded()
    job = session.wait_for_end(first)
    assert job["state"] == "ended", session.log(first)
    assert "told to end" in job["reason"]
    assert str(scan.uid) in job["reason"]
    assert session.groups(first) == 0
    assert scan.state() == "streaming"
    second = session.submit("live", "--nodes", 2, "--time", "00:20:00")
    wait_until(lambda: session.ended([scan]) == 1, 200, "the end of the scan")
    session.stop()
    assert session.wait_for_end(second)["state"] == "ended"
    assert is_like_testbed_run(scan, f"files:{sectors}", tmp_path)


@pytest.mark.timeout(900)
def test_a_cancelled_job_that_waits_in_the_queue(session: Session) -> None:
    cluster = session.cluster
    cluster.run("scontrol", "update", "nodename=c1,c2,c3,c4", "state=drain", "reason=test").succeeded()
    number = session.submit("live", "--nodes", 1)
    cluster.cli.run("job", "cancel", number, "--folder", cluster.folder).succeeded()
    job = session.wait_for_end(number)
    assert (job["state"], job["reason"]) == ("ended", "cancelled before it began")


@pytest.mark.timeout(1200)
def test_at_the_time_limit_a_job_hands_over_and_is_requeued(session: Session, sectors: Path, tmp_path: Path) -> None:
    number = session.submit("live", "--nodes", 2, "--time", "00:03:00", "--requeue")
    scan = slow_scan(session, sectors, seconds=170)
    wait_until(lambda: session.job(number)["state"] == "requeued", 240, "the requeue")
    shown = session.job(number)
    assert "takes longer" in shown["reason"]
    assert str(scan.uid) in shown["reason"]
    assert "when it begins again" in shown["remedy"]
    assert shown["steps"][0]["exit_status"] == 0
    wait_until(
        lambda: session.cluster.run("scontrol", "update", f"jobid={number}", "StartTime=now").status == 0, 30, ""
    )
    wait_until(lambda: session.ended([scan]) == 1, 300, "the end of the scan")
    session.stop()
    job = session.wait_for_end(number)
    assert job["state"] == "ended"
    assert len(job["steps"]) == 2
    for words in ("Slurm says that the time limit is near", "begun again (1)"):
        assert words in session.log(number)
    assert is_like_testbed_run(scan, f"files:{sectors}", tmp_path)


@pytest.mark.timeout(900)
def test_a_job_that_vanished_is_shown_as_lost(session: Session) -> None:
    """Its node dies with the runner: nobody can say how it ended, but for Slurm."""
    cluster = session.cluster
    number = session.submit("live", "--nodes", 1, "--time", "00:20:00", "--no-requeue")
    wait_until(lambda: session.groups(number) == 1, 120, "the job")
    (node,) = session.job(number)["steps"][0]["nodes"]
    cluster.kill_node(node)
    wait_until(lambda: number not in cluster.jobs(), 150, "Slurm to notice")
    time.sleep(1)
    job = session.job(number)
    assert job["state"] == "lost"
    assert "NODE_FAIL" in job["reason"]
    assert "go on with the next job" in job["remedy"]
