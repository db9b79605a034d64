"""What is known of a scan: what stands in etcd, in whatever order and however late it is heard of."""

import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpistream.control.run_state import TRANSITIONS, ScanState, ScanStatus
from mpistream.control.scan_facts import AbortRequest, ScanFacts
from mpistream.model.block_set import BlockSet
from mpistream.model.geometry import SECTORS
from mpistream.model.job_share import JobShare
from mpistream.model.scan import Durability, SectorEnd, Thresholds
from tests.unit.made_up_blocks import GIVEN, scan_record

RECORD = scan_record()
BLOCKS = RECORD.block_range
WAY = [ScanState.ANNOUNCED, ScanState.STREAMING, ScanState.DRAINING, ScanState.ASSEMBLING, ScanState.COMMITTED]


def through_etcd(value: Any) -> Any:
    return json.loads(json.dumps(value))


def status(state: ScanState, reason: str = "") -> dict[str, object]:
    return through_etcd(ScanStatus(state, 1.0, reason).to_json())


def share(job: str, *blocks: int, sealed: bool = False) -> dict[str, Any]:
    return through_etcd(JobShare(job, BlockSet.of(BLOCKS, blocks), sealed=sealed).to_json())


def end(sector: int, cut: str = "") -> dict[str, Any]:
    return through_etcd(SectorEnd.cut_short(sector, cut).model_dump(mode="json"))


def facts(**values: Any) -> ScanFacts:
    """``shares_a=...`` is the value of the key shares/a."""
    known = ScanFacts(UUID(int=1))
    for name, value in {"record": RECORD.model_dump(mode="json"), **values}.items():
        known.take(name.replace("_", "/"), value)
    return known


def test_every_key_of_a_scan_is_taken_in() -> None:
    thresholds = Thresholds.given(GIVEN)
    known = facts(
        state=status(ScanState.STREAMING),
        thresholds=through_etcd(thresholds.model_dump(mode="json")),
        ends_2=end(2, "gone"),
        faults_me={"message": "it hurts", "remedy": "rest"},
        abort={"reason": "enough", "keep": True},
        output={"output": "/elsewhere"},
        shares_a=share("a", 1),
    )
    assert known.record == RECORD
    assert known.state is ScanState.STREAMING
    assert known.thresholds == thresholds
    assert known.sectors_cut == {2}
    assert known.faults == {"me": ("it hurts", "rest")}
    assert known.abort == AbortRequest("enough", keep=True)
    assert known.target == "/elsewhere"
    assert known.shares["a"].blocks == BlockSet.of(BLOCKS, [1])


def test_keys_that_are_no_concern_of_decisions_are_left_alone() -> None:
    assert facts(summary={"what": "ever"}) == facts()


def test_a_dataset_goes_where_the_record_says_unless_it_is_redirected() -> None:
    assert facts().target == RECORD.output


def test_an_abort_by_hand_need_not_say_what_to_keep() -> None:
    assert facts(abort={"reason": "ended by the operator"}).abort == AbortRequest("ended by the operator", keep=False)


@given(st.lists(st.sampled_from(WAY), min_size=1, max_size=12))
def test_old_news_takes_no_scan_back(heard: list[ScanState]) -> None:
    known, furthest = facts(), heard[0]
    for state in heard:
        known.take("state", status(state))
        furthest = max(furthest, state, key=WAY.index)
        assert known.state is furthest


def test_a_scan_that_has_ended_has_ended() -> None:
    for final in (state for state in ScanState if state.is_final):
        known = facts(state=status(final))
        for other in ScanState:
            known.take("state", status(other))
            assert known.state is final


def test_the_reason_of_a_state_may_change_while_it_lasts() -> None:
    known = facts(state=status(ScanState.ASSEMBLING))
    known.take("state", status(ScanState.ASSEMBLING, "the disk is full"))
    assert known.status is not None
    assert known.status.reason == "the disk is full"


def test_what_is_sealed_and_what_is_cut_stays_so_whatever_is_heard_late() -> None:
    known = facts(shares_a=share("a", 1, sealed=True), ends_0=end(0, "gone"))
    known.take("shares/a", share("a", 1, 2))
    known.take("ends/0", end(0))
    assert known.shares["a"].sealed
    assert len(known.shares["a"].blocks) == 1
    assert known.sectors_cut == {0}


def test_a_cut_takes_the_place_of_an_end() -> None:
    known = facts(ends_0=end(0))
    assert known.sectors_cut == frozenset()
    known.take("ends/0", end(0, "gone"))
    assert known.sectors_cut == {0}


def test_what_is_journaled_is_what_any_job_has() -> None:
    known = facts(shares_a=share("a", 1), shares_b=share("b", 1))
    assert set(known.blocks_journaled) == {1}
    known.take("shares/c", share("c", 2, sealed=True))
    assert known.blocks_journaled.is_complete


def test_a_share_of_other_blocks_than_the_scan_has_counts_for_nothing() -> None:
    """It was written by hand, or by another release."""
    known = facts(shares_a=through_etcd(JobShare("a", BlockSet.of(range(9), range(9))).to_json()))
    assert len(known.blocks_journaled) == 0


def test_a_scan_is_cut_short_when_no_sector_comes_to_its_end() -> None:
    known = facts(**{f"ends_{sector}": end(sector, "enough") for sector in range(1, SECTORS)})
    known.take("ends/0", end(0))
    assert not known.is_cut_short
    known.take("ends/0", end(0, "enough"))
    assert known.is_cut_short


@pytest.mark.parametrize("state", list(ScanState))
def test_a_scan_is_unfinished_until_it_ends(state: ScanState) -> None:
    assert facts(state=status(state)).is_unfinished == bool(TRANSITIONS[state])
    assert not ScanFacts(UUID(int=1), status=ScanStatus(state, 1.0)).is_unfinished, "its record is not known yet"


@pytest.mark.parametrize("durability", list(Durability))
def test_only_with_journals_a_scan_survives_its_job(durability: Durability) -> None:
    record = scan_record(durability=durability).model_dump(mode="json")
    assert facts(record=record).survives_its_job == (durability is not Durability.NONE)


MALFORMED: list[tuple[str, Any]] = [
    ("record", {"uid": "none"}),
    ("record", {**RECORD.model_dump(mode="json"), "colour": "red"}),
    ("record", None),
    ("state", {"state": "dreaming", "since_unix_seconds": 1.0, "reason": "", "remedy": ""}),
    ("state", {"state": "streaming"}),
    ("state", []),
    ("thresholds", {"background": "low"}),
    ("ends/1", {"sector": 1}),
    ("faults/me", {"message": "no remedy"}),
    ("abort", {}),
    ("output", "a path"),
    ("shares/a", {"job": "a"}),
    ("shares/a", "everything"),
]


@pytest.mark.parametrize(("what", "value"), MALFORMED)
def test_what_does_not_belong_there_is_refused_and_changes_nothing(what: str, value: Any) -> None:
    known = facts()
    with pytest.raises((ValueError, KeyError, TypeError)):
        known.take(what, value)
    assert known == facts()
