"""One more scan of a session."""

import json
import math
import re
from pathlib import Path
from typing import Any

import click

from mpistream.cli.deployments import RunningDeployment, running_deployment
from mpistream.cli.options import (
    config_option,
    counting_options,
    counting_parameters,
    direct_option,
    folder_option,
    overwrite_option,
    source_option,
    wait_seconds_option,
)
from mpistream.cli.testbed import announce_and_follow, note, report, seconds_to_register
from mpistream.launch.announcement import ScanRequest, announce, draft_scan
from mpistream.launch.sessions import Labels, open_session, scan_defaults, session_request, wait_until_served
from mpistream.model.errors import ConfigError

_LABEL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_WHOLE, _NUMBER = re.compile(r"[+-]?[0-9]+"), re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LONGEST_LABEL = 1000


@click.command()
@click.option("--session", "name", required=True, metavar="NAME", help="The session: see mpistream session.")
@source_option
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.h5",
    help="The dataset to write.  [default: scan_NUMBER_UID.h5 in the session's folder]",
)
@overwrite_option
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME=VALUE",
    help="Kept in the dataset: tilt_degrees=-60, for instance. May be given several times.",
)
@counting_options
@direct_option
@click.option("--wait/--no-wait", default=True, show_default=True, help="Follow the scan to its end.")
@wait_seconds_option
@folder_option
@config_option
@click.option("--json", "as_json", is_flag=True, help="The last line of output is one JSON object.")
def start(
    name: str,
    source: str,
    output: Path | None,
    overwrite: bool,
    labels: tuple[str, ...],
    direct: bool,
    wait: bool,
    wait_seconds: float | None,
    folder: Path | None,
    config: Path | None,
    as_json: bool,
    **counting: Any,
) -> None:
    """Start a scan in a session, and follow it to its end.

    It is counted as the session says; options given here come first. Scans stream one after the other: several can be
    started with --no-wait, which prints each one's uid. The exit status is 3 where the dataset has only what had
    arrived.
    """
    values = parse_labels(labels)
    with running_deployment(folder, config) as running:
        request = _request(running, name, source, counting, output, values, overwrite, direct)
        draft, notes = draft_scan(request, running.config)
        seconds = seconds_to_register(running.config, wait_seconds)
        wait_until_served(running.sessions, running.registry, name, direct, seconds, running.scheduler)
        if wait:
            end = announce_and_follow(running.registry, running.config, draft, notes)
        else:
            announce(running.registry, draft)
    if wait:
        report(end, as_json)
        return
    for text in notes:
        note(text)
    if as_json:
        click.echo(json.dumps({"uid": str(draft.uid), "output": draft.output, "session": name}))
    else:
        click.echo(f"scan         {draft.uid} is announced")
        click.echo(f"dataset      {draft.output}")


def _request(
    running: RunningDeployment,
    name: str,
    source: str,
    given: dict[str, Any],
    output: Path | None,
    labels: Labels,
    overwrite: bool,
    direct: bool,
) -> ScanRequest:
    session = open_session(running.sessions, name)
    overrides = {parameter: value for parameter, value in given.items() if value is not None}
    merged, thresholds = scan_defaults(session, overrides)
    return session_request(
        running.sessions,
        running.registry,
        name,
        source,
        counting_parameters(**merged),
        thresholds,
        output=output,
        labels=labels,
        overwrite=overwrite,
        direct=direct,
    )


def parse_labels(texts: tuple[str, ...]) -> dict[str, str | int | float]:
    """``("tilt_degrees=-60.5", "place=edge")``: what reads as a number is one. Raises ConfigError."""
    labels: dict[str, str | int | float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not _LABEL_NAME.fullmatch(name) or name in labels:
            raise ConfigError(
                f"{text!r} is no label, or its name is given twice",
                "write NAME=VALUE; names are of letters, digits and underscores: --label tilt_degrees=-60",
            )
        labels[name] = _label_value(text, value)
    return labels


def _label_value(text: str, value: str) -> str | int | float:
    if _WHOLE.fullmatch(value) and -(2**63) <= int(value) < 2**63:
        return int(value)
    if _NUMBER.fullmatch(value):
        if math.isinf(float(value)):
            raise ConfigError(f"the number in the label {text!r} is too large", "numbers go to 1.7e308")
        return float(value)
    if not value.isprintable() or len(value) > _LONGEST_LABEL:
        raise ConfigError(
            f"the label {text[:80]!r} is too long, or has characters that cannot be printed",
            f"up to {_LONGEST_LABEL} printable characters",
        )
    return value
