"""gather -> write of a recording: nothing is redistributed, since its pixels are in their places already."""

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from mpistream.model.dataset_description import DatasetDescription
from mpistream.model.fault_points import reach
from mpistream.model.recorded_block import RecordedBlock
from mpistream.model.scan import Counters, ScanSummary, Thresholds
from mpistream.pipeline.ranks.arrivals import (
    Arrivals,
    arrivals_of,
    count_totals,
    is_complete,
    last_block_seconds,
    stream_seconds,
)
from mpistream.pipeline.ranks.orders import CountedScan
from mpistream.storage.delivery import rejected_records
from mpistream.storage.recording_pixels import pixels_path
from mpistream.storage.recording_writer import write_recording


@dataclass(frozen=True, eq=False)
class GatheredRecording:
    """A rank's part of the recording's index."""

    arrivals: Arrivals[RecordedBlock]
    counters: Counters
    rejected: npt.NDArray[np.void]


def gather_recording(comm: MPI.Comm, scan: CountedScan) -> GatheredRecording:
    """Collective: as ``gather_scan``."""
    arrivals = arrivals_of(comm, scan, RecordedBlock)
    missing = np.concatenate([np.empty(0, np.uint8), *(block.missing for block in arrivals.blocks)])
    counters = count_totals(comm, scan, arrivals, missing, comm.allreduce(len(missing)), electrons=0)
    return GatheredRecording(arrivals, counters, rejected_records(arrivals.blocks, scan.record.block_frames))


def finish_recording(comm: MPI.Comm, scan: CountedScan, gathered: GatheredRecording, job: str) -> ScanSummary:
    """Collective: as ``write_scan``."""
    record, arrivals = scan.record, gathered.arrivals
    complete = is_complete(arrivals.ends, arrivals.notes)
    last_block = last_block_seconds(comm, scan)
    seconds = {**stream_seconds(comm, scan, last_block), "gather": time.time() - last_block}
    seconds["checksums"] = seconds.pop("counting")
    description = DatasetDescription(
        record,
        Thresholds.given(record.counting),
        gathered.counters,
        seconds=seconds,
        provenance={"job": job, "mpi_ranks": comm.size},
        ends=arrivals.ends,
        rejected=gathered.rejected,
        complete=complete,
    )
    reach("rank.before-write")
    report = write_recording(
        comm,
        arrivals.blocks,
        pixels_path(scan.journals_folder),
        description,
        scan.output,
        record.overwrite,
        tag=f"{record.uid.hex}.{scan.attempt}",
    )
    seconds["write"] = report.seconds
    seconds["last_frame_to_dataset"] = time.time() - last_block
    return ScanSummary(
        dataset=str(report.path),
        recording=True,
        complete=complete,
        scan_shape=(record.rows, record.columns),
        counters=gathered.counters,
        thresholds=description.thresholds,
        file_bytes=report.file_bytes,
        seconds=seconds,
        warnings=arrivals.notes,
    )
