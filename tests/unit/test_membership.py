"""Which jobs share the blocks, and whose journals are sealed."""

from collections.abc import Iterable
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpistream.control.membership import hands_over, next_ranks, to_seal, whole_jobs
from mpistream.control.registry import GroupEntry
from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.control.scan_facts import ScanFacts
from mpistream.model.block_set import BlockSet
from mpistream.model.job_share import JobShare
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from tests.unit.made_up_blocks import scan_record

BLOCKS = scan_record().block_range
UNDER_WAY = [ScanState.STREAMING, ScanState.DRAINING]


def rank(job: str, number: int = 0, group: int = 0) -> RankEndpoints:
    return RankEndpoints(number, group, "node", 1, 100 * ord(job[0]) + number, f"tcp://{job}:{number}", "", job)


def jobs(*names: str) -> dict[str, tuple[RankEndpoints, ...]]:
    """Each has two ranks."""
    return {name: (rank(name, 0), rank(name, 1)) for name in names}


def table(*names: str, conducting: str | None = None) -> RoutingTable:
    ranks = tuple(each for name in names for each in jobs(name)[name])
    return RoutingTable(3, conducting or names[0], ranks)


def scan(state: ScanState, *ready: str, preparing: Iterable[str] = (), sealed: Iterable[str] = ()) -> ScanFacts:
    shares = {job: JobShare(job, BlockSet(BLOCKS), ready=True) for job in (*ready, *sealed)}
    shares |= {job: JobShare(job, BlockSet(BLOCKS)) for job in preparing}
    shares |= {job: shares[job].changed(sealed=True) for job in sealed}
    return ScanFacts(UUID(int=1), scan_record(), ScanStatus(state, 1.0), shares=shares)


def names(ranks: tuple[RankEndpoints, ...] | None) -> list[str]:
    """The jobs of the ranks, in their order."""
    return list(dict.fromkeys(each.job for each in ranks or ()))


# which jobs are there


def group(job: str, number: int, groups: int, *ranks: int) -> GroupEntry:
    return GroupEntry(job, number, groups, "node", tuple(rank(job, each, number) for each in ranks))


def test_a_job_is_there_once_every_group_of_it_is_registered() -> None:
    first, second = group("a", 0, 2, 0, 2), group("a", 1, 2, 1)
    assert whole_jobs([first]) == {}
    whole = whole_jobs([second, first, group("b", 0, 1, 0)])
    assert list(whole) == ["a", "b"]
    assert [each.rank for each in whole["a"]] == [0, 1, 2], "in the order of the ranks, not of the groups"


# who gets blocks


def test_the_first_table_has_the_ranks_of_the_job_that_conducts() -> None:
    assert next_ranks(jobs("a"), "a", [], None) == jobs("a")["a"]


def test_there_is_no_table_while_the_job_that_conducts_is_not_there() -> None:
    assert next_ranks({}, "a", [], None) is None
    assert next_ranks(jobs("b"), "a", [], None) is None


def test_the_ranks_of_the_job_that_conducts_come_first_whatever_its_name() -> None:
    assert names(next_ranks(jobs("a", "b", "c"), "b", [], None)) == ["b", "a", "c"]


def test_a_table_that_fits_is_left_as_it_is() -> None:
    assert next_ranks(jobs("a", "b"), "a", [], table("a", "b")) is None


def test_another_conducting_job_needs_another_table() -> None:
    """What the thresholds are calibrated from goes to its ranks."""
    assert names(next_ranks(jobs("a", "b"), "b", [], table("a", "b"))) == ["b", "a"]
    assert next_ranks(jobs("b"), "b", [], table("b", conducting="a"), gone=["a"]) == jobs("b")["b"]


@pytest.mark.parametrize("state", UNDER_WAY)
def test_a_job_that_comes_waits_until_it_is_ready_for_every_scan_under_way(state: ScanState) -> None:
    registered, latest = jobs("a", "b"), table("a")
    ready, preparing = scan(state, "a", "b"), scan(state, "a", preparing=["b"])
    assert next_ranks(registered, "a", [ready, scan(state, "a")], latest) is None
    assert next_ranks(registered, "a", [ready, preparing], latest) is None
    assert names(next_ranks(registered, "a", [ready, ready], latest)) == ["a", "b"]


@pytest.mark.parametrize("state", [state for state in ScanState if state not in UNDER_WAY])
def test_scans_that_need_no_blocks_keep_nobody_waiting(state: ScanState) -> None:
    assert names(next_ranks(jobs("a", "b"), "a", [scan(state, "a")], table("a"))) == ["a", "b"]


@pytest.mark.parametrize("state", UNDER_WAY)
def test_a_job_that_takes_over_publishes_nothing_before_it_is_ready(state: ScanState) -> None:
    assert next_ranks(jobs("b"), "b", [scan(state, "a", preparing=["b"])], table("a"), gone=["a"]) is None
    assert names(next_ranks(jobs("b"), "b", [scan(state, "a", "b")], table("a"), gone=["a"])) == ["b"]


def test_a_lease_that_has_run_out_by_mistake_takes_no_job_out_of_the_table() -> None:
    assert next_ranks(jobs("a"), "a", [], table("a", "b")) is None
    assert next_ranks({}, "a", [], table("a", "b")) is None, "the one that conducts included"


def test_a_job_that_is_gone_leaves_the_table() -> None:
    assert names(next_ranks(jobs("a"), "a", [], table("a", "b"), gone=["b"])) == ["a"]


def test_a_job_in_the_table_stays_though_it_cannot_prepare_for_another_scan() -> None:
    """What it has been sent already is counted there."""
    preparing = scan(ScanState.STREAMING, "a", preparing=["b"])
    assert next_ranks(jobs("a", "b"), "a", [preparing], table("a", "b")) is None


@pytest.mark.parametrize("state", UNDER_WAY)
def test_a_job_that_was_given_up_and_is_back_gets_nothing_more(state: ScanState) -> None:
    """A zombie that has registered again: its journals are sealed."""
    assert next_ranks(jobs("a", "b"), "a", [scan(state, "a", sealed=["b"])], table("a")) is None


def test_a_job_that_was_started_again_is_another_one() -> None:
    started = {"a": tuple(replace(each, incarnation=each.incarnation + 7) for each in jobs("a")["a"])}
    assert next_ranks(started, "a", [], table("a")) == started["a"]


JOBS = st.sets(st.sampled_from("abcd"))


@given(JOBS, st.sampled_from("abcd"), JOBS, JOBS, JOBS, JOBS)
def test_what_a_table_has(
    registered: set[str], conducting: str, ready: set[str], sealed: set[str], latest: set[str], gone: set[str]
) -> None:
    gone -= {conducting}
    scans = [scan(ScanState.STREAMING, *ready, sealed=sealed)]
    before = table(*sorted(latest)) if latest else None
    ranks = next_ranks(jobs(*sorted(registered)), conducting, scans, before, gone)
    if ranks is None:
        return
    chosen = set(names(ranks))
    assert names(ranks)[0] == conducting
    assert not chosen & gone
    assert chosen - latest <= registered & ready - sealed, "whoever comes is registered and ready"
    assert latest - gone <= chosen, "whoever is not gone stays"
    after = RoutingTable(4, conducting, ranks)
    assert next_ranks(jobs(*sorted(registered)), conducting, scans, after, gone) is None, "decided once"


# who conducts


@pytest.mark.parametrize("state", [*UNDER_WAY, ScanState.ASSEMBLING])
def test_a_job_that_cannot_get_ready_lets_another_one_conduct(state: ScanState) -> None:
    waits = scan(state, "b", preparing="a")
    assert hands_over(jobs("a", "b"), "a", [waits])
    assert hands_over(jobs("a", "b"), "a", [scan(state, "b")]), "nothing was said of it yet"
    assert not hands_over(jobs("a", "b"), "b", [waits])
    assert not hands_over(jobs("a", "b"), "a", [waits], gone={"b"})
    assert not hands_over(jobs("a"), "a", [waits]), "there is no other one"
    assert not hands_over(jobs("a", "b"), "a", [scan(state, "a", "b")])
    assert not hands_over(jobs("a", "b"), "a", [scan(state, preparing="ab")]), "nor is the other one ready"
    assert not hands_over(jobs("a", "b"), "a", [scan(ScanState.ANNOUNCED, "b", preparing="a")])


# whose journals are sealed


def test_the_journals_of_a_job_are_sealed_once_it_is_gone_and_gets_no_blocks_any_more() -> None:
    known = scan(ScanState.STREAMING, "a", "b")
    assert to_seal([known], table("a"), gone=["b"]) == [(known, "b")]
    assert to_seal([known], table("a", "b"), gone=["b"]) == [], "producers still take its acknowledgements"
    assert to_seal([known], table("a"), gone=[]) == []


def test_journals_are_sealed_once() -> None:
    assert to_seal([scan(ScanState.STREAMING, "a", sealed=["b"])], table("a"), gone=["b"]) == []


def test_a_job_that_has_nothing_of_a_scan_has_nothing_to_seal() -> None:
    assert to_seal([scan(ScanState.STREAMING, "a")], table("a"), gone=["b"]) == []


@pytest.mark.parametrize("state", list(ScanState))
def test_journals_of_every_unfinished_scan_are_sealed(state: ScanState) -> None:
    known = scan(state, "a", "b")
    assert to_seal([known], table("a"), gone=["b"]) == ([] if state.is_final else [(known, "b")])
