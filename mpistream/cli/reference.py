"""References by name: what there are, what they are, forgetting one."""

import json
from pathlib import Path

import click

from mpistream.cli.deployments import running_deployment
from mpistream.cli.options import config_option, folder_option
from mpistream.cli.status import readable_time
from mpistream.launch.references import check_unchanged, find_reference
from mpistream.model.errors import StorageError
from mpistream.model.session import Reference, ReferenceKind

kind_argument = click.argument("kind", type=click.Choice([str(kind) for kind in ReferenceKind]))
name_argument = click.argument("name", metavar="NAME")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


@click.group()
def reference() -> None:
    """Dark references, pixel masks and thresholds that scans use by name: --dark ref:NAME, for instance.

    They are made by `mpistream dark --name` and `mpistream calibrate --name`.
    """


@reference.command("list")
@folder_option
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON list of objects.")
def list_command(folder: Path | None, config: Path | None, as_json: bool) -> None:
    """List all references."""
    with running_deployment(folder, config) as running:
        found = running.sessions.references()
    if as_json:
        click.echo(json.dumps([entry.model_dump(mode="json") for entry in found]))
        return
    for entry in found:
        click.echo(f"{entry.kind:<12}{entry.name:<24}{readable_time(entry.made_unix_seconds)}  {entry.path}")
    if not found:
        click.echo("no reference; make one: mpistream dark SOURCE --output dark.npy --name NAME")


@reference.command()
@kind_argument
@name_argument
@folder_option
@config_option
@json_option
def show(kind: str, name: str, folder: Path | None, config: Path | None, as_json: bool) -> None:
    """Show a reference, and whether its file still is what it was."""
    with running_deployment(folder, config) as running:
        found = find_reference(running.sessions, ReferenceKind(kind), name)
    problem = _problem_of(found)
    if as_json:
        click.echo(json.dumps({**found.model_dump(mode="json"), "problem": problem}))
        return
    click.echo(f"{found.kind:<13}{found.name}, made {readable_time(found.made_unix_seconds)}")
    click.echo(f"file         {found.path}")
    click.echo(f"sha256       {found.sha256}")
    if found.session:
        click.echo(f"session      {found.session}")
    for what, value in found.about.items():
        click.echo(f"{what.replace('_', ' '):<12} {value:g}" if isinstance(value, float) else f"{what:<12} {value}")
    click.echo(f"{'problem' if problem else 'problems':<13}{problem or 'none'}")


def _problem_of(found: Reference) -> str:
    try:
        check_unchanged(found)
    except StorageError as error:
        return f"{error.message}; {error.remedy}"
    return ""


@reference.command()
@kind_argument
@name_argument
@folder_option
@config_option
def forget(kind: str, name: str, folder: Path | None, config: Path | None) -> None:
    """Take a reference's name away. Its file stays, and scans that were started with it."""
    with running_deployment(folder, config) as running:
        found = find_reference(running.sessions, ReferenceKind(kind), name)
        running.sessions.forget_reference(found.kind, name)
    click.echo(f"{found.kind} {name} is forgotten; its file is still there: {found.path}")
