"""Batch jobs as people see them: what the records say, and what the scheduler knows better."""

import os
import subprocess
from pathlib import Path

import pytest

from mpistream.control.coordination import Coordination
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.cluster.job_view import find_job, last_lines, view_jobs, waits
from mpistream.launch.cluster.slurm import QueuedJob
from mpistream.model.errors import CoordinationError, SchedulerError
from mpistream.model.session import BatchJob, BatchJobState, Mode

HERE = "here"


class MadeUpSlurm:
    """Knows some jobs; with ``is_away`` it does not answer."""

    def __init__(self, queue: tuple[QueuedJob, ...] = (), jobs: dict | None = None, is_away: bool = False) -> None:
        self._queue, self._jobs, self._is_away = queue, jobs or {}, is_away

    def cluster(self) -> str:
        if self._is_away:
            raise SchedulerError("it does not answer", "wait")
        return "big"

    def queue(self) -> list[QueuedJob]:
        return list(self._queue)

    def job(self, number: str) -> dict[str, str] | None:
        return self._jobs.get(number)

    def cancel(self, number: str) -> None:
        raise AssertionError

    def run(self, command: str, *arguments: str) -> str:
        raise AssertionError


def job(number: str, state: BatchJobState, cluster: str = "big") -> BatchJob:
    return BatchJob(
        scheduled=number, cluster=cluster, mode=Mode.LIVE, session="s", nodes=1, log="", state=state, reason="as said"
    )


@pytest.fixture
def registry(etcd: Coordination) -> SessionRegistry:
    return SessionRegistry(etcd)


def view(registry: SessionRegistry, slurm: MadeUpSlurm | None, number: str) -> tuple[str, str]:
    found = find_job(registry, slurm, HERE, number)
    return found.state, found.reason


def test_a_record_that_says_running_when_slurm_knows_better(registry: SessionRegistry) -> None:
    registry.write_batch_job(job("7", BatchJobState.RUNNING))
    failed = MadeUpSlurm(jobs={"7": {"JobState": "NODE_FAIL", "Reason": "NodeDown", "ExitCode": "0:9"}})
    assert view(registry, failed, "7") == ("lost", "Slurm says NODE_FAIL, NodeDown, exit status signal 9")
    assert view(registry, MadeUpSlurm(), "7") == ("lost", "Slurm no longer knows it")
    assert find_job(registry, failed, HERE, "7").is_over


def test_a_record_is_believed_where_nobody_knows_better(registry: SessionRegistry) -> None:
    registry.write_batch_job(job("7", BatchJobState.RUNNING))
    registry.write_batch_job(job("8", BatchJobState.FAILED))
    registry.write_batch_job(job("9", BatchJobState.RUNNING, cluster="other"))
    running = (QueuedJob("7", "x", "RUNNING", "None", "c1"),)
    for slurm in (None, MadeUpSlurm(is_away=True), MadeUpSlurm(running, {"7": {"JobState": "RUNNING"}})):
        views = {seen.job.scheduled: seen for seen in view_jobs(registry, slurm, HERE)}
        assert {number: seen.state for number, seen in views.items()} == {"7": "running", "8": "failed", "9": "running"}
        assert {seen.reason for seen in views.values()} == {"as said"}


def test_why_a_job_waits(registry: SessionRegistry) -> None:
    registry.write_batch_job(job("7", BatchJobState.SUBMITTED))
    slurm = MadeUpSlurm((QueuedJob("7", "x", "PENDING", "Resources", ""),), {"7": {"JobState": "PENDING"}})
    assert view(registry, slurm, "7") == ("submitted", "as said; waits in the queue: Resources")


def test_a_job_that_slurm_has_put_into_the_queue_again(registry: SessionRegistry) -> None:
    """Its node died, and with it who could have written that."""
    registry.write_batch_job(job("7", BatchJobState.RUNNING))
    slurm = MadeUpSlurm((QueuedJob("7", "x", "PENDING", "BeginTime", ""),), {"7": {"JobState": "PENDING"}})
    seen = find_job(registry, slurm, HERE, "7")
    assert seen.state == "requeued"
    assert waits(seen)
    assert not waits(find_job(registry, None, HERE, "7"))


def test_a_job_without_a_scheduler(registry: SessionRegistry) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for pid, cluster in ((os.getpid(), HERE), (ended.pid, HERE), (ended.pid, "elsewhere")):
        registry.write_batch_job(job(f"local-{pid}", BatchJobState.RUNNING, cluster))
    states = {(seen.job.scheduled, seen.job.cluster): seen.state for seen in view_jobs(registry, None, HERE)}
    assert states[f"local-{os.getpid()}", HERE] == "running"
    assert states[f"local-{ended.pid}", HERE] == "lost"
    assert states[f"local-{ended.pid}", "elsewhere"] == "running"


def test_a_number_that_names_no_job_or_two(registry: SessionRegistry) -> None:
    with pytest.raises(CoordinationError, match="no job 5"):
        find_job(registry, None, HERE, "5")
    for cluster in ("big", "small"):
        registry.write_batch_job(job("5", BatchJobState.RUNNING, cluster))
    with pytest.raises(CoordinationError, match="2 jobs 5, on big, small"):
        find_job(registry, None, HERE, "5")


def test_a_log_that_cannot_be_seen_has_no_lines() -> None:
    assert last_lines("/no/such/log", 5) == []
    assert last_lines(__file__, 2) == Path(__file__).read_text().splitlines()[-2:]
