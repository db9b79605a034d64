"""Which rank gets which block: a pure function of (scan uid, block number, table version)."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class RankEndpoints:
    """One rank of an MPI job: where blocks are pushed to it, and where it answers.

    ``process`` tells it from every other process of any machine. ``cores`` are those of its host that it may use, as in
    "0-3,8".
    """

    rank: int
    group: int
    host: str
    pid: int
    incarnation: int
    data_endpoint: str
    answer_endpoint: str
    job: str = ""
    process: str = ""
    cores: str = ""


@dataclass(frozen=True)
class RoutingTable:
    """The ranks that share the blocks of a deployment: those of one MPI job or of several.

    A new version is written when a job comes or goes; old ones are kept. ``conducting`` is the job that leads: what
    thresholds are calibrated from goes to its ranks only.
    """

    version: int
    conducting: str
    ranks: tuple[RankEndpoints, ...]

    def rank_of(self, scan_uid: bytes, block: int, for_conductor: bool = False) -> int:
        """All sectors of a block go to this index into ``ranks``. Consecutive blocks go round all of them, or, those
        that it alone can use, round the ranks of the conducting job.
        """
        turn = int.from_bytes(scan_uid[:4], "little") + block
        conducting = (
            [index for index, rank in enumerate(self.ranks) if rank.job == self.conducting] if for_conductor else []
        )
        return conducting[turn % len(conducting)] if conducting else turn % len(self.ranks)

    @property
    def jobs(self) -> frozenset[str]:
        return frozenset(rank.job for rank in self.ranks)

    @property
    def incarnations(self) -> frozenset[int]:
        """Whose acknowledgements count under this table."""
        return frozenset(rank.incarnation for rank in self.ranks)

    def to_json(self) -> dict[str, Any]:
        return {"version": self.version, "conducting": self.conducting, "ranks": [asdict(rank) for rank in self.ranks]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "RoutingTable":
        return cls(value["version"], value["conducting"], tuple(RankEndpoints(**rank) for rank in value["ranks"]))
