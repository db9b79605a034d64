"""The journal alone: what a block costs to append, beside plainly writing the same bytes."""

import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

from mpistream.benchmarks.measurement import Spread
from mpistream.model.counted_block import JournaledBlock
from mpistream.model.scan import CountingParameters, Durability, Thresholds
from mpistream.pipeline.source_frames import record_of_source, source_blocks
from mpistream.reduction.scan_reduction import ScanReduction
from mpistream.storage.journal import JournalWriter
from mpistream.storage.journal_record import encode_record

APPEND_WRITE, APPEND_FSYNC = "append, write", "append, fsync"
CRC = "its CRC-32 alone"
PLAIN_WRITE, PLAIN_FSYNC = "os.write", "os.write, os.fdatasync"
#: What is compared with what: the limit below the journal.
LIMITS = {APPEND_WRITE: PLAIN_WRITE, APPEND_FSYNC: PLAIN_FSYNC}

_BLOCK_FRAMES = 8
_numbers = count()


@dataclass(frozen=True)
class JournalAlone:
    """Counted blocks, and the same as the bytes that a journal has of them."""

    blocks: list[JournaledBlock]
    records: list[bytes]

    @classmethod
    def of(cls, sectors: Path, counting: CountingParameters, blocks: int) -> "JournalAlone":
        """The first ``blocks`` blocks of sector files, counted with given thresholds."""
        record, _ = record_of_source(f"files:{sectors}", _BLOCK_FRAMES, counting)
        reduction = ScanReduction.prepare(record)
        reduction.set_thresholds(Thresholds.given(counting))
        counted = [reduction.count(block) for block in source_blocks(record, record.block_range[:blocks])]
        known = [block for block in counted if block is not None]
        return cls(known, [b"".join(map(bytes, encode_record(block))) for block in known])

    @property
    def bytes(self) -> int:
        return sum(map(len, self.records))

    @property
    def raw_bytes(self) -> int:
        return sum(block.raw_bytes for block in self.blocks)

    def contenders(self, folder: Path) -> dict[str, Callable[[], float]]:
        """Each goes through all blocks, one at a time, in a new file in ``folder``: median microseconds per block."""
        return {
            CRC: self._crc,
            APPEND_WRITE: partial(self._append, folder, Durability.WRITE),
            APPEND_FSYNC: partial(self._append, folder, Durability.FSYNC),
            PLAIN_WRITE: partial(self._write, folder, False),
            PLAIN_FSYNC: partial(self._write, folder, True),
        }

    def _crc(self) -> float:
        return _median_microseconds(partial(zlib.crc32, record) for record in self.records)

    def _append(self, folder: Path, durability: Durability) -> float:
        with _new_file(folder) as path:
            journal = JournalWriter.create(path, uuid4(), 1, durability)
            try:
                return _median_microseconds(partial(journal.append, [block]) for block in self.blocks)
            finally:
                journal.close()

    def _write(self, folder: Path, flushes: bool) -> float:
        with _new_file(folder) as path:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

            def write(record: Any) -> None:
                os.write(descriptor, record)
                if flushes:
                    os.fdatasync(descriptor)

            try:
                return _median_microseconds(partial(write, record) for record in self.records)
            finally:
                os.close(descriptor)


@contextmanager
def _new_file(folder: Path) -> Iterator[Path]:
    path = folder / f"journal-{next(_numbers)}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _median_microseconds(steps: Iterator[Callable[[], object]]) -> float:
    seconds = []
    for step in steps:
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return Spread.of(seconds).median * 1e6
