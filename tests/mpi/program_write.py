"""Writes the scan of ``scan_frames``: ``program_write PATH MODE ROUND_BYTES FRAMES [VARIANT]``.

VARIANT is a JSON object: ``counting`` (counting parameters), ``center`` of the detectors (null: that of the pattern),
``bare`` (true: without what a dataset need not have), ``ends`` (false: without those), ``calibrated`` (true: with all
statistics), ``session``, ``labels`` and ``references`` (all three or none) of the scan's record.
"""

import json
import sys
from dataclasses import replace

from mpi4py import MPI

from mpistream.model.scan import CALIBRATION_STATISTICS, CountingParameters
from mpistream.reduction.gather import gather_slab
from mpistream.storage.writer import write_dataset
from tests.scans import Frame, describe, make_frames, to_events, to_pattern, to_rejected, to_sums

ROWS, COLUMNS = 9, 5


def scan_frames(frames_at_most: int) -> list[Frame]:
    return make_frames(3, ROWS, COLUMNS, frames_at_most, mean_events=120)


def rejected_records(frames: list[Frame]) -> list[tuple[int, int]]:
    """(frame number, sector) of every third missing sector: its record came, and was bad."""
    missing = [(frame[1], sector) for frame in sorted(frames) for sector in range(4) if frame[2] >> sector & 1]
    return missing[::3]


def main() -> None:
    comm = MPI.COMM_WORLD.Dup()
    path, mode, round_bytes, frames_at_most = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    variant = json.loads(sys.argv[5]) if len(sys.argv) > 5 else {}
    frames = scan_frames(frames_at_most)
    rejected = rejected_records(frames)
    description = describe(frames, ROWS, COLUMNS, CountingParameters(**variant.get("counting", {})), rejected=rejected)
    # each on one rank, and the first of them on every rank
    own_rejected = [record for record in rejected if record[0] % comm.size == comm.rank or record == rejected[0]]
    description = replace(description, rejected=to_rejected(own_rejected))
    if not variant.get("ends", True):
        description = replace(description, ends=())
    if variant.get("calibrated"):
        statistics = dict.fromkeys(CALIBRATION_STATISTICS, 64)
        description = replace(
            description, thresholds=description.thresholds.model_copy(update={"statistics": statistics})
        )
    if "center" in variant:
        center = tuple(variant["center"]) if variant["center"] else None
        detectors = replace(description.detectors, center=center)
        description = replace(description, scan=description.scan.model_copy(update={"detectors": detectors}))
    if "session" in variant:
        changes = {name: variant[name] for name in ("session", "labels", "references")}
        description = replace(description, scan=description.scan.model_copy(update=changes))
    if variant.get("bare"):
        description = replace(description, dark=None, pixel_mask=None, sample_histogram=None)
    own_frames = [frame for frame in frames if frame[1] % comm.size == comm.rank]
    own = to_events(own_frames, description.centroids)
    sums = to_sums(own_frames, description.detectors)
    slab = gather_slab(comm, own, sums, ROWS * COLUMNS, round_bytes, description.centroids)
    report = write_dataset(
        comm,
        slab,
        to_pattern(own_frames),
        description,
        path,
        tag=f"{description.scan.uid.hex}.1",
        round_bytes=round_bytes,
        parallel=mode != "serial",
        collective={"parallel": None, "serial": None, "collective": True, "independent": False}[mode],
    )
    assert len(set(comm.allgather(report))) == 1
    assert report.parallel == (mode != "serial")
    assert report.writing_ranks == (1 if mode == "serial" else comm.size)
    assert report.warning is None
    comm.Free()


if __name__ == "__main__":
    main()
