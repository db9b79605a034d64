"""A whole deployment on this machine."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mpistream.cli.deployments import running_deployment
from mpistream.cli.options import (
    config_option,
    counting_parameters,
    folder_option,
    layout_options,
    load_config,
    scan_options,
    wait_seconds_option,
)
from mpistream.cli.report import ScanProgress, print_json, print_summary
from mpistream.cli.slurm_testbed import slurm
from mpistream.control.registry import Registry
from mpistream.control.run_state import ScanState
from mpistream.launch import single_run
from mpistream.launch.absence import wait_until_present
from mpistream.launch.announcement import ScanRequest, announce, draft_scan
from mpistream.launch.references import resolve_references
from mpistream.launch.scan_follower import ScanEnd, ScanFollower, in_words
from mpistream.launch.supervisor import cannot_live, default_folder
from mpistream.launch.supervisor import down as end_testbed
from mpistream.launch.supervisor import ps as list_testbed
from mpistream.launch.supervisor import supervise as supervise_testbed
from mpistream.launch.supervisor import up as start_testbed
from mpistream.launch.testbed import Testbed
from mpistream.model.config import Config
from mpistream.model.scan import ScanRecord

#: The exit status of a scan whose dataset has only what had arrived.
NOT_WHOLE = 3

#: A process that is being started again registers within so many seconds.
_RETURN_SECONDS = 5.0


def scan_request(
    source: str,
    output: Path,
    overwrite: bool,
    direct: bool,
    thresholds: Path | None,
    raw: bool = False,
    **counting: Any,
) -> ScanRequest:
    """The options of ``scan_options`` as a request."""
    return ScanRequest(source, output, counting_parameters(**counting), overwrite, direct, thresholds, recording=raw)


def seconds_to_register(config: Config, given: float | None) -> float:
    """For what is missing: ``given``, or until what had just died would be back."""
    return config.etcd.lease_seconds + _RETURN_SECONDS if given is None else given


def note(text: str) -> None:
    """One line on stderr: stdout is for results."""
    click.echo(f"mpistream: note: {text}", err=True)


def run_once(request: ScanRequest, groups: int, ranks_per_group: int, config: Config) -> ScanEnd:
    """One scan with processes that live only for it."""
    draft, notes = draft_scan(request, config)

    def follow_it(registry: Registry, draft: ScanRecord, turn: Callable[[], object]) -> ScanEnd:
        return announce_and_follow(registry, config, draft, notes, turn)

    return single_run.run_once(draft, groups, ranks_per_group, config, follow_it, note)


def announce_and_follow(
    registry: Registry,
    config: Config,
    draft: ScanRecord,
    notes: tuple[str, ...],
    turn: Callable[[], object] = lambda: None,
) -> ScanEnd:
    """Shows the scan's progress until it has ended."""
    for text in notes:
        note(text)
    with ScanProgress(draft) as progress:
        follower = ScanFollower(registry, draft, config, note, turn)
        end = follower.follow(progress.update, begin=lambda: announce(registry, draft))
        if end.status.state is ScanState.COMMITTED:
            progress.finish()
        return end


def report(end: ScanEnd, as_json: bool) -> None:
    """Prints what became of a scan. Exits with NOT_WHOLE where its dataset has only what had arrived."""
    if as_json:
        print_json(end)
    else:
        print_summary(end.summary)
    if end.status.state is not ScanState.COMMITTED:
        note(f"the scan is {end.status.state}: {in_words(end.status)}")
        sys.exit(NOT_WHOLE)


@click.group()
def testbed() -> None:
    """Everything on this machine: etcd, 4 producers, an aggregator and an MPI job, as real processes."""


@testbed.command()
@scan_options
@layout_options
@config_option
def run(groups: int, ranks_per_group: int, config: Path | None, as_json: bool, **scan: Any) -> None:
    """Start everything, stream and count one scan, end everything.

    A process that ends meanwhile is started again. The exit status is 3 where the dataset has only what had arrived.
    """
    report(run_once(scan_request(**scan), groups, ranks_per_group, load_config(config)), as_json)


@testbed.command()
@layout_options
@folder_option
@config_option
@click.option("--fresh", is_flag=True, help="Forget the scans that the last testbed there has left unfinished.")
def up(groups: int, ranks_per_group: int, folder: Path | None, config: Path | None, fresh: bool) -> None:
    """Start the processes and leave them running, for many scans.

    A process that ends is started again. Scans that the last testbed in the folder has left unfinished go on.
    """
    load_config(config)
    place = (folder or default_folder()).absolute()
    layout = ["supervise", "--groups", str(groups), "--ranks-per-group", str(ranks_per_group)]
    goes_on = start_testbed(place, layout, config.absolute() if config else None, fresh)
    what = "is up again, and unfinished scans go on" if goes_on else "is up"
    click.echo(f"the testbed {what} in {place}; next: mpistream testbed scan --source sim:32x32 --output scan.h5")


@testbed.command()
@scan_options
@wait_seconds_option
@folder_option
@config_option
def scan(wait_seconds: float | None, folder: Path | None, config: Path | None, as_json: bool, **scan: Any) -> None:
    """Stream and count one scan with the processes that are running.

    They are those of `testbed up`; with --config those of the deployment that the configuration file describes. What
    dies meanwhile is waited for. The exit status is 3 where the dataset has only what had arrived.
    """
    request = scan_request(**scan)
    with running_deployment(folder, config) as running:
        draft, notes = draft_scan(resolve_references(running.sessions, request), running.config)
        wait_until_present(running.registry, draft.direct, seconds_to_register(running.config, wait_seconds))
        end = announce_and_follow(running.registry, running.config, draft, notes)
    report(end, as_json)


@testbed.command()
@folder_option
@click.option("--json", "as_json", is_flag=True, help="One JSON list of objects.")
def ps(folder: Path | None, as_json: bool) -> None:
    """List the processes that run."""
    place = folder or default_folder()
    entries = list_testbed(place)
    for problem in cannot_live(place):
        note(problem)
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in entries]))
        return
    click.echo(f"{'ROLE':<12}{'NAME':<18}{'PID':>8}  ENDPOINT")
    for entry in entries:
        click.echo(f"{entry.role:<12}{entry.name:<18}{entry.pid:>8}  {entry.endpoint}")


@testbed.command()
@folder_option
def down(folder: Path | None) -> None:
    """End the processes that `testbed up` started.

    A scan that is not finished is kept, and goes on with the next `testbed up` in the same folder.
    """
    unfinished = end_testbed(folder or default_folder())
    click.echo("the testbed has ended")
    if unfinished:
        note(
            f"not finished: scan {', '.join(unfinished)}; the next `mpistream testbed up` goes on with it, "
            "with --fresh forgets it"
        )


@testbed.command(hidden=True)
@layout_options
@click.option("--folder", required=True, type=click.Path(path_type=Path))
@config_option
def supervise(groups: int, ranks_per_group: int, folder: Path, config: Path | None) -> None:
    """What `testbed up` runs in the background."""
    base = load_config(config) if config else None
    supervise_testbed(folder, lambda place: Testbed(place, groups, ranks_per_group, base=base))


testbed.add_command(slurm)
