"""Counts a scan with all ranks; on one of them reading may fail, or never come to an end, or never begin.

``program_count_files SOURCE OUTPUT [RANK [fail|stall|open]]``
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mpi4py import MPI

from mpistream.acquisition.simulator import SimulatedSectorSource
from mpistream.model.config import Config, StreamConfig, WatchdogConfig
from mpistream.model.errors import SourceError
from mpistream.model.scan import CountingParameters, Durability, ScanRecord
from mpistream.pipeline.counting_files import count_source
from mpistream.pipeline.source_frames import record_of_source

COMM = MPI.COMM_WORLD


def prepare(source: str, output: str, assembly_seconds: float) -> tuple[Config, ScanRecord]:
    assert COMM.rank == 0
    record, _ = record_of_source(source, 4, CountingParameters(sample_frames=10), output=output)
    watchdog = WatchdogConfig(assembly_seconds=assembly_seconds)
    config = Config(stream=StreamConfig(patience_seconds=5.0), watchdog=watchdog)
    return config, record.model_copy(update={"durability": Durability.NONE})


@contextmanager
def watch(record: ScanRecord) -> Iterator[Callable[[str, dict[str, int]], None]]:
    assert COMM.rank == 0
    shown: list[tuple[str, dict[str, int]]] = []
    yield lambda stage, progress: shown.append((stage, progress))
    frames = [progress["frames"] for stage, progress in shown if stage == "counting"]
    assert frames == sorted(frames)
    assert frames[-1] == record.rows * record.columns
    assert [stage for stage, _ in shown[-2:]] == ["gathering", "writing"]


def fail(self: SimulatedSectorSource, block: int, block_frames: int, buffer: memoryview) -> int:
    raise SourceError("the disk does not answer", "look after it")


def stall(self: SimulatedSectorSource, block: int, block_frames: int, buffer: memoryview) -> int:
    if block > 30:  # not among those that are calibrated from
        time.sleep(60)
    return read(self, block, block_frames, buffer)


def stall_at_once(self: SimulatedSectorSource, *arguments: object) -> None:
    time.sleep(60)


read = SimulatedSectorSource.read_block


def main(source: str, output: str, rank: str = "", fault: str = "") -> None:
    if rank == str(COMM.rank):
        name, instead = {
            "fail": ("read_block", fail),
            "stall": ("read_block", stall),
            "open": ("__init__", stall_at_once),
        }[fault]
        setattr(SimulatedSectorSource, name, instead)
    summary = count_source(lambda: prepare(source, output, 5.0 if fault == "open" else 900.0), watch)
    assert (summary is not None) == (COMM.rank == 0)
    if summary is not None:
        print("counted", summary.counters.frames)


if __name__ == "__main__":
    main(*sys.argv[1:])
