"""Where a frame is, or what became of it: from etcd, the journals and the dataset."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import numpy as np

from mpistream.control.registry import Registry
from mpistream.control.run_state import ScanState
from mpistream.control.scan_facts import ScanFacts
from mpistream.launch.inspection import KnownScan, Numbers
from mpistream.model.counted_block import JournaledBlock
from mpistream.model.errors import ConfigError, MpistreamError
from mpistream.model.geometry import SECTORS
from mpistream.model.job_share import JobShare
from mpistream.model.routing_table import RankEndpoints
from mpistream.model.scan import ScanRecord
from mpistream.storage.journal import FILE_HEAD_BYTES, read_journal
from mpistream.storage.journal_record import encode_record
from mpistream.storage.reader import open_dataset


@dataclass(frozen=True)
class Destination:
    """The rank to which the latest routing table sends a block."""

    rank: int
    job: str
    host: str
    pid: int
    table: int


@dataclass(frozen=True)
class JournalPlace:
    """A record of the frame's block in a journal: it begins at ``byte``.

    missing_sectors  of the frame; None where the journal cannot be read from here, as ``problem`` says
    """

    job: str
    rank: int
    path: str
    byte: int | None = None
    missing_sectors: tuple[int, ...] | None = None
    problem: str = ""


@dataclass(frozen=True)
class DatasetRow:
    """A row of the dataset ``path``. ``row``, ``column``: the scan position."""

    path: str
    index: int
    row: int
    column: int
    electrons: int
    missing_sectors: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """What is known of one frame.

    destination  None once the scan has ended, and where the MPI job that the table names does not run
    counted_by   the jobs that have counted and journaled the block: no producer keeps it any more
    senders      sector -> what its producer says of the scan; only while the block is owed
    cut          sector -> why nothing more is waited for
    """

    uid: UUID
    state: ScanState
    frame: int
    block: int
    block_frames: int
    destination: Destination | None
    counted_by: tuple[str, ...]
    journals: tuple[JournalPlace, ...]
    senders: dict[int, Numbers]
    cut: dict[int, str]
    has_dataset: bool
    rows: tuple[DatasetRow, ...]
    dataset_problem: str = ""


def trace_frame(registry: Registry, scan: KnownScan, frame: int) -> Trace:
    """Raises ConfigError for a frame that the scan does not have."""
    facts = scan.facts
    record, status = facts.record, facts.status
    assert record is not None
    assert status is not None
    if not record.first_frame <= frame <= record.last_frame:
        raise ConfigError(
            f"scan {facts.uid} has the frames {record.first_frame} to {record.last_frame}, not {frame}",
            "frames are known by the number that the camera gave them",
        )
    block = frame // record.block_frames
    shares = [share for share in facts.shares.values() if block in share.blocks]
    rows, problem = _rows(scan, frame)
    is_owed = facts.is_unfinished and not shares
    return Trace(
        facts.uid,
        status.state,
        frame,
        block,
        record.block_frames,
        _destination(registry, record, block) if facts.is_unfinished else None,
        tuple(share.job for share in shares),
        tuple(place for share in shares for place in _places(share, record, block, frame)),
        _senders(registry, facts) if is_owed else {},
        {sector: end.cut for sector, end in sorted(facts.ends.items()) if end.cut},
        scan.summary is not None,
        rows,
        problem,
    )


def _destination(registry: Registry, record: ScanRecord, block: int) -> Destination | None:
    table = registry.latest_routing()
    if table is None:
        return None
    rank: RankEndpoints = table.ranks[table.rank_of(record.uid.bytes, block, block in record.blocks_for_conductor)]
    if rank.job not in {group.job for group in registry.groups()}:
        return None  # the table outlives its jobs
    return Destination(rank.rank, rank.job, rank.host, rank.pid, table.version)


def _senders(registry: Registry, facts: ScanFacts) -> dict[int, Numbers]:
    said = registry.statuses("producers").values()
    of_scan = [status for status in said if status.get("scan") == str(facts.uid)]
    return {int(status["sector"]): status for status in sorted(of_scan, key=lambda status: int(status["sector"]))}


def _places(share: JobShare, record: ScanRecord, block: int, frame: int) -> Iterator[JournalPlace]:
    """All of the job's journals are read, one block at a time."""
    unreadable = []
    found = False
    for journal in share.journals:
        path, position = Path(journal.path), FILE_HEAD_BYTES
        if not path.exists():
            unreadable.append(
                JournalPlace(share.job, journal.rank, journal.path, problem="it cannot be seen from here")
            )
            continue
        try:
            for counted in read_journal(path, scan_uid=record.uid):
                if counted.block == block:
                    found = True
                    missing = _missing(counted, frame - block * record.block_frames)
                    yield JournalPlace(share.job, journal.rank, journal.path, position, missing)
                position += sum(memoryview(part).nbytes for part in encode_record(counted))
        except MpistreamError as error:
            unreadable.append(JournalPlace(share.job, journal.rank, journal.path, problem=error.message))
    if not found:
        yield from unreadable


def _missing(block: JournaledBlock, bit: int) -> tuple[int, ...]:
    """The sectors of one frame that did not come, or whose record was bad."""
    good = [present & ~bad for present, bad in zip(block.frames_present, block.frames_rejected, strict=True)]
    return tuple(sector for sector in range(SECTORS) if not good[sector] >> bit & 1)


def _rows(scan: KnownScan, frame: int) -> tuple[tuple[DatasetRow, ...], str]:
    """The frame's row in the dataset, or why it cannot be told; neither before there is a dataset."""
    if scan.summary is None:
        return (), ""
    path = Path(scan.summary.dataset)
    try:
        with open_dataset(path) as dataset:
            if dataset.scan_uid != str(scan.facts.uid):
                return (), f"{path} has become the dataset of another scan, {dataset.scan_uid}"
            indices = np.flatnonzero(dataset.frame_number == frame)
            return tuple(
                DatasetRow(
                    str(path),
                    int(index),
                    *divmod(int(dataset.scan_position[index]), dataset.scan_shape[1]),
                    int(dataset.offsets[index + 1] - dataset.offsets[index]),
                    tuple(s for s in range(SECTORS) if int(dataset.missing_sectors[index]) >> s & 1),
                )
                for index in indices
            ), ""
    except MpistreamError as error:
        return (), error.message
