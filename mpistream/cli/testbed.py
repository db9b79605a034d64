"""A whole deployment on this machine."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mpistream.cli.options import config_option, counting_parameters, layout_options, load_config, scan_options
from mpistream.cli.report import ScanProgress, print_json, print_summary
from mpistream.control.registry import Registry
from mpistream.control.run_state import ScanState
from mpistream.launch.announcement import ScanRequest, announce, draft_scan
from mpistream.launch.scan_follower import RegistrationCheck, ScanFollower, job_has_ended
from mpistream.launch.supervisor import config_of, default_folder
from mpistream.launch.supervisor import down as end_testbed
from mpistream.launch.supervisor import ps as list_testbed
from mpistream.launch.supervisor import supervise as supervise_testbed
from mpistream.launch.supervisor import up as start_testbed
from mpistream.launch.testbed import Testbed
from mpistream.model.config import Config
from mpistream.model.errors import EtcdUnreachable, MpistreamError, ScanFailed
from mpistream.model.scan import ScanRecord, ScanSummary
from mpistream.pipeline.process import connect_etcd, open_registry
from mpistream.storage.placement import remove_partial

folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path),
    envvar="MPISTREAM_TESTBED",
    help="Where the running testbed keeps its files; testbeds in different folders are independent.",
)


def scan_request(
    source: str, output: Path, overwrite: bool, direct: bool, thresholds: Path | None, **counting: Any
) -> ScanRequest:
    """The options of ``scan_options`` as a request."""
    return ScanRequest(source, output, counting_parameters(**counting), overwrite, direct, thresholds)


def run_once(request: ScanRequest, groups: int, ranks_per_group: int, config: Config) -> ScanSummary:
    """One scan with processes that live only for it. Their logs are kept where something went wrong."""
    draft, notes = draft_scan(request, config)
    folder = Path(tempfile.mkdtemp(prefix="mpistream-testbed-"))
    try:
        with Testbed(folder, groups, ranks_per_group, with_aggregator=not request.direct, base=config) as running:
            record = announce(running.registry, draft)
            summary = follow(running.registry, config, record, notes, running.check_alive)
    except MpistreamError as error:
        remove_partial(Path(draft.output), draft.uid.hex)
        shutil.rmtree(folder / "etcd", ignore_errors=True)
        logs = "" if str(folder) in error.remedy else f"\n  logs: {folder / 'logs'}"
        raise type(error)(error.message, f"{error.remedy}{logs}".strip()) from error
    except BaseException:
        remove_partial(Path(draft.output), draft.uid.hex)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder)
    return summary


def follow(
    registry: Registry,
    config: Config,
    record: ScanRecord,
    notes: tuple[str, ...],
    check_alive: Callable[[ScanState], None],
) -> ScanSummary:
    """Shows the scan's progress until it has ended."""
    for note in notes:
        click.echo(f"mpistream: note: {note}", err=True)
    with ScanProgress(record) as progress:
        summary = ScanFollower(registry, record, config.stream.patience_seconds).follow(check_alive, progress.update)
        progress.finish()
        return summary


def report(summary: ScanSummary, as_json: bool) -> None:
    if as_json:
        print_json(summary)
    else:
        print_summary(summary)


@click.group()
def testbed() -> None:
    """Everything on this machine: etcd, 4 producers, an aggregator and an MPI job, as real processes."""


@testbed.command()
@scan_options
@layout_options
@config_option
def run(groups: int, ranks_per_group: int, config: Path | None, as_json: bool, **scan: Any) -> None:
    """Start everything, stream and count one scan, end everything."""
    report(run_once(scan_request(**scan), groups, ranks_per_group, load_config(config)), as_json)


@testbed.command()
@layout_options
@folder_option
@config_option
def up(groups: int, ranks_per_group: int, folder: Path | None, config: Path | None) -> None:
    """Start the processes and leave them running, for many scans."""
    load_config(config)
    place = folder or default_folder()
    start_testbed(place.absolute(), groups, ranks_per_group, config.absolute() if config else None)
    click.echo(f"the testbed is up in {place}; next: mpistream testbed scan --source sim:32x32 --output scan.h5")


@testbed.command()
@scan_options
@folder_option
@config_option
def scan(folder: Path | None, config: Path | None, as_json: bool, **scan: Any) -> None:
    """Stream and count one scan with the processes that are running.

    They are those of `testbed up`; with --config those of the deployment that the configuration file describes.
    """
    loaded = load_config(config) if config else config_of(folder or default_folder())
    draft, notes = draft_scan(scan_request(**scan), loaded)
    with connect_etcd(loaded) as etcd:
        registry = open_registry(loaded, etcd)
        record = announce(registry, draft)
        try:
            summary = follow(registry, loaded, record, notes, RegistrationCheck(registry, record))
        except ScanFailed:
            with contextlib.suppress(EtcdUnreachable):
                if job_has_ended(registry, record):
                    remove_partial(Path(record.output), record.uid.hex)
            raise
    report(summary, as_json)


@testbed.command()
@folder_option
@click.option("--json", "as_json", is_flag=True, help="One JSON list of objects.")
def ps(folder: Path | None, as_json: bool) -> None:
    """List the processes that run."""
    entries = list_testbed(folder or default_folder())
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in entries]))
        return
    click.echo(f"{'ROLE':<12}{'NAME':<18}{'PID':>8}  ENDPOINT")
    for entry in entries:
        click.echo(f"{entry.role:<12}{entry.name:<18}{entry.pid:>8}  {entry.endpoint}")


@testbed.command()
@folder_option
def down(folder: Path | None) -> None:
    """End the processes that `testbed up` started."""
    end_testbed(folder or default_folder())
    click.echo("the testbed has ended")


@testbed.command(hidden=True)
@layout_options
@click.option("--folder", required=True, type=click.Path(path_type=Path))
@config_option
def supervise(groups: int, ranks_per_group: int, folder: Path, config: Path | None) -> None:
    """What `testbed up` runs in the background."""
    supervise_testbed(folder, groups, ranks_per_group, load_config(config))
