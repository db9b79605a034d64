"""What a user sees of a session."""

import time
from collections.abc import Iterator
from typing import Any

import click

from mpistream.cli.status import expected_lines, readable_seconds, readable_time
from mpistream.launch.session_history import SessionScan, SessionView
from mpistream.model.session import BatchJob, BatchJobState, Session

_SHORT_UID = 8
_INDENT = " " * 4
#: How many of the last lines of a failed job's log are shown.
_LOG_LINES = 10


def session_line(view: SessionView) -> str:
    """A session in one line."""
    started = readable_time(view.session.started_unix_seconds)
    return f"{view.session.name:<24}{started}  {_openness(view):<12}{counts(view)}"


def counts(view: SessionView) -> str:
    """``"5 scans: 4 committed, 1 streaming"``."""
    total = len(view.scans)
    if not total:
        return "no scans"
    return f"{total} scan{'s' if total > 1 else ''}: " + ", ".join(f"{n} {state}" for state, n in view.states.items())


def unfinished_words(view: SessionView) -> list[str]:
    return [
        f"unfinished   scan {scan.number} ({short_uid(scan)}) is {scan.status.state}"
        f"{f': {scan.status.reason}' if scan.status.reason else ''}"
        for scan in view.unfinished
    ]


def serving_words(view: SessionView) -> list[str]:
    return [f"batch job    {job.scheduled} on {job.cluster} is {job.state}" for job in view.serving]


def short_uid(scan: SessionScan) -> str:
    return str(scan.record.uid)[:_SHORT_UID]


def print_session(view: SessionView) -> None:
    session, stop = view.session, view.stop
    click.echo(f"session      {session.name}, started {readable_time(session.started_unix_seconds)}, {_openness(view)}")
    if stop is not None:
        click.echo(f"stopped      {readable_time(stop.since_unix_seconds)}{f': {stop.reason}' if stop.reason else ''}")
    click.echo(f"datasets     {session.folder}")
    click.echo(f"counting     {_counting(session)}")
    click.echo(f"scans        {counts(view)}")
    for scan in view.scans:
        for line in _scan_lines(scan):
            click.echo(line)
    for line in expected_lines(view.expected):
        click.echo(line)
    for job in view.jobs:
        for line in _job_lines(job):
            click.echo(line)
    if not view.jobs:
        click.echo("batch job    none")


def _openness(view: SessionView) -> str:
    return "takes scans" if view.stop is None else "stopped"


def _counting(session: Session) -> str:
    used = session.counting.model_dump(exclude_defaults=True)
    if session.thresholds is not None:
        used["thresholds"] = session.thresholds
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in used.items()) or "thresholds calibrated"


def _scan_lines(scan: SessionScan) -> Iterator[str]:
    record, status, summary = scan.record, scan.status, scan.summary
    frames = record.last_frame - record.first_frame + 1
    line = f"{scan.number:>4}  {short_uid(scan)}  {status.state:<11} {readable_time(record.announced_unix_seconds)}"
    line += f"  {record.rows} x {record.columns}"
    if record.labels:
        line += f"  {', '.join(f'{name} {value}' for name, value in record.labels.items())}"
    yield line
    if summary is None:
        counted = f"{scan.progress.get('frames', 0)} of {frames} frames, {scan.progress.get('electrons', 0)} electrons"
        yield f"{_INDENT}  {counted}{'' if status.state.is_final else f', for {_age(status.since_unix_seconds)}'}"
    else:
        counters = summary.counters
        sizes = f"{_size(counters.raw_bytes)} raw, {_size(summary.file_bytes)} counted"
        yield f"{_INDENT}  {counters.frames} of {frames} frames, {counters.electrons} electrons, {sizes}"
        yield f"{_INDENT}  {_times(summary.seconds)}"
        yield f"{_INDENT}  {summary.dataset}"
        lacks = {
            "frames without a sector": counters.frames_incomplete,
            "sectors missing": counters.sectors_missing,
            "frames lost": counters.frames_lost,
        }
        if any(lacks.values()):
            yield f"{_INDENT}  missing: {', '.join(f'{number} {what}' for what, number in lacks.items() if number)}"
    for sector, why in scan.cut.items():
        yield f"{_INDENT}  sector {sector} is cut: {why}"
    if status.reason:
        yield f"{_INDENT}  why: {' '.join(status.reason.split())}"
    if status.remedy:
        yield f"{_INDENT}  do:  {' '.join(status.remedy.split())}"


def _times(seconds: dict[str, float]) -> str:
    known = {name: seconds[name] for name in ("streaming", "last_frame_to_dataset") if name in seconds}
    return ", ".join(f"{name.replace('_', ' ')} {value:.2f} s" for name, value in known.items()) or "times not known"


def _job_lines(job: BatchJob) -> Iterator[str]:
    line = f"batch job    {job.scheduled} on {job.cluster}: {job.mode}, {job.state}"
    since = {
        BatchJobState.SUBMITTED: job.submitted_unix_seconds,
        BatchJobState.REQUEUED: job.ended_unix_seconds,
        BatchJobState.ENDED: job.ended_unix_seconds,
        BatchJobState.FAILED: job.ended_unix_seconds,
        BatchJobState.LOST: job.ended_unix_seconds,
    }.get(job.state, job.started_unix_seconds)
    line += f" since {readable_time(since)}" if since is not None else ""
    yield line + f", {job.nodes} node{'s' if job.nodes != 1 else ''}"
    if job.ends_by_unix_seconds is not None and job.state in (BatchJobState.RUNNING, BatchJobState.FINISHING):
        yield f"{_INDENT}  its time ends {readable_time(job.ends_by_unix_seconds)}"
    for number, step in enumerate(job.steps, 1):
        ended = "runs" if step.ended_unix_seconds is None else f"ended {readable_time(step.ended_unix_seconds)}"
        how = f": {step.how}" if step.how else ""
        yield f"{_INDENT}  step {number} on {', '.join(step.nodes) or 'no node'}, {ended}{how}"
    if job.bad_nodes:
        yield f"{_INDENT}  without the nodes {', '.join(job.bad_nodes)}"
    if job.reason:
        yield f"{_INDENT}  why: {' '.join(job.reason.split())}"
    if job.remedy:
        yield f"{_INDENT}  do:  {' '.join(job.remedy.split())}"
    if job.state in (BatchJobState.FAILED, BatchJobState.LOST):
        yield f"{_INDENT}  log {job.log}"
        last = next((step.last_lines for step in reversed(job.steps) if step.last_lines), ())
        yield from (f"{_INDENT}  | {text}" for text in last[-_LOG_LINES:])


def session_as_json(view: SessionView) -> dict[str, Any]:
    return {
        **view.session.model_dump(mode="json"),
        "stop": None if view.stop is None else view.stop.model_dump(mode="json"),
        "states": {str(state): number for state, number in view.states.items()},
        "scans": [_scan_as_json(scan) for scan in view.scans],
        "expected": [scan.model_dump(mode="json") for scan in view.expected],
        "jobs": [job.model_dump(mode="json") for job in view.jobs],
    }


def _scan_as_json(scan: SessionScan) -> dict[str, Any]:
    record, summary = scan.record, scan.summary
    return {
        "number": scan.number,
        "uid": str(record.uid),
        "state": str(scan.status.state),
        "since_unix_seconds": scan.status.since_unix_seconds,
        "reason": scan.status.reason,
        "remedy": scan.status.remedy,
        "scan_number": record.scan_number,
        "scan_shape": [record.rows, record.columns],
        "source": record.source,
        "output": record.output,
        "labels": record.labels,
        "references": record.references,
        "announced_unix_seconds": record.announced_unix_seconds,
        "progress": dict(scan.progress),
        "cut": dict(scan.cut),
        "dataset": None if summary is None else summary.dataset,
        "complete": None if summary is None else summary.complete,
        "seconds": {} if summary is None else summary.seconds,
        "dataset_bytes": None if summary is None else summary.file_bytes,
        "warnings": [] if summary is None else list(summary.warnings),
    }


def _age(unix_seconds: float) -> str:
    return readable_seconds(time.time() - unix_seconds)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
