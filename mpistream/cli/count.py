"""The conventional workflow: an MPI job that reads the files itself."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mpistream.cli.options import config_option, load_config, source_options
from mpistream.cli.report import ScanProgress, print_json, print_summary
from mpistream.cli.testbed import note, scan_request
from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.launch.announcement import draft_count
from mpistream.launch.scan_follower import ScanEnd
from mpistream.model.config import Config
from mpistream.model.scan import ScanRecord

#: How often a line is added to a log.
_LINE_SECONDS = 5.0


@click.command()
@source_options
@config_option
def count(config: Path | None, as_json: bool, **scan: Any) -> None:
    """Count a scan straight from its files: without producers, aggregator or etcd, with the same dataset.

    An MPI program: mpiexec -n 4 mpistream count ..., or srun ... mpistream count ...; on its own, one process does all.
    """
    from mpistream.pipeline.counting_files import count_source

    def prepare() -> tuple[Config, ScanRecord]:
        loaded = load_config(config)
        draft, notes = draft_count(scan_request(**scan, direct=False), loaded)
        for text in notes:
            note(text)
        return loaded, draft

    summary = count_source(prepare, _watch)
    if summary is None:
        return
    if as_json:
        print_json(ScanEnd(ScanStatus(ScanState.COMMITTED, time.time()), summary))
    else:
        print_summary(summary)


@contextmanager
def _watch(record: ScanRecord) -> Iterator[Callable[[str, dict[str, int]], None]]:
    """A bar on a terminal, now and then a line in a log."""
    if not sys.stderr.isatty():
        yield _log_lines(record)
        return
    with ScanProgress(record) as bar:
        yield bar.update
        bar.finish()


def _log_lines(record: ScanRecord) -> Callable[[str, dict[str, int]], None]:
    frames = record.last_frame - record.first_frame + 1
    started = last = time.monotonic()

    def update(stage: str, progress: dict[str, int]) -> None:
        nonlocal last
        now = time.monotonic()
        if progress and now - last >= _LINE_SECONDS:
            last = now
            rate = progress["raw_bytes"] / (now - started) / 1e9
            note(f"{stage}: {progress['frames']} of {frames} frames, {rate:.2f} GB/s")

    return update
