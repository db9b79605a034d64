"""A batch job is submitted: entirely, or not at all."""

import logging
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.cluster.job_script import JobPlan, JobRequest, render_script
from mpistream.launch.cluster.mode_options import named_references
from mpistream.launch.cluster.slurm import SchedulerUnclear, Slurm
from mpistream.model.errors import ConfigError, CoordinationError, SchedulerError, StorageError
from mpistream.model.session import BatchJob, BatchJobState, Mode, ReferenceKind, Session

#: Where in a session's folder its jobs' scripts and logs lie.
JOBS = "jobs"

_log = logging.getLogger(__name__)

#: So long a job may be missing from the queue that Slurm has begun to take.
_LOOK_SECONDS = 15.0
_TURN_SECONDS = 3.0
_LOOK = "squeue --me --states=all --format='%i %j %T %k'"

#: The mode that leaves references of a kind.
_MAKER = {ReferenceKind.DARK: Mode.DARK, ReferenceKind.MASK: Mode.DARK, ReferenceKind.THRESHOLDS: Mode.CALIBRATE}
_IN_WORDS = {
    ReferenceKind.DARK: "dark reference",
    ReferenceKind.MASK: "pixel mask",
    ReferenceKind.THRESHOLDS: "thresholds",
}


@dataclass(frozen=True)
class Submitted:
    """``cluster`` and ``number``: as in its record."""

    number: str
    cluster: str
    script: Path
    log: Path


def session_for(registry: SessionRegistry, name: str) -> Session:
    """The session that a job is to serve. Raises ConfigError where there is none, or it is over."""
    session = registry.session(name)
    if session is None:
        there = [known for known in registry.sessions() if registry.session_stop(known) is None]
        raise ConfigError(
            f"there is no session {name!r}",
            f"take one of {', '.join(there)}; or " * bool(there)
            + f"start it: mpistream session start {name} --datasets DIR",
        )
    if (stop := registry.session_stop(name)) is not None:
        raise ConfigError(
            f"the session {name!r} is stopped" + (f": {stop.reason}" if stop.reason else ""),
            "start another one: mpistream session start NAME --datasets DIR",
        )
    return session


def check_references(registry: SessionRegistry, request: JobRequest) -> None:
    """Raises ConfigError for a reference that is in nobody's list."""
    for kind, name in named_references(request.options).items():
        if registry.reference(kind, name) is None:
            known = ", ".join(reference.name for reference in registry.references(kind))
            remedy = f"take one of {known}" if known else f"give a file, or let a {_MAKER[kind]} job make one"
            raise ConfigError(f"no {_IN_WORDS[kind]} has the name {name!r}", remedy)


def submit_job(plan: JobPlan, slurm: Slurm, registry: SessionRegistry | None) -> Submitted:
    """Writes the script into the job's folder and submits it; where there is a registry, its record, too.

    ``registry`` is None for jobs that need no etcd. Raises SchedulerError or StorageError where nothing is submitted,
    and CoordinationError where the record could not be written: the job is cancelled then. Likewise where this is
    interrupted. A job of which sbatch does not say whether Slurm has it is looked for; where nobody knows, the error
    says so, and by which comment it is found.
    """
    cluster = slurm.cluster()  # who answers to this takes jobs
    _check_nodes(plan, slurm)
    text = render_script(plan)
    script = _write_script(plan, text)
    number = _number_of_submitted(plan, slurm, script)
    if registry is not None:
        _record(plan, slurm, registry, cluster, number)
    return Submitted(number, cluster, script, plan.log_of(number))


def _check_nodes(plan: JobPlan, slurm: Slurm) -> None:
    """Where the site profile does not say how many nodes there are: sbatch takes jobs that can never begin.

    Raises ConfigError.
    """
    if plan.site.nodes.most is not None:
        return
    sizes = slurm.node_sizes(plan.site.scheduler.partition)
    if not sizes:
        return  # of a partition that is not there sbatch says so
    needed = plan.tasks_per_node * plan.site.cpus_per_task(plan.tasks_per_node)
    fitting = sum(size >= needed for size in sizes.values())
    if plan.nodes > len(sizes):
        raise ConfigError(
            f"more rank groups than nodes: {plan.nodes} nodes asked for, Slurm has {len(sizes)}",
            f"give --nodes {len(sizes)} or less",
        )
    if plan.nodes > fitting:
        raise ConfigError(
            f"{plan.nodes} nodes of {needed} CPUs asked for, Slurm has {fitting}: {max(sizes.values())} is the most",
            f"hardware_threads in the site profile {plan.site.name} must not be more; sinfo -N -l shows the nodes",
        )


def _write_script(plan: JobPlan, text: str) -> Path:
    """``NAME.sh``, or with a number where there is one from an earlier time. Raises StorageError."""
    folder = plan.request.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot make the folder {folder} for the job's script and log: {error.strerror}",
            "give another one with --chdir; all nodes must see it",
        ) from error
    for count in range(1, 10_000):
        path = folder / (f"{plan.name}.sh" if count == 1 else f"{plan.name}-{count}.sh")
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755)
        except FileExistsError:
            continue
        except OSError as error:
            raise StorageError(
                f"cannot write the job's script into {folder}: {error.strerror}",
                "give another folder with --chdir; all nodes must see it",
            ) from error
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        return path
    raise StorageError(f"{folder} is full of scripts {plan.name}-*.sh", "remove those that are no more needed")


def _number_of_submitted(plan: JobPlan, slurm: Slurm, script: Path) -> str:
    """Submits the script, which stays where there is a job, or may be one. Raises SchedulerError."""
    mark = f"mpistream-{secrets.token_hex(6)}"
    own = [word.partition("=")[2] for word in plan.site.scheduler.directives if word.startswith("--comment=")]
    try:
        return slurm.submit(script, " ".join((*own, mark)))
    except SchedulerUnclear as error:
        number = _look_for(plan, slurm, script, mark, error.message)
        if number is not None:
            return number
        script.unlink(missing_ok=True)
        raise SchedulerError(
            f"{error.message}; Slurm has no such job",
            f"submit it again; should one come after all, its comment is {mark} ({_LOOK}); {error.remedy}",
        ) from error
    except SchedulerError:
        script.unlink(missing_ok=True)
        raise
    except BaseException:
        _withdraw(plan, slurm, script, mark)
        raise


def _withdraw(plan: JobPlan, slurm: Slurm, script: Path, mark: str) -> None:
    """After an interruption: the job is cancelled, if there is one."""
    _log.warning("interrupted: Slurm is asked whether it has the job already, to cancel it")
    number = _look_for(plan, slurm, script, mark, "interrupted")
    if number is not None:
        _cancel_interrupted(slurm, number)
    script.unlink(missing_ok=True)


def _cancel_interrupted(slurm: Slurm, number: str) -> None:
    """Raises SchedulerError where the job stays."""
    try:
        slurm.cancel(number)
    except SchedulerError as error:
        raise SchedulerError(
            f"interrupted, but job {number} is submitted, and could not be cancelled: {error.message}",
            f"cancel it yourself: scancel {number}",
        ) from error


def _look_for(plan: JobPlan, slurm: Slurm, script: Path, mark: str, why: str) -> str | None:
    """The number of the job with that mark, None where there is none. Raises SchedulerError where Slurm does not say,
    or this is interrupted.
    """
    try:
        return _patiently_found(slurm, mark)
    except (SchedulerError, KeyboardInterrupt) as error:
        doubt = error.message if isinstance(error, SchedulerError) else "interrupted while Slurm was asked"
        raise SchedulerError(
            f"{why}; the job {plan.name} may have been submitted, or not: {doubt}",
            f"look for its comment {mark}: {_LOOK}; scancel NUMBER ends it; its script: {script}",
        ) from error


def _patiently_found(slurm: Slurm, mark: str) -> str | None:
    """None only after a while: Slurm's controller may still be at work on the submission. Raises SchedulerError."""
    deadline = time.monotonic() + _LOOK_SECONDS
    while True:
        is_last = time.monotonic() > deadline
        try:
            number = slurm.submitted_with(mark)
            if number is not None or is_last:
                return number
        except SchedulerError:
            if is_last:
                raise
        time.sleep(_TURN_SECONDS)


def _record(plan: JobPlan, slurm: Slurm, registry: SessionRegistry, cluster: str, number: str) -> None:
    """Raises CoordinationError, once the job is cancelled."""
    job = BatchJob(
        scheduled=number,
        cluster=cluster,
        mode=plan.request.mode,
        session=plan.request.session,
        nodes=plan.nodes,
        log=str(plan.log_of(number)),
        state=BatchJobState.SUBMITTED,
        submitted_unix_seconds=time.time(),
    )
    try:
        registry.note_submission(job)
    except CoordinationError as error:
        try:
            slurm.cancel(number)
        except SchedulerError as second:
            raise CoordinationError(
                f"job {number} was submitted, but could neither be recorded in etcd ({error.message}) nor cancelled "
                f"({second.message})",
                f"cancel it yourself: scancel {number}",
            ) from error
        raise CoordinationError(
            f"job {number} was submitted, and is cancelled again: it could not be recorded in etcd: {error.message}",
            error.remedy,
        ) from error
    except BaseException:
        # interrupted: what nobody knows of must not run
        _cancel_interrupted(slurm, number)
        raise
