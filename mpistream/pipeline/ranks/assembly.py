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
from mpistream.model.geometry import ALL_SECTORS, SECTORS
from mpistream.model.protocol import blocks_digest
from mpistream.model.scan import Counters, ScanRecord, ScanSummary, SectorEnd, Thresholds
from mpistream.pipeline.ranks.orders import CountedScan
from mpistream.reduction.block_versions import choose_versions
from mpistream.reduction.calibration import SampleStatistics
from mpistream.reduction.gather import gather_slab
from mpistream.storage.delivery import rejected_records
from mpistream.storage.journal import SAMPLE_FILE, read_journal
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


def gather_scan(comm: MPI.Comm, config: Config, scan: CountedScan) -> GatheredScan:
    """Collective: this rank's share of the dataset. Raises ScanFailed, the same on every rank, unless all is there, and
    StorageError where a journal cannot be read.
    """
    reach("rank.before-gather")
    read = read_journals(comm, scan)
    blocks, superfluous = choose_versions(comm, scan.blocks + read)
    pattern = scan.diffraction_sum + diffraction_sum_of(read) - diffraction_sum_of(superfluous)
    ends, notes = check_arrivals(comm, scan, blocks)
    record = scan.record
    with agreed(comm, ScanFailed, "the journals are not of this scan", "stream it again; they are kept"):
        events = ElectronEvents.concatenate([block.events for block in blocks])
        sums = FrameSums.concatenate([block.sums for block in blocks], scan.reduction.annuli)
    slab = gather_slab(
        comm,
        events,
        sums,
        record.scan_shape.positions,
        config.ranks.gather_round_bytes,
        record.counting.centroids,
    )
    counters = count_totals(comm, slab, scan, blocks, len(superfluous))
    return GatheredScan(slab, pattern, counters, rejected_records(blocks, record.block_frames), ends, notes)


def write_scan(
    comm: MPI.Comm, config: Config, scan: CountedScan, gathered: GatheredScan, job: str, ingest: str = "streamed"
) -> ScanSummary:
    """Collective: the slabs become the dataset. Raises StorageError, the same on every rank.

    ``ingest`` says how the frames came to the ranks: ``streamed``, or ``read`` from the source by themselves.
    """
    record, reduction = scan.record, scan.reduction
    last_block = comm.allreduce(reduction.last_block_unix_seconds, op=MPI.MAX) or time.time()
    seconds = {**_stream_seconds(comm, scan, last_block), "gather": time.time() - last_block}
    complete = not gathered.notes and not any(end.cut for end in gathered.ends)
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


def read_journals(comm: MPI.Comm, scan: CountedScan) -> list[CountedBlock]:
    """Collective: this rank's part of what is to be read from journals. Raises StorageError, the same on every rank."""
    blocks: list[CountedBlock] = []
    with agreed(comm, StorageError, "the journals cannot be read", "make their folder readable for all ranks"):
        for path, good_bytes in scan.journals[comm.rank :: comm.size]:
            blocks += read_journal(path, good_bytes, scan_uid=scan.record.uid)
    return blocks


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


def check_arrivals(
    comm: MPI.Comm, scan: CountedScan, blocks: list[CountedBlock]
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


def count_totals(
    comm: MPI.Comm, slab: Slab, scan: CountedScan, blocks: list[CountedBlock], superfluous: int
) -> Counters:
    """Collective: the totals over all ranks."""
    missing = slab.events.missing_sectors & ALL_SECTORS
    local = np.array(
        [
            np.count_nonzero(missing),
            sum(int(np.count_nonzero(missing >> sector & 1)) for sector in range(SECTORS)),
            sum(block.records_rejected for block in blocks),
            sum(block.raw_bytes for block in blocks),
            scan.reduction.assembly.blocks_repeated + superfluous,
        ],
        np.int64,
    )
    comm.Allreduce(MPI.IN_PLACE, local, op=MPI.SUM)
    incomplete, sectors_missing, rejected, raw_bytes, repeated = (int(number) for number in local)
    return Counters(
        frames=slab.total_frames,
        electrons=slab.total_events,
        frames_incomplete=incomplete,
        sectors_missing=sectors_missing,
        sectors_duplicate=sum(end.sectors_duplicate for end in scan.ends),
        sectors_rejected=rejected + sum(end.sectors_rejected for end in scan.ends),
        frames_lost=scan.record.last_frame - scan.record.first_frame + 1 - slab.total_frames,
        raw_bytes=raw_bytes,
        blocks_repeated=repeated,
    )


def _stream_seconds(comm: MPI.Comm, scan: CountedScan, last_block: float) -> dict[str, float]:
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
