"""What the model has found, and what each named fault point is there for: one run each, told step by step.

tests/unit/delivery_model.py is the world they are in.
"""

from collections.abc import Callable
from uuid import UUID

import pytest

from mpistream.control.run_state import ScanState
from mpistream.model.fault_points import FAULT_POINTS
from mpistream.model.scan import CountingParameters, Durability
from tests.unit.delivery_model import CALIBRATED, GIVEN, World, deployment
from tests.unit.made_up_processes import ETCD_CALL, LEASE_SECONDS, ROUND_SECONDS, Job, Process, Trap

SCAN, OTHER = UUID(int=1), UUID(int=2)
HERE, FAR = (1, 1, False), (1, 1, True)
#: As long as it takes until a job that is not registered any more counts as gone.
GONE_ROUNDS = int(2 * LEASE_SECONDS / ROUND_SECONDS) + 3


def go_on_until(world: World, happens: Callable[[], bool], seconds: float = ROUND_SECONDS, most: int = 400) -> None:
    for _ in range(most):
        if happens():
            return
        world.round(seconds=seconds)
        world.check()
    raise AssertionError("it does not happen")


def comes_to(world: World, state: ScanState, uid: UUID = SCAN) -> Callable[[], bool]:
    return lambda: world.state(uid) is state


def rounds(world: World, number: int) -> None:
    for _ in range(number):
        world.round()


def announce(world: World, blocks: int = 8, counting: CountingParameters = GIVEN, direct: bool = False) -> None:
    rounds(world, 4)
    world.announce(SCAN, blocks, counting, direct)


def conducting(world: World) -> Job:
    value = world.etcd.get("conductor")
    return next(job for job in world.jobs if value is not None and job.name == value["job"])


def other(world: World) -> Job:
    return next(job for job in world.jobs if job is not conducting(world))


# named fault points


def victim(world: World, point: str) -> Process:
    """Whoever comes by the point."""
    who = point.partition(".")[0]
    if who == "producer":
        return world.cameras[2]
    return world.relays[0] if who == "aggregator" else conducting(world)


@pytest.mark.parametrize("is_far", [False, True])
@pytest.mark.parametrize("standstill", [None, 2, GONE_ROUNDS], ids=["killed", "stopped", "stopped for long"])
@pytest.mark.parametrize("point", FAULT_POINTS)
def test_nothing_is_lost_at_a_fault_point(point: str, standstill: int | None, is_far: bool) -> None:
    with deployment((1, 1, is_far), (2, 1, is_far)) as world:
        announce(world, counting=CALIBRATED)
        trap = Trap(point, 1, standstill)
        if point in ("leader.before-table", "leader.after-table", "leader.before-seal", "leader.after-seal"):
            go_on_until(world, comes_to(world, ScanState.STREAMING))
            other(world).die()
        victim(world, point).trap = trap
        go_on_until(world, lambda: trap.countdown == 0)
        world.settle()
        assert world.state(SCAN) is ScanState.COMMITTED


# sequences that were wrong once


def test_a_job_that_takes_over_an_assembly_waits_for_what_the_one_before_had() -> None:
    """The lost job decided by blocks that were not yet in its share."""
    with deployment(FAR, FAR) as world:
        announce(world)
        go_on_until(world, comes_to(world, ScanState.STREAMING))
        lost = conducting(world)
        lost.trap = Trap("leader.after-assembling", 1, None)
        go_on_until(world, lambda: lost.is_dead, seconds=0.05)
        world.settle()
        assert world.state(SCAN) is ScanState.COMMITTED


def test_a_job_that_takes_over_while_another_scan_streams_fails_no_assembly() -> None:
    """It has no table of its own before it is ready for the other scan."""
    with deployment(HERE) as world:
        announce(world, blocks=4)
        world.announce(OTHER, 8, GIVEN, direct=False)
        go_on_until(world, comes_to(world, ScanState.ASSEMBLING), seconds=0.02)
        conducting(world).die()
        world.settle()


def test_a_job_that_takes_over_with_old_news_decides_nothing_by_them() -> None:
    with deployment(HERE, HERE) as world:
        announce(world)
        late = other(world)
        for _ in range(3):
            late.turn()
        late.client.lags = True
        go_on_until(world, comes_to(world, ScanState.DRAINING))
        conducting(world).die()
        rounds(world, GONE_ROUNDS)
        assert not late.is_dead
        world.settle()
        assert world.state(SCAN) is ScanState.COMMITTED


def test_what_a_job_acknowledged_before_anybody_knew_of_its_journals_is_not_lost() -> None:
    """It is back after a long absence, conducts at once, and one of its ranks is ready before the other."""
    with deployment(HERE) as world:
        rounds(world, 4)
        first = conducting(world)
        world.start_job(2)
        back = other(world)
        rounds(world, 4)
        back.client.is_cut_off = True
        rounds(world, GONE_ROUNDS)
        world.announce(SCAN, 8, GIVEN, direct=True)
        go_on_until(world, comes_to(world, ScanState.STREAMING))
        first.die()
        back.client.is_cut_off, back.client.lags = False, True
        slow = max(name for name in back.threads if name.startswith("receiver"))
        del back.threads[slow]
        rounds(world, GONE_ROUNDS)
        back.client.lags = False
        rounds(world, 20)
        back.die()
        world.settle()
        assert world.state(SCAN) is ScanState.COMMITTED


def test_a_role_that_was_lost_for_a_moment_is_not_taken_for_the_same() -> None:
    """Another job conducted meanwhile, published a table, and died."""
    with deployment(HERE, HERE) as world:
        announce(world)
        go_on_until(world, comes_to(world, ScanState.STREAMING))
        first, second = conducting(world), other(world)
        first.client.is_cut_off = True
        go_on_until(world, lambda: world.latest_table["conducting"] == second.name)
        second.die()
        first.client.is_cut_off = False
        world.settle()
        assert world.state(SCAN) is ScanState.COMMITTED


def test_what_a_zombie_appends_while_its_journals_are_read_is_not_taken_for_journaled() -> None:
    with deployment(FAR, FAR) as world:
        announce(world)
        go_on_until(world, comes_to(world, ScanState.STREAMING))
        zombie, judge = other(world), conducting(world)
        zombie.is_frozen = True
        trap = judge.trap = Trap("leader.before-seal", 1, 3, wakes=zombie)
        go_on_until(world, lambda: trap.countdown == 0)
        world.settle()
        assert world.state(SCAN) is ScanState.COMMITTED


def test_a_producer_that_is_gone_for_good_does_not_hold_up_a_draining_scan() -> None:
    """It has sent everything; but the job that had it is lost, too."""
    with deployment(HERE) as world:
        announce(world, blocks=4)
        world.journals_fail = True
        go_on_until(world, comes_to(world, ScanState.DRAINING))
        world.cameras[1].die()
        conducting(world).die()
        world.settle(gone=[1])
        assert world.state(SCAN) is ScanState.INCOMPLETE


@pytest.mark.parametrize("is_far", [False, True])
def test_what_is_kept_of_an_aborted_scan_has_what_a_lost_job_acknowledged(is_far: bool) -> None:
    with deployment((1, 1, is_far), (1, 1, is_far)) as world:
        announce(world)
        go_on_until(world, comes_to(world, ScanState.STREAMING))
        go_on_until(world, lambda: len(world.journals.blocks(SCAN)) > 3)
        other(world).die()
        world.operator.registry.request_abort(SCAN, "enough", keep=True)
        world.settle(aborted=[SCAN])
        assert world.datasets[SCAN].blocks.keys() >= world.journals.blocks(SCAN)


def test_a_job_that_takes_over_writes_what_is_kept_of_an_aborted_scan() -> None:
    with deployment(HERE) as world:
        announce(world)
        go_on_until(world, lambda: len(world.journals.blocks(SCAN)) > 3)
        world.operator.registry.request_abort(SCAN, "enough", keep=True)
        go_on_until(world, comes_to(world, ScanState.ASSEMBLING), seconds=0.05)
        conducting(world).die()
        world.settle(aborted=[SCAN])
        assert world.datasets[SCAN].blocks.keys() >= world.journals.blocks(SCAN)


def test_a_scan_that_is_aborted_at_once_leaves_nothing() -> None:
    with deployment(HERE) as world:
        announce(world)
        world.operator.registry.request_abort(SCAN, "enough", keep=False)
        world.settle(aborted=[SCAN])


def test_jobs_forget_the_scans_that_have_ended() -> None:
    with deployment(HERE, HERE) as world:
        announce(world)
        world.settle()
        assert [job.leader._scans for job in world.jobs] == [{}, {}]


def test_without_journals_two_jobs_lose_nothing_as_long_as_both_live() -> None:
    with deployment(HERE, HERE) as world:
        rounds(world, 4)
        world.announce(SCAN, 8, GIVEN, direct=False, durability=Durability.NONE)
        world.settle()
        assert world.state(SCAN) is ScanState.COMMITTED


@pytest.mark.parametrize("countdown", range(1, 40, 3))
def test_a_job_may_be_stopped_between_any_two_calls_to_etcd_for_longer_than_its_lease(countdown: int) -> None:
    with deployment(FAR, FAR) as world:
        announce(world)
        trap = conducting(world).trap = Trap(ETCD_CALL, countdown, 2 * GONE_ROUNDS)
        go_on_until(world, lambda: trap.countdown == 0)
        world.settle()
        assert world.state(SCAN) is ScanState.COMMITTED
