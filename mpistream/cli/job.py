"""Batch jobs of a cluster: their scripts and their submission."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mpistream.cli import LazyGroup
from mpistream.cli.job_options import COMMON, OF_MODE, Modes, path_option
from mpistream.cli.options import load_config
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.cluster.job_script import JobRequest, plan_job, render_script
from mpistream.launch.cluster.mode_options import ABOUT, checked_options
from mpistream.launch.cluster.plain_scripts import write_plain_scripts
from mpistream.launch.cluster.site import Site, known_sites, load_site
from mpistream.launch.cluster.slurm import Slurm
from mpistream.launch.cluster.submission import JOBS, check_references, session_for, submit_job
from mpistream.launch.supervisor import config_of, default_folder
from mpistream.launch.testbed_folder import TestbedFolder
from mpistream.model.errors import EtcdUnreachable, StorageError
from mpistream.model.session import Mode, Session
from mpistream.pipeline.process import connect_etcd

#: The profile of the Slurm that `mpistream testbed slurm up` starts.
_TESTBED = "testbed"
#: They bring along all that they need, etcd too: what stands in the deployment's is for people.
_SERVING_NOBODY = frozenset({Mode.BENCHMARK})


@click.group(
    cls=LazyGroup,
    # a subcommand in another module is one more line here
    lazy={
        "submit": "mpistream.cli.job",
        "render": "mpistream.cli.job",
        "sites": "mpistream.cli.job",
        "list": "mpistream.cli.job_list:list_command",
        "show": "mpistream.cli.job_list",
        "cancel": "mpistream.cli.job_list",
        "run": "mpistream.cli.job_run",
        "plain": "mpistream.cli.job",
    },
)
def job() -> None:
    """Batch jobs under Slurm, one kind for each mode of experiment. docs/modes.md describes the modes."""


@click.command()
def sites() -> None:
    """List the site profiles that come with mpistream. docs/cluster.md says how to write another one."""
    for name in known_sites():
        click.echo(f"{name:<14}{load_site(name).about}")


@click.group(cls=Modes)
def render() -> None:
    """Write the sbatch script of a job, to be read, edited and submitted by hand. It needs no Slurm and no etcd."""


@click.group(cls=Modes)
def submit() -> None:
    """Write the sbatch script of a job into its session's folder, submit it, and note it in etcd.

    Everything that can be wrong is found before anything is submitted.
    """


def _commands_of_modes(group: click.Group, more: list[click.Option], act: Callable[..., None]) -> None:
    """Each mode's subcommand calls ``act`` with the job that is asked for, its site, and what ``more`` was given."""
    names = {option.name for option in more}

    def command_of(mode: Mode) -> click.Command:
        def callback(site: str, chdir: Path | None, **values: Any) -> None:
            others = {name: values.pop(name) for name in names}
            options = {option.name: values.pop(option.name) for option in OF_MODE[mode]}
            if mode is Mode.TIMESERIES:
                options["each"] = not options["join"]
            request = JobRequest(
                mode=mode, folder=(chdir or Path()).absolute(), options=checked_options(mode, options), **values
            )
            act(request, load_site(site), folder_is_given=chdir is not None, **others)

        return click.Command(mode.value, callback=callback, params=[*OF_MODE[mode], *COMMON, *more], help=ABOUT[mode])

    for mode in Mode:
        group.add_command(command_of(mode))


def _render(request: JobRequest, site: Site, folder_is_given: bool, script: Path | None, datasets: Path | None) -> None:
    config = request.config.absolute() if request.config else None
    folder = datasets.absolute() if datasets else None
    text = render_script(plan_job(replace(request, config=config, datasets=folder), site))
    if script is None:
        click.echo(text, nl=False)
        return
    try:
        with script.open("x") as file:
            file.write(text)
        script.chmod(0o755)
    except FileExistsError:
        raise StorageError(f"{script} is already there", "take another name, or remove it") from None
    click.echo(f"wrote {script}; next: sbatch {script}")


def _submit(request: JobRequest, site: Site, folder_is_given: bool, folder: Path | None, as_json: bool) -> None:
    slurm, request = _at_testbed(request, site, folder)
    plan = plan_job(request, site)
    slurm.require("sbatch")
    with _session_registry(request) as (registry, why_not):
        session = None if registry is None else _session(registry, request)
        if session is not None:
            request = replace(request, datasets=Path(session.folder))
            if not folder_is_given:
                request = replace(request, folder=Path(session.folder) / JOBS)
            plan = replace(plan, request=request)
        done = submit_job(plan, slurm, registry)
    if as_json:
        names = {"job": done.number, "cluster": done.cluster, "script": str(done.script), "log": str(done.log)}
        click.echo(json.dumps({**names, "recorded": registry is not None}))
        return
    click.echo(f"submitted job {done.number} to {done.cluster}")
    click.echo(f"script       {done.script}")
    click.echo(f"log          {done.log}")
    if why_not:
        click.echo(f"not in etcd  {why_not}; squeue --me shows the job")


def _session(registry: SessionRegistry, request: JobRequest) -> Session | None:
    """The session that the job serves, in whose folder it lies; a benchmark serves none, and may name any."""
    if request.mode in _SERVING_NOBODY:
        return registry.session(request.session)
    check_references(registry, request)
    return session_for(registry, request.session)


def _at_testbed(request: JobRequest, site: Site, folder: Path | None) -> tuple[Slurm, JobRequest]:
    """The Slurm to submit to; a testbed's configuration where none was given."""
    if folder is None and site.name != _TESTBED:
        config = request.config.absolute() if request.config else None
        return Slurm(), replace(request, config=config)
    from mpistream.launch.cluster.slurm_testbed import environment_of

    place = (folder or default_folder()).absolute()
    config_of(place)  # for who says that no testbed runs there
    config = request.config or TestbedFolder(place).config_path
    return Slurm(environment_of(place)), replace(request, config=config.absolute())


@contextmanager
def _session_registry(request: JobRequest) -> Iterator[tuple[SessionRegistry | None, str]]:
    """None for the job that needs no etcd, where no configuration names one, or it does not answer: then also why."""
    if request.config is None:
        yield None, ""
        return
    why_not = ""
    with ExitStack() as opened:
        registry = None
        try:
            registry = SessionRegistry(opened.enter_context(connect_etcd(load_config(request.config))))
        except EtcdUnreachable as error:
            if request.mode not in _SERVING_NOBODY:
                raise
            why_not = error.message
        yield registry, why_not


_commands_of_modes(
    render,
    [
        path_option("--script", "FILE.sh", "Where to write it, instead of stdout."),
        path_option("--datasets", "DIR", "Folder of the session's datasets: the script checks and stripes it."),
    ],
    _render,
)
_commands_of_modes(
    submit,
    [
        path_option("--folder", "DIR", "Submit to the Slurm testbed in this folder."),
        click.Option(["--json", "as_json"], is_flag=True, help="One JSON object."),
    ],
    _submit,
)


@click.command(hidden=True)
@click.argument("folder", type=click.Path(path_type=Path))
def plain(folder: Path) -> None:
    """Write the scripts to fill in, one per mode."""
    for path in write_plain_scripts(folder):
        click.echo(path)
