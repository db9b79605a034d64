"""What the conducting job does next: a table of what stands in etcd, and the step that follows from it."""

import itertools
from collections.abc import Iterable
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpistream.control.decisions import (
    Assemble,
    Become,
    Cut,
    PinThresholds,
    Step,
    TidyUp,
    final_reason,
    final_state,
    next_step,
)
from mpistream.control.run_state import TRANSITIONS, ScanState, ScanStatus
from mpistream.control.scan_facts import AbortRequest, ScanFacts
from mpistream.model.block_set import BlockSet
from mpistream.model.geometry import SECTORS
from mpistream.model.job_share import JobShare
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.model.scan import CountingParameters, Durability, ScanSummary, SectorEnd, Thresholds
from tests.unit.made_up_blocks import GIVEN, scan_record

BLOCKS = scan_record().block_range
THRESHOLDS = Thresholds.given(GIVEN)
EVERY = range(SECTORS)
STATES = list(ScanState)
UNFINISHED = [state for state in STATES if not state.is_final]
UNDER_WAY = [ScanState.STREAMING, ScanState.DRAINING]
GONE = "its producer is gone"
ABORT, KEEP = AbortRequest("enough", keep=False), AbortRequest("enough", keep=True)


def table(*jobs: str, conducting: str = "a") -> RoutingTable:
    ranks = tuple(RankEndpoints(0, 0, "node", 1, 7 + i, "", "", job) for i, job in enumerate(jobs or ("a",)))
    return RoutingTable(1, conducting, ranks)


def share(
    job: str = "a", blocks: Iterable[int] = (), ready: bool = True, flushed: bool = False, sealed: bool = False
) -> JobShare:
    return JobShare(job, BlockSet.of(BLOCKS, blocks), ready, flushed, sealed)


def end(sector: int, cut: str = "") -> SectorEnd:
    return SectorEnd.cut_short(sector, "").model_copy(update={"cut": cut, "digest": None if cut else 1})


def facts(
    state: ScanState,
    *shares: JobShare,
    ended: Iterable[int] = (),
    cut: Iterable[int] = (),
    abort: AbortRequest | None = None,
    thresholds: Thresholds | None = THRESHOLDS,
    **record: object,
) -> ScanFacts:
    return ScanFacts(
        UUID(int=1),
        scan_record(**record),
        ScanStatus(state, 1.0),
        thresholds,
        {sector: end(sector) for sector in ended} | {sector: end(sector, GONE) for sector in cut},
        abort=abort,
        shares={share.job: share for share in shares},
    )


def step(known: ScanFacts, **others: object) -> Step | None:
    return next_step(known, table(), **others)  # type: ignore[arg-type]


# before anything is known


def test_nothing_is_done_before_the_record_and_the_state_are_known() -> None:
    known = facts(ScanState.ANNOUNCED, share())
    known.record = None
    assert step(known) is None
    assert step(ScanFacts(UUID(int=1), scan_record())) is None


# announced


def test_a_scan_streams_once_every_job_in_the_table_is_ready() -> None:
    both = table("a", "b")
    assert next_step(facts(ScanState.ANNOUNCED, share("a")), both) is None
    assert next_step(facts(ScanState.ANNOUNCED, share("a"), share("b", ready=False)), both) is None
    ready = facts(ScanState.ANNOUNCED, share("a"), share("b"), share("c", ready=False))
    assert next_step(ready, both) == Become(ScanState.STREAMING)


def test_a_scan_waits_while_another_one_streams() -> None:
    assert step(facts(ScanState.ANNOUNCED, share()), may_stream=False) is None


def test_given_thresholds_are_pinned_as_soon_as_there_is_nothing_else_to_do() -> None:
    assert step(facts(ScanState.ANNOUNCED, thresholds=None)) == PinThresholds()
    assert step(facts(ScanState.ANNOUNCED, share(), thresholds=None)) == Become(ScanState.STREAMING)
    assert step(facts(ScanState.STREAMING, share(), thresholds=None)) == PinThresholds()
    assert step(facts(ScanState.STREAMING, share())) is None


def test_a_scan_that_nobody_counts_yet_is_aborted_at_once_whatever_is_to_be_kept() -> None:
    for abort in (ABORT, KEEP):
        ending = step(facts(ScanState.ANNOUNCED, share(), abort=abort))
        assert isinstance(ending, Become)
        assert ending.state is ScanState.ABORTED
        assert ending.error is not None
        assert ending.error.message == "enough"


# streaming


def test_a_scan_drains_once_every_sector_has_ended() -> None:
    assert step(facts(ScanState.STREAMING, share(), ended=[0, 1, 2])) is None
    assert step(facts(ScanState.STREAMING, share(), ended=EVERY)) == Become(ScanState.DRAINING)
    assert step(facts(ScanState.STREAMING, share(), ended=[0, 2], cut=[1, 3])) == Become(ScanState.DRAINING)


def test_a_sector_whose_producer_is_gone_is_cut_and_no_other() -> None:
    known = facts(ScanState.STREAMING, share(), ended=[0])
    assert step(known, gone={0: GONE, 2: GONE}) == Cut(2, GONE)
    assert step(facts(ScanState.STREAMING, share(), ended=[0], cut=[2]), gone={0: GONE, 2: GONE}) is None


def test_an_abort_that_keeps_what_came_cuts_every_sector_that_has_not_ended() -> None:
    known = facts(ScanState.STREAMING, share(), ended=[1], abort=KEEP)
    cuts = []
    while isinstance(cutting := step(known), Cut):
        cuts.append(cutting.sector)
        known.ends[cutting.sector] = end(cutting.sector, cutting.reason)
    assert cuts == [0, 2, 3]
    assert cutting == Become(ScanState.DRAINING)


# draining


def test_drained_means_that_every_block_is_in_some_share() -> None:
    known = facts(ScanState.DRAINING, share("a", [1]), share("b", [1]), ended=EVERY)
    assert step(known) is None, "as many as there are, and not all of them"
    known = facts(ScanState.DRAINING, share("a", [1]), share("b", [2], sealed=True), ended=EVERY)
    assert step(known) == Become(ScanState.ASSEMBLING)


def test_a_producer_that_has_sent_everything_is_still_needed() -> None:
    """What a lost job had under way is to be sent again; who cannot do it any more ends the sector."""
    known = facts(ScanState.DRAINING, share("a", [1]), ended=EVERY)
    assert step(known, gone={3: GONE}) == Cut(3, GONE)
    complete = facts(ScanState.DRAINING, share("a", BLOCKS), ended=EVERY)
    assert step(complete, gone={3: GONE}) == Become(ScanState.ASSEMBLING)


def test_an_abort_that_keeps_what_came_also_ends_a_draining_scan() -> None:
    assert step(facts(ScanState.DRAINING, share("a", [1]), ended=EVERY, abort=KEEP)) == Cut(0, "enough")
    complete = facts(ScanState.DRAINING, share("a", BLOCKS), ended=EVERY, abort=KEEP)
    assert step(complete) == Become(ScanState.ASSEMBLING), "it has everything: nothing need be cut"


def test_one_cut_sector_of_four_does_not_end_the_wait_for_the_others() -> None:
    assert step(facts(ScanState.DRAINING, share("a", [1], flushed=True), ended=[0, 1, 2], cut=[3])) is None


def test_a_scan_cut_short_waits_until_every_job_has_counted_what_it_held() -> None:
    cut = {"cut": EVERY}
    assert step(facts(ScanState.DRAINING, share("a", [1]), **cut)) is None
    flushed = share("a", [1], flushed=True)
    assert step(facts(ScanState.DRAINING, flushed, share("b"), **cut)) is None
    assert step(facts(ScanState.DRAINING, flushed, share("b", flushed=True), **cut)) == Become(ScanState.ASSEMBLING)
    assert step(facts(ScanState.DRAINING, flushed, share("b", ready=False), **cut)) == Become(ScanState.ASSEMBLING)


def test_a_scan_cut_short_waits_for_what_a_lost_job_has_acknowledged() -> None:
    flushed = share("a", [1], flushed=True)
    assert step(facts(ScanState.DRAINING, flushed, share("lost"), cut=EVERY)) is None
    sealed = share("lost", [2], sealed=True)
    assert step(facts(ScanState.DRAINING, flushed, sealed, cut=EVERY)) == Become(ScanState.ASSEMBLING)


def test_a_scan_cut_short_before_it_was_calibrated_takes_the_thresholds_of_what_came() -> None:
    calibrated = {"thresholds": None, "counting": CountingParameters()}
    assert step(facts(ScanState.DRAINING, share(flushed=True), cut=EVERY, **calibrated)) == PinThresholds(True)
    assert step(facts(ScanState.DRAINING, share(), ended=[0], cut=[1, 2, 3], **calibrated)) == PinThresholds(False)


# assembling


def test_a_dataset_is_written_from_what_all_jobs_have() -> None:
    assert step(facts(ScanState.ASSEMBLING, share("a", [1]), share("b", [2], sealed=True))) == Assemble()
    assert step(facts(ScanState.ASSEMBLING, share("a", [1]), share("b", [2]))) == Assemble()


@pytest.mark.parametrize("conducting", ["a", "lost"])
def test_a_job_that_takes_over_waits_for_the_seal_of_the_one_before(conducting: str) -> None:
    """The share of the lost job is older than what it decided by; and the latest table can still be its own."""
    known = facts(ScanState.ASSEMBLING, share("a"), share("lost", [1]), ended=EVERY)
    assert next_step(known, table("lost", conducting=conducting), job="a") is None
    known.shares["lost"] = share("lost", BLOCKS, sealed=True)
    assert next_step(known, table("lost", conducting=conducting), job="a") == Assemble()


def test_a_block_that_is_in_no_journal_any_more_fails_the_scan() -> None:
    known = facts(ScanState.ASSEMBLING, share("a"), share("lost", [1], sealed=True), ended=EVERY)
    ending = step(known, job="a")
    assert isinstance(ending, Become)
    assert ending.state is ScanState.FAILED
    assert "1 of 2 blocks are in no journal any more" in str(ending.error)


def test_a_scan_cut_short_is_assembled_from_what_there_is() -> None:
    sealed = share("lost", [1], sealed=True)
    assert step(facts(ScanState.ASSEMBLING, share("a", flushed=True), sealed, cut=EVERY)) == Assemble()
    assert step(facts(ScanState.ASSEMBLING, share("a"), sealed, cut=EVERY)) is None, "what a holds is counted first"


def test_only_who_wants_no_dataset_is_heard_while_it_is_written() -> None:
    known = facts(ScanState.ASSEMBLING, share("a", BLOCKS), abort=KEEP)
    known.faults["producer-1"] = "gone", ""
    assert step(known, gone={0: GONE}) == Assemble()
    known.abort = ABORT
    ending = step(known)
    assert isinstance(ending, Become)
    assert ending.state is ScanState.ABORTED


# ends


@pytest.mark.parametrize("state", UNDER_WAY)
def test_an_abort_without_a_dataset_ends_a_scan_at_once(state: ScanState) -> None:
    ending = step(facts(state, share("a", BLOCKS), abort=ABORT))
    assert isinstance(ending, Become)
    assert ending.state is ScanState.ABORTED


@pytest.mark.parametrize("state", UNFINISHED[:3])
def test_a_fault_fails_the_scan_with_its_reason_and_remedy(state: ScanState) -> None:
    known = facts(state, share())
    known.faults["producer-1"] = "the files are gone", "mount them"
    ending = step(known)
    assert isinstance(ending, Become)
    assert ending.state is ScanState.FAILED
    assert ending.error is not None
    assert (ending.error.message, ending.error.remedy) == ("the files are gone", "mount them")


@pytest.mark.parametrize("state", UNDER_WAY)
def test_without_journals_a_lost_job_costs_the_scan(state: ScanState) -> None:
    lost = share("lost", sealed=True)
    ending = step(facts(state, share(), lost, durability=Durability.NONE))
    assert isinstance(ending, Become)
    assert ending.state is ScanState.FAILED
    assert ending.error is not None
    assert "durability" in ending.error.remedy
    assert not isinstance(step(facts(state, share(), lost)), Become)
    assert step(facts(ScanState.ANNOUNCED, share(), lost, durability=Durability.NONE)) == Become(ScanState.STREAMING)


@pytest.mark.parametrize("lost", [share("lost", sealed=True), share("deposed", BLOCKS[:2])])
@pytest.mark.parametrize("state", [*UNDER_WAY, ScanState.ASSEMBLING])
@pytest.mark.parametrize("keep", [None, KEEP])
def test_without_journals_no_job_writes_what_another_one_held(
    state: ScanState, lost: JobShare, keep: AbortRequest | None
) -> None:
    """Not even where the scan is cut short and would take what there is."""
    known = facts(state, share("a", BLOCKS[3:]), lost, cut=range(4), abort=keep, durability=Durability.NONE)
    ending = step(known)
    assert isinstance(ending, Become)
    assert ending.state is ScanState.FAILED
    whole = facts(ScanState.ASSEMBLING, share("a", BLOCKS), lost, cut=range(4), durability=Durability.NONE)
    assert step(whole) == Assemble()


@pytest.mark.parametrize("state", [state for state in STATES if state.is_final])
def test_a_scan_that_has_ended_is_tidied_up_once(state: ScanState) -> None:
    assert step(facts(state, share(), abort=ABORT)) == TidyUp()
    assert step(facts(state)) is None


SUMMARY = ScanSummary.model_construct(complete=True, warnings=("a note",))


@pytest.mark.parametrize(
    ("abort", "cut", "complete", "expected"),
    [
        (None, [], True, ScanState.COMMITTED),
        (None, [2], True, ScanState.INCOMPLETE),
        (None, [2], False, ScanState.INCOMPLETE),
        (None, [], False, ScanState.INCOMPLETE),  # a live source lost something
        (KEEP, [2], False, ScanState.ABORTED),
        (KEEP, [], True, ScanState.COMMITTED),  # everything had arrived before the request
    ],
)
def test_how_a_scan_ends_whose_dataset_has_its_name(
    abort: AbortRequest | None, cut: list[int], complete: bool, expected: ScanState
) -> None:
    known = facts(ScanState.ASSEMBLING, share("a", BLOCKS), ended=EVERY, cut=cut, abort=abort)
    assert final_state(known, SUMMARY.model_copy(update={"complete": complete})) is expected


def test_a_dataset_that_is_not_whole_says_why() -> None:
    whole = facts(ScanState.ASSEMBLING, ended=EVERY)
    assert final_reason(whole, SUMMARY) is None
    reason = final_reason(facts(ScanState.ASSEMBLING, ended=[0], cut=[1, 2]), SUMMARY)
    assert reason is not None
    assert reason.message == GONE, "each reason once"
    reason = final_reason(whole, SUMMARY.model_copy(update={"complete": False}))
    assert reason is not None
    assert reason.message == "a note"


# whatever the facts are


SHARES = st.lists(
    st.builds(
        share,
        st.sampled_from("abc"),
        st.sets(st.sampled_from(list(BLOCKS))),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
    max_size=3,
)
SOME_SECTORS = st.sets(st.integers(0, SECTORS - 1))


@st.composite
def any_facts(draw: st.DrawFn) -> ScanFacts:
    known = facts(
        draw(st.sampled_from(STATES)),
        *draw(SHARES),
        ended=draw(SOME_SECTORS),
        cut=draw(SOME_SECTORS),
        abort=draw(st.sampled_from([None, ABORT, KEEP])),
        thresholds=draw(st.sampled_from([None, THRESHOLDS])),
        durability=draw(st.sampled_from(Durability)),
    )
    if draw(st.booleans()):
        known.faults["somebody"] = "something", ""
    return known


@given(any_facts(), st.booleans(), SOME_SECTORS, st.sets(st.sampled_from("abc"), min_size=1))
def test_every_step_is_a_legal_one(known: ScanFacts, may_stream: bool, gone: set[int], jobs: set[str]) -> None:
    routing = table(*sorted(jobs))
    taken = next_step(known, routing, may_stream, dict.fromkeys(gone, GONE))
    assert known.state is not None
    match taken:
        case Become(state):
            assert state in TRANSITIONS[known.state]
            if state is ScanState.ASSEMBLING:
                assert known.blocks_journaled.is_complete or known.is_cut_short
        case Cut(sector):
            assert not (sector in known.ends and known.ends[sector].cut)
            assert known.abort is not None or sector in gone
        case Assemble():
            assert known.state is ScanState.ASSEMBLING
            assert known.blocks_journaled.is_complete or known.is_cut_short
        case TidyUp():
            assert known.state.is_final
    assert next_step(known, routing, may_stream, dict.fromkeys(gone, GONE)) == taken or isinstance(taken, Become)


@given(any_facts())
def test_a_scan_whose_producers_are_all_gone_and_whose_jobs_have_counted_comes_to_its_end(known: ScanFacts) -> None:
    """No state is one in which a scan waits for what can never come."""
    known.shares = {job: one.changed(ready=True, flushed=True) for job, one in known.shares.items()}
    known.shares.setdefault("a", share("a", flushed=True))
    known.thresholds = THRESHOLDS
    if known.state is ScanState.ASSEMBLING:  # it came there by what is true
        known.shares["a"] = share("a", BLOCKS, flushed=True)
    for _ in range(3 * SECTORS):
        taken = next_step(known, table(), gone=dict.fromkeys(EVERY, GONE))
        match taken:
            case Become(state):
                known.status = ScanStatus(state, 1.0)
            case Cut(sector, reason):
                known.ends[sector] = end(sector, reason)
            case Assemble():
                summary = SUMMARY.model_copy(update={"complete": not known.sectors_cut})
                known.status = ScanStatus(final_state(known, summary), 1.0)
            case TidyUp():
                return
            case _:
                raise AssertionError(f"it waits for ever: {known}")
    raise AssertionError("it never ends")


@pytest.mark.parametrize(("state", "kind"), list(itertools.product(UNFINISHED, [ABORT, KEEP])))
def test_an_abort_is_heard_in_every_state(state: ScanState, kind: AbortRequest) -> None:
    taken = step(facts(state, share("a", BLOCKS if state is ScanState.ASSEMBLING else [1]), abort=kind))
    kept_as_it_is = state is ScanState.ASSEMBLING and kind.keep
    assert isinstance(taken, Become | Cut) != kept_as_it_is
