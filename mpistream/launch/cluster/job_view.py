"""Batch jobs as people look at them: what their records say, compared with what the scheduler knows."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.cluster.slurm import QueuedJob
from mpistream.launch.processes import has_ended
from mpistream.model.errors import CoordinationError, SchedulerError
from mpistream.model.session import BatchJob, BatchJobState

LOST = "lost"
_LOG_BYTES = 2**16
_PENDING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING"})


class Scheduler(Protocol):
    """The part of ``slurm.Slurm`` that is asked."""

    def cluster(self) -> str: ...

    def queue(self) -> list[QueuedJob]: ...

    def job(self, number: str) -> dict[str, str] | None: ...

    def cancel(self, number: str) -> None: ...

    def run(self, command: str, *arguments: str) -> str: ...


@dataclass(frozen=True)
class JobView:
    """A batch job. ``state`` is that of its record, or "lost": it ended without having been able to say so.

    ``reason`` and ``remedy`` are the record's, or the scheduler's where that one knows better.
    """

    job: BatchJob
    state: str
    reason: str
    remedy: str

    @property
    def is_over(self) -> bool:
        return self.state == LOST or self.job.state.is_final


def view_jobs(registry: SessionRegistry, scheduler: Scheduler | None, here: str) -> list[JobView]:
    """Every batch job that etcd knows, the oldest first. ``here`` is this machine: jobs without a scheduler run there.

    ``scheduler`` is None, or does not answer, where there is none: then the records are believed.
    """
    return [_view(job, asked, here) for job, asked in _asked_of(registry.batch_jobs(), scheduler)]


def find_job(registry: SessionRegistry, scheduler: Scheduler | None, here: str, number: str) -> JobView:
    """Raises CoordinationError where there is no such job, or the same number on several clusters."""
    found = [job for job in registry.batch_jobs() if job.scheduled == number]
    if len(found) != 1:
        clusters = ", ".join(job.cluster for job in found)
        what = f"{len(found)} jobs {number}, on {clusters}" if found else f"no job {number}"
        raise CoordinationError(f"this deployment knows {what}", "see mpistream job list --all")
    ((job, asked),) = _asked_of(found, scheduler)
    return _view(job, asked, here)


def _asked_of(jobs: list[BatchJob], scheduler: Scheduler | None) -> Iterable[tuple[BatchJob, "_Answer"]]:
    """With each job what its scheduler says of it. The scheduler is asked once for all that are in its queue."""
    open_jobs = [job for job in jobs if not job.state.is_final]
    cluster, queued = "", {}
    if scheduler is not None and open_jobs:
        with suppress(SchedulerError):
            cluster, queued = scheduler.cluster(), {job.number: job for job in scheduler.queue()}
    for job in jobs:
        answer = _Answer(False)
        if scheduler is not None and not job.state.is_final and job.cluster == cluster:
            with suppress(SchedulerError):
                answer = _Answer(True, queued.get(job.scheduled), scheduler.job(job.scheduled))
        yield job, answer


@dataclass(frozen=True)
class _Answer:
    """``was_given``: the scheduler has answered, so that what it does not know is not there."""

    was_given: bool
    queued: QueuedJob | None = None
    shown: dict[str, str] | None = None


def _view(job: BatchJob, answer: _Answer, here: str) -> JobView:
    said = JobView(job, str(job.state), job.reason, job.remedy)
    if job.state.is_final:
        return said
    if job.scheduled.startswith("local-"):
        is_lost = job.cluster == here and has_ended(int(job.scheduled.removeprefix("local-")))
        return _lost(job, "its process has ended") if is_lost else said
    if not answer.was_given:
        return said
    state = (answer.shown or {}).get("JobState", "")
    if answer.queued is None and state not in ("RUNNING", "COMPLETING", *_PENDING):
        return _lost(job, _why_lost(answer.shown))
    if answer.queued is not None and answer.queued.state in _PENDING:
        waits = f"waits in the queue: {answer.queued.reason}"
        # a job whose node died is put into the queue by Slurm: its record still says that it runs
        state = job.state if job.state is BatchJobState.SUBMITTED else BatchJobState.REQUEUED
        return JobView(job, str(state), f"{job.reason}; {waits}" if job.reason else waits, job.remedy)
    return said


def _lost(job: BatchJob, why: str) -> JobView:
    left = "the scans that it had go on with the next job of the session"
    return JobView(job, LOST, why, f"{left}; its log: {job.log or 'not known'}")


def _why_lost(shown: dict[str, str] | None) -> str:
    """In Slurm's words."""
    if shown is None:
        return "Slurm no longer knows it"
    why = shown.get("Reason", "")
    text = f"Slurm says {shown.get('JobState', 'nothing')}"
    if why not in ("", "None"):
        text += f", {why}"
    if (status := shown.get("ExitCode", "0:0")) != "0:0":
        text += f", exit status {status.replace(':0', '').replace('0:', 'signal ')}"
    return text


def last_lines(log: str, number: int) -> list[str]:
    """Of a batch log; none where it cannot be seen from here."""
    try:
        with Path(log).open("rb") as file:
            file.seek(max(0, Path(log).stat().st_size - _LOG_BYTES))
            return file.read().decode(errors="replace").splitlines()[-number:]
    except OSError:
        return []


def waits(view: JobView) -> bool:
    """In a queue: nothing of it runs."""
    return view.state in (BatchJobState.SUBMITTED, BatchJobState.REQUEUED)
