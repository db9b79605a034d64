"""One scan as the leader of an MPI job sees it: the facts, and what its own ranks have said. No I/O."""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import numpy as np

from mpistream.control.process_identity import this_process
from mpistream.control.run_state import ScanState
from mpistream.control.scan_facts import ScanFacts
from mpistream.model.block_set import BlockSet
from mpistream.model.errors import MpistreamError, ScanFailed, StorageError
from mpistream.model.job_messages import JobMessage, JobMessageKind
from mpistream.model.job_share import JobShare, JournalExtent
from mpistream.model.scan import ScanSummary

#: How long a job waits before it tries again to write a dataset: doubled each time, up to the longest.
_RETRY_SECONDS = 5.0
_LONGEST_RETRY_SECONDS = 30.0
#: How often a rank that could not be prepared for a scan under way tries again.
_PREPARE_SECONDS = 5.0


@dataclass
class JobScan:
    """``written`` is this job's share as it stands in etcd; None: none yet."""

    facts: ScanFacts
    job: str
    size: int
    written: JobShare | None = None
    share_changed_at: float = 0.0
    samples: dict[int, bytes] = field(default_factory=dict)
    sample: bytes = b""
    # what the ranks have been told
    prepared: bool = False
    thresholds_told: bool = False
    cut_told: frozenset[int] = frozenset()
    flush_told: bool = False
    # what became of the dataset
    assembling: bool = False
    attempts: int = 0
    retry_at: float = 0.0
    summary: ScanSummary | None = None
    error: MpistreamError | None = None
    _prepare_again_at: float | None = None
    _journals: dict[int, JournalExtent] = field(default_factory=dict)
    _totals: dict[int, dict[str, int]] = field(default_factory=dict)
    _flushed: set[int] = field(default_factory=set)
    _problems: dict[int, str] = field(default_factory=dict)
    _faults: dict[str, tuple[str, str]] = field(default_factory=dict)
    _blocks: BlockSet | None = None

    @property
    def uid(self) -> UUID:
        return self.facts.uid

    def told(self, message: JobMessage, now: float) -> None:
        """A rank's news about the scan; late ones of a scan that was forgotten meanwhile are left out."""
        fields = message.fields
        if self.facts.record is None or (message.kind is JobMessageKind.COUNTED and message.rank not in self._journals):
            return
        match message.kind:
            case JobMessageKind.READY:
                extent = JournalExtent(message.rank, fields["incarnation"], fields["journal"])
                self._journals.setdefault(message.rank, extent)
                self._problems.pop(message.rank, None)
            case JobMessageKind.SAMPLE:
                self.samples[int(fields["block"])] = message.binary
            case JobMessageKind.COUNTED:
                self._counted(message.rank, fields, message.binary)
            case JobMessageKind.FAULT:
                self._fault(message.rank, ScanFailed(fields["message"], fields["remedy"]), fields["fatal"], now)

    def _counted(self, rank: int, fields: dict[str, Any], blocks: bytes) -> None:
        journal = self._journals[rank]
        self._journals[rank] = JournalExtent(rank, journal.incarnation, journal.path, fields["bytes"])
        self._totals[rank] = fields["totals"]
        if fields["flushed"]:
            self._flushed.add(rank)
        if fields["problem"]:
            self._problems[rank] = fields["problem"]
        else:
            self._problems.pop(rank, None)
        self.blocks.add(np.frombuffer(blocks, "<u8").tolist())

    def _fault(self, rank: int, error: ScanFailed, fatal: bool, now: float) -> None:
        """Before the stream begins, or where nothing can be done about it, the scan fails; otherwise a rank that
        cannot take it on tries again: what was counted elsewhere is not thrown away for it.
        """
        if fatal or self.facts.state is ScanState.ANNOUNCED:
            self._faults[f"{self.job}-rank-{rank}"] = error.message, error.remedy
        else:
            self._problems[rank] = error.message
            self._prepare_again_at = now + _PREPARE_SECONDS

    @property
    def faults_to_write(self) -> dict[str, tuple[str, str]]:
        """Faults that end the scan and are not in etcd yet: who -> message, remedy."""
        return {who: fault for who, fault in self._faults.items() if who not in self.facts.faults}

    def should_prepare(self, now: float) -> bool:
        if self._prepare_again_at is not None and now >= self._prepare_again_at:
            self._prepare_again_at = None
            return True
        return not self.prepared

    @property
    def blocks(self) -> BlockSet:
        """What this job has journaled."""
        if self._blocks is None:
            assert self.facts.record is not None
            self._blocks = BlockSet(self.facts.record.block_range)
        return self._blocks

    @property
    def totals(self) -> dict[int, dict[str, int]]:
        """By rank."""
        return self._totals

    def share(self) -> JobShare:
        """This job's part, as it is now."""
        names = next(iter(self._totals.values()), {})
        return JobShare(
            self.job,
            self.blocks.copy(),
            ready=len(self._journals) == self.size,
            flushed=len(self._flushed) == self.size,
            journals=tuple(self._journals[rank] for rank in sorted(self._journals)),
            totals={name: sum(numbers[name] for numbers in self._totals.values()) for name in names},
            process=this_process(),
            problem=self._problems[min(self._problems)] if self._problems else "",
        )

    def share_to_write(self, now: float) -> JobShare | None:
        """The share where it is to be written now: at once where others wait for it, otherwise once a second."""
        share = self.share()
        if share == self.written or not (share.ready or share.problem):
            return None
        awaited = self.written is None or any(
            getattr(share, name) != getattr(self.written, name) for name in ("ready", "flushed", "problem")
        )
        pause = 0.2 if self.facts.state is ScanState.DRAINING else 1.0
        return share if awaited or now - self.share_changed_at >= pause else None

    def wrote(self, share: JobShare, now: float) -> None:
        self.written, self.share_changed_at = share, now
        self.facts.shares[self.job] = share

    def use_latest_share(self) -> None:
        """Decisions of this job need not wait until its share is written once more."""
        if self.written is not None:
            self.facts.shares[self.job] = self.share()

    def journals_to_read(self) -> list[tuple[str, int]]:
        """What the dataset needs beside the memory of this job's ranks; with nothing left there, all journals."""
        shares = [share for job, share in sorted(self.facts.shares.items()) if self.attempts or job != self.job]
        return [(journal.path, journal.bytes) for share in shares for journal in share.journals if journal.bytes]

    def assembly_failed(self, error: MpistreamError, now: float) -> None:
        self.assembling, self.error = False, error
        doubled = min(self.attempts - 1, 10)
        self.retry_at = now + min(_RETRY_SECONDS * 2**doubled, _LONGEST_RETRY_SECONDS)

    @property
    def can_be_tried_again(self) -> bool:
        """Where only the writing failed, everything is still there: in the journals."""
        return isinstance(self.error, StorageError) and self.facts.survives_its_job
