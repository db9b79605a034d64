"""Slow ranks: what is under way stays within the window, in every process, and the scan still ends complete."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.system.command_line import CommandLine
from tests.system.sector_writer import FRAME, RECORD_BYTES, SECTORS, file_name, pack_record

WINDOW_BYTES = 24 * 2**20
#: Beside blocks: ZeroMQ's and Python's own working memory for a scan, the index of the files.
ALLOWANCE_BYTES = 8 * 2**20
ROWS, COLUMNS = 16, 20
STOPPED_SECONDS, RUNNING_SECONDS = 0.045, 0.005


@pytest.fixture(scope="module")
def slow_testbed(cli: CommandLine) -> Iterator[CommandLine]:
    config = cli.folder / "window.toml"
    config.write_text(f"[stream]\nwindow_bytes = {WINDOW_BYTES}\nblock_frames = 4\n")
    cli.run("testbed", "up", "--ranks-per-group", 1, "--config", config).succeeded()
    yield cli
    cli.run("testbed", "down").succeeded()


@pytest.fixture(scope="module")
def sectors(place: Path) -> Path:
    """A scan of many times the window, with one and the same frame everywhere."""
    folder = place / "sectors"
    folder.mkdir()
    pixels = np.full(FRAME * FRAME // SECTORS, 20, np.uint16)
    pixels[::50] = 200
    for sector in range(SECTORS):
        with (folder / file_name(1, sector)).open("wb") as file:
            for number in range(ROWS * COLUMNS):
                file.write(pack_record(1, number, ROWS, COLUMNS, number, pixels))
    assert ROWS * COLUMNS * SECTORS * RECORD_BYTES > 8 * WINDOW_BYTES
    return folder


def resident_bytes(pid: int) -> int:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


@contextmanager
def slowed(pids: list[int]) -> Iterator[None]:
    """Lets the processes run a tenth of the time."""
    done = threading.Event()

    def throttle() -> None:
        while not done.is_set():
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(STOPPED_SECONDS)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            time.sleep(RUNNING_SECONDS)

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def growth_measured(pids: list[int]) -> Iterator[dict[int, int]]:
    """By how many bytes the memory of each process exceeded what it was before, at most."""
    before = {pid: resident_bytes(pid) for pid in pids}
    growth = dict.fromkeys(pids, 0)
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            for pid in pids:
                growth[pid] = max(growth[pid], resident_bytes(pid) - before[pid])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield growth
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("way", ["aggregator", "direct"])
def test_memory_stays_within_the_window(slow_testbed: CommandLine, sectors: Path, output: Path, way: str) -> None:
    arguments = ("--background", 60, "--xray", 2000, "--json", *(["--direct"] if way == "direct" else []))
    # The first scan loads what any scan needs.
    slow_testbed.run(
        *("testbed", "scan", "--source", "sim:2x2", "--output", output.with_name("first.h5")), *arguments
    ).succeeded()
    producers = list(slow_testbed.processes("produce"))
    aggregators = list(slow_testbed.processes("aggregate"))
    assert (len(producers), len(aggregators)) == (SECTORS, 1)
    with slowed(slow_testbed.ranks()), growth_measured(producers + aggregators) as growth:
        report = slow_testbed.run(
            *("testbed", "scan", "--source", f"files:{sectors}", "--output", output), *arguments
        ).last_json
    print(growth)
    assert report["frames"] == ROWS * COLUMNS
    assert (report["frames_incomplete"], report["frames_lost"]) == (0, 0)
    assert max(growth.values()) <= 1.2 * WINDOW_BYTES + ALLOWANCE_BYTES, growth
    assert max(growth[pid] for pid in producers) <= 1.2 * WINDOW_BYTES / SECTORS + ALLOWANCE_BYTES, growth
    if way == "aggregator":
        # The ranks were slow indeed: the window was full.
        assert max(growth[pid] for pid in aggregators) > 0.2 * WINDOW_BYTES, growth
