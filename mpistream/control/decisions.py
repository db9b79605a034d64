"""What the conducting job does next with a scan: a pure function of the facts. docs/states.md tells it in words.

Nothing is remembered between two decisions. So a job that takes over in the middle, at whatever point the one before
it ended, decides the same from the same facts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mpistream.control.run_state import ScanState
from mpistream.control.scan_facts import ScanFacts
from mpistream.model.errors import MpistreamError, ScanFailed
from mpistream.model.geometry import SECTORS
from mpistream.model.routing_table import RoutingTable
from mpistream.model.scan import ScanSummary


@dataclass(frozen=True)
class Become:
    """Take the scan to ``state``."""

    state: ScanState
    error: MpistreamError | None = None


@dataclass(frozen=True)
class PinThresholds:
    """Write the thresholds: those given, or those of the sample once there is one (``with_less``: of what there is)."""

    with_less: bool = False


@dataclass(frozen=True)
class Cut:
    """End a sector in its producer's place."""

    sector: int
    reason: str


@dataclass(frozen=True)
class Assemble:
    """Let the ranks of this job write the dataset."""


@dataclass(frozen=True)
class TidyUp:
    """The scan has ended: remove its journals, forget its shares."""


Step = Become | PinThresholds | Cut | Assemble | TidyUp


def next_step(
    facts: ScanFacts,
    table: RoutingTable,
    may_stream: bool = True,
    gone: Mapping[int, str] | None = None,
    job: str | None = None,
) -> Step | None:
    """None where there is nothing to do but wait.

    table       the latest one
    job         the one that decides; the table's conducting job by default
    may_stream  no other scan of the deployment streams
    gone        sectors whose producers have been away for too long, and why
    """
    if facts.record is None or facts.state is None:
        return None
    if facts.state.is_final:
        return TidyUp() if facts.shares else None
    if facts.state is ScanState.ASSEMBLING:
        return _while_assembling(facts, job or table.conducting)
    return _early_end(facts, job or table.conducting) or _onwards(facts, table, may_stream, gone or {})


def _while_assembling(facts: ScanFacts, job: str) -> Step | None:
    """Everything has arrived: whatever is gone meanwhile, the dataset is written. Only who wants none is heard.

    What a lost job had is known once its share is sealed, and waited for.
    """
    if facts.abort is not None and not facts.abort.keep:
        return Become(ScanState.ABORTED, ScanFailed(facts.abort.reason))
    if failure := _lost_with_a_job(facts, job):
        return failure
    if _all_is_there(facts):
        return Assemble()
    if not facts.is_cut_short and all(share.sealed for share in facts.shares.values() if share.job != job):
        lost, blocks = len(facts.blocks_journaled.missing), len(facts.blocks_journaled.blocks)
        return Become(
            ScanState.FAILED,
            ScanFailed(
                f"{lost} of {blocks} blocks are in no journal any more: journals have been lost or damaged",
                "stream the scan again",
            ),
        )
    return None


def _all_is_there(facts: ScanFacts) -> bool:
    """Every block is journaled; of a scan that was cut short, every block that had come."""
    if facts.blocks_journaled.is_complete:
        return True
    settled = all(share.sealed or share.flushed or not share.ready for share in facts.shares.values())
    return facts.is_cut_short and settled


def _early_end(facts: ScanFacts, job: str) -> Step | None:
    """Reasons to end a scan without a dataset."""
    nothing_yet = facts.state is ScanState.ANNOUNCED
    if facts.abort is not None and (nothing_yet or not facts.abort.keep):
        return Become(ScanState.ABORTED, ScanFailed(facts.abort.reason))
    for message, remedy in facts.faults.values():
        return Become(ScanState.FAILED, ScanFailed(message, remedy))
    return None if nothing_yet else _lost_with_a_job(facts, job)


def _lost_with_a_job(facts: ScanFacts, job: str) -> Step | None:
    """Without journals only ``job``, which writes the dataset, can have anything for it: what another one held is gone
    with that one, or with its role.
    """
    own = facts.shares.get(job)
    if facts.survives_its_job or (own is not None and own.blocks.is_complete):
        return None
    if not any(share.sealed or (share.job != job and len(share.blocks)) for share in facts.shares.values()):
        return None
    return Become(
        ScanState.FAILED,
        ScanFailed(
            "an MPI job that counted this scan has ended, and durability is none: what it held is gone",
            'run the scan again; [journal] durability = "write" survives that',
        ),
    )


def _onwards(facts: ScanFacts, table: RoutingTable, may_stream: bool, gone: Mapping[int, str]) -> Step | None:
    match facts.state:
        case ScanState.ANNOUNCED:
            step: Step | None = Become(ScanState.STREAMING) if may_stream and _all_are_ready(facts, table) else None
        case ScanState.STREAMING:
            step = _while_streaming(facts, gone)
        case _:
            step = _while_draining(facts, gone)
    if step is None and facts.thresholds is None:
        return PinThresholds(with_less=facts.is_cut_short)
    return step


def _all_are_ready(facts: ScanFacts, table: RoutingTable) -> bool:
    return all(job in facts.shares and facts.shares[job].ready for job in table.jobs)


def _while_streaming(facts: ScanFacts, gone: Mapping[int, str]) -> Step | None:
    return _cut(facts, frozenset(facts.ends), gone) or (
        Become(ScanState.DRAINING) if len(facts.ends) == SECTORS else None
    )


def _while_draining(facts: ScanFacts, gone: Mapping[int, str]) -> Step | None:
    """Drained means that the sets are equal, not that so many blocks have been counted.

    A producer that has sent everything is still needed: what was under way when a rank died is sent again.
    """
    if facts.blocks_journaled.is_complete or (facts.thresholds is not None and _all_is_there(facts)):
        return Become(ScanState.ASSEMBLING)
    return _cut(facts, facts.sectors_cut, gone)


def _cut(facts: ScanFacts, ended: frozenset[int], gone: Mapping[int, str]) -> Cut | None:
    """The first of the sectors not ``ended`` for which nothing more is to be waited."""
    for sector in sorted(set(range(SECTORS)) - ended):
        if facts.abort is not None:
            return Cut(sector, facts.abort.reason)
        if sector in gone:
            return Cut(sector, gone[sector])
    return None


def final_state(facts: ScanFacts, summary: ScanSummary) -> ScanState:
    """How a scan ends whose dataset has its name."""
    if facts.abort is not None and facts.sectors_cut:
        return ScanState.ABORTED
    return ScanState.COMMITTED if summary.complete and not facts.sectors_cut else ScanState.INCOMPLETE


def final_reason(facts: ScanFacts, summary: ScanSummary) -> MpistreamError | None:
    """What people should know of a dataset that is not whole."""
    reasons = dict.fromkeys(end.cut for _, end in sorted(facts.ends.items()) if end.cut)
    if not summary.complete:
        reasons |= dict.fromkeys(summary.warnings)
    if not reasons:
        return None
    return ScanFailed("; ".join(reasons), "the dataset has everything that arrived before")
