"""What has arrived of a scan, in memories and journals: read, chosen among, and compared with what was sent."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from mpistream.model.agreement import agreed
from mpistream.model.counted_block import JournaledBlock, of_kind
from mpistream.model.errors import ScanFailed, StorageError
from mpistream.model.geometry import ALL_SECTORS, SECTORS
from mpistream.model.protocol import blocks_digest
from mpistream.model.scan import Counters, SectorEnd
from mpistream.pipeline.ranks.orders import CountedScan
from mpistream.reduction.block_versions import choose_versions
from mpistream.storage.journal import read_journal

Block = TypeVar("Block", bound=JournaledBlock)


@dataclass(frozen=True)
class Arrivals(Generic[Block]):
    """This rank's part of a scan's blocks, each of which one rank has.

    superfluous  those of which there is a version as good or better, or the same
    ends, notes  what the producers sent in all, as far as is known, and what people should know of it
    """

    blocks: list[Block]
    read: list[Block]
    superfluous: list[Block]
    ends: tuple[SectorEnd, ...]
    notes: tuple[str, ...]


def arrivals_of(comm: MPI.Comm, scan: CountedScan, kind: type[Block]) -> Arrivals[Block]:
    """Collective: of every block the fullest version. Raises ScanFailed, the same on every rank, unless all is there,
    and StorageError where a journal cannot be read.
    """
    with agreed(comm, ScanFailed, "the journals are not of this scan", "stream it again; they are kept"):
        own = of_kind(kind, scan.blocks)
    read = read_journals(comm, scan, kind)
    blocks, superfluous = choose_versions(comm, own + read)
    return Arrivals(blocks, read, superfluous, *check_arrivals(comm, scan, blocks))


def read_journals(comm: MPI.Comm, scan: CountedScan, kind: type[Block]) -> list[Block]:
    """Collective: this rank's part of what is to be read from journals. Raises StorageError, the same on every rank."""
    blocks: list[Block] = []
    with agreed(comm, StorageError, "the journals cannot be read", "make their folder readable for all ranks"):
        for path, good_bytes in scan.journals[comm.rank :: comm.size]:
            blocks += of_kind(kind, list(read_journal(path, good_bytes, scan_uid=scan.record.uid)))
    return blocks


def check_arrivals(
    comm: MPI.Comm, scan: CountedScan, blocks: Sequence[JournaledBlock]
) -> tuple[tuple[SectorEnd, ...], tuple[str, ...]]:
    """Collective: what is there must be exactly what the producers say they sent, frame by frame (by digest).

    Where a live source could not send again what a lost job had acknowledged, nobody knows any more what was sent: the
    end record then says so, and so does a note.
    """
    digests = np.zeros(SECTORS, np.uint64)
    for sector in range(SECTORS):
        heard = [block for block in blocks if block.sectors >> sector & 1]
        present = (block.frames_present[sector] for block in heard)
        digests[sector] = blocks_digest(sector, (block.block for block in heard), present)
    comm.Allreduce(MPI.IN_PLACE, digests, op=MPI.SUM)  # wraps around at 2**64, as the digests do
    counted = comm.allreduce(len(blocks))
    with agreed(comm, ScanFailed, "the arrivals cannot be checked"):
        expected = len(scan.record.block_range)
        if counted != expected and not all(end.cut for end in scan.ends):
            raise ScanFailed(
                f"{counted} of {expected} blocks are in memory and journals",
                f"journals have been lost or damaged; those that are there are kept in {scan.record.journals}",
            )
        differing = [end for end in scan.ends if end.digest is not None and int(digests[end.sector]) != end.digest]
        for end in differing:
            if not end.is_live:
                raise ScanFailed(
                    f"the frames of sector {end.sector} that arrived are not those that its producer sent",
                    "repeat the scan; if it happens again, the logs of the producer and the aggregator say more",
                )
    ends = tuple(end.model_copy(update={"digest": None}) if end in differing else end for end in scan.ends)
    notes = [f"frames of sector {end.sector} were lost that its live source could not send again" for end in differing]
    return ends, tuple(notes)


def is_complete(ends: Sequence[SectorEnd], notes: Sequence[str]) -> bool:
    """The scan ran to its end with all its producers."""
    return not notes and not any(end.cut for end in ends)


def count_totals(
    comm: MPI.Comm,
    scan: CountedScan,
    arrivals: Arrivals[Block],
    missing_sectors: npt.NDArray[np.uint8],
    frames: int,
    electrons: int,
) -> Counters:
    """Collective: the totals over all ranks. ``missing_sectors`` are those of this rank's part of the frames."""
    missing = missing_sectors & ALL_SECTORS
    local = np.array(
        [
            np.count_nonzero(missing),
            sum(int(np.count_nonzero(missing >> sector & 1)) for sector in range(SECTORS)),
            sum(block.records_rejected for block in arrivals.blocks),
            sum(block.raw_bytes for block in arrivals.blocks),
            scan.reduction.assembly.blocks_repeated + len(arrivals.superfluous),
        ],
        np.int64,
    )
    comm.Allreduce(MPI.IN_PLACE, local, op=MPI.SUM)
    incomplete, sectors_missing, rejected, raw_bytes, repeated = (int(number) for number in local)
    return Counters(
        frames=frames,
        electrons=electrons,
        frames_incomplete=incomplete,
        sectors_missing=sectors_missing,
        sectors_duplicate=sum(end.sectors_duplicate for end in arrivals.ends),
        sectors_rejected=rejected + sum(end.sectors_rejected for end in arrivals.ends),
        frames_lost=scan.record.last_frame - scan.record.first_frame + 1 - frames,
        raw_bytes=raw_bytes,
        blocks_repeated=repeated,
    )


def last_block_seconds(comm: MPI.Comm, scan: CountedScan) -> float:
    """Collective: when the last block came to any rank, in Unix seconds; now where none has come to this job."""
    return comm.allreduce(scan.reduction.last_block_unix_seconds, op=MPI.MAX) or time.time()


def stream_seconds(comm: MPI.Comm, scan: CountedScan, last_block: float) -> dict[str, float]:
    """Collective: ``streaming`` is from the first block to the last one that this job received, over all ranks;
    ``reading`` (over the producers) and ``counting`` (over the ranks) are sums of the time spent in that work alone.
    """
    reduction = scan.reduction
    first = comm.allreduce(reduction.first_block_unix_seconds or float("inf"), op=MPI.MIN)
    return {
        "streaming": max(0.0, last_block - first),
        "reading": sum(end.seconds_reading for end in scan.ends),
        "counting": comm.allreduce(reduction.seconds_counting),
    }
