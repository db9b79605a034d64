"""Redistribution of counted frames: from the rank that counted a frame to the rank that writes its scan position.

    rank that counted      frames in the order they came
      |  sort by (scan position, frame number); cut the positions into one contiguous range per rank
      |  exchange the frames' heads, 25 bytes each and 4 per annulus: now every rank knows what it gets from whom
      |  exchange the events in rounds: each pair of ranks sends the frames that begin in its next share of bytes
      |  (first all pixel indices; then all centroids in the same way, where a scan has them)
    rank that writes       frames in the order of the dataset

Both sides of a pair derive the rounds from the same counts, so none is negotiated.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from mpistream._ext.event_scatter import copy_rows
from mpistream.model.agreement import agreed
from mpistream.model.electron_events import ElectronEvents, Slab, offsets_from_counts
from mpistream.model.errors import MpistreamError, ScanFailed
from mpistream.model.frame_sums import FrameSums

FRAME_ADDRESS = np.dtype([("frame", "<u8"), ("position", "<u4")])
INDEX_BYTES = 4
#: A centroid's row and column travel in one piece.
CENTROID = np.dtype(np.uint16)

FAILURE = "the counted frames cannot be gathered"
REMEDY = "use more nodes: a rank holds what it counted and what it will write"

#: The load of positions is known in at most so many bins; with fewer positions exactly.
MAX_LOAD_BINS = 1 << 16

Integers = npt.NDArray[np.int64]


def gather_slab(
    comm: MPI.Comm,
    events: ElectronEvents,
    sums: FrameSums,
    positions: int,
    round_bytes: int = 256 * 2**20,
    centroids: bool = False,
) -> Slab:
    """Collective: this rank's slab of the dataset, from the frames that this rank counted, in any order.

    ``positions`` is the number of scan positions; ``centroids`` says whether the scan's events have them, the same on
    every rank: a rank without events cannot know. ``sums`` are those of the same frames, with as many annuli on every
    rank. A rank sends and receives about ``round_bytes`` (below 2**31) at a time, at least one frame per pair of ranks.
    Ranges of positions are chosen for equal bytes per rank. Raises ScanFailed, the same on every rank, for
    inconsistent arrays or a frame number that occurs twice.
    """
    with agreed(comm, ScanFailed, FAILURE):
        if not 1 <= round_bytes < 2**31:
            raise ScanFailed(f"rounds of {round_bytes} bytes", "MPI counts need 1 to 2147483647 bytes per round")
        events = events.with_centroids(centroids)
        events.validate(positions)
        sums.validate(len(events))
        order = np.lexsort((events.frame_number, events.scan_position))
        heads = _heads(events, sums, order)
    _refuse_duplicates(comm, heads, round_bytes)
    bounds = _range_bounds(comm, heads, positions, INDEX_BYTES + CENTROID.itemsize * centroids)
    frames_to = np.diff(np.searchsorted(heads["position"], bounds))
    received, frames_from = _exchange_rows(comm, heads, frames_to, round_bytes)
    with agreed(comm, ScanFailed, FAILURE, REMEDY):
        sending = _Rows(events.offsets[:-1][order], heads["count"], frames_to)
        in_order, receiving = _dataset_order(received, frames_from)
    indices = _exchange_events(comm, sending, events.indices, receiving, round_bytes)
    pairs = None
    if events.centroids is not None:
        pairs = _exchange_events(comm, sending, _as_pairs(events.centroids), receiving, round_bytes)
    own_positions = range(int(bounds[comm.rank]), int(bounds[comm.rank + 1]))
    return _slab(comm, own_positions, in_order, indices, pairs)


def _dataset_order(received: npt.NDArray[np.void], frames_from: Integers) -> tuple[npt.NDArray[np.void], "_Rows"]:
    """The heads received, in the order of the dataset; and, in the order received, where their events belong then."""
    order = np.lexsort((received["frame"], received["position"]))
    in_order = received[order]
    begin = np.empty(len(received), np.uint64)
    begin[order] = offsets_from_counts(in_order["count"])[:-1]
    return in_order, _Rows(begin, received["count"], frames_from)


def _slab(
    comm: MPI.Comm,
    positions: range,
    heads: npt.NDArray[np.void],
    indices: npt.NDArray[np.uint32],
    pairs: npt.NDArray[np.uint16] | None,
) -> Slab:
    """Collective: the slab of these frames, and where it lies among those of all ranks."""
    with agreed(comm, ScanFailed, FAILURE, REMEDY):
        events = ElectronEvents.from_counts(
            heads["position"].copy(),
            heads["frame"].copy(),
            heads["missing"].copy(),
            heads["count"],
            indices,
            pairs.view(np.int8).reshape(-1, 2) if pairs is not None else None,
        )
        sums = FrameSums(heads["moments"].copy(), heads["annuli"].copy())
    sizes = comm.allgather((len(events), len(indices)))
    frames_before, events_before = (sum(column) for column in zip((0, 0), *sizes[: comm.rank], strict=True))
    total_frames, total_events = (sum(column) for column in zip(*sizes, strict=True))
    return Slab(events, sums, positions, frames_before, events_before, total_frames, total_events)


def _as_pairs(centroids: npt.NDArray[np.int8]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(centroids).reshape(-1).view(CENTROID)


def _heads(events: ElectronEvents, sums: FrameSums, order: npt.NDArray[np.intp]) -> npt.NDArray[np.void]:
    """What is known of the frames besides their events, in that order; packed, since it travels."""
    annuli = sums.annuli.shape[1]
    known = [("position", "<u4"), ("frame", "<u8"), ("count", "<u4"), ("missing", "u1")]
    heads = np.empty(len(events), [*known, ("moments", "<u4", (2,)), ("annuli", "<u4", (annuli,))])
    heads["position"] = events.scan_position[order]
    heads["frame"] = events.frame_number[order]
    heads["count"] = events.counts[order]
    heads["missing"] = events.missing_sectors[order]
    heads["moments"] = sums.moments[order]
    heads["annuli"] = sums.annuli[order]
    return heads


def _range_bounds(comm: MPI.Comm, heads: npt.NDArray[np.void], positions: int, event_bytes: int) -> Integers:
    """int64[size+1]: rank r writes positions bounds[r] to bounds[r+1]-1. Exact integers, so alike on all ranks."""
    bins = min(positions, MAX_LOAD_BINS)
    bin_of_frame = heads["position"].astype(np.int64) * bins // positions
    # bincount adds in float64, which is exact below 2**53 bytes
    load = np.bincount(bin_of_frame, heads["count"] * float(event_bytes) + heads.itemsize, bins).astype(np.int64)
    comm.Allreduce(MPI.IN_PLACE, load, op=MPI.SUM)
    load_before = np.concatenate(([0], np.cumsum(load)))
    shares = [int(load_before[-1]) * rank // comm.size for rank in range(comm.size)]
    bounds = np.append(np.searchsorted(load_before, shares), bins)
    # the lowest position of a bin: the inverse, rounded up, of bin_of_frame
    return -(-bounds * positions // bins)


def _refuse_duplicates(comm: MPI.Comm, heads: npt.NDArray[np.void], round_bytes: int) -> None:
    """Raises ScanFailed on every rank if any frame number occurs twice, on whichever ranks."""
    home = heads["frame"] % np.uint64(comm.size)
    order = np.argsort(home, kind="stable")
    addresses = np.empty(len(heads), FRAME_ADDRESS)
    addresses["frame"] = heads["frame"][order]
    addresses["position"] = heads["position"][order]
    met, _ = _exchange_rows(comm, addresses, np.bincount(home.astype(np.intp), minlength=comm.size), round_bytes)
    met = met[np.lexsort((met["position"], met["frame"]))]
    twice = np.flatnonzero(met["frame"][1:] == met["frame"][:-1])
    first = (*met[twice[0]].tolist(), int(met["position"][twice[0] + 1])) if len(twice) else None
    found = [address for address in comm.allgather(first) if address is not None]
    if found:
        frame, position, other = min(found)
        raise ScanFailed(
            f"frame {frame} was counted twice, at scan positions {position} and {other}",
            "repeat the scan with the same command; if it happens again, the source numbers its frames wrongly",
        )


def _exchange_rows(
    comm: MPI.Comm, rows: npt.NDArray[np.void], rows_to: Integers, round_bytes: int
) -> tuple[npt.NDArray[np.void], Integers]:
    """Collective: ``rows`` grouped by destination become rows grouped by source, and their number per source."""
    rows_to = rows_to.astype(np.int64)
    rows_from = np.empty_like(rows_to)
    comm.Alltoall(rows_to, rows_from)
    with agreed(comm, ScanFailed, FAILURE, REMEDY):
        received = np.empty(int(rows_from.sum()), rows.dtype)
    share = max(1, round_bytes // (comm.size * rows.itemsize))
    rounds = comm.allreduce(-(-int(rows_to.max()) // share), op=MPI.MAX)
    row_type = MPI.BYTE.Create_contiguous(rows.itemsize).Commit()
    try:
        for number in range(rounds):
            comm.Alltoallv(
                _part(rows, rows_to, number, share, row_type), _part(received, rows_from, number, share, row_type)
            )
    finally:
        row_type.Free()
    return received, rows_from


def _part(rows: npt.NDArray[np.void], per_rank: Integers, number: int, share: int, row_type: MPI.Datatype) -> Any:
    begin = np.minimum(per_rank, number * share)
    end = np.minimum(per_rank, (number + 1) * share)
    first = np.cumsum(per_rank) - per_rank
    return [rows, (end - begin, first + begin), row_type]


class _Rows:
    """Frames grouped by the rank they go to or come from, and where each one's events begin in this rank's array."""

    def __init__(
        self, begin: npt.NDArray[np.uint64], counts: npt.NDArray[np.uint32], frames_per_rank: Integers
    ) -> None:
        self.begin = begin
        self.counts = np.ascontiguousarray(counts)
        self.group_first = np.concatenate(([0], np.cumsum(frames_per_rank)))
        self.events_before = offsets_from_counts(self.counts).astype(np.int64)

    @property
    def events(self) -> int:
        return int(self.events_before[-1])

    def cuts(self, share: int) -> list[Integers]:
        """Per rank the first frames of its rounds: a frame belongs to the round in whose ``share`` it begins."""
        cuts = []
        for first, end in zip(self.group_first[:-1], self.group_first[1:], strict=True):
            begins = self.events_before[first:end] - self.events_before[first]
            rounds = int(begins[-1]) // share + 1 if end > first else 0
            cuts.append(first + np.append(np.searchsorted(begins, np.arange(rounds) * share), end - first))
        return cuts

    def round(self, cuts: list[Integers], number: int) -> tuple[npt.NDArray[np.intp], Integers]:
        """Frames of one round, in the order of their ranks, and the events per rank."""
        first = np.array([cut[min(number, len(cut) - 1)] for cut in cuts])
        end = np.array([cut[min(number + 1, len(cut) - 1)] for cut in cuts])
        frames = np.concatenate([np.arange(begin, stop) for begin, stop in zip(first, end, strict=True)])
        return frames, self.events_before[end] - self.events_before[first]


def _exchange_events(
    comm: MPI.Comm, sending: _Rows, values: npt.NDArray[Any], receiving: _Rows, round_bytes: int
) -> npt.NDArray[Any]:
    """Collective: ``values``, one per event of the rows sent, become those of the rows received."""
    with agreed(comm, ScanFailed, FAILURE, REMEDY):
        received = np.empty(receiving.events, values.dtype)
    share = max(1, round_bytes // (comm.size * values.itemsize))
    send_cuts, receive_cuts = sending.cuts(share), receiving.cuts(share)
    rounds = comm.allreduce(max(len(cut) - 1 for cut in send_cuts), op=MPI.MAX)
    for number in range(rounds):
        send_frames, send_counts = sending.round(send_cuts, number)
        receive_frames, receive_counts = receiving.round(receive_cuts, number)
        with agreed(comm, ScanFailed, FAILURE, REMEDY):
            _check_round(values.itemsize * max(int(send_counts.sum()), int(receive_counts.sum())))
            outgoing = np.empty(int(send_counts.sum()), values.dtype)
            incoming = np.empty(int(receive_counts.sum()), values.dtype)
            counts = sending.counts[send_frames]
            copy_rows(values, sending.begin[send_frames], outgoing, offsets_from_counts(counts)[:-1], counts)
        comm.Alltoallv(
            [outgoing, (send_counts, np.cumsum(send_counts) - send_counts)],
            [incoming, (receive_counts, np.cumsum(receive_counts) - receive_counts)],
        )
        counts = receiving.counts[receive_frames]
        copy_rows(incoming, offsets_from_counts(counts)[:-1], received, receiving.begin[receive_frames], counts)
    return received


def _check_round(round_bytes: int) -> None:
    # only more than 1600 ranks that all send a full frame of electrons at a time come here
    if round_bytes >= 2**31:
        raise MpistreamError("a round of events is larger than MPI can count", "lower ranks.gather_round_bytes")
