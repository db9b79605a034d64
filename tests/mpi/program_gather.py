"""Gathers scans in many distributions and compares with a plain sort. Runs on any number of ranks."""

import sys
from dataclasses import replace

import numpy as np
from mpi4py import MPI

from mpistream.model.electron_events import ElectronEvents
from mpistream.model.errors import ScanFailed
from mpistream.model.frame_sums import FrameSums
from mpistream.reduction.gather import gather_slab
from tests.scans import Frame, make_frames, to_events

ROWS, COLUMNS = 7, 11


def distributions(frames: list[Frame], size: int) -> dict[str, list[int]]:
    """Which rank counted which frame."""
    random = np.random.default_rng(5)
    return {
        "random": random.integers(0, size, len(frames)).tolist(),
        "all on the first rank": [0] * len(frames),
        "all on the last rank": [size - 1] * len(frames),
        "first rank empty": [min(1 + index % max(size - 1, 1), size - 1) for index in range(len(frames))],
        "blocks by frame number": [number // 8 % size for _, number, _, _ in frames],
        "already in place": [position * size // (ROWS * COLUMNS) for position, _, _, _ in frames],
    }


def sums_of(frames: list[Frame], annuli: int = 0) -> FrameSums:
    """Other sums for every frame number, whatever its electrons; as large as they can be."""
    numbers = np.array([number for _, number, _, _ in frames], np.uint32)[:, np.newaxis]
    return FrameSums(2**32 - 1 - numbers * [1, 3], numbers * np.arange(7, 7 + annuli, dtype=np.uint32))


def no_sums(frames: int) -> FrameSums:
    return FrameSums(np.zeros((frames, 2), np.uint32), np.zeros((frames, 0), np.uint32))


def check_gather(
    comm: MPI.Comm, frames: list[Frame], owners: list[int], round_bytes: int, centroids: bool = False, annuli: int = 0
) -> None:
    expected = to_events(sorted(frames), centroids)
    own_frames = [frame for frame, owner in zip(frames, owners, strict=True) if owner == comm.rank]
    # a rank that counted nothing does not know what its events would have had
    own = to_events(own_frames, centroids) if own_frames else ElectronEvents.empty()
    slab = gather_slab(comm, own, sums_of(own_frames, annuli), ROWS * COLUMNS, round_bytes, centroids)
    assert (slab.total_frames, slab.total_events) == (len(expected), len(expected.indices))
    share = expected[slab.first_frame : slab.first_frame + len(slab.events)]
    for name in ("scan_position", "frame_number", "missing_sectors", "offsets", "indices"):
        gathered = getattr(slab.events, name)
        assert gathered.dtype == getattr(share, name).dtype
        np.testing.assert_array_equal(gathered, getattr(share, name), name)
    if expected.centroids is None:
        assert slab.events.centroids is None
    else:
        own_centroids = expected.centroids[slab.first_event :][: len(slab.events.indices)]
        assert slab.events.centroids is not None
        assert slab.events.centroids.dtype == np.int8
        np.testing.assert_array_equal(slab.events.centroids, own_centroids)
    assert slab.first_event == expected.offsets[slab.first_frame]
    wanted = sums_of(sorted(frames)[slab.first_frame :][: len(slab.events)], annuli)
    for name in ("moments", "annuli"):
        gathered = getattr(slab.sums, name)
        assert gathered.dtype == np.uint32
        assert gathered.flags.c_contiguous
        np.testing.assert_array_equal(gathered, getattr(wanted, name), name)
    # the slabs follow one another without gap, and no position is shared between ranks
    ranges = comm.allgather(slab.positions)
    assert [position for positions in ranges for position in positions] == list(range(ROWS * COLUMNS))
    assert set(slab.events.scan_position.tolist()) <= set(slab.positions)
    slabs = comm.allgather((slab.first_frame, len(slab.events), set(slab.events.scan_position.tolist())))
    assert [first for first, _, _ in slabs] == [sum(count for _, count, _ in slabs[:rank]) for rank in range(comm.size)]
    assert sum(count for _, count, _ in slabs) == len(expected)
    assert sum(len(positions) for _, _, positions in slabs) == len(set.union(*(positions for _, _, positions in slabs)))


def check_balance(comm: MPI.Comm) -> None:
    """Half the scan is empty frames, yet every rank gets a fair share of the events."""
    positions = 4000
    counts = np.where(np.arange(positions) < positions // 2, 0, 200).astype(np.uint32)
    mine = np.arange(comm.rank, positions, comm.size)
    events = ElectronEvents.from_counts(
        mine.astype(np.uint32),
        mine.astype(np.uint64),
        np.zeros(len(mine), np.uint8),
        counts[mine],
        np.tile(np.arange(200, dtype=np.uint32), int((counts[mine] > 0).sum())),
    )
    slab = gather_slab(comm, events, no_sums(len(mine)), positions)
    fair = slab.total_events / comm.size
    assert abs(len(slab.events.indices) - fair) < 0.1 * fair, (len(slab.events.indices), fair)


def raised(
    comm: MPI.Comm,
    events: ElectronEvents,
    round_bytes: int = 2**20,
    centroids: bool = False,
    sums: FrameSums | None = None,
) -> str:
    """The message with which gathering failed: the same on every rank."""
    try:
        gather_slab(comm, events, sums or no_sums(len(events)), ROWS * COLUMNS, round_bytes, centroids)
    except ScanFailed as error:
        messages = comm.allgather(str(error))
        assert len(set(messages)) == 1, messages
        return messages[0]
    raise AssertionError("nothing was raised")


def check_errors(comm: MPI.Comm) -> None:
    # the first and the last rank hold frame 7 at two positions, or (on one rank) the same rank holds both
    frames: list[Frame] = [(comm.rank, 100 + comm.rank, 0, [1, 2])]
    frames += [(60, 7, 0, [3])] if comm.rank == 0 else []
    frames += [(4, 7, 0, [])] if comm.rank == comm.size - 1 else []
    message = raised(comm, to_events(frames))
    assert "frame 7 was counted twice, at scan positions 4 and 60" in message, message
    # the same frame twice at one position
    frames = [(3, 9, 0, [comm.rank])] * (2 if comm.size == 1 else 1)
    assert "frame 9 was counted twice, at scan positions 3 and 3" in raised(comm, to_events(frames))
    # only the last rank's arrays are wrong
    is_last = comm.rank == comm.size - 1
    outside: list[Frame] = [(ROWS * COLUMNS if is_last else 0, comm.rank, 0, [])]
    assert f"rank {comm.size - 1}: ValueError: scan position 77 in a scan of 77" in raised(comm, to_events(outside))
    good = to_events([(0, comm.rank, 0, [5, 6])])
    torn = ElectronEvents(good.scan_position, good.frame_number, good.missing_sectors, good.offsets, good.indices[:1])
    assert "offsets that do not rise from 0 to the 1 events" in raised(comm, torn if is_last else good)
    message = raised(comm, good, sums=no_sums(2) if is_last else None)
    assert f"rank {comm.size - 1}: ValueError: 1 frames with moments of 2, annuli of 2 frames" in message, message
    assert "2147483648" in raised(comm, good, 2**31)
    with_centroids = to_events([(0, comm.rank, 0, [5, 6])], centroids=True)
    assert "2 events without centroids" in raised(comm, good if is_last else with_centroids, centroids=True)
    assert "2 events with centroids" in raised(comm, with_centroids if is_last else good)
    torn = replace(with_centroids, centroids=np.zeros((3, 2), np.int8))
    assert "centroids of the shape (3, 2)" in raised(comm, torn if is_last else with_centroids, centroids=True)


def main() -> None:
    comm = MPI.COMM_WORLD.Dup()
    seeds = range(int(sys.argv[1]), int(sys.argv[1]) + 3)
    for seed in seeds:
        frames = make_frames(seed, ROWS, COLUMNS, frames_at_most=1 + seed % 3, mean_events=40)
        for owners in distributions(frames, comm.size).values():
            for round_bytes in (1, 100, 5000, 2**28):
                check_gather(comm, frames, owners, round_bytes)
            for round_bytes in (1, 1000, 2**28):
                check_gather(comm, frames, owners, round_bytes, centroids=True, annuli=2)
    one_position: list[Frame] = [(50, number, 0, [number]) for number in range(20)]
    check_gather(comm, one_position, [number % comm.size for number in range(20)], 64)
    for centroids in (True, False):
        check_gather(comm, [], [], 1000, centroids)
        check_gather(comm, [(9, 4, 0, [])], [0], 1000, centroids, annuli=1)
    check_balance(comm)
    check_errors(comm)
    # an error leaves the communicator as it was
    check_gather(comm, one_position, [0] * 20, 64)
    comm.Free()
    print("gathered" if MPI.COMM_WORLD.rank == 0 else "", end="")


if __name__ == "__main__":
    main()
