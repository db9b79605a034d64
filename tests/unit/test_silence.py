"""A rank asks for what may be lost soon after a loss, rarely while others are slow, never while something comes."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpistream.pipeline.ranks.silence import Silence

GAPS = st.lists(st.floats(0, 10), min_size=1, max_size=30)


def questions(silence: Silence, start: float, stop: float, step: float = 0.125) -> list[float]:
    """When it asks, if it is looked at every ``step`` seconds and nothing comes."""
    times = (start + step * number for number in range(1, int((stop - start) / step) + 1))
    return [now for now in times if silence.should_ask(now)]


def test_the_first_question_comes_after_a_second_and_then_ever_more_rarely() -> None:
    assert questions(Silence(100.0), 100, 180) == [101, 103, 107, 115, 131, 147, 163, 179]


def test_each_question_is_asked_once() -> None:
    silence = Silence(0.0)
    assert [silence.should_ask(now) for now in (0.9, 1.0, 1.0, 1.1)] == [False, True, False, False]


def test_whoever_hears_something_begins_anew() -> None:
    silence = Silence(0.0)
    assert questions(silence, 0, 10) == [1, 3, 7]
    silence.heard(10.0)
    assert questions(silence, 10, 14) == [11, 13]


def test_a_pause_that_was_to_be_expected_is_no_loss() -> None:
    """A slow source, a slow disk: four times the longest pause so far is waited for."""
    silence = Silence(0.0)
    silence.heard(0.5)
    silence.heard(1.25)
    assert questions(silence, 1.25, 5) == [4.25]


def test_a_pause_that_ended_by_asking_makes_nobody_more_patient() -> None:
    silence = Silence(0.0)
    silence.heard(0.25)
    assert questions(silence, 0.25, 4) == [1.25, 3.25]
    silence.heard(4.0)
    assert questions(silence, 4, 6) == [5]


def test_what_was_here_before_is_waited_for_but_changes_nothing() -> None:
    """It answers a question; the loss that was asked for may still be there."""
    silence = Silence(0.0)
    assert questions(silence, 0, 1) == [1]
    silence.heard_again(1.5)
    assert questions(silence, 1.5, 8) == [3.5, 7.5]


def test_a_rank_with_something_to_do_does_not_ask_and_a_pause_begins_when_that_is_done() -> None:
    silence = Silence(0.0)
    for tick in range(1, 81):
        silence.busy(tick / 8)
        assert not silence.should_ask(tick / 8)
    silence.heard(10.5)
    assert questions(silence, 10.5, 13.5) == [12.5], "four times half a second, not ten"


@given(GAPS)
def test_nobody_asks_while_something_comes(gaps: list[float]) -> None:
    """Not even after long pauses, as long as each is no more than four times as long as one before it."""
    silence, longest = Silence(0.0), 0.25
    now = 0.0
    for gap in gaps:
        pause = min(gap, 3.9 * longest, 0.99 if longest <= 0.25 else 15.9)
        longest = max(longest, pause)
        assert not silence.should_ask(now + 0.999 * pause)
        now += pause
        silence.heard(now)


@given(GAPS)
def test_a_loss_is_asked_for_within_sixteen_seconds_whatever_came_before(gaps: list[float]) -> None:
    silence = Silence(0.0)
    last = 0.0
    for last in accumulate(gaps):
        silence.should_ask(last)
        silence.heard(last)
    asked = questions(silence, last, last + 40)
    assert asked[0] - last <= 16.125
    assert all(later - earlier <= 16.125 for earlier, later in pairwise(asked))


@pytest.mark.parametrize("seconds", [100, 1000])
def test_even_the_longest_pause_makes_no_more_patient_than_sixteen_seconds(seconds: float) -> None:
    silence = Silence(0.0)
    silence.heard(seconds)
    assert questions(silence, seconds, seconds + 40)[0] == seconds + 16
