"""Writes the scan of ``scan_frames`` to a path: ``program_write PATH MODE ROUND_BYTES FRAMES``."""

import sys

from mpi4py import MPI

from mpistream.reduction.gather import gather_slab
from mpistream.storage.writer import write_dataset
from tests.scans import Frame, describe, make_frames, to_events

ROWS, COLUMNS = 9, 5


def scan_frames(frames_at_most: int) -> list[Frame]:
    return make_frames(3, ROWS, COLUMNS, frames_at_most, mean_events=120)


def main() -> None:
    comm = MPI.COMM_WORLD.Dup()
    path, mode, round_bytes, frames_at_most = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    frames = scan_frames(frames_at_most)
    own = to_events([frame for frame in frames if frame[1] % comm.size == comm.rank])
    slab = gather_slab(comm, own, ROWS * COLUMNS, round_bytes)
    report = write_dataset(
        comm,
        slab,
        describe(frames, ROWS, COLUMNS),
        path,
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
