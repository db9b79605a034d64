"""The states of a scan and the legal ways between them. Pure; docs/states.md tells them in words."""

from dataclasses import dataclass
from enum import StrEnum


class ScanState(StrEnum):
    ANNOUNCED = "announced"  # the record is written; the ranks prepare
    STREAMING = "streaming"  # the ranks are ready; the producers send
    DRAINING = "draining"  # every producer has sent its last block; the ranks still count
    ASSEMBLING = "assembling"  # every block is counted; the ranks write the dataset
    COMMITTED = "committed"  # the dataset has its final name and everything that was sent
    INCOMPLETE = "incomplete"  # the dataset has its final name; a sector's producer was gone for good
    ABORTED = "aborted"  # ended by request, with what had arrived in a dataset or without
    FAILED = "failed"  # ended by an error; the reason is recorded

    @property
    def is_final(self) -> bool:
        return not TRANSITIONS[self]


#: Blocks are sent, counted and journaled.
UNDER_WAY = (ScanState.STREAMING, ScanState.DRAINING)

_ENDS_BADLY = frozenset({ScanState.ABORTED, ScanState.FAILED})

TRANSITIONS: dict[ScanState, frozenset[ScanState]] = {
    ScanState.ANNOUNCED: frozenset({ScanState.STREAMING}) | _ENDS_BADLY,
    ScanState.STREAMING: frozenset({ScanState.DRAINING}) | _ENDS_BADLY,
    ScanState.DRAINING: frozenset({ScanState.ASSEMBLING}) | _ENDS_BADLY,
    ScanState.ASSEMBLING: frozenset({ScanState.COMMITTED, ScanState.INCOMPLETE}) | _ENDS_BADLY,
    ScanState.COMMITTED: frozenset(),
    ScanState.INCOMPLETE: frozenset(),
    ScanState.ABORTED: frozenset(),
    ScanState.FAILED: frozenset(),
}


@dataclass(frozen=True)
class ScanStatus:
    """A scan's state as etcd holds it; ``reason`` and ``remedy`` are for people: why it ended, what it waits for.

    ``keeps_journals``: it failed for what its journals hold or lack, and they tell what went wrong.
    """

    state: ScanState
    since_unix_seconds: float
    reason: str = ""
    remedy: str = ""
    keeps_journals: bool = False

    def to_json(self) -> dict[str, object]:
        return {
            "state": str(self.state),
            "since_unix_seconds": self.since_unix_seconds,
            "reason": self.reason,
            "remedy": self.remedy,
            "keeps_journals": self.keeps_journals,
        }

    @classmethod
    def from_json(cls, value: dict[str, object]) -> "ScanStatus":
        return cls(
            ScanState(str(value["state"])),
            float(str(value["since_unix_seconds"])),
            str(value["reason"]),
            str(value["remedy"]),
            bool(value.get("keeps_journals", False)),
        )


def keeps_journals(old: ScanState, new: ScanState) -> bool:
    """Whether a scan that goes from ``old`` to ``new`` keeps its journals, though it has ended."""
    return old is ScanState.ASSEMBLING and new is ScanState.FAILED
