"""The scans of a running deployment: starting one, what there are, ending one, finding a frame."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from mpistream.cli.deployments import running_deployment
from mpistream.cli.options import config_option, folder_option
from mpistream.cli.scan_start import start
from mpistream.cli.status import scan_as_json, scan_lines
from mpistream.launch.inspection import find_scan, list_scans
from mpistream.launch.scan_control import abort_scan, redirect_scan
from mpistream.launch.tracing import Trace, trace_frame

_ABORT_SECONDS = 60.0

uid_argument = click.argument("uid", metavar="UID|latest")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


@click.group()
def scan() -> None:
    """Look after scans of a running deployment. A scan is named by its uid, the beginning of it, or `latest`.

    The deployment is that of `testbed up`; with --config the one that the configuration file describes.
    """


scan.add_command(start)


@scan.command("list")
@folder_option
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON list of objects.")
def list_command(folder: Path | None, config: Path | None, as_json: bool) -> None:
    """List every scan that etcd knows, the latest at the end."""
    with running_deployment(folder, config) as running:
        scans = list_scans(running.registry)
    if as_json:
        click.echo(json.dumps([scan_as_json(found) for found in scans]))
        return
    for found in scans:
        click.echo("\n".join(scan_lines(found)))


@scan.command()
@uid_argument
@click.option(
    "--keep/--discard",
    default=True,
    show_default=True,
    help="Write what has arrived as a dataset, or throw it away.",
)
@click.option(
    "--timeout",
    "timeout_seconds",
    default=_ABORT_SECONDS,
    show_default=True,
    type=click.FloatRange(0),
    help="How long to wait for the end, in seconds.",
)
@folder_option
@config_option
@json_option
def abort(
    uid: str, keep: bool, timeout_seconds: float, folder: Path | None, config: Path | None, as_json: bool
) -> None:
    """End a scan, wait until it has ended, and say what became of its data."""
    with running_deployment(folder, config) as running:
        found = find_scan(running.registry, uid)
        status, summary = abort_scan(running.registry, found, keep, timeout_seconds)
    dataset = summary.dataset if summary else None
    if as_json:
        frames = summary.counters.frames if summary else 0
        click.echo(json.dumps({"uid": str(found.facts.uid), **status.to_json(), "dataset": dataset, "frames": frames}))
    elif summary:
        whole = "all" if summary.complete else "what had arrived"
        click.echo(f"scan {found.facts.uid} is {status.state}: {dataset} has {whole}: {summary.counters.frames} frames")
    else:
        click.echo(f"scan {found.facts.uid} is {status.state}: there is no dataset")


@scan.command()
@uid_argument
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), metavar="FILE.h5", help="Where to write it instead."
)
@folder_option
@config_option
@json_option
def redirect(uid: str, output: Path, folder: Path | None, config: Path | None, as_json: bool) -> None:
    """Have the dataset of a scan written elsewhere: one that waits because its disk is full, for instance.

    It is written there at the next attempt, which comes within half a minute.
    """
    with running_deployment(folder, config) as running:
        found = find_scan(running.registry, uid)
        redirect_scan(running.registry, found, output)
    if as_json:
        click.echo(json.dumps({"uid": str(found.facts.uid), "output": str(output.absolute())}))
    else:
        click.echo(f"scan {found.facts.uid} will be written to {output.absolute()}")


@click.command()
@click.option("--frame", required=True, type=click.IntRange(0), help="The camera's number of the frame.")
@click.option("--scan", "uid", default="latest", show_default=True, metavar="UID|latest", help="Which scan.")
@folder_option
@config_option
@json_option
def trace(frame: int, uid: str, folder: Path | None, config: Path | None, as_json: bool) -> None:
    """Say where a frame is: on its way, in a journal, in the dataset, or missing.

    Journals can be read only where the ranks' folder for them can be seen.
    """
    with running_deployment(folder, config) as running:
        found = trace_frame(running.registry, find_scan(running.registry, uid), frame)
    if as_json:
        click.echo(json.dumps({**asdict(found), "uid": str(found.uid)}))
        return
    for name, text in _trace_lines(found):
        click.echo(f"{name:<13}{text}")


def _trace_lines(found: Trace) -> Iterator[tuple[str, str]]:
    first = found.block * found.block_frames
    yield "scan", f"{found.uid}, {found.state}"
    yield "frame", f"{found.frame}, in block {found.block} (frames {first} to {first + found.block_frames - 1})"
    if found.destination is not None:
        to = found.destination
        yield "goes to", f"rank {to.rank} of job {to.job}, pid {to.pid} on {to.host}, by routing table {to.table}"
    for job in found.counted_by:
        yield "counted", f"and journaled by job {job}: no producer keeps it any more"
    for place in found.journals:
        where = place.problem if place.byte is None else f"at byte {place.byte}{_without(place.missing_sectors or ())}"
        yield "journal", f"{place.path}, of rank {place.rank}: {where}"
    if not found.state.is_final and not found.counted_by:
        yield "owed", "in no job's share: its producers keep it, or have not read it yet"
        for sector, said in found.senders.items():
            yield f"  sector {sector}", f"{said.get('sent', 0)} blocks sent, {said.get('owed', 0)} owed"
    for sector, why in found.cut.items():
        yield "cut", f"sector {sector}: {why}"
    for row in found.rows:
        yield "dataset", f"{row.path}, row {row.index}: position ({row.row}, {row.column}), {row.electrons} electrons"
        yield "", f"{'all sectors' if not row.missing_sectors else 'no' + _names(row.missing_sectors)}"
    if found.dataset_problem:
        yield "dataset", found.dataset_problem
    elif found.state.is_final and not found.rows:
        yield "dataset", "has no such frame: no good record of it came" if found.has_dataset else "there is none"


def _without(sectors: tuple[int, ...]) -> str:
    return f", without{_names(sectors)}" if sectors else ", with all sectors"


def _names(sectors: tuple[int, ...]) -> str:
    return f" sector {', '.join(map(str, sectors))}"
