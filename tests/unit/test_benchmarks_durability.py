"""The benchmark of durability: what it compares, and that its figures are what they are called. Nothing is timed."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from mpistream.acquisition.simulated_files import simulate_to_files
from mpistream.benchmarks import durability, recorded_frames
from mpistream.benchmarks.durability import (
    ALL,
    MODES,
    UNACKNOWLEDGED,
    Extent,
    file_system_of,
    with_bars,
)
from mpistream.benchmarks.durability_journal import LIMITS, JournalAlone
from mpistream.benchmarks.durability_report import report
from mpistream.benchmarks.durability_streams import (
    ETCD,
    STREAMING,
    BenchmarkTestbed,
    Mode,
    StreamCost,
    Streams,
    cpu_seconds_of,
    memory_is_kept,
    window_bytes,
)
from mpistream.benchmarks.rank_without_acknowledgements import (
    AcknowledgedOrNot,
    BenchmarkReceiver,
    UnacknowledgedScan,
    is_acknowledged,
)
from mpistream.launch.testbed_folder import TestbedFolder
from mpistream.model.config import Config, StreamConfig
from mpistream.model.errors import MpistreamError
from mpistream.model.geometry import SECTORS
from mpistream.model.scan import Counters, CountingParameters, Durability, ScanRecord, ScanSummary, Thresholds
from mpistream.pipeline.ranks import receiver
from mpistream.pipeline.ranks.rank_scan import RankScan
from mpistream.storage.journal import FILE_HEAD_BYTES, JournalWriter, read_journal
from tests.unit.made_up_blocks import BACKGROUND, XRAY, block_message, scan_record

PACKAGE = Path(durability.__file__).parents[1]


def counted_scan(record: ScanRecord, kind: type[RankScan]) -> RankScan:
    """All blocks of a scan, on one rank, journaled as its record says."""
    scan = kind.prepare(record, 0, 77)
    scan.set_thresholds(Thresholds(background=BACKGROUND, xray=XRAY, calibrated=False), None)
    for block in record.block_range:
        for sector in range(SECTORS):
            assembled = scan.receive(*block_message(record, block, sector, 0b1111))
            if assembled is not None:
                scan.count(assembled)
    scan.journal_counted(time.monotonic())
    return scan


def test_without_acknowledgements_a_rank_counts_the_same_and_says_nothing(tmp_path: Path) -> None:
    record = scan_record(journals="", durability=Durability.NONE)
    silent = counted_scan(record, AcknowledgedOrNot)
    product = counted_scan(record, RankScan)
    assert type(silent) is UnacknowledgedScan
    assert silent.take_acknowledgements() == []
    assert len(product.take_acknowledgements()) == SECTORS
    assert [block.checksum() for block in silent.blocks] == [block.checksum() for block in product.blocks]
    assert silent.report() is not None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("level", Durability)
def test_any_other_scan_is_received_by_the_products_own_code(tmp_path: Path, level: Durability) -> None:
    record = scan_record(journals=str(tmp_path / "journals"), durability=level)
    scan = counted_scan(record, AcknowledgedOrNot)
    assert type(scan) is RankScan
    assert len(scan.take_acknowledgements()) == SECTORS
    assert (scan.journal is not None) == (level is not Durability.NONE)
    scan.close(keep=False)


@pytest.mark.parametrize(("journals", "asks"), [("", False), ("/somewhere", True)])
def test_nothing_is_asked_for_again_without_acknowledgements(
    monkeypatch: pytest.MonkeyPatch, journals: str, asks: bool
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(receiver.RankReceiver, "_ask_for_what_is_lost", lambda self: asked.append(self))
    silent = BenchmarkReceiver.__new__(BenchmarkReceiver)
    scan = MagicMock(record=scan_record(journals=journals))
    silent._scans = {scan.record.uid: scan}
    silent._ask_for_what_is_lost()
    assert bool(asked) == asks == is_acknowledged(scan.record)


def test_the_product_has_no_such_mode() -> None:
    """Nothing but the benchmark knows of a rank that does not acknowledge."""
    naming = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "without_acknowledgements" in path.read_text() or "UnacknowledgedScan" in path.read_text()
    }
    assert naming == {"benchmarks/durability_streams.py", "benchmarks/rank_without_acknowledgements.py"}


def test_what_is_compared() -> None:
    assert [(mode.name, mode.is_acknowledged, mode.durability) for mode in MODES] == [
        (UNACKNOWLEDGED, False, Durability.NONE),
        ("none", True, Durability.NONE),
        ("write", True, Durability.WRITE),
        ("fsync", True, Durability.FSYNC),
    ]


@pytest.mark.parametrize("frames", [8, 16, 64, 4096])
def test_the_window_holds_every_block(frames: int) -> None:
    stream = StreamConfig(window_bytes=window_bytes(frames))
    assert stream.producer_blocks(stream.block_frames) >= frames // stream.block_frames


def test_extent_is_of_whole_blocks() -> None:
    assert Extent.of(None, None, 2, 2400.0) == Extent()
    assert Extent().frames >= 4096
    assert Extent().rounds >= 3
    quick = Extent.of(None, None, 3, 100.0, quick=True)
    assert (quick.frames, quick.ranks, quick.electrons) == (64, 3, 100.0)
    assert Extent.of(9, 4, 2, 2400.0, quick=True).frames == 16
    assert Extent.of(9, 4, 2, 2400.0).rounds == 4
    assert Extent.of(9, None, 2, 2400.0).journal_blocks == 2


def test_the_ranks_are_the_benchmarks_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, list[str]] = {}
    program = "mpistream.launch.testbed.SupervisedProgram"
    monkeypatch.setattr(program, lambda program: started.update({program.name: list(program.command)}))
    testbed = BenchmarkTestbed(TestbedFolder(tmp_path), 1, 3, base=Config())
    testbed._start_processes()
    assert len(started) == SECTORS + 2
    command = started.pop("consumers")
    assert command[1:3] == ["-n", "3"]
    assert command[-2:] == ["mpistream.benchmarks.rank_without_acknowledgements", str(tmp_path / "mpistream.toml")]
    assert all("mpistream" in command for command in started.values())


def test_memory_is_kept_only_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "7")
    before = dict(os.environ)
    with memory_is_kept():
        assert os.environ["MALLOC_ARENA_MAX"] == "1"
        assert int(os.environ["MALLOC_TRIM_THRESHOLD_"]) > 2**33
    assert dict(os.environ) == before


def test_cpu_seconds_of_a_process() -> None:
    def own() -> float:
        times = os.times()
        return times.user + times.system

    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    low, measured, high = own(), cpu_seconds_of(os.getpid()), own()
    assert low - 0.02 <= measured <= high + 0.02


def summary_of(**counters: int) -> ScanSummary:
    known = (
        dict.fromkeys(set(Counters.model_fields), 0) | {"frames": 16, "electrons": 1600, "raw_bytes": 320} | counters
    )
    return ScanSummary(
        dataset="",
        scan_shape=(4, 4),
        counters=Counters(**known),
        thresholds=Thresholds(background=1, xray=2, calibrated=False),
        file_bytes=0,
        seconds={},
    )


def cost_of(cpu: float, **counters: int) -> StreamCost:
    return StreamCost(dict.fromkeys((*STREAMING, ETCD), cpu), 10.0, 8.0, summary_of(**counters))


class MadeUpStreams(Streams):
    """Streams that cost what they are told, with so many blocks sent again."""

    repeated: Iterator[int]

    def _stream(self, mode: Mode) -> StreamCost:
        return cost_of(1.0, blocks_repeated=next(self.repeated))


@pytest.mark.parametrize(("repeated", "counts"), [([0], True), ([3, 1, 0], True), ([1, 1, 1, 0], False)])
def test_a_stream_with_blocks_sent_again_does_not_count(repeated: list[int], counts: bool) -> None:
    streams = MadeUpStreams(MagicMock(), Path(), CountingParameters(), Path())
    object.__setattr__(streams, "repeated", iter(repeated))
    if counts:
        assert streams.stream(MODES[0]).summary.counters.blocks_repeated == 0
    else:
        with pytest.raises(MpistreamError, match="sent again"):
            streams.stream(MODES[0])


def test_what_is_used_without_a_stream_is_left_out() -> None:
    idle = {**dict.fromkeys(STREAMING, 0.01), ETCD: 0.0}
    found = durability._cpu_seconds([cost_of(1.0), cost_of(2.0)], idle, 16)
    assert found[STREAMING[0]] == pytest.approx([0.9 / 16 * 1000, 1.9 / 16 * 1000])
    assert found[ALL] == pytest.approx([3 * 0.9 / 16 * 1000, 3 * 1.9 / 16 * 1000])
    assert found[ETCD] == pytest.approx([1000 / 16, 2000 / 16])


def test_streams_that_differ_are_not_compared() -> None:
    costs = {"none": [cost_of(1.0), cost_of(2.0)], "write": [cost_of(3.0)]}
    assert durability._same_counters(costs).electrons == 1600
    with pytest.raises(MpistreamError, match="the same dataset"):
        durability._same_counters(costs | {"fsync": [cost_of(1.0, electrons=1599)]})


@pytest.fixture
def result() -> dict[str, Any]:
    """As ``measure`` returns it."""
    seconds = {UNACKNOWLEDGED: [1.0, 2.0, 4.0], "none": [1.0, 2.0, 4.0], "write": [1.1, 2.1, 4.0], "fsync": [2.0] * 3}
    return {
        "machine": {"processor": "a processor", "cores": 2},
        "frames": 16,
        "raw_bytes": 16 * 663552,
        "electrons_per_frame": 100.0,
        "ranks": 2,
        "rounds": 3,
        "window_bytes": 1,
        "file_system": "ext4",
        "idle_cores": dict.fromkeys((*STREAMING, ETCD), 0.01),
        "cpu_seconds_per_1000_frames": {
            name: {ALL: of_mode, **dict.fromkeys((*STREAMING, ETCD), of_mode)} for name, of_mode in seconds.items()
        },
        "frames_per_second": {name: [100.0, 200.0, 300.0] for name in seconds},
        "journal": {
            "blocks": 2,
            "bytes": 100_000,
            "raw_bytes": 10_000_000,
            "microseconds_per_block": {name: [10.0, 20.0, 30.0] for pair in LIMITS.items() for name in pair},
        },
    }


def test_the_bar_is_about_ratios_within_a_round(result: dict[str, Any]) -> None:
    known = with_bars(result)
    assert known["times_no_acknowledgements"]["write"] == pytest.approx([1.1, 1.05, 1.0])
    (bar,) = known["bars"].values()
    assert bar == {"value": pytest.approx(1.05), "bar": 1.1, "at_most": True, "met": True}
    result["cpu_seconds_per_1000_frames"]["write"][ALL] = [1.2, 2.4, 4.4]
    assert next(iter(with_bars(result)["bars"].values()))["met"] is False


def test_the_report_has_every_mode_and_the_bar(result: dict[str, Any]) -> None:
    text = report(with_bars(result))
    for words in ("durability none", "durability write", "durability fsync", "1.050 (1.000 to 1.100)", "1.00%"):
        assert words in text
    assert "| at most 1.10 | yes |" in text
    assert "0.030 cores" in text


def test_the_journal_alone(tmp_path: Path) -> None:
    sectors, folder = tmp_path / "sectors", tmp_path / "folder"
    folder.mkdir()
    simulate_to_files(recorded_frames.scan_of(24, 300), sectors)
    counting = CountingParameters(background=recorded_frames.BACKGROUND, xray=recorded_frames.XRAY)
    journal = JournalAlone.of(sectors, counting, 2)
    assert [block.block for block in journal.blocks] == [0, 1]
    assert sum(len(block.events.indices) for block in journal.blocks) > 16 * 150

    contenders = journal.contenders(folder)
    assert {*LIMITS, *LIMITS.values()} < set(contenders)
    assert all(contender() > 0 for contender in contenders.values())
    assert list(folder.iterdir()) == []


def test_the_limit_writes_what_the_journal_writes(tmp_path: Path) -> None:
    simulate_to_files(recorded_frames.scan_of(16, 300), tmp_path / "sectors")
    journal = JournalAlone.of(tmp_path / "sectors", CountingParameters(background=44.0, xray=1500.0), 2)
    record = scan_record()
    writer = JournalWriter.create(tmp_path / "journal", record.uid, 1, Durability.WRITE)
    writer.append(journal.blocks)
    writer.close()
    assert (tmp_path / "journal").read_bytes()[FILE_HEAD_BYTES:] == b"".join(journal.records)
    assert [block.checksum() for block in read_journal(tmp_path / "journal")] == [
        block.checksum() for block in journal.blocks
    ]
    assert journal.bytes == sum(map(len, journal.records))
    assert replace(journal, records=[]).bytes == 0


def test_which_file_system_it_is(tmp_path: Path) -> None:
    assert file_system_of(Path("/proc/self")) == "proc"
    assert file_system_of(tmp_path) != "proc", "empty where the system does not say, as below another root"
