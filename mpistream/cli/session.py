"""Sessions: many scans, counted alike, in one folder."""

import json
from pathlib import Path
from typing import Any

import click

from mpistream.cli.deployments import running_deployment
from mpistream.cli.options import config_option, counting_options, counting_parameters, folder_option
from mpistream.cli.session_report import (
    counts,
    print_session,
    serving_words,
    session_as_json,
    session_line,
    unfinished_words,
)
from mpistream.cli.testbed import note
from mpistream.launch.session_history import SessionView, list_sessions, show_session, wait_until_over
from mpistream.launch.sessions import start_session, stop_session

name_argument = click.argument("name", metavar="NAME")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


@click.group()
def session() -> None:
    """Sessions: many scans, counted alike, with their datasets in one folder.

    The deployment is that of `testbed up`; with --config the one that the configuration file describes.
    """


@session.command()
@name_argument
@click.option(
    "--datasets",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the datasets of its scans are written; the ranks of all its jobs must see it under this path.",
)
@counting_options
@folder_option
@config_option
@json_option
def start(
    name: str,
    datasets: Path,
    thresholds: Path | None,
    folder: Path | None,
    config: Path | None,
    as_json: bool,
    **counting: Any,
) -> None:
    """Start a session, whose scans are counted as the options say.

    Each scan can be counted otherwise. References by name (ref:NAME) are looked up when a scan starts.
    """
    parameters = counting_parameters(**counting)
    with running_deployment(folder, config) as running:
        started, notes = start_session(running.sessions, name, datasets, parameters, thresholds)
        view = show_session(running.sessions, running.registry, name)
    for text in notes:
        note(text)
    if as_json:
        click.echo(json.dumps(session_as_json(view)))
    else:
        click.echo(
            f"session {name} takes scans; next: mpistream scan start --session {name} --source sim:32x32; "
            f"their datasets go to {started.folder}"
        )


@session.command("list")
@folder_option
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON list of objects.")
def list_command(folder: Path | None, config: Path | None, as_json: bool) -> None:
    """List all sessions, the oldest first."""
    with running_deployment(folder, config) as running:
        views = list_sessions(running.sessions, running.registry, running.scheduler)
    if as_json:
        click.echo(json.dumps([session_as_json(view) for view in views]))
        return
    for view in views:
        click.echo(session_line(view))
    if not views:
        click.echo("no session; start one: mpistream session start NAME --datasets DIR")


@session.command()
@name_argument
@folder_option
@config_option
@json_option
def show(name: str, folder: Path | None, config: Path | None, as_json: bool) -> None:
    """Show a session: its scans in order, why something is incomplete, and the batch jobs that serve it."""
    with running_deployment(folder, config) as running:
        view = show_session(running.sessions, running.registry, name, running.scheduler)
    if as_json:
        click.echo(json.dumps(session_as_json(view)))
    else:
        print_session(view)


@session.command()
@name_argument
@click.option("--reason", default="", metavar="TEXT", help="Why, for those who look at it later.")
@click.option("--wait", is_flag=True, help="Wait until no scan is unfinished and no batch job serves it.")
@click.option(
    "--timeout",
    "timeout_seconds",
    default=600.0,
    show_default=True,
    type=click.FloatRange(0),
    help="With --wait: how long, in seconds.",
)
@folder_option
@config_option
@json_option
def stop(
    name: str,
    reason: str,
    wait: bool,
    timeout_seconds: float,
    folder: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Stop a session: it takes no more scans. Those that it has are finished, then its batch jobs end."""
    with running_deployment(folder, config) as running:
        held = stop_session(running.sessions, name, reason)

        def look(asks_scheduler: bool) -> SessionView:
            scheduler = running.scheduler if asks_scheduler else None
            return show_session(running.sessions, running.registry, name, scheduler)

        view = wait_until_over(look, timeout_seconds, _say_what_is_left) if wait else look(True)
    if held.reason != reason:
        note(f"it had been stopped before{f': {held.reason}' if held.reason else ''}")
    if as_json:
        click.echo(json.dumps(session_as_json(view)))
        return
    click.echo(f"session {name} is stopped: {counts(view)}")
    for line in (*unfinished_words(view), *serving_words(view)):
        click.echo(line)


def _say_what_is_left(view: SessionView) -> None:
    note("; ".join((*unfinished_words(view), *serving_words(view))))
