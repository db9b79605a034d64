"""When a sector of a scan of the camera has ended, and which scan a message belongs to."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpistream.acquisition.camera_choice import BEGINS, LATE, is_forgotten, scan_of
from mpistream.acquisition.camera_end import SectorEndDetector

SILENCE, ABSENT = 2.0, 30.0
SETTLING = 0.2


def detector() -> SectorEndDetector:
    return SectorEndDetector(SILENCE, ABSENT, began=100.0)


def frames(end: SectorEndDetector, thread_id: int, announced: int | None, count: int, now: float) -> None:
    for _ in range(count):
        end.heard(thread_id, now)
        end.frame_came(thread_id, announced, is_first=True)


def test_every_frame_has_come() -> None:
    end = detector()
    frames(end, 1, None, 3, 101.0)
    assert end.how_ended(101.0, is_complete=True, others_have_ended=False) == "every frame has come"


def test_all_threads_have_sent_what_they_announced() -> None:
    end = detector()
    frames(end, 1, 3, 3, 101.0)
    frames(end, 2, 5, 4, 101.5)
    assert not end.how_ended(101.6, False, False)
    assert not end.how_ended(102.0, False, False)  # one frame is on its way, or lost
    frames(end, 2, 5, 1, 102.5)
    assert not end.how_ended(102.5 + SETTLING / 2, False, False)  # there may be a third thread
    assert "announced" in end.how_ended(102.5 + SETTLING, False, False)


def test_a_duplicate_is_not_one_of_those_announced() -> None:
    end = detector()
    frames(end, 1, 2, 1, 101.0)
    end.heard(1, 101.0)
    end.frame_came(1, 2, is_first=False)
    assert not end.how_ended(101.0 + SETTLING, False, False)


def test_threads_that_go_on_to_another_scan_have_left_this_one() -> None:
    end = detector()
    frames(end, 1, None, 3, 101.0)
    frames(end, 2, 50, 3, 101.0)
    end.thread_left(1)
    end.thread_left(7)  # was never here
    assert not end.how_ended(101.0 + SETTLING, False, False)
    end.thread_left(2)
    assert not end.how_ended(101.0, False, False)
    assert "another scan" in end.how_ended(101.0 + SETTLING, False, False)


def test_silence_ends_what_nothing_else_does() -> None:
    end = detector()
    frames(end, 1, 10, 3, 101.0)
    assert not end.how_ended(101.0 + SILENCE - 0.01, False, True)
    assert end.how_ended(101.0 + SILENCE, False, False) == "nothing has come for 2 s"


def test_a_sector_of_which_nothing_came_waits_for_the_others() -> None:
    end = detector()
    assert not end.how_ended(100.0 + SILENCE - 0.01, False, True)
    assert not end.how_ended(100.0 + ABSENT - 0.01, False, False)
    assert end.how_ended(100.0 + SILENCE, False, True) == "no message has come"
    assert end.how_ended(100.0 + ABSENT, False, False) == "no message has come"


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.floats(0, 1)), max_size=60), st.integers(0, 40))
def test_whatever_comes_it_has_ended_after_the_silence(events: list[tuple[int, bool, float]], announced: int) -> None:
    """And never before the settling where something may still come."""
    end, now = detector(), 100.0
    for thread_id, leaves, pause in events:
        now += pause
        if leaves:
            end.thread_left(thread_id)
        else:
            frames(end, thread_id, announced or None, 1, now)
            assert not end.how_ended(now, False, True)
    assert bool(end.how_ended(now + max(SILENCE, ABSENT), False, False))


@dataclass
class Scan:
    scan_number: int
    has_ended: bool
    end: SectorEndDetector
    is_complete: bool = False


def scan(number: int, ended: bool, last_message: float = 100.0, is_complete: bool = False) -> Scan:
    end = SectorEndDetector(SILENCE, ABSENT, 100.0, last_message)
    return Scan(number, ended, end, is_complete)


def test_a_scan_that_has_not_ended_takes_all_messages_of_its_number() -> None:
    scans = [scan(5, False), scan(6, False)]
    assert scan_of(5, scans, 500.0) is scans[0]
    assert scan_of(6, scans, 500.0) is scans[1]
    assert scan_of(7, scans, 500.0) == BEGINS
    assert scan_of(7, [], 500.0) == BEGINS


def test_of_several_with_one_number_the_latest_counts() -> None:
    scans = [scan(5, True), scan(5, False)]
    assert scan_of(5, scans, 101.0) is scans[1]


def test_shortly_after_its_end_a_scan_has_late_messages() -> None:
    assert scan_of(5, [scan(5, True)], 100.0 + SILENCE - 0.01) == LATE
    assert scan_of(5, [scan(5, True)], 100.0 + SILENCE) == BEGINS


def test_a_whole_scan_can_only_have_duplicates() -> None:
    assert scan_of(5, [scan(5, True, is_complete=True)], 100.0 + SETTLING / 2) == LATE
    assert scan_of(5, [scan(5, True, is_complete=True)], 100.0 + SETTLING) == BEGINS


def test_while_the_next_scan_is_under_way_messages_of_the_one_before_are_late() -> None:
    assert scan_of(5, [scan(5, True), scan(6, False)], 5000.0) == LATE
    assert scan_of(5, [scan(5, True), scan(6, True)], 5000.0) == BEGINS
    assert scan_of(5, [scan(6, False), scan(5, True)], 5000.0) == BEGINS  # began before, and is still under way


@pytest.mark.parametrize(
    ("scans", "forgotten"),
    [
        ([scan(5, False)], [False]),
        ([scan(5, True)], [False]),
        ([scan(4, True), scan(5, True), scan(6, False)], [False, False, False]),
        ([scan(3, True), scan(4, True), scan(5, True), scan(6, False)], [True, False, False, False]),
        ([scan(3, False), scan(4, True), scan(5, True), scan(6, True)], [False, False, False, False]),
        ([scan(3, True, 4999.0), scan(4, True), scan(5, True), scan(6, True)], [False, False, False, False]),
    ],
)
def test_how_long_a_scan_is_remembered(scans: list[Scan], forgotten: list[bool]) -> None:
    assert [is_forgotten(place, scans, 5000.0) for place in range(len(scans))] == forgotten
