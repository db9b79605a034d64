"""What has become of batch jobs, without knowing Slurm: list, show, cancel."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mpistream.cli.options import config_option, folder_option, running_config
from mpistream.cli.status import readable_seconds
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.cluster.job_view import JobView, find_job, last_lines, view_jobs, waits
from mpistream.launch.cluster.slurm import Slurm
from mpistream.launch.processes import has_ended
from mpistream.launch.supervisor import default_folder
from mpistream.model.errors import ConfigError, SchedulerError
from mpistream.model.session import BatchJobState, JobStep
from mpistream.pipeline.process import connect_etcd

_LINES = 20
_LOCAL = "local-"

json_option = click.option("--json", "as_json", is_flag=True, help="JSON.")
number_argument = click.argument("number", metavar="NUMBER")


@contextmanager
def _opened(folder: Path | None, config: Path | None) -> Iterator[tuple[SessionRegistry, Slurm]]:
    """What etcd knows, and the Slurm that is reached from here: a testbed's own, where there is one."""
    from mpistream.launch.cluster.slurm_testbed import environment_of

    loaded = running_config(folder, config)
    place = (folder or default_folder()).absolute()
    environment = environment_of(place) if config is None else {}
    with connect_etcd(loaded) as etcd:
        yield SessionRegistry(etcd), Slurm(environment)


@click.command("list")
@click.option("--all", "with_ended", is_flag=True, help="Also those that have ended.")
@folder_option
@config_option
@json_option
def list_command(with_ended: bool, folder: Path | None, config: Path | None, as_json: bool) -> None:
    """List the batch jobs of a deployment, the latest at the end."""
    with _opened(folder, config) as (registry, slurm):
        views = view_jobs(registry, slurm, socket.gethostname())
    views = [view for view in views if with_ended or not view.job.state.is_final]
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
@click.option("--lines", default=_LINES, show_default=True, type=click.IntRange(0), help="Of the log.")
@folder_option
@config_option
@json_option
def show(number: str, lines: int, folder: Path | None, config: Path | None, as_json: bool) -> None:
    """Show what a batch job has done: its steps, how they ended, and the last lines of its log."""
    with _opened(folder, config) as (registry, slurm):
        view = find_job(registry, slurm, socket.gethostname(), number)
    job, said = view.job, last_lines(view.job.log, lines)
    if as_json:
        click.echo(json.dumps({**_as_json(view), "log_lines": said}))
        return
    click.echo(_line(view))
    for name, text in (("reason", view.reason), ("remedy", view.remedy), ("log", job.log)):
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
@click.option("--finish", is_flag=True, help="Let it finish the scan in hand first.")
@folder_option
@config_option
def cancel(number: str, finish: bool, folder: Path | None, config: Path | None) -> None:
    """End a batch job. What it has in hand goes on with the next job of its session."""
    with _opened(folder, config) as (registry, slurm):
        view = find_job(registry, slurm, socket.gethostname(), number)
        if view.is_over:
            raise ConfigError(f"job {number} is {view.state} already", f"see mpistream job show {number}")
        if view.job.scheduled.startswith(_LOCAL):
            _signal_local(view, signal.SIGUSR2 if finish else signal.SIGTERM)
        elif finish and not waits(view):
            slurm.run("scancel", "--batch", "--signal=USR2", number)
        else:
            slurm.cancel(number)
            if waits(view):  # it never runs, so that it cannot say so itself
                ended = {"state": BatchJobState.ENDED, "reason": "cancelled before it began"}
                registry.write_batch_job(view.job.model_copy(update={**ended, "ended_unix_seconds": time.time()}))
    click.echo(f"job {number} is asked to end{' after the scan in hand' if finish else ''}")


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
    return {**view.job.model_dump(mode="json"), "state": view.state, "reason": view.reason, "remedy": view.remedy}


list = list_command  # a lazy group finds its subcommands by their names
