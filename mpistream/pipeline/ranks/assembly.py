"""gather -> write: what all ranks do together once a scan is counted."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from mpistream.model.agreement import agreed
from mpistream.model.config import Config
from mpistream.model.counted_block import CountedBlock, diffraction_sum_of
from mpistream.model.dataset_description import DatasetDescription, SampleHistogram, WriteReport
from mpistream.model.electron_events import ElectronEvents, Slab
from mpistream.model.errors import MpistreamError, ScanFailed, StorageError
from mpistream.model.fault_points import reach
from mpistream.model.frame_sums import FrameSums
from mpistream.model.scan import Counters, ScanRecord, ScanSummary, SectorEnd, Thresholds
from mpistream.pipeline.ranks.arrivals import (
    arrivals_of,
    count_totals,
    is_complete,
    last_block_seconds,
    stream_seconds,
)
from mpistream.pipeline.ranks.orders import CountedScan
from mpistream.pipeline.ranks.recording_assembly import GatheredRecording, finish_recording, gather_recording
from mpistream.reduction.calibration import SampleStatistics
from mpistream.reduction.gather import gather_slab
from mpistream.storage.delivery import rejected_records
from mpistream.storage.journal import SAMPLE_FILE
from mpistream.storage.placement import remove_partials
from mpistream.storage.recovery import dataset_of, read_summary
from mpistream.storage.writer import write_dataset


@dataclass(frozen=True, eq=False)
class GatheredScan:
    """A rank's share of the dataset, and what it says about the frames that this rank counted or read."""

    slab: Slab
    diffraction_sum: npt.NDArray[np.uint32]
    counters: Counters
    rejected: npt.NDArray[np.void]
    ends: tuple[SectorEnd, ...]
    notes: tuple[str, ...]


def summary_of_written(comm: MPI.Comm, scan: CountedScan) -> ScanSummary | None:
    """Collective: the summary where an earlier attempt, of this job or of one that has ended, got as far as giving
    the dataset its name. What else earlier attempts have left is removed. Raises StorageError.
    """
    summary: ScanSummary | None = None
    with agreed(comm, StorageError, "the output cannot be looked at"):
        if comm.rank == 0:
            uid = scan.record.uid
            # a scan may have been redirected after an attempt
            places = dict.fromkeys((scan.output, Path(scan.record.output)))
            written = [place for place in places if dataset_of(place) == uid]
            if written:
                summary = read_summary(written[0])
            for place in places:
                remove_partials(place, uid.hex)
    return comm.bcast(summary)


def gather_scan(comm: MPI.Comm, config: Config, scan: CountedScan) -> GatheredScan | GatheredRecording:
    """Collective: this rank's share of the dataset. Raises ScanFailed, the same on every rank, unless all is there, and
    StorageError where a journal cannot be read.
    """
    reach("rank.before-gather")
    if scan.record.recording:
        return gather_recording(comm, scan)
    arrivals, record = arrivals_of(comm, scan, CountedBlock), scan.record
    pattern = scan.diffraction_sum + diffraction_sum_of(arrivals.read) - diffraction_sum_of(arrivals.superfluous)
    with agreed(comm, ScanFailed, "the journals are not of this scan", "stream it again; they are kept"):
        events = ElectronEvents.concatenate([block.events for block in arrivals.blocks])
        sums = FrameSums.concatenate([block.sums for block in arrivals.blocks], scan.reduction.annuli)
    slab = gather_slab(
        comm,
        events,
        sums,
        record.scan_shape.positions,
        config.ranks.gather_round_bytes,
        record.counting.centroids,
    )
    missing = slab.events.missing_sectors
    counters = count_totals(comm, scan, arrivals, missing, slab.total_frames, slab.total_events)
    rejected = rejected_records(arrivals.blocks, record.block_frames)
    return GatheredScan(slab, pattern, counters, rejected, arrivals.ends, arrivals.notes)


def write_scan(
    comm: MPI.Comm,
    config: Config,
    scan: CountedScan,
    gathered: GatheredScan | GatheredRecording,
    job: str,
    ingest: str = "streamed",
) -> ScanSummary:
    """Collective: what was gathered becomes the dataset. Raises StorageError, the same on every rank.

    ``ingest`` says how the frames came to the ranks: ``streamed``, or ``read`` from the source by themselves.
    """
    if isinstance(gathered, GatheredRecording):
        return finish_recording(comm, scan, gathered, job)
    record, reduction = scan.record, scan.reduction
    last_block = last_block_seconds(comm, scan)
    seconds = {**stream_seconds(comm, scan, last_block), "gather": time.time() - last_block}
    complete = is_complete(gathered.ends, gathered.notes)
    description = DatasetDescription(
        record,
        reduction.thresholds,
        gathered.counters,
        dark=reduction.references.dark,
        gain=reduction.references.gain,
        pixel_mask=reduction.references.pixel_mask,
        sample_histogram=_sample_histogram(scan),
        seconds=seconds,
        provenance={"job": job, "mpi_ranks": comm.size, "ingest": ingest},
        ends=gathered.ends,
        rejected=gathered.rejected,
        complete=complete,
    )
    reach("rank.before-write")
    report = write_dataset(
        comm,
        gathered.slab,
        gathered.diffraction_sum,
        description,
        scan.output,
        record.overwrite,
        tag=f"{record.uid.hex}.{scan.attempt}",
        round_bytes=config.ranks.gather_round_bytes,
        parallel=config.ranks.parallel_hdf5,
    )
    seconds["write"] = report.seconds
    seconds["last_frame_to_dataset"] = time.time() - last_block
    return ScanSummary(
        dataset=str(report.path),
        complete=complete,
        scan_shape=(record.rows, record.columns),
        counters=gathered.counters,
        thresholds=reduction.thresholds,
        file_bytes=report.file_bytes,
        seconds=seconds,
        warnings=(*gathered.notes, *_warnings(record, reduction.thresholds, report)),
    )


def _sample_histogram(scan: CountedScan) -> SampleHistogram | None:
    """Rank 0's counts: what it calibrated itself, or what the job that did has left beside its journals."""
    sample = scan.reduction.sample
    if sample is None and scan.reduction.thresholds.calibrated:
        try:
            sample = SampleStatistics.from_bytes((scan.journals_folder / SAMPLE_FILE).read_bytes())
        except (OSError, MpistreamError):
            return None
    return SampleHistogram(sample.first_bin, sample.histogram) if sample is not None else None


def _warnings(record: ScanRecord, thresholds: Thresholds, report: WriteReport) -> Iterator[str]:
    if report.warning:
        yield report.warning
    yield from thresholds.notes(record)
