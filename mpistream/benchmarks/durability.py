"""What it costs that nothing is lost: CPU time of the same scan with and without acknowledgements and journals.

Rounds go through all of it once, in turn; ratios are taken within a round. The journal is also measured alone, beside
what plainly writing the same bytes to the same folder takes.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mpistream.acquisition.simulated_files import simulate_to_files
from mpistream.benchmarks import recorded_frames
from mpistream.benchmarks.durability_journal import JournalAlone
from mpistream.benchmarks.durability_streams import ETCD, STREAMING, Mode, StreamCost, Streams, window_bytes
from mpistream.benchmarks.measurement import Bar, Spread, in_rounds, processor_name, quotients
from mpistream.benchmarks.recorded_frames import BACKGROUND, BLOCK_FRAMES, XRAY
from mpistream.model.errors import MpistreamError, StorageError
from mpistream.model.geometry import RECORD_BYTES, SECTORS
from mpistream.model.scan import Counters, CountingParameters, Durability

UNACKNOWLEDGED = "no acknowledgements"
MODES = (
    Mode(UNACKNOWLEDGED, False, Durability.NONE),
    *(Mode(str(durability), True, durability) for durability in Durability),
)
#: All roles that a stream's CPU time is made of.
ALL = "all"
#: What a stream with journals may cost, as a multiple of one without acknowledgements.
MOST = 1.1
_WARM_UPS = 2
_MOUNTS = Path("/proc/self/mounts")


@dataclass(frozen=True)
class Extent:
    """How much is measured. ``frames`` is a multiple of 8; ``journal_blocks`` of them are journaled for themselves."""

    frames: int = 4096
    electrons: float = 2400.0
    ranks: int = 2
    rounds: int = 5
    journal_blocks: int = 128
    idle_seconds: float = 3.0

    @classmethod
    def of(cls, frames: int | None, rounds: int | None, ranks: int, electrons: float, quick: bool = False) -> "Extent":
        """``frames`` is rounded up to whole blocks of 8; with ``quick`` everything is as small as it can be."""
        least = cls(64, rounds=2, journal_blocks=4, idle_seconds=0.2) if quick else cls()
        blocks = -(-(frames or least.frames) // BLOCK_FRAMES)
        return cls(
            blocks * BLOCK_FRAMES,
            electrons,
            ranks,
            rounds or least.rounds,
            min(least.journal_blocks, blocks),
            least.idle_seconds,
        )


def measure(extent: Extent, folder: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    """All figures, as they are printed with --json. Datasets and journals are written to ``folder``, and removed.

    Raises StorageError, ScanFailed, and MpistreamError where the streams did not give the same dataset.
    """
    counting = CountingParameters(background=BACKGROUND, xray=XRAY)
    raw_bytes = extent.frames * SECTORS * RECORD_BYTES
    with recorded_frames.folder_in_memory(raw_bytes) as sectors, _place_in(folder) as place:
        progress(f"simulating {extent.frames} frames")
        simulate_to_files(recorded_frames.scan_of(extent.frames, extent.electrons), sectors)
        progress(f"starting etcd, producers, an aggregator and {extent.ranks} ranks")
        with Streams.opened(sectors, counting, extent.frames, extent.ranks, place) as streams:
            costs, idle = _measure_streams(extent, streams, progress)
        progress("measuring the journal alone")
        journal = JournalAlone.of(sectors, counting, extent.journal_blocks)
        microseconds = in_rounds(journal.contenders(place), extent.rounds)
    counters = _same_counters(costs)
    return {
        "machine": {"processor": processor_name(), "cores": len(os.sched_getaffinity(0))},
        "frames": extent.frames,
        "raw_bytes": counters.raw_bytes,
        "electrons_per_frame": counters.electrons / counters.frames,
        "ranks": extent.ranks,
        "rounds": extent.rounds,
        "window_bytes": window_bytes(extent.frames),
        "file_system": file_system_of(folder),
        "idle_cores": idle,
        "cpu_seconds_per_1000_frames": {
            name: _cpu_seconds(of_mode, idle, counters.frames) for name, of_mode in costs.items()
        },
        "frames_per_second": {
            name: [counters.frames / cost.seconds for cost in of_mode] for name, of_mode in costs.items()
        },
        "journal": {
            "blocks": len(journal.records),
            "bytes": journal.bytes,
            "raw_bytes": journal.raw_bytes,
            "microseconds_per_block": microseconds,
        },
    }


def with_bars(result: dict[str, Any]) -> dict[str, Any]:
    """What ``measure`` returned, with ratios and what was asked for."""
    costs = result["cpu_seconds_per_1000_frames"]
    ratios = {name: quotients(costs[name][ALL], costs[UNACKNOWLEDGED][ALL]) for name in costs}
    written = Bar(Spread.of(ratios[Durability.WRITE]).median, MOST, at_most=True)
    bars = {f"CPU time with durability write, times {UNACKNOWLEDGED}": written.as_json()}
    return {**result, "times_no_acknowledgements": ratios, "bars": bars}


def _measure_streams(
    extent: Extent, streams: Streams, progress: Callable[[str], None]
) -> tuple[dict[str, list[StreamCost]], dict[str, float]]:
    """What each stream cost, by mode and round; and the CPU time per second of those who wait for scans, by role."""
    costs: dict[str, list[StreamCost]] = {mode.name: [] for mode in MODES}
    idle: list[dict[str, float]] = []

    def stream(mode: Mode) -> float:
        cost = streams.stream(mode)
        costs[mode.name].append(cost)
        return cost.seconds

    def wait() -> float:
        before, started = streams.cpu_seconds(), time.monotonic()
        time.sleep(extent.idle_seconds)
        after, seconds = streams.cpu_seconds(), time.monotonic() - started
        idle.append({role: (after[role] - before[role]) / seconds for role in before})
        return seconds

    progress("streaming, so that every process has its memory")
    for mode in MODES[:2] * _WARM_UPS:
        streams.stream(mode)
    progress(f"measuring {extent.rounds} rounds: {', '.join(mode.name for mode in MODES)}")
    in_rounds({"waiting": wait, **{mode.name: partial(stream, mode) for mode in MODES}}, extent.rounds)
    return costs, {role: Spread.of(one[role] for one in idle).median for role in idle[0]}


def _cpu_seconds(costs: list[StreamCost], idle: dict[str, float], frames: int) -> dict[str, list[float]]:
    """Per 1,000 frames, round by round, by role; without what the processes take when nothing is streamed."""
    by_role = {
        role: [(cost.cpu_seconds[role] - idle[role] * cost.seconds_measured) / frames * 1000 for cost in costs]
        for role in (*STREAMING, ETCD)
    }
    total = [sum(of_round) for of_round in zip(*(by_role[role] for role in STREAMING), strict=True)]
    return {ALL: total, **by_role}


def _same_counters(costs: dict[str, list[StreamCost]]) -> Counters:
    """The counters of all streams. Raises MpistreamError where they are not the same."""
    counters = [cost.summary.counters for of_mode in costs.values() for cost in of_mode]
    if any(one != counters[0] for one in counters):
        raise MpistreamError("the streams did not give the same dataset, so comparing them means nothing")
    return counters[0]


@contextmanager
def _place_in(folder: Path) -> Iterator[Path]:
    try:
        place = tempfile.TemporaryDirectory(prefix="mpistream-bench-", dir=folder.absolute())
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror}", "choose another --folder") from error
    with place as name:
        yield Path(name)


def file_system_of(folder: Path) -> str:
    """Its type: ext4, tmpfs, ...; empty where the system does not say."""
    if not _MOUNTS.is_file():
        return ""
    mounts = [line.split()[1:3] for line in _MOUNTS.read_text().splitlines()]
    above = [(len(point), kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(above)[1] if above else ""
