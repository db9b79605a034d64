"""The states of a scan."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpistream.control.run_state import TRANSITIONS, ScanState, ScanStatus

FINAL = {ScanState.COMMITTED, ScanState.INCOMPLETE, ScanState.ABORTED, ScanState.FAILED}
WAY = [
    ScanState.ANNOUNCED,
    ScanState.STREAMING,
    ScanState.DRAINING,
    ScanState.ASSEMBLING,
    ScanState.COMMITTED,
]
LEGAL = {
    *itertools.pairwise(WAY),
    (ScanState.ASSEMBLING, ScanState.INCOMPLETE),
    *itertools.product(WAY[:-1], [ScanState.ABORTED, ScanState.FAILED]),
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(ScanState, repeat=2)))
def test_a_scan_goes_forward_step_by_step_or_ends(old: ScanState, new: ScanState) -> None:
    assert (new in TRANSITIONS[old]) == ((old, new) in LEGAL)


def test_every_state_knows_where_it_may_lead() -> None:
    assert set(TRANSITIONS) == set(ScanState)


@pytest.mark.parametrize("state", list(ScanState))
def test_the_final_states_are_those_that_no_scan_leaves(state: ScanState) -> None:
    assert state.is_final == (state in FINAL)


@given(st.builds(ScanStatus, st.sampled_from(ScanState), st.floats(0, 1e12), st.text(), st.text()))
def test_a_status_is_read_as_it_was_written(status: ScanStatus) -> None:
    assert ScanStatus.from_json(status.to_json()) == status
