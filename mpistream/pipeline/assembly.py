"""gather -> write: what all ranks do together once a scan is counted."""

import time
from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

from mpistream.model.agreement import agreed
from mpistream.model.config import Config
from mpistream.model.dataset_description import DatasetDescription
from mpistream.model.electron_events import Slab
from mpistream.model.errors import ScanFailed
from mpistream.model.geometry import ALL_SECTORS, SECTORS
from mpistream.model.scan import Counters, ScanSummary, SectorEnd
from mpistream.reduction.gather import gather_slab
from mpistream.reduction.scan_reduction import ScanReduction
from mpistream.storage.writer import write_dataset


def write_scan(comm: MPI.Comm, config: Config, scan: ScanReduction, ends: Sequence[SectorEnd], job: str) -> ScanSummary:
    """Collective: the events counted on all ranks become the dataset. Raises MpistreamError, the same on every rank."""
    check_arrivals(comm, scan, ends)
    started = time.time()
    slab = gather_slab(comm, scan.events(), scan.record.scan_shape.positions, config.ranks.gather_round_bytes)
    seconds = {**_stream_seconds(comm, scan, ends), "gather": time.time() - started}
    counters = count_totals(comm, slab, scan, ends)
    description = DatasetDescription(
        scan.record,
        scan.thresholds,
        counters,
        dark=scan.dark,
        gain=scan.gain,
        seconds=seconds,
        provenance={"job": job, "mpi_ranks": comm.size},
    )
    report = write_dataset(
        comm,
        slab,
        description,
        scan.record.output,
        scan.record.overwrite,
        round_bytes=config.ranks.gather_round_bytes,
        parallel=config.ranks.parallel_hdf5,
    )
    last_block = comm.allreduce(scan.last_block_unix_seconds, op=MPI.MAX)
    seconds["write"] = report.seconds
    seconds["last_frame_to_dataset"] = time.time() - last_block
    return ScanSummary(
        dataset=str(report.path),
        scan_shape=(scan.record.rows, scan.record.columns),
        counters=counters,
        thresholds=scan.thresholds,
        file_bytes=report.file_bytes,
        seconds=seconds,
        warnings=(report.warning,) if report.warning else (),
    )


def check_arrivals(comm: MPI.Comm, scan: ScanReduction, ends: Sequence[SectorEnd]) -> None:
    """Collective: what came must be exactly what the producers say they sent, frame by frame (by digest)."""
    digests = np.array(scan.assembly.digests, np.uint64)
    comm.Allreduce(MPI.IN_PLACE, digests, op=MPI.SUM)  # wraps around at 2**64, as the digests do
    with agreed(comm, ScanFailed, "the arrivals cannot be checked"):
        for end in ends:
            if int(digests[end.sector]) != end.digest:
                raise ScanFailed(
                    f"the frames of sector {end.sector} that arrived are not those that its producer sent",
                    "repeat the scan; if it happens again, the logs of the producer and the aggregator say more",
                )


def count_totals(comm: MPI.Comm, slab: Slab, scan: ScanReduction, ends: Sequence[SectorEnd]) -> Counters:
    """Collective: the totals over all ranks."""
    missing = slab.events.missing_sectors & ALL_SECTORS
    local = np.array(
        [
            np.count_nonzero(missing),
            sum(int(np.count_nonzero(missing >> sector & 1)) for sector in range(SECTORS)),
            scan.assembly.counters.sectors_duplicate,
            scan.assembly.counters.sectors_rejected,
            scan.raw_bytes,
        ],
        np.int64,
    )
    comm.Allreduce(MPI.IN_PLACE, local, op=MPI.SUM)
    incomplete, sectors_missing, duplicate, rejected, raw_bytes = (int(number) for number in local)
    return Counters(
        frames=slab.total_frames,
        electrons=slab.total_events,
        frames_incomplete=incomplete,
        sectors_missing=sectors_missing,
        sectors_duplicate=duplicate + sum(end.sectors_duplicate for end in ends),
        sectors_rejected=rejected + sum(end.sectors_rejected for end in ends),
        frames_lost=scan.record.last_frame - scan.record.first_frame + 1 - slab.total_frames,
        raw_bytes=raw_bytes,
    )


def _stream_seconds(comm: MPI.Comm, scan: ScanReduction, ends: Sequence[SectorEnd]) -> dict[str, float]:
    """Collective: ``streaming`` is from the first block to the last one counted, over all ranks; ``reading`` (over
    the producers) and ``counting`` (over the ranks) are sums of the time spent in that work alone.
    """
    first = scan.first_block_unix_seconds or float("inf")
    return {
        "streaming": comm.allreduce(scan.last_block_unix_seconds, op=MPI.MAX) - comm.allreduce(first, op=MPI.MIN),
        "reading": sum(end.seconds_reading for end in ends),
        "counting": comm.allreduce(scan.seconds_counting),
    }
