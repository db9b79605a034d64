"""How a deployment does."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mpistream.cli.options import config_option, folder_option, running_config
from mpistream.control.expected_scans import ExpectedScan
from mpistream.control.run_state import ScanState
from mpistream.launch.diagnosis import problems
from mpistream.launch.inspection import DeploymentView, JobView, ProcessView, ScanView, look
from mpistream.pipeline.process import connect_etcd, open_registry


@click.command()
@folder_option
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(folder: Path | None, config: Path | None, as_json: bool) -> None:
    """Show scans, MPI jobs, producers and aggregators of a running deployment, and what is wrong.

    That of `testbed up`; with --config the one that the configuration file describes. Everything is read from etcd;
    while a scan streams it takes a second, to find its rate.
    """
    loaded = running_config(folder, config)
    with connect_etcd(loaded) as etcd:
        view = look(open_registry(loaded, etcd), loaded)
    wrong = problems(view, loaded)
    if as_json:
        click.echo(json.dumps({**_as_json(view), "problems": wrong}))
        return
    _print_view(view)
    for sentence in wrong:
        click.echo(f"problem      {sentence}")
    if not wrong:
        click.echo("problems     none")


def scan_as_json(scan: ScanView) -> dict[str, Any]:
    return {**asdict(scan), "uid": str(scan.uid)}


def _as_json(view: DeploymentView) -> dict[str, Any]:
    table = view.table
    return {
        **asdict(view),
        "scans": [scan_as_json(scan) for scan in view.scans],
        "expected": [scan.model_dump(mode="json") for scan in view.expected],
        "table": None if table is None else {"version": table.version, "ranks": len(table.ranks)},
    }


def _print_view(view: DeploymentView) -> None:
    table = f"routing table {view.table.version}, {len(view.table.ranks)} ranks" if view.table else "no routing table"
    click.echo(f"deployment   {view.deployment}, etcd {', '.join(view.etcd)}, {table}")
    for scan in view.scans:
        for line in scan_lines(scan):
            click.echo(line)
    if not view.scans:
        click.echo("scan         none")
    for line in expected_lines(view.expected):
        click.echo(line)
    for job in view.jobs:
        _print_job(job)
    for producer in view.producers:
        click.echo(f"producer {producer.status['sector']}   {_process(producer)}{_sent(producer)}")
    for aggregator in view.aggregators:
        passed = aggregator.status.get("blocks_forwarded")
        click.echo(f"aggregator   {_process(aggregator)}{'' if passed is None else f', {passed} blocks passed on'}")


def scan_lines(scan: ScanView) -> list[str]:
    """A scan in a few lines."""
    age = readable_seconds(time.time() - scan.since_unix_seconds)
    lines = [f"scan         {scan.uid}  {scan.state} for {age}"]
    counted = f"{scan.progress.get('frames', 0)} of {scan.frames} frames"
    counted += f", {scan.progress.get('electrons', 0)} electrons"
    if scan.blocks_journaled is not None:
        counted += f", {scan.blocks_journaled} of {scan.blocks} blocks safe"
    if scan.progress.get("frames_incomplete"):
        counted += f", {scan.progress['frames_incomplete']} frames incomplete"
    if scan.rates:
        counted += f", {scan.rates['frames']:.0f} frames/s, {scan.rates['raw_bytes'] / 1e9:.2f} GB/s"
    lines.append(f"             {counted}")
    has_dataset = scan.complete is not None or not scan.state.is_final
    lines.append(f"             {scan.source} -> {scan.output if has_dataset else 'no dataset'}")
    if scan.state.is_final and scan.state is not ScanState.COMMITTED:
        lines.append(f"             {scan.reason}")
    return lines


def expected_lines(expected: Sequence[ExpectedScan]) -> list[str]:
    """What batch jobs wait for: the camera's next scans, in their order."""
    lines = []
    for scan in expected:
        labels = ", ".join(f"{name} {value}" for name, value in scan.labels.items() if name != "batch_job")
        ends_by = f", until {readable_time(scan.until_unix_seconds)}" if scan.until_unix_seconds else ""
        waited = readable_seconds(time.time() - scan.since_unix_seconds)
        lines.append(f"expected     {scan.in_words}{', ' + labels if labels else ''}; for {waited}{ends_by}")
    return lines


def _print_job(job: JobView) -> None:
    roles = [role for role, has in (("conducts", job.conducts), ("gets blocks", job.is_routed_to)) if has]
    batch = f", batch job {job.batch_job}" if job.batch_job else ""
    click.echo(f"job          {job.job}{batch}{', ' + ', '.join(roles) if roles else ''}{_age(job.age_seconds)}")
    for rank in job.ranks:
        silent = "" if rank.silent_seconds is None else f", heard {rank.silent_seconds:.1f} s ago"
        frames = sum(numbers.get("frames", 0) for numbers in rank.scans.values())
        waiting = sum(
            numbers.get("blocks_partial", 0) + numbers.get("blocks_held", 0) for numbers in rank.scans.values()
        )
        work = f", {frames} frames, {waiting} blocks waiting" if rank.scans else ""
        click.echo(f"  rank {rank.rank:<5} group {rank.group}, pid {rank.pid} on {rank.host}{silent}{work}")


def _process(process: ProcessView) -> str:
    return f"pid {process.pid} on {process.host}{_age(process.age_seconds)}"


def _sent(producer: ProcessView) -> str:
    said = producer.status
    if not said.get("scan"):
        return f", table {said['table']}, idle"
    text = f", table {said['table']}, {said.get('sent', 0)} blocks sent, {said.get('released', 0)} acknowledged"
    text += f", {said.get('owed', 0)} owed"
    if said.get("window_bytes"):
        text += f", window {said.get('unreleased_bytes', 0) / 2**20:.0f} of {said['window_bytes'] / 2**20:.0f} MiB"
    if said.get("spilled_bytes"):
        text += f", {said['spilled_bytes'] / 2**20:.0f} MiB spilled"
    return text


def _age(seconds: float | None) -> str:
    return "" if seconds is None else f", spoke {seconds:.1f} s ago"


def readable_seconds(seconds: float) -> str:
    """``"42 s"``, ``"3 min"``, ``"5 h"``."""
    seconds = max(0.0, seconds)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def readable_time(unix_seconds: float) -> str:
    """``"2026-11-21 23:05:10"``, in the time zone of whoever looks."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_seconds))
