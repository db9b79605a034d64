"""Which rank belongs to which rank group.

world       0   1   2   3   4   5   6   7
node        a   a   a   a   b   b   b   b      (ranks that share memory)
group       0   0   0   0   1   1   1   1      one group per node; or a fixed number of ranks, for testbeds
leader      *               *                  registers its group; rank 0 also leads the job
"""

import socket
from dataclasses import dataclass

from mpi4py import MPI

from mpistream.model.errors import ConfigError


@dataclass(frozen=True)
class RankMap:
    """The place of one rank in its MPI job."""

    rank: int
    size: int
    group: int
    rank_in_group: int
    host: str

    @property
    def is_leader(self) -> bool:
        return self.rank == 0

    @property
    def leads_group(self) -> bool:
        return self.rank_in_group == 0


def map_ranks(comm: MPI.Comm, ranks_per_group: int) -> RankMap:
    """Splits ``comm`` into rank groups: by node, or ``ranks_per_group`` at a time where that is not 0. Collective."""
    if ranks_per_group:
        if comm.size % ranks_per_group:
            raise ConfigError(
                f"{comm.size} ranks cannot be split into groups of {ranks_per_group}",
                "start the job with a multiple of [ranks] ranks_per_group",
            )
        first_of_group = comm.rank - comm.rank % ranks_per_group
    else:
        node = comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank)
        first_of_group = node.bcast(comm.rank)
        node.Free()
    firsts = comm.allgather(first_of_group)
    leaders = sorted(set(firsts))
    return RankMap(
        comm.rank,
        comm.size,
        leaders.index(first_of_group),
        firsts[: comm.rank].count(first_of_group),
        socket.gethostname(),
    )
