"""Batch jobs as people see them: what the records say, and what the scheduler knows better."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from mpistream.cli.job import job as job_command
from mpistream.control.coordination import Coordination
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.cluster.job_view import find_job, last_lines, view_jobs, waits
from mpistream.launch.cluster.slurm import QueuedJob
from mpistream.model.errors import CoordinationError, SchedulerError
from mpistream.model.session import BatchJob, BatchJobState, JobStep, Mode
from tests.etcd_server import EtcdServer
from tests.unit.batch_jobs import program

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
    assert find_job(registry, failed, HERE, "7").is_over
    registry.write_batch_job(job("7", BatchJobState.RUNNING))
    assert view(registry, MadeUpSlurm(), "7") == ("lost", "Slurm no longer knows it")


@pytest.mark.parametrize("shown", [{"JobState": "NODE_FAIL", "EndTime": "1795284917"}, None])
def test_a_loss_that_was_seen_once_is_seen_without_slurm(
    registry: SessionRegistry, shown: dict[str, str] | None
) -> None:
    died = JobStep(nodes=("c1",), started_unix_seconds=1.0, ended_unix_seconds=2.0, how="died")
    steps = (died, JobStep(nodes=("c1",), started_unix_seconds=3.0))
    registry.write_batch_job(job("7", BatchJobState.RUNNING).model_copy(update={"steps": steps}))
    view_jobs(registry, MadeUpSlurm(jobs={"7": shown}), HERE)
    (seen,) = view_jobs(registry, None, HERE)
    assert (seen.state, seen.job.state, seen.is_over) == ("lost", "lost", True)
    assert "go on with the next job" in seen.job.remedy
    ended = seen.job.ended_unix_seconds
    assert ended is not None
    assert seen.job.steps == (died, steps[1].model_copy(update={"ended_unix_seconds": ended, "how": "lost, too"}))
    assert ended == 1795284917.0 if shown else abs(ended - time.time()) < 60


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING", "SUSPENDED", "STAGE_OUT", ""])
def test_a_job_that_slurm_does_not_say_is_over_is_not_lost(registry: SessionRegistry, state: str) -> None:
    """Though it has left the queue, or has not yet come into it."""
    registry.write_batch_job(job("7", BatchJobState.RUNNING))
    assert view(registry, MadeUpSlurm(jobs={"7": {"JobState": state}}), "7") == ("running", "as said")
    assert registry.batch_job("big", "7") == job("7", BatchJobState.RUNNING)


def test_a_job_that_says_how_it_ended_while_slurm_is_asked_is_believed(registry: SessionRegistry) -> None:
    registry.write_batch_job(job("7", BatchJobState.RUNNING))

    class Slow(MadeUpSlurm):
        def job(self, number: str) -> dict[str, str] | None:
            registry.write_batch_job(job("7", BatchJobState.ENDED))
            return {"JobState": "COMPLETED"}

    assert view(registry, Slow(), "7") == ("ended", "as said")
    assert registry.batch_job("big", "7") == job("7", BatchJobState.ENDED)


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
    with pytest.raises(CoordinationError, match="no job 5 on big"):
        find_job(registry, None, HERE, "5", "big")
    for cluster in ("big", "small"):
        registry.write_batch_job(job("5", BatchJobState.RUNNING, cluster))
    with pytest.raises(CoordinationError, match="2 jobs 5, on big, small") as raised:
        find_job(registry, None, HERE, "5")
    assert "--cluster big" in raised.value.remedy
    assert find_job(registry, None, HERE, "5", "small").job.cluster == "small"


def test_a_log_that_cannot_be_seen_has_no_lines() -> None:
    assert last_lines("/no/such/log", 5) == []
    assert last_lines(__file__, 2) == Path(__file__).read_text().splitlines()[-2:]


# the commands


class Commands:
    """`mpistream job ...` on a machine where the Slurm of the cluster big answers, in a few lines of shell."""

    def __init__(self, folder: Path, config: Path) -> None:
        folder.mkdir()
        self._config, self._calls = config, folder / "calls"
        for name, body in {
            "scontrol": f"[ $2 = config ] && echo ClusterName = big || echo JobState=$(cat {folder}/state)",
            "squeue": ":",
            "scancel": f'echo "$*" >>{self._calls}',
        }.items():
            program(folder, name, body)
        self._state = folder / "state"
        self.shows("RUNNING")

    def shows(self, state: str) -> None:
        """Of every job."""
        self._state.write_text(state)

    def run(self, *arguments: str) -> None:
        job_command([*arguments, "--config", str(self._config)], standalone_mode=False)

    @property
    def cancelled(self) -> list[str]:
        return self._calls.read_text().splitlines() if self._calls.exists() else []


@pytest.fixture
def commands(tmp_path: Path, server: EtcdServer, etcd: Coordination, monkeypatch: pytest.MonkeyPatch) -> Commands:
    config = tmp_path / "mpistream.toml"
    deployment = etcd.prefix.strip("/")
    config.write_text(f'deployment = "{deployment}"\n[etcd]\nendpoints = ["{server.endpoint}"]\n')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return Commands(tmp_path / "bin", config)


@pytest.mark.parametrize("state", [BatchJobState.RUNNING, BatchJobState.SUBMITTED])
@pytest.mark.parametrize("more", [(), ("--finish",)])
def test_the_job_of_another_cluster_is_not_cancelled(
    commands: Commands, registry: SessionRegistry, state: BatchJobState, more: tuple[str, ...]
) -> None:
    registry.write_batch_job(job("7", state, cluster="small"))
    with pytest.raises(
        SchedulerError, match="job 7 is one of small, and the Slurm that answers here is that of big"
    ) as raised:
        commands.run("cancel", "7", *more)
    assert "mpistream job cancel 7 --cluster small" in raised.value.remedy
    assert commands.cancelled == []
    assert registry.batch_job("small", "7") == job("7", state, cluster="small")


def test_of_two_jobs_with_a_number_one_is_cancelled(commands: Commands, registry: SessionRegistry) -> None:
    for cluster in ("big", "small"):
        registry.write_batch_job(job("7", BatchJobState.SUBMITTED, cluster))
    with pytest.raises(CoordinationError, match="2 jobs 7"):
        commands.run("cancel", "7")
    commands.run("cancel", "7", "--cluster", "big")
    assert commands.cancelled == ["7"]
    ended, other = registry.batch_job("big", "7"), registry.batch_job("small", "7")
    assert ended is not None
    assert (ended.state, ended.reason) == ("ended", "cancelled before it began")
    assert other == job("7", BatchJobState.SUBMITTED, "small")


def test_a_lost_job_is_listed_among_those_that_have_ended(
    commands: Commands, registry: SessionRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.write_batch_job(job("7", BatchJobState.RUNNING))
    commands.run("list")
    assert "7           running" in capsys.readouterr().out
    commands.shows("NODE_FAIL")
    commands.run("list")
    assert "no batch job is waiting or running" in capsys.readouterr().out
    commands.run("list", "--all", "--json")
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["state"], shown["reason"]) == ("lost", "Slurm says NODE_FAIL")
