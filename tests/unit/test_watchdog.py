"""The watchdog against the real clock, with limits of fractions of a second."""

import time

import pytest

from mpistream.model.config import WatchdogConfig
from mpistream.pipeline.ranks.watchdog import StalledError, Watchdog

STALL = 0.3


def watchdog(peers: range | list[int], rank: int = 0, assembly_seconds: float = 60.0) -> Watchdog:
    limits = WatchdogConfig.model_construct(stall_seconds=STALL, assembly_seconds=assembly_seconds)
    return Watchdog(limits, rank, peers)


def turn(dog: Watchdog, seconds: float, *speaking: int) -> None:
    """Turns of a receiving thread, during which the ranks ``speaking`` are heard."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(STALL / 20)
        for rank in speaking:
            dog.heard_from(rank)
        dog.check()


def test_ranks_that_speak_are_alive() -> None:
    turn(watchdog(range(3)), 2 * STALL, 0, 1, 2)


def test_the_rank_that_is_silent_is_named() -> None:
    dog = watchdog(range(3))
    with pytest.raises(StalledError, match="rank 1 has been silent") as caught:
        turn(dog, 3 * STALL, 0, 2)
    assert "stall_seconds" in caught.value.remedy


def test_a_rank_that_is_not_expected_to_speak_changes_nothing() -> None:
    dog = watchdog([0], rank=3)
    with pytest.raises(StalledError, match="rank 0"):
        turn(dog, 3 * STALL, 2)


def test_a_process_that_was_stopped_itself_blames_nobody() -> None:
    dog = watchdog(range(2))
    time.sleep(2 * STALL)  # as after SIGSTOP: nothing was received, because nothing was read
    dog.check()
    turn(dog, STALL / 2)
    with pytest.raises(StalledError):
        turn(dog, 2 * STALL)


def test_the_main_thread_sees_that_the_receiver_stalls() -> None:
    dog = watchdog([])
    dog.check()
    assert not dog.receiver_is_stalled()
    time.sleep(1.5 * STALL)
    assert dog.receiver_is_stalled()
    dog.check()
    assert not dog.receiver_is_stalled()


def test_an_assembly_that_takes_too_long_is_ended() -> None:
    dog = watchdog([], rank=2, assembly_seconds=STALL)
    dog.assembly_begins()
    with pytest.raises(StalledError, match="rank 2 has been writing the dataset") as caught:
        turn(dog, 3 * STALL)
    assert "assembly_seconds" in caught.value.remedy


def test_an_assembly_that_ended_counts_no_more() -> None:
    dog = watchdog([], assembly_seconds=STALL)
    dog.assembly_begins()
    turn(dog, STALL / 3)
    dog.assembly_ends()
    turn(dog, 2 * STALL)
