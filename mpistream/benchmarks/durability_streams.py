"""One scan after the other through real processes, and what CPU time each of them took."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
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

_WITHOUT_ACKNOWLEDGEMENTS = "mpistream.benchmarks.rank_without_acknowledgements"
_TIDY_SECONDS = 30.0
_ATTEMPTS = 3
_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Mode:
    """How a scan is streamed. Without ``acknowledged`` the ranks are the benchmark's own ones."""

    name: str
    acknowledged: bool
    durability: Durability


@dataclass(frozen=True)
class StreamCost:
    """Of one scan, from its announcement until its journals are removed.

    cpu_seconds  user and system time by role
    seconds      from the announcement to the commit
    """

    cpu_seconds: dict[str, float]
    seconds: float
    summary: ScanSummary

    @property
    def streaming_cpu_seconds(self) -> float:
        return sum(self.cpu_seconds[role] for role in STREAMING)


class TestbedWithoutAcknowledgements(Testbed):
    """Its ranks tell the producers nothing."""

    __test__ = False

    def _start(self, role: str, name: str, command: list[str], processes: int = 1) -> None:
        if role == "mpiexec":
            rank = [sys.executable, "-m", _WITHOUT_ACKNOWLEDGEMENTS, str(self.folder.config_path)]
            command = [mpiexec(), "-n", str(self._ranks), *rank]
        super()._start(role, name, command, processes)


class Streams:
    """Two running testbeds, one with acknowledgements and one without, and the sector files that they stream.

    ``folder`` is where journals and datasets are written.
    """

    def __init__(self, testbeds: dict[bool, Testbed], sectors: Path, counting: CountingParameters, folder: Path):
        self._testbeds = testbeds
        self._sectors = sectors
        self._counting = counting
        self._folder = folder

    @classmethod
    @contextmanager
    def opened(
        cls, sectors: Path, counting: CountingParameters, frames: int, ranks: int, folder: Path
    ) -> Iterator["Streams"]:
        """Starts the processes, and ends them. After an error their logs are kept."""
        place = Path(tempfile.mkdtemp(prefix="mpistream-bench-"))
        config = Config(stream=StreamConfig(window_bytes=window_bytes(frames)))
        try:
            with ExitStack() as running:
                testbeds: dict[bool, Testbed] = {}
                for acknowledged, kind in ((True, Testbed), (False, TestbedWithoutAcknowledgements)):
                    held = TestbedFolder(place / ("acknowledged" if acknowledged else "unacknowledged"))
                    running.enter_context(held.held())
                    testbeds[acknowledged] = running.enter_context(kind(held, 1, ranks, base=config))
                yield cls(testbeds, sectors, counting, folder)
        except MpistreamError as error:
            raise type(error)(error.message, f"{error.remedy}\n  logs: {place}/*/logs".strip()) from error
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        shutil.rmtree(place, ignore_errors=True)

    def stream(self, mode: Mode) -> StreamCost:
        """Streams the scan once. Where blocks had to be sent again it does not count, and is repeated."""
        for _ in range(_ATTEMPTS):
            cost = self._stream(self._testbeds[mode.acknowledged], mode)
            if cost.summary.counters.blocks_repeated == 0:
                return cost
        raise MpistreamError(
            f"blocks were sent again in each of {_ATTEMPTS} streams ({mode.name})", "let less run beside it"
        )

    def _stream(self, testbed: Testbed, mode: Mode) -> StreamCost:
        output = self._folder / "dataset.h5"
        draft, _ = draft_scan(ScanRequest(f"files:{self._sectors}", output, self._counting), testbed.config)
        draft = draft.model_copy(update={"durability": mode.durability})
        pids = list(_pids(testbed))
        try:
            before = cpu_seconds(pids)
            record = announce(testbed.registry, draft)
            end = _follow(testbed, record)
            _wait_until_tidied_up(testbed, record)
            after = cpu_seconds(pids)
        finally:
            output.unlink(missing_ok=True)
            shutil.rmtree(draft.journals, ignore_errors=True)
        used = {role: after[role] - before[role] for role in before}
        return StreamCost(used, end.status.since_unix_seconds - record.announced_unix_seconds, end.summary)


def window_bytes(frames: int) -> int:
    """What holds all blocks of a scan: nobody waits for acknowledgements."""
    block_frames = StreamConfig().block_frames
    blocks = -(-frames // block_frames) + 1
    return max(blocks, 2) * SECTORS * block_frames * RECORD_BYTES


def cpu_seconds(processes: Iterable[tuple[str, int]]) -> dict[str, float]:
    """User and system time so far, ended threads included, by role; ``processes`` are roles and pids."""
    seconds: dict[str, float] = {}
    for role, pid in processes:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        seconds[role] = seconds.get(role, 0.0) + (int(fields[11]) + int(fields[12])) * _TICK_SECONDS
    return seconds


def _pids(testbed: Testbed) -> Iterator[tuple[str, int]]:
    """Roles and pids of all that is measured: mpiexec only waits."""
    for entry in (*registered_processes(testbed.registry), *testbed.unregistered_processes()):
        if entry.role in _ROLES:
            yield _ROLES[entry.role], entry.pid


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
    while testbed.registry.shares(record.uid) or Path(record.journals).exists():
        if time.monotonic() > deadline:
            raise ScanFailed(f"the journals of a finished scan were not removed: {record.journals}")
        time.sleep(0.05)
