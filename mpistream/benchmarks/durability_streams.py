"""One scan after the other through real processes, and what CPU time each of them took."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mpistream.control.run_state import ScanState
from mpistream.launch.announcement import ScanRequest, announce, draft_scan
from mpistream.launch.local import mpiexec
from mpistream.launch.scan_follower import ScanEnd, ScanFollower, in_words
from mpistream.launch.testbed import Testbed, registered_processes
from mpistream.launch.testbed_folder import TestbedFolder
from mpistream.model.config import Config, StreamConfig
from mpistream.model.errors import MpistreamError, ScanFailed
from mpistream.model.geometry import RECORD_BYTES, SECTORS
from mpistream.model.scan import CountingParameters, Durability, ScanRecord, ScanSummary

PRODUCERS, AGGREGATOR, RANKS, ETCD = "producers", "aggregator", "ranks", "etcd"
#: What is added up to the CPU time of a stream; etcd's stands beside it.
STREAMING = (PRODUCERS, AGGREGATOR, RANKS)
_ROLES = {"producer": PRODUCERS, "aggregator": AGGREGATOR, "consumer": RANKS, "etcd": ETCD}

_RANK = "mpistream.benchmarks.rank_without_acknowledgements"
#: For glibc; other libraries take no notice.
_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
_TIDY_SECONDS = 30.0
_ATTEMPTS = 3


@dataclass(frozen=True)
class Mode:
    """How a scan is streamed. One that is not acknowledged has no journal, and exists in this benchmark only."""

    name: str
    is_acknowledged: bool
    durability: Durability


@dataclass(frozen=True)
class StreamCost:
    """Of one scan, from its announcement until its journals are removed.

    cpu_seconds       user and system time by role
    seconds_measured  how long it was that these were used in
    seconds           from the announcement to the commit
    """

    cpu_seconds: dict[str, float]
    seconds_measured: float
    seconds: float
    summary: ScanSummary


class BenchmarkTestbed(Testbed):
    """Its ranks can do without acknowledgements."""

    __test__ = False

    def _start(self, role: str, name: str, command: list[str], processes: int = 1) -> None:
        if role == "mpiexec":
            rank = [sys.executable, "-m", _RANK, str(self.folder.config_path)]
            command = [mpiexec(), "-n", str(self._ranks), *rank]
        super()._start(role, name, command, processes)


@dataclass(frozen=True)
class Streams:
    """A running testbed, and the sector files that it streams.

    ``folder`` is where journals and datasets are written.
    """

    testbed: Testbed
    sectors: Path
    counting: CountingParameters
    folder: Path

    @classmethod
    @contextmanager
    def opened(
        cls, sectors: Path, counting: CountingParameters, frames: int, ranks: int, folder: Path
    ) -> Iterator["Streams"]:
        """Starts the processes, and ends them. After an error their logs are kept."""
        place = Path(tempfile.mkdtemp(prefix="mpistream-bench-"))
        config = Config(stream=StreamConfig(window_bytes=window_bytes(frames)))
        try:
            held = TestbedFolder(place)
            with memory_is_kept(), held.held(), BenchmarkTestbed(held, 1, ranks, base=config) as testbed:
                yield cls(testbed, sectors, counting, folder)
        except MpistreamError as error:
            raise type(error)(error.message, f"{error.remedy}\n  logs: {held.logs}".strip()) from error
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        shutil.rmtree(place, ignore_errors=True)

    def stream(self, mode: Mode) -> StreamCost:
        """Streams the scan once. Where blocks had to be sent again it does not count, and is repeated."""
        for _ in range(_ATTEMPTS):
            cost = self._stream(mode)
            if cost.summary.counters.blocks_repeated == 0:
                return cost
        raise MpistreamError(
            f"blocks were sent again in each of {_ATTEMPTS} streams ({mode.name})", "let less run beside it"
        )

    def _stream(self, mode: Mode) -> StreamCost:
        output = self.folder / "dataset.h5"
        draft, _ = draft_scan(ScanRequest(f"files:{self.sectors}", output, self.counting), self.testbed.config)
        journals = draft.journals if mode.is_acknowledged else ""
        draft = draft.model_copy(update={"durability": mode.durability, "journals": journals})
        try:
            before, started = self.cpu_seconds(), time.monotonic()
            record = announce(self.testbed.registry, draft)
            end = _follow(self.testbed, record)
            _wait_until_tidied_up(self.testbed, record)
            after, seconds_measured = self.cpu_seconds(), time.monotonic() - started
        finally:
            output.unlink(missing_ok=True)
            if journals:
                shutil.rmtree(journals, ignore_errors=True)
        used = {role: after[role] - before[role] for role in before}
        seconds = end.status.since_unix_seconds - record.announced_unix_seconds
        return StreamCost(used, seconds_measured, seconds, end.summary)

    def cpu_seconds(self) -> dict[str, float]:
        """User and system time so far, by role. mpiexec is left out: it only waits."""
        seconds: dict[str, float] = {}
        for entry in (*registered_processes(self.testbed.registry), *self.testbed.unregistered_processes()):
            if entry.role in _ROLES:
                role = _ROLES[entry.role]
                seconds[role] = seconds.get(role, 0.0) + cpu_seconds_of(entry.pid)
        return seconds


@contextmanager
def memory_is_kept() -> Iterator[None]:
    """Processes that are started meanwhile do not give memory back to the system.

    Otherwise what a stream costs depends on how much of its memory is new to its processes: without acknowledgements
    all of it would be, and the comparison would be one of page faults.
    """
    before = {name: os.environ.get(name) for name in _MALLOC}
    os.environ.update(_MALLOC)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def cpu_seconds_of(pid: int) -> float:
    """User and system time of a process, ended threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def window_bytes(frames: int) -> int:
    """What holds all blocks of a scan: nobody waits for acknowledgements."""
    block_frames = StreamConfig().block_frames
    blocks = -(-frames // block_frames) + 1
    return max(blocks, 2) * SECTORS * block_frames * RECORD_BYTES


def _follow(testbed: Testbed, record: ScanRecord) -> ScanEnd:
    """Raises ScanFailed also where a process has ended meanwhile."""

    def look() -> None:
        if testbed.supervise():
            raise ScanFailed("a process of the testbed ended, which spoils what is measured")

    end = ScanFollower(testbed.registry, record, testbed.config, turn=look).follow(lambda state, progress: None)
    if end.status.state is not ScanState.COMMITTED:
        raise ScanFailed(f"the scan is {end.status.state}: {in_words(end.status)}")
    return end


def _wait_until_tidied_up(testbed: Testbed, record: ScanRecord) -> None:
    """Removing the journals belongs to what they cost."""
    deadline = time.monotonic() + _TIDY_SECONDS
    while testbed.registry.shares(record.uid) or (record.journals and Path(record.journals).exists()):
        if time.monotonic() > deadline:
            raise ScanFailed(f"the journals of a finished scan were not removed: {record.journals}")
        time.sleep(0.05)
