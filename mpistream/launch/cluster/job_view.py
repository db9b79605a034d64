"""Batch jobs as people look at them: what their records say, compared with what the scheduler knows."""

import time
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

_LOG_BYTES = 2**16
_PENDING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING"})
#: Slurm's words for jobs that are over.
_OVER = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
        *("REVOKED", "TIMEOUT"),
    }
)
_LOCAL = "local-"


class Scheduler(Protocol):
    """The part of ``slurm.Slurm`` that is asked."""

    def cluster(self) -> str: ...

    def queue(self) -> list[QueuedJob]: ...

    def job(self, number: str) -> dict[str, str] | None: ...


@dataclass(frozen=True)
class JobView:
    """A batch job. ``state`` and ``reason`` are its record's, or the scheduler's where that one knows better."""

    job: BatchJob
    state: BatchJobState
    reason: str

    @property
    def is_over(self) -> bool:
        return self.state.is_final


def view_jobs(registry: SessionRegistry, scheduler: Scheduler | None, here: str) -> list[JobView]:
    """Every batch job that etcd knows, the oldest first. ``here`` is this machine: jobs without a scheduler run there.

    Those that are over and could not say so are lost: that is written into their records, so that it is seen where the
    scheduler is not asked. ``scheduler`` is None, or does not answer, where there is none: then the records are
    believed.
    """
    return _views(registry, registry.batch_jobs(), scheduler, here)


def find_job(
    registry: SessionRegistry, scheduler: Scheduler | None, here: str, number: str, cluster: str = ""
) -> JobView:
    """Likewise one of them. Raises CoordinationError where there is none, or, without its cluster, are several."""
    found = [job for job in registry.batch_jobs() if job.scheduled == number and cluster in ("", job.cluster)]
    if len(found) > 1:
        clusters = ", ".join(job.cluster for job in found)
        raise CoordinationError(
            f"this deployment knows {len(found)} jobs {number}, on {clusters}",
            f"say which: --cluster {found[0].cluster}",
        )
    if not found:
        where = f" on {cluster}" if cluster else ""
        raise CoordinationError(f"this deployment knows no job {number}{where}", "see mpistream job list --all")
    (view,) = _views(registry, found, scheduler, here)
    return view


def _views(registry: SessionRegistry, jobs: list[BatchJob], scheduler: Scheduler | None, here: str) -> list[JobView]:
    views = []
    for job, answer in _asked_of(jobs, scheduler):
        lost = _lost(job, answer, here)
        if lost is None:
            views.append(_view(job, answer))
        elif registry.replace_batch_job(job, lost):
            views.append(JobView(lost, lost.state, lost.reason))
        else:  # it has written its record since that was read, and knows better
            now = registry.batch_job(job.cluster, job.scheduled)
            known = lost if now in (None, job) else now
            views.append(JobView(known, known.state, known.reason))
    return views


def _asked_of(jobs: list[BatchJob], scheduler: Scheduler | None) -> Iterable[tuple[BatchJob, "_Answer"]]:
    """With each job what its scheduler says of it. The scheduler is asked once for all that are in its queue."""
    cluster, queued = "", {}
    if scheduler is not None and any(_is_scheduled(job) for job in jobs):
        with suppress(SchedulerError):
            cluster, queued = scheduler.cluster(), {job.number: job for job in scheduler.queue()}
    for job in jobs:
        answer = _Answer(False)
        if scheduler is not None and _is_scheduled(job) and job.cluster == cluster:
            with suppress(SchedulerError):
                answer = _Answer(True, queued.get(job.scheduled), scheduler.job(job.scheduled))
        yield job, answer


def _is_scheduled(job: BatchJob) -> bool:
    """By its record a scheduler has it."""
    return not job.state.is_final and not job.scheduled.startswith(_LOCAL)


@dataclass(frozen=True)
class _Answer:
    """``was_given``: the scheduler has answered, so that what it does not know is not there."""

    was_given: bool
    queued: QueuedJob | None = None
    shown: dict[str, str] | None = None


def _view(job: BatchJob, answer: _Answer) -> JobView:
    if answer.queued is None or answer.queued.state not in _PENDING:
        return JobView(job, job.state, job.reason)
    waits = f"waits in the queue: {answer.queued.reason}"
    # a job whose node died is put into the queue by Slurm: its record still says that it runs
    state = job.state if job.state is BatchJobState.SUBMITTED else BatchJobState.REQUEUED
    return JobView(job, state, f"{job.reason}; {waits}" if job.reason else waits)


def _lost(job: BatchJob, answer: _Answer, here: str) -> BatchJob | None:
    """The record of a job that is over, though its own says something else; None for all others."""
    shown = answer.shown or {}
    if job.state.is_final:
        return None
    if not _is_scheduled(job):
        if job.cluster != here or not has_ended(int(job.scheduled.removeprefix(_LOCAL))):
            return None
        why = "its process has ended"
    elif answer.was_given and answer.queued is None and (answer.shown is None or shown.get("JobState") in _OVER):
        why = _why_lost(answer.shown)
    else:
        return None
    end = shown.get("EndTime", "")
    ended = float(end) if end.isdecimal() else time.time()
    steps = (
        step if step.ended_unix_seconds else step.model_copy(update={"ended_unix_seconds": ended, "how": "lost, too"})
        for step in job.steps
    )
    return job.model_copy(
        update={
            "state": BatchJobState.LOST,
            "reason": why,
            "remedy": "the scans that it had go on with the next job of the session"
            + (f"; its log: {job.log}" if job.log else ""),
            "ended_unix_seconds": ended,
            "steps": tuple(steps),
        }
    )


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
