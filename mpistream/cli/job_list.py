"""What has become of batch jobs, without knowing Slurm: list, show, cancel."""

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import click

from mpistream.cli.deployments import running_deployment
from mpistream.cli.options import config_option, folder_option
from mpistream.cli.status import readable_seconds
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.cluster.job_view import JobView, find_job, last_lines, view_jobs, waits
from mpistream.launch.cluster.slurm import Slurm
from mpistream.launch.processes import has_ended
from mpistream.model.errors import ConfigError, SchedulerError
from mpistream.model.session import BatchJobState, JobStep

_LINES = 20
_LOCAL = "local-"

json_option = click.option("--json", "as_json", is_flag=True, help="JSON.")
number_argument = click.argument("number", metavar="NUMBER")
cluster_option = click.option(
    "--cluster", default="", metavar="NAME", help="The cluster of the job, where several have one of this number."
)


@click.command("list")
@click.option("--all", "with_ended", is_flag=True, help="Also those that have ended.")
@folder_option
@config_option
@json_option
def list_command(with_ended: bool, folder: Path | None, config: Path | None, as_json: bool) -> None:
    """List the batch jobs of a deployment, the latest at the end."""
    with running_deployment(folder, config) as running:
        views = view_jobs(running.sessions, running.scheduler, socket.gethostname())
    views = [view for view in views if with_ended or not view.is_over]
    if as_json:
        click.echo(json.dumps([_as_json(view) for view in views]))
        return
    for view in views:
        click.echo(_line(view))
        if view.reason:
            click.echo(f"            {view.reason}")
    if not views:
        click.echo("no batch job" + ("" if with_ended else " is waiting or running; those that have ended: --all"))


@click.command()
@number_argument
@cluster_option
@click.option("--lines", default=_LINES, show_default=True, type=click.IntRange(0), help="Of the log.")
@folder_option
@config_option
@json_option
def show(number: str, cluster: str, lines: int, folder: Path | None, config: Path | None, as_json: bool) -> None:
    """Show what a batch job has done: its steps, how they ended, and the last lines of its log."""
    with running_deployment(folder, config) as running:
        view = find_job(running.sessions, running.scheduler, socket.gethostname(), number, cluster)
    job, said = view.job, last_lines(view.job.log, lines)
    if as_json:
        click.echo(json.dumps({**_as_json(view), "log_lines": said}))
        return
    click.echo(_line(view))
    for name, text in (("reason", view.reason), ("remedy", view.job.remedy), ("log", job.log)):
        if text:
            click.echo(f"{name:<12}{text}")
    if job.bad_nodes:
        click.echo(f"{'without':<12}{', '.join(job.bad_nodes)}")
    for count, step in enumerate(job.steps, 1):
        click.echo(f"{f'step {count}':<12}{_step(step)}")
    for line in said or (job.steps[-1].last_lines if job.steps else ()):
        click.echo(f"  | {line}")


@click.command()
@number_argument
@cluster_option
@click.option("--finish", is_flag=True, help="Let it finish the scan in hand first.")
@folder_option
@config_option
def cancel(number: str, cluster: str, finish: bool, folder: Path | None, config: Path | None) -> None:
    """End a batch job. What it has in hand goes on with the next job of its session."""
    with running_deployment(folder, config) as running:
        view = find_job(running.sessions, running.scheduler, socket.gethostname(), number, cluster)
        if view.is_over:
            raise ConfigError(f"job {number} is {view.state} already", f"see mpistream job show {number}")
        if view.job.scheduled.startswith(_LOCAL):
            _signal_local(view, signal.SIGUSR2 if finish else signal.SIGTERM)
        else:
            _cancel_scheduled(running.sessions, running.scheduler, view, finish)
    click.echo(f"job {number} is asked to end{' after the scan in hand' if finish else ''}")


def _cancel_scheduled(registry: SessionRegistry, slurm: Slurm, view: JobView, finish: bool) -> None:
    """Raises SchedulerError where the Slurm that answers here is another cluster's: its job of that number is another
    one.
    """
    job, number, here = view.job, view.job.scheduled, slurm.cluster()
    if job.cluster != here:
        raise SchedulerError(
            f"job {number} is one of {job.cluster}, and the Slurm that answers here is that of {here}: nothing is "
            "cancelled",
            f"on a login node of {job.cluster}: mpistream job cancel {number} --cluster {job.cluster}",
        )
    if finish and not waits(view):
        slurm.run("scancel", "--batch", "--signal=USR2", number)
        return
    slurm.cancel(number)
    if waits(view):  # it never runs, so that it cannot say so itself; unless it has just begun
        ended = {"state": BatchJobState.ENDED, "reason": "cancelled before it began"}
        registry.replace_batch_job(job, job.model_copy(update={**ended, "ended_unix_seconds": time.time()}))


def _signal_local(view: JobView, number: signal.Signals) -> None:
    pid = int(view.job.scheduled.removeprefix(_LOCAL))
    if view.job.cluster != socket.gethostname():
        raise SchedulerError(f"job {view.job.scheduled} runs on {view.job.cluster}", "cancel it there")
    if not has_ended(pid) and b"run" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
        os.kill(pid, number)


def _line(view: JobView) -> str:
    job = view.job
    began = job.started_unix_seconds or job.submitted_unix_seconds
    until = job.ended_unix_seconds or time.time()
    age = f" {'after' if view.is_over else 'for'} {readable_seconds(until - began)}" if began else ""
    text = f"{job.scheduled:<12}{view.state}{age}  {job.mode}, {job.nodes} node{'s' if job.nodes > 1 else ''}"
    if job.session:
        text += f", session {job.session}"
    if job.ends_by_unix_seconds and not view.is_over:
        text += f", time left {readable_seconds(job.ends_by_unix_seconds - time.time())}"
    return text


def _step(step: JobStep) -> str:
    if step.ended_unix_seconds is None:
        return f"on {', '.join(step.nodes)}, running for {readable_seconds(time.time() - step.started_unix_seconds)}"
    lasted = readable_seconds(step.ended_unix_seconds - step.started_unix_seconds)
    return f"on {', '.join(step.nodes)} for {lasted}: {step.how}"


def _as_json(view: JobView) -> dict[str, Any]:
    return {**view.job.model_dump(mode="json"), "state": view.state, "reason": view.reason}


list = list_command  # a lazy group finds its subcommands by their names
