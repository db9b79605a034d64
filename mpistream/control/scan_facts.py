"""What is known of a scan: all of it stands in etcd, so any job can go on where another one ended. Pure."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any
from uuid import UUID

from mpistream.control.run_state import TRANSITIONS, ScanState, ScanStatus
from mpistream.model.block_set import BlockSet
from mpistream.model.geometry import SECTORS
from mpistream.model.job_share import JobShare
from mpistream.model.scan import Durability, ScanRecord, SectorEnd, Thresholds


@cache
def _later(state: ScanState) -> frozenset[ScanState]:
    """Every state that a scan in ``state`` may come to."""
    return TRANSITIONS[state].union(*map(_later, TRANSITIONS[state]))


@dataclass(frozen=True)
class AbortRequest:
    """``keep``: what has arrived becomes a dataset."""

    reason: str
    keep: bool


@dataclass
class ScanFacts:
    """The keys of one scan as they stand, or will stand in a moment: what is decided is entered here first."""

    uid: UUID
    record: ScanRecord | None = None
    status: ScanStatus | None = None
    thresholds: Thresholds | None = None
    ends: dict[int, SectorEnd] = field(default_factory=dict)
    faults: dict[str, tuple[str, str]] = field(default_factory=dict)  # who -> message, remedy
    abort: AbortRequest | None = None
    output: str | None = None
    shares: dict[str, JobShare] = field(default_factory=dict)

    def take(self, what: str, value: Any) -> None:
        """One key below ``scans/UID/``. Raises ValueError, KeyError or TypeError for what does not belong there.

        News may be older than what this process has written itself; then it changes nothing.
        """
        head, _, name = what.partition("/")
        match head:
            case "record":
                self.record = ScanRecord.model_validate(value)
            case "state":
                self._take_status(ScanStatus.from_json(value))
            case "thresholds":
                self.thresholds = Thresholds.model_validate(value)
            case "ends":
                end = SectorEnd.model_validate(value)
                if not (end.sector in self.sectors_cut and not end.cut):
                    self.ends[end.sector] = end
            case "faults":
                self.faults[name] = str(value["message"]), str(value["remedy"])
            case "abort":
                self.abort = AbortRequest(str(value["reason"]), bool(value.get("keep", False)))
            case "output":
                self.output = str(value["output"])
            case "shares":
                share = JobShare.from_json(value)
                if not (name in self.shares and self.shares[name].sealed and not share.sealed):
                    self.shares[name] = share

    def _take_status(self, status: ScanStatus) -> None:
        """A scan never goes back."""
        if self.status is None or self.status.state is status.state or status.state in _later(self.status.state):
            self.status = status

    @property
    def state(self) -> ScanState | None:
        return self.status.state if self.status else None

    @property
    def is_unfinished(self) -> bool:
        return self.record is not None and self.state is not None and not self.state.is_final

    @property
    def blocks_journaled(self) -> BlockSet:
        """What any job has counted and journaled."""
        assert self.record is not None
        journaled = BlockSet(self.record.block_range)
        for share in self.shares.values():
            if share.blocks.blocks == journaled.blocks:
                journaled.update(share.blocks)
        return journaled

    @property
    def sectors_cut(self) -> frozenset[int]:
        """Sectors of which nothing more is waited for."""
        return frozenset(sector for sector, end in self.ends.items() if end.cut)

    @property
    def is_cut_short(self) -> bool:
        """No sector is sent to its end: what blocks there will be is not known from the range of the scan."""
        return len(self.sectors_cut) == SECTORS

    @property
    def survives_its_job(self) -> bool:
        return self.record is not None and self.record.durability is not Durability.NONE

    @property
    def keeps_journals(self) -> bool:
        """Its journals are not removed, though it has ended."""
        return self.status is not None and self.status.keeps_journals

    @property
    def target(self) -> str:
        """Where the dataset goes."""
        assert self.record is not None
        return self.output or self.record.output
