"""Which rank gets which block: a pure function of (scan uid, block number, table version)."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class RankEndpoints:
    """One rank of an MPI job: where blocks are pushed to it, and where it answers."""

    rank: int
    group: int
    host: str
    pid: int
    incarnation: int
    data_endpoint: str
    answer_endpoint: str


@dataclass(frozen=True)
class RoutingTable:
    """The ranks that share a session's blocks. A new version is written when they change; old ones are kept."""

    version: int
    job: str
    ranks: tuple[RankEndpoints, ...]

    def rank_of(self, scan_uid: bytes, block: int) -> int:
        """All sectors of a block go to this index into ``ranks``. Consecutive blocks go round all of them."""
        return (int.from_bytes(scan_uid[:4], "little") + block) % len(self.ranks)

    def blocks_of(self, rank: int, scan_uid: bytes, blocks: range) -> range:
        """Those of consecutive ``blocks`` that go to ``rank``."""
        first = blocks.start + (rank - self.rank_of(scan_uid, blocks.start)) % len(self.ranks)
        return range(first, blocks.stop, len(self.ranks))

    def to_json(self) -> dict[str, Any]:
        return {"version": self.version, "job": self.job, "ranks": [asdict(rank) for rank in self.ranks]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "RoutingTable":
        return cls(value["version"], value["job"], tuple(RankEndpoints(**rank) for rank in value["ranks"]))
