"""What is wrong with a deployment, in plain words. Pure."""

import time
from collections.abc import Iterator

from mpistream.control.run_state import UNDER_WAY, ScanState
from mpistream.launch.absence import absent_producers
from mpistream.launch.inspection import DeploymentView, JobView, ProcessView, ScanView
from mpistream.model.config import Config

#: Every process says how it does once a second.
_SILENT_SECONDS = 5.0


def problems(view: DeploymentView, config: Config) -> list[str]:
    """One sentence each, the gravest first; nothing where all is well."""
    return [*_missing(view), *_of_scans(view), *_of_jobs(view, config), *_of_senders(view)]


def _missing(view: DeploymentView) -> Iterator[str]:
    if not view.jobs:
        yield "no rank group is registered: nothing is counted; start the MPI job (mpiexec -n 4 mpistream consume)"
    for absence in absent_producers(int(producer.status["sector"]) for producer in view.producers):
        yield f"{absence.message}; {absence.remedy}"
    if not view.aggregators:
        yield "no aggregator is registered: only scans with --direct can be streamed; start one: mpistream aggregate"


def _of_scans(view: DeploymentView) -> Iterator[str]:
    for scan in view.scans:
        if scan.state.is_final:
            continue
        name = f"scan {short(scan)} ({scan.state})"
        if scan.reason:
            yield f"{name} waits: {scan.reason}" + (f"; {scan.remedy}" if scan.remedy else "")
        for job, problem in scan.problems.items():
            yield f"{name}: job {job} cannot go on: {problem}"
        for sector, why in scan.cut.items():
            yield f"{name} goes on without the rest of sector {sector}: {why}"
        if scan.state is ScanState.STREAMING and not scan.rates.get("frames") and _is_old(scan):
            yield f"{name}: no frame was counted within the last second"


def _is_old(scan: ScanView) -> bool:
    """At first a sample may have to come in before anything is counted."""
    return time.time() - scan.since_unix_seconds > _SILENT_SECONDS


def _of_jobs(view: DeploymentView, config: Config) -> Iterator[str]:
    registered = {job.job for job in view.jobs}
    if view.jobs and view.conductor is None:
        yield "no job conducts: none of those registered has taken it on yet"
    elif view.conductor is not None and view.conductor not in registered:
        yield f"the job that conducts is not registered ({view.conductor}); another takes over when its lease is over"
    for job in view.jobs:
        if job.groups_registered < job.groups:
            yield f"job {job.job}: {job.groups_registered} of its {job.groups} rank groups are registered"
        elif not job.is_routed_to:
            yield f"job {job.job} gets no blocks: it is not ready yet for a scan that is under way"
        yield from _of_ranks(job, config)


def _of_ranks(job: JobView, config: Config) -> Iterator[str]:
    if job.age_seconds is not None and job.age_seconds > _SILENT_SECONDS:
        yield f"the leader of job {job.job} has said nothing for {job.age_seconds:.0f} s: {_WHY_SILENT}"
    limit = config.watchdog.stall_seconds
    for rank in job.ranks:
        if rank.silent_seconds is not None and rank.silent_seconds > limit / 2:
            yield (
                f"rank {rank.rank} (pid {rank.pid} on {rank.host}) has been silent for {rank.silent_seconds:.0f} s; "
                f"after {limit:g} s its job ends"
            )


_WHY_SILENT = "is it stopped, or cut off from etcd?"


def _of_senders(view: DeploymentView) -> Iterator[str]:
    for producer in view.producers:
        yield from _silent(f"the producer of sector {producer.status['sector']}", producer)
        table = int(producer.status["table"])
        if view.table is not None and table < view.table.version and _scans_are_under_way(view):
            yield (
                f"the producer of sector {producer.status['sector']} goes by routing table {table}; "
                f"the latest is {view.table.version}"
            )
    yield from dict.fromkeys(filter(None, (producer.status.get("camera_problem") for producer in view.producers)))
    for aggregator in view.aggregators:
        yield from _silent(f"aggregator {aggregator.name}", aggregator)
        if refused := aggregator.status.get("refused"):
            yield f"aggregator {aggregator.name} has refused {refused} messages: its log says why"


def _silent(who: str, process: ProcessView) -> Iterator[str]:
    if process.age_seconds is not None and process.age_seconds > _SILENT_SECONDS:
        yield (
            f"{who} (pid {process.pid} on {process.host}) has said nothing for {process.age_seconds:.0f} s: "
            f"{_WHY_SILENT}"
        )


def _scans_are_under_way(view: DeploymentView) -> bool:
    return any(scan.state in UNDER_WAY for scan in view.scans)


def short(scan: ScanView) -> str:
    """Enough of a uid to tell a deployment's scans apart."""
    return str(scan.uid)[:8]
