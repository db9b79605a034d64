"""Slow ranks: what is under way stays within the window, in every process, and the scan still ends complete."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class SlowTestbed:
    """A testbed with a small window; ``resident_before`` are the bytes of memory of each process without a scan."""

    cli: CommandLine
    ranks: list[int]
    producers: list[int]
    aggregator: int
    resident_before: dict[int, int]

    def scan(self, source: str, output: Path, *options: str) -> dict:
        return self.cli.run(
            *("testbed", "scan", "--source", source, "--output", output, "--json", *options),
            *("--background", 60, "--xray", 2000),
        ).last_json


@pytest.fixture(scope="module")
def testbed(cli: CommandLine) -> Iterator[SlowTestbed]:
    config = cli.folder / "window.toml"
    config.write_text(f"[stream]\nwindow_bytes = {WINDOW_BYTES}\nblock_frames = 4\n")
    cli.run("testbed", "up", "--ranks-per-group", 1, "--config", config).succeeded()
    producers, (aggregator,) = list(cli.processes("produce")), cli.processes("aggregate")
    testbed = SlowTestbed(cli, cli.ranks(), producers, aggregator, {})
    # The first scan loads what any scan needs.
    testbed.scan("sim:2x2", cli.folder / "first.h5")
    testbed.resident_before.update({pid: resident_bytes(pid) for pid in [*producers, aggregator]})
    yield testbed
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
def growth_measured(before: dict[int, int]) -> Iterator[dict[int, int]]:
    """By how many bytes the memory of each process exceeds what it was ``before``, at most."""
    growth = dict.fromkeys(before, 0)
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            for pid in growth:
                growth[pid] = max(growth[pid], resident_bytes(pid) - before[pid])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield growth
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("way", ["direct", "aggregator"])
def test_memory_stays_within_the_window(testbed: SlowTestbed, sectors: Path, output: Path, way: str) -> None:
    options = ["--direct"] if way == "direct" else []
    with slowed(testbed.ranks), growth_measured(testbed.resident_before) as growth:
        report = testbed.scan(f"files:{sectors}", output, *options)
    assert report["frames"] == ROWS * COLUMNS
    assert (report["frames_incomplete"], report["frames_lost"]) == (0, 0)
    producers, aggregator = [growth[pid] for pid in testbed.producers], growth[testbed.aggregator]
    assert max(*producers, aggregator) <= 1.2 * WINDOW_BYTES + ALLOWANCE_BYTES, growth
    assert max(producers) <= 1.2 * WINDOW_BYTES / SECTORS + ALLOWANCE_BYTES, growth
    # The ranks were slow indeed: the window was full.
    assert min(producers) >= 0.5 * WINDOW_BYTES / SECTORS, growth
    assert way == "direct" or aggregator >= 0.5 * WINDOW_BYTES, growth
