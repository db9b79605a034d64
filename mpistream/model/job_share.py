"""What one MPI job has of a scan: written to etcd by its leader, and once more by whoever seals it."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mpistream.model.block_set import BlockSet


@dataclass(frozen=True)
class JournalExtent:
    """How far a rank's journal of a scan is good. ``bytes`` only grows, until the journal is sealed."""

    rank: int
    incarnation: int
    path: str
    bytes: int = 0


@dataclass(frozen=True)
class JobShare:
    """A job's part of one scan.

    ready    every rank of the job is prepared for the scan
    flushed  every rank has counted what it held of blocks that can no longer become complete
    sealed   the job is taken for dead: the journals count up to ``bytes`` and no further, whatever a zombie appends
    blocks   what the job has counted and journaled
    process  of the job's leader
    problem  why the job cannot go on for the moment (its journal cannot be written, ...), for people
    """

    job: str
    blocks: BlockSet
    ready: bool = False
    flushed: bool = False
    sealed: bool = False
    journals: tuple[JournalExtent, ...] = ()
    totals: dict[str, int] = field(default_factory=dict)  # frames, electrons, raw_bytes, frames_incomplete, ...
    process: str = ""
    problem: str = ""

    def changed(self, **changes: Any) -> "JobShare":
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        plain = asdict(replace(self, blocks=BlockSet(range(0))))
        return {**plain, "blocks": self.blocks.to_json(), "journals": list(plain["journals"])}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "JobShare":
        """Raises ValueError, KeyError or TypeError for what ``to_json`` did not make."""
        journals = tuple(JournalExtent(**journal) for journal in value["journals"])
        return cls(**{**value, "blocks": BlockSet.from_json(value["blocks"]), "journals": journals})
