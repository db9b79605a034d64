"""Nothing is lost, comes twice or hangs: the real code of all processes against every failure at any point.

`make test` tries some runs. For many more, without a limit of time:

    MPISTREAM_MODEL_RUNS=20000 python -m pytest tests/unit/test_delivery_model.py --timeout 0

A run that fails is shrunk and printed as the calls that lead there; tests/unit/delivery_model.py is the world it is in.
"""

import os
import random
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import wraps
from typing import Any, TypeVar
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mpistream.model.fault_points import FAULT_POINTS
from mpistream.model.geometry import SECTORS
from tests.unit.delivery_model import CALIBRATED, GIVEN, deployment
from tests.unit.made_up_processes import ETCD_ANSWER, ETCD_CALL, ROUND_SECONDS, Camera, Job, Process, Relay, Trap

RUNS = int(os.environ.get("MPISTREAM_MODEL_RUNS", "100"))
STEPS = 40
MOST_JOBS = 3

T = TypeVar("T")

SOME = st.integers(0, 11)
SECONDS = st.sampled_from([0.02, 0.1, ROUND_SECONDS])  # of a round
SHUFFLE = st.none() | st.integers(0, 2**16)
STANDSTILL = st.integers(0, 16) | st.none()  # rounds; None: the process ends
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 2), st.booleans())  # ranks, groups, on another machine


def one_of(items: Iterable[T], number: int) -> T | None:
    chosen = list(items)
    return chosen[number % len(chosen)] if chosen else None


def step(**arguments: Any) -> Callable[[Callable[..., None]], Any]:
    """A rule after which everybody goes on a little."""

    def decorate(function: Callable[..., None]) -> Any:
        @wraps(function)
        def then_go_on(self: "Deployment", **values: Any) -> None:
            function(self, **values)
            for _ in range(self.pace):
                self.world.round(self.order, self.round_seconds)

        return rule(**arguments)(then_go_on)

    return decorate


class Deployment(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.resources = ExitStack()
        self.aborted: set[UUID] = set()
        self.gone: set[int] = set()

    @initialize(
        blocks=st.integers(4, 16),
        counting=st.sampled_from([GIVEN, CALIBRATED]),
        direct=st.booleans(),
        shapes=st.lists(SHAPES, min_size=1, max_size=2),
        are_far=st.booleans(),
        shuffle=SHUFFLE,
        pace=st.integers(0, 2),
        seconds=SECONDS,
    )
    def begin(self, blocks, counting, direct, shapes, are_far, shuffle, pace, seconds) -> None:
        self.world = self.resources.enter_context(deployment(*shapes, are_far=are_far))
        self.world.announce(UUID(int=1), blocks, counting, direct)
        self.blocks, self.counting, self.direct = blocks, counting, direct
        self.pace, self.round_seconds = pace, seconds
        self.order = None if shuffle is None else random.Random(shuffle)
        for _ in range(4):
            self.world.round(self.order)

    def teardown(self) -> None:
        with self.resources:
            if sys.exc_info()[0] is None:
                self.world.settle(self.gone, self.aborted)

    # time goes on

    @rule(rounds=st.integers(1, 6), seconds=SECONDS, shuffle=SHUFFLE)
    def go_on(self, rounds: int, seconds: float, shuffle: int | None) -> None:
        order = None if shuffle is None else random.Random(shuffle)
        for _ in range(rounds):
            self.world.round(order, seconds)

    @rule(which=SOME, most=st.integers(1, 5) | st.none(), shuffle=SHUFFLE)
    def one_goes_on(self, which: int, most: int | None, shuffle: int | None) -> None:
        process = one_of(self.world.processes.values(), which)
        assert process is not None
        self.world.network.most = most
        process.turn(None if shuffle is None else random.Random(shuffle))
        self.world.network.most = None

    @precondition(lambda self: len(self.world.records) < 2)
    @rule()
    def announce_another(self) -> None:
        if not self.world.etcd.is_away:
            self.world.announce(UUID(int=2), self.blocks, self.counting, not self.direct)

    # jobs

    @step(shape=SHAPES)
    def job_starts(self, shape: tuple[int, int, bool]) -> None:
        if len(self.world.jobs) < MOST_JOBS and not self.world.etcd.is_away:
            self.world.start_job(*shape)

    @step(which=SOME)
    def job_crashes(self, which: int) -> None:
        if job := one_of(self.world.jobs, which):
            job.die()

    @step(which=SOME)
    def job_is_asked_to_end(self, which: int) -> None:
        if (job := one_of(self.world.jobs, which)) and not self.world.etcd.is_away:
            self.world.operator.registry.request_stop(job.name)

    # producers and aggregators

    @step(which=SOME, for_good=st.booleans())
    def camera_crashes(self, which: int, for_good: bool) -> None:
        if camera := one_of(self.world.cameras, which):
            camera.die()
            if for_good:
                self.gone.add(camera.sector)

    @step(sector=st.integers(0, SECTORS - 1), is_far=st.booleans())
    def camera_starts(self, sector: int, is_far: bool) -> None:
        """Also beside one that stands still."""
        if len(self.cameras_of(sector)) < 2 and sector not in self.gone:
            self.world.start_camera(sector, is_far)

    @step(is_back=st.booleans())
    def relay_crashes(self, is_back: bool) -> None:
        for relay in self.world.relays:
            relay.die()
        if is_back:
            self.world.start_relay()

    # standstill and silence

    @step(which=SOME)
    def one_stops(self, which: int) -> None:
        if process := one_of(self.living(), which):
            process.is_frozen = True

    @step(which=SOME, thread=SOME, stalls=st.booleans())
    def one_thread_stalls(self, which: int, thread: int, stalls: bool) -> None:
        if process := one_of(self.living(), which):
            name = one_of(process.threads, thread)
            process.stalled = {name} if stalls and name is not None else set()

    @step()
    def all_wake(self) -> None:
        self.world.wake_all()

    @step(which=SOME, rounds=st.integers(1, 20), shuffle=SHUFFLE)
    def one_stops_for(self, which: int, rounds: int, shuffle: int | None) -> None:
        if process := one_of(self.living(), which):
            process.freeze(rounds, None if shuffle is None else random.Random(shuffle))

    @step(which=SOME, place=st.sampled_from(FAULT_POINTS), countdown=st.integers(1, 3), rounds=STANDSTILL)
    def fault_point(self, which: int, place: str, countdown: int, rounds: int | None) -> None:
        kind = {"producer": Camera, "aggregator": Relay}.get(place.partition(".")[0], Job)
        if process := one_of((one for one in self.living() if isinstance(one, kind)), which):
            process.trap = Trap(place, countdown, rounds)

    @step(
        which=SOME,
        place=st.sampled_from([ETCD_CALL, ETCD_ANSWER]),
        countdown=st.integers(1, 12),
        rounds=STANDSTILL,
    )
    def between_two_calls(self, which: int, place: str, countdown: int, rounds: int | None) -> None:
        if process := one_of([*self.world.jobs, *self.world.cameras], which):
            process.trap = Trap(place, countdown, rounds)

    # etcd

    @step()
    def etcd_goes_away(self) -> None:
        self.world.etcd.is_away = True

    @precondition(lambda self: self.world.etcd.is_away)
    @step()
    def etcd_comes_back(self) -> None:
        self.world.etcd.come_back()

    @step(which=SOME, is_cut_off=st.booleans())
    def one_does_not_reach_etcd(self, which: int, is_cut_off: bool) -> None:
        if process := one_of(self.living(), which):
            process.client.is_cut_off = is_cut_off

    @step(which=SOME, lags=st.booleans())
    def one_hears_late(self, which: int, lags: bool) -> None:
        if process := one_of(self.living(), which):
            process.client.lags = lags

    @step(which=SOME, most=st.integers(1, 3))
    def one_hears_a_little(self, which: int, most: int) -> None:
        if process := one_of(self.living(), which):
            process.act(lambda: process.client.deliver(most))

    @step(which=SOME)
    def one_lists_anew(self, which: int) -> None:
        if process := one_of(self.living(), which):
            process.act(process.client.list_anew)

    @step(which=SOME)
    def a_lease_runs_out_by_mistake(self, which: int) -> None:
        if not self.world.etcd.is_away:
            held = (one for process in self.living() for one in process.client.registrations if one.is_held)
            if registration := one_of(held, which):
                registration.run_out()

    # network and disks

    @step(which=st.integers(0, 40), loses=st.booleans(), is_held=st.booleans())
    def a_connection_fails(self, which: int, loses: bool, is_held: bool) -> None:
        if link := one_of(self.world.network.links, which):
            link.is_held = is_held
            if loses:
                link.queue.clear()

    @step(which=st.integers(0, 40), count=st.integers(1, 3))
    def a_connection_repeats(self, which: int, count: int) -> None:
        if link := one_of(self.world.network.links, which):
            link.queue.extend(list(link.queue)[:count])

    @step(journals=st.booleans(), output=st.booleans())
    def disks_fill_or_empty(self, journals: bool, output: bool) -> None:
        self.world.journals_fail, self.world.disk_is_full = journals, output

    # people

    @step(number=st.integers(1, 2), keep=st.booleans(), really=st.integers(0, 3))
    def someone_aborts(self, number: int, keep: bool, really: int) -> None:
        uid = UUID(int=number)
        if (
            really == 0
            and uid in self.world.records
            and not self.world.etcd.is_away
            and not self.world.state(uid).is_final
        ):
            self.aborted.add(uid)
            self.world.operator.registry.request_abort(uid, "enough", keep)

    # what holds

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.world.check()

    def living(self) -> list[Process]:
        everybody = self.world.processes.values()
        return [process for process in everybody if not process.is_dead and process is not self.world.operator]

    def cameras_of(self, sector: int) -> list[Camera]:
        return [camera for camera in self.world.cameras if camera.sector == sector]


def test_nothing_is_lost_and_nothing_hangs() -> None:
    run_state_machine_as_test(
        Deployment,
        settings=settings(
            max_examples=RUNS,
            stateful_step_count=STEPS,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )
