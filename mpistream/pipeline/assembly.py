"""gather -> write: what all ranks do together once a scan is counted."""

import time
from collections.abc import Iterator

import numpy as np
from mpi4py import MPI

from mpistream.model.agreement import agreed
from mpistream.model.config import Config
from mpistream.model.dataset_description import DatasetDescription, SampleHistogram, WriteReport
from mpistream.model.electron_events import Slab
from mpistream.model.errors import ScanFailed
from mpistream.model.geometry import ALL_SECTORS, SECTORS
from mpistream.model.scan import Counters, ScanRecord, ScanSummary, Thresholds
from mpistream.model.virtual_images import VirtualDetectors
from mpistream.pipeline.receiver import CountedScan
from mpistream.reduction.gather import gather_slab
from mpistream.storage.writer import write_dataset


def gather_scan(comm: MPI.Comm, config: Config, scan: CountedScan) -> Slab:
    """Collective: this rank's share of the dataset. Raises ScanFailed, the same on every rank, unless all is there."""
    check_detectors(comm, config.detectors.virtual)
    check_arrivals(comm, scan)
    record = scan.record
    events, sums = scan.reduction.take_counted()
    return gather_slab(
        comm,
        events,
        sums,
        record.scan_shape.positions,
        config.ranks.gather_round_bytes,
        record.counting.centroids,
    )


def write_scan(comm: MPI.Comm, config: Config, scan: CountedScan, slab: Slab, job: str) -> ScanSummary:
    """Collective: the slabs become the dataset. Raises StorageError, the same on every rank."""
    record, reduction, sample = scan.record, scan.reduction, scan.reduction.sample
    last_block = comm.allreduce(reduction.last_block_unix_seconds, op=MPI.MAX)
    seconds = {**_stream_seconds(comm, scan), "gather": time.time() - last_block}
    counters = count_totals(comm, slab, scan)
    description = DatasetDescription(
        record,
        reduction.thresholds,
        counters,
        dark=reduction.references.dark,
        gain=reduction.references.gain,
        pixel_mask=reduction.references.pixel_mask,
        sample_histogram=SampleHistogram(sample.first_bin, sample.histogram) if sample is not None else None,
        detectors=config.detectors.virtual,
        seconds=seconds,
        provenance={"job": job, "mpi_ranks": comm.size},
    )
    report = write_dataset(
        comm,
        slab,
        reduction.diffraction_sum,
        description,
        record.output,
        record.overwrite,
        round_bytes=config.ranks.gather_round_bytes,
        parallel=config.ranks.parallel_hdf5,
    )
    seconds["write"] = report.seconds
    seconds["last_frame_to_dataset"] = time.time() - last_block
    return ScanSummary(
        dataset=str(report.path),
        scan_shape=(record.rows, record.columns),
        counters=counters,
        thresholds=reduction.thresholds,
        file_bytes=report.file_bytes,
        seconds=seconds,
        warnings=tuple(_warnings(record, reduction.thresholds, report)),
    )


def _warnings(record: ScanRecord, thresholds: Thresholds, report: WriteReport) -> Iterator[str]:
    if report.warning:
        yield report.warning
    yield from thresholds.notes(record)


def check_detectors(comm: MPI.Comm, detectors: VirtualDetectors) -> None:
    """Collective: what ranks with different detectors counted would not belong together."""
    if len(set(comm.allgather(detectors))) > 1:
        raise ScanFailed(
            "the ranks' configurations describe different detectors", "give all ranks the same [detectors]"
        )


def check_arrivals(comm: MPI.Comm, scan: CountedScan) -> None:
    """Collective: what came must be exactly what the producers say they sent, frame by frame (by digest)."""
    digests = np.array(scan.reduction.assembly.digests, np.uint64)
    comm.Allreduce(MPI.IN_PLACE, digests, op=MPI.SUM)  # wraps around at 2**64, as the digests do
    with agreed(comm, ScanFailed, "the arrivals cannot be checked"):
        for end in scan.ends:
            if int(digests[end.sector]) != end.digest:
                raise ScanFailed(
                    f"the frames of sector {end.sector} that arrived are not those that its producer sent",
                    "repeat the scan; if it happens again, the logs of the producer and the aggregator say more",
                )


def count_totals(comm: MPI.Comm, slab: Slab, scan: CountedScan) -> Counters:
    """Collective: the totals over all ranks."""
    missing = slab.events.missing_sectors & ALL_SECTORS
    local = np.array(
        [
            np.count_nonzero(missing),
            sum(int(np.count_nonzero(missing >> sector & 1)) for sector in range(SECTORS)),
            scan.reduction.assembly.counters.sectors_duplicate,
            scan.reduction.assembly.counters.sectors_rejected,
            scan.reduction.raw_bytes,
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
        sectors_duplicate=duplicate + sum(end.sectors_duplicate for end in scan.ends),
        sectors_rejected=rejected + sum(end.sectors_rejected for end in scan.ends),
        frames_lost=scan.record.last_frame - scan.record.first_frame + 1 - slab.total_frames,
        raw_bytes=raw_bytes,
    )


def _stream_seconds(comm: MPI.Comm, scan: CountedScan) -> dict[str, float]:
    """Collective: ``streaming`` is from the first block to the last one counted, over all ranks; ``reading`` (over
    the producers) and ``counting`` (over the ranks) are sums of the time spent in that work alone.
    """
    reduction = scan.reduction
    first = comm.allreduce(reduction.first_block_unix_seconds or float("inf"), op=MPI.MIN)
    return {
        "streaming": comm.allreduce(reduction.last_block_unix_seconds, op=MPI.MAX) - first,
        "reading": sum(end.seconds_reading for end in scan.ends),
        "counting": comm.allreduce(reduction.seconds_counting),
    }
