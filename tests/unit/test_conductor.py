"""The conductor under every order in which its news can come."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpistream.control.conductor import Conductor
from mpistream.control.run_state import ScanState, check_transition
from mpistream.model.errors import CalibrationError, MpistreamError, ScanFailed
from mpistream.model.geometry import SECTORS
from mpistream.model.job_messages import JobMessage, JobMessageKind
from mpistream.model.scan import Counters, CountingParameters, ScanRecord, ScanSummary, SectorEnd, Thresholds
from tests.unit.made_up_blocks import GIVEN, scan_record

CALIBRATED = CountingParameters(sample_frames=4)
THRESHOLDS = Thresholds(background=40.0, xray=900.0, calibrated=True)
ENDS_BADLY = {ScanState.FAILED, ScanState.ABORTED}


def fit(samples: Mapping[int, bytes], record: ScanRecord) -> tuple[Thresholds, bytes] | None:
    """Wants every sample block; a sample that says so cannot be fitted."""
    if b"bad" in samples.values():
        raise CalibrationError("no Gaussian fits")
    return (THRESHOLDS, b"the sample") if set(record.sample_blocks) <= samples.keys() else None


def end_of(sector: int) -> SectorEnd:
    return SectorEnd(
        sector=sector,
        producer_id=sector,
        blocks=2,
        records=8,
        digest=sector,
        sectors_duplicate=0,
        sectors_rejected=0,
        seconds_reading=0.0,
        seconds_sending=0.0,
    )


def summary_of(record: ScanRecord) -> ScanSummary:
    counters = Counters.model_validate(dict.fromkeys(Counters.model_fields, 0))
    return ScanSummary(
        dataset=record.output,
        scan_shape=(record.rows, record.columns),
        counters=counters,
        thresholds=THRESHOLDS,
        file_bytes=1,
        seconds={},
    )


@dataclass
class World:
    """What etcd holds and what the ranks were told. Refuses, as the registry does, what is not legal."""

    states: dict[UUID, list[ScanState]] = field(default_factory=dict)
    told: dict[UUID, list[tuple[JobMessageKind, dict[str, Any]]]] = field(default_factory=dict)
    samples: dict[UUID, bytes] = field(default_factory=dict)
    thresholds: dict[UUID, Thresholds] = field(default_factory=dict)
    summaries: dict[UUID, ScanSummary] = field(default_factory=dict)

    def announce(self, conductor: Conductor, record: ScanRecord) -> None:
        self.states[record.uid] = [ScanState.ANNOUNCED]
        self.told[record.uid] = []
        conductor.announced(record)

    def state(self, record: ScanRecord) -> ScanState:
        return self.states[record.uid][-1]

    def kinds(self, record: ScanRecord) -> list[JobMessageKind]:
        return [kind for kind, _ in self.told[record.uid]]

    # Outputs

    def tell_ranks(self, kind: JobMessageKind, fields: dict[str, Any], binary: bytes = b"") -> None:
        uid = UUID(fields["record"]["uid"] if kind is JobMessageKind.PREPARE else fields["uid"])
        if kind is JobMessageKind.ASSEMBLE:
            assert not self.states[uid][-1].is_final, f"the ranks shall write a scan that is {self.states[uid][-1]}"
        self.told[uid].append((kind, fields))
        if kind is JobMessageKind.THRESHOLDS:
            self.samples[uid] = binary

    def set_state(self, uid: UUID, state: ScanState, error: MpistreamError | None = None) -> bool:
        if self.states[uid][-1].is_final:
            return False
        check_transition(self.states[uid][-1], state)
        if state is ScanState.STREAMING:
            assert all(states[-1] is not state for states in self.states.values()), "two scans stream at a time"
        self.states[uid].append(state)
        return True

    def write_thresholds(self, uid: UUID, thresholds: Thresholds) -> None:
        assert uid not in self.thresholds
        self.thresholds[uid] = thresholds

    def write_summary(self, uid: UUID, summary: ScanSummary) -> None:
        assert uid not in self.summaries
        self.summaries[uid] = summary


News = tuple[str, Callable[[], None]]


class Simulation:
    """Ranks, producers and people, each in its own order; which of them is heard next is left to chance."""

    def __init__(self, ranks: int, records: list[ScanRecord], random: Random) -> None:
        self.world = World()
        self.conductor = Conductor(ranks, fit, self.world)
        self.random = random
        self.queues: dict[tuple[Any, ...], list[News]] = {}
        self.ranks = ranks
        self.records = records
        self.heard: dict[UUID, list[str]] = {record.uid: [] for record in records}
        for record in records:
            self.queues["leader", record.uid] = [
                ("announced", lambda record=record: self.world.announce(self.conductor, record))
            ]

    def post(self, record: ScanRecord, who: str, name: str, news: Callable[[], None]) -> None:
        self.queues.setdefault((who, record.uid), []).append((name, news))

    def rank_says(self, record: ScanRecord, rank: int, kind: JobMessageKind, **more: Any) -> None:
        binary = more.pop("binary", b"")
        message = JobMessage(kind, rank, {"uid": str(record.uid), **more}, binary)
        self.post(record, f"rank {rank}", f"{kind} {rank}", lambda: self.conductor.told(message))

    def trouble(self, record: ScanRecord, name: str) -> None:
        """Something that ends a scan, at any time from its announcement on."""
        uid = record.uid
        fault = JobMessage(JobMessageKind.FAULT, 0, {"uid": str(uid), "message": "no dark", "remedy": "take one"})
        news = {
            "failed": lambda: self.conductor.failed(uid, ScanFailed("a producer died")),
            "aborted": lambda: self.conductor.aborted(uid, ScanFailed("by the user")),
            "fault": lambda: self.conductor.told(fault),
        }
        self.post(record, "trouble", name, news[name])

    def run(self) -> None:
        """Until nobody has anything left to say."""
        reacted: dict[UUID, set[str]] = {record.uid: set() for record in self.records}
        while waiting := [queue for queue in sorted(self.queues, key=str) if self.may_speak(queue)]:
            who = self.random.choice(waiting)
            name, news = self.queues[who].pop(0)
            self.heard[who[1]].append(name)
            news()
            for record in self.records:
                self.react(record, reacted[record.uid])

    def may_speak(self, queue: tuple[Any, ...]) -> bool:
        return bool(self.queues[queue]) and (queue[0] == "leader" or "announced" in self.heard[queue[1]])

    def react(self, record: ScanRecord, done: set[str]) -> None:
        """What the others do as soon as the conductor's decisions reach them."""

        def now(what: str, condition: bool) -> bool:
            if not condition or what in done:
                return False
            done.add(what)
            return True

        if record.uid not in self.world.told:
            return
        kinds, state = self.world.kinds(record), self.world.state(record)
        if now("prepare", JobMessageKind.PREPARE in kinds):
            for rank in range(self.ranks):
                self.rank_says(record, rank, JobMessageKind.READY)
        if now("stream", state is ScanState.STREAMING):
            for sector in range(SECTORS):
                end = end_of(sector)
                for _ in range(self.random.choice([1, 1, 2])):
                    self.post(
                        record, f"producer {sector}", "end", lambda end=end: self.conductor.ended(record.uid, end)
                    )
            if record.counting.background is None:
                for block in record.sample_blocks:
                    self.rank_says(record, block % self.ranks, JobMessageKind.SAMPLE, block=block, binary=b"good")
        if now("count", "stream" in done and JobMessageKind.THRESHOLDS in kinds):
            for rank in range(self.ranks):
                for _ in range(self.random.choice([1, 1, 2])):
                    self.rank_says(record, rank, JobMessageKind.DRAINED)
        if now("assemble", JobMessageKind.ASSEMBLE in kinds):
            summary = summary_of(record)
            self.post(record, "main thread", "assembled", lambda: self.conductor.assembled(record.uid, summary))


def check_orders(simulation: Simulation, record: ScanRecord) -> None:
    """The ranks were told in an order that they can obey, and only what they needed to be told."""
    kinds, heard = simulation.world.kinds(record), simulation.heard[record.uid]
    assert kinds[0] is JobMessageKind.PREPARE
    assert len(kinds) == len(set(kinds)), "something was told twice"
    if JobMessageKind.DISCARD in kinds:
        assert kinds[-1] is JobMessageKind.DISCARD
    if JobMessageKind.ASSEMBLE in kinds:
        assert kinds.index(JobMessageKind.THRESHOLDS) < kinds.index(JobMessageKind.ASSEMBLE)
        for rank in range(simulation.ranks):
            assert {f"ready {rank}", f"drained {rank}"} <= set(heard)
        _, fields = simulation.world.told[record.uid][kinds.index(JobMessageKind.ASSEMBLE)]
        assert fields["ends"] == [end_of(sector).model_dump(mode="json") for sector in range(SECTORS)]


scans = st.lists(st.sampled_from([GIVEN, CALIBRATED]), min_size=1, max_size=3).map(
    lambda countings: [scan_record(uid=UUID(int=i + 1), counting=counting) for i, counting in enumerate(countings)]
)
seeds = st.randoms(use_true_random=False)


@given(st.integers(1, 4), scans, seeds)
def test_a_scan_without_trouble_is_committed(ranks: int, records: list[ScanRecord], random: Random) -> None:
    simulation = Simulation(ranks, records, random)
    simulation.run()
    for record in records:
        assert simulation.world.states[record.uid] == [
            ScanState.ANNOUNCED,
            ScanState.STREAMING,
            ScanState.DRAINING,
            ScanState.ASSEMBLING,
            ScanState.COMMITTED,
        ]
        assert simulation.world.kinds(record) == [
            JobMessageKind.PREPARE,
            JobMessageKind.THRESHOLDS,
            JobMessageKind.ASSEMBLE,
        ]
        check_orders(simulation, record)
        assert simulation.world.summaries[record.uid] == summary_of(record)
        assert (simulation.world.thresholds[record.uid] == THRESHOLDS) == (record.counting == CALIBRATED)
        assert simulation.world.samples[record.uid] == (b"the sample" if record.counting == CALIBRATED else b"")
    assert simulation.conductor.unfinished == []


troubles = st.lists(st.sampled_from(["failed", "aborted", "fault"]), min_size=1, max_size=3)


@given(st.integers(1, 4), scans, troubles, seeds)
def test_a_scan_in_trouble_ends_in_one_final_state(
    ranks: int, records: list[ScanRecord], troubles: list[str], random: Random
) -> None:
    simulation = Simulation(ranks, records, random)
    for trouble in troubles:
        simulation.trouble(records[0], trouble)
    simulation.run()
    for record in records:
        # What comes while the dataset is being written comes too late.
        may_end_badly = record is records[0]
        state = simulation.world.state(record)
        assert state is ScanState.COMMITTED or (may_end_badly and state in ENDS_BADLY)
        assert sum(state.is_final for state in simulation.world.states[record.uid]) == 1
        assert (record.uid in simulation.world.summaries) == (state is ScanState.COMMITTED)
        assert (JobMessageKind.DISCARD in simulation.world.kinds(record)) == (state in ENDS_BADLY)
        check_orders(simulation, record)
    assert simulation.conductor.unfinished == []


@given(st.integers(1, 3), scans, seeds)
def test_a_scan_that_somebody_else_ended_is_not_written(ranks: int, records: list[ScanRecord], random: Random) -> None:
    """The state in etcd is final at once; the conductor hears of it only later."""
    simulation = Simulation(ranks, records, random)
    record = records[0]

    def end_it() -> None:
        if simulation.world.set_state(record.uid, ScanState.ABORTED):
            simulation.post(
                record, "etcd", "ended", lambda: simulation.conductor.failed(record.uid, ScanFailed("by the user"))
            )

    simulation.post(record, "somebody else", "ends", end_it)
    simulation.run()
    assert sum(state.is_final for state in simulation.world.states[record.uid]) == 1
    assert simulation.conductor.unfinished == []


@pytest.fixture
def world() -> World:
    return World()


def say(conductor: Conductor, record: ScanRecord, kind: JobMessageKind, **more: str) -> None:
    conductor.told(JobMessage(kind, 0, {"uid": str(record.uid), **more}))


def send_all(conductor: Conductor, record: ScanRecord) -> None:
    for sector in range(SECTORS):
        conductor.ended(record.uid, end_of(sector))


@pytest.fixture
def assembling(world: World) -> tuple[Conductor, ScanRecord]:
    """The conductor of one rank, which is writing a scan."""
    conductor, record = Conductor(1, fit, world), scan_record()
    world.announce(conductor, record)
    say(conductor, record, JobMessageKind.READY)
    say(conductor, record, JobMessageKind.DRAINED)
    assert world.state(record) is ScanState.STREAMING
    send_all(conductor, record)
    assert world.state(record) is ScanState.ASSEMBLING
    return conductor, record


def test_thresholds_are_fixed_while_the_scan_before_is_being_written(
    world: World, assembling: tuple[Conductor, ScanRecord]
) -> None:
    """The sample takes its way past the main thread of the ranks, which is busy with MPI."""
    conductor, first = assembling
    second = scan_record(uid=UUID(int=2), counting=CALIBRATED)
    world.announce(conductor, second)
    say(conductor, second, JobMessageKind.READY)
    assert world.state(second) is ScanState.STREAMING
    for block in second.sample_blocks:
        conductor.told(JobMessage(JobMessageKind.SAMPLE, 0, {"uid": str(second.uid), "block": block}, b"good"))
    assert world.thresholds[second.uid] == THRESHOLDS
    assert world.kinds(second) == [JobMessageKind.PREPARE, JobMessageKind.THRESHOLDS]
    assert world.state(first) is ScanState.ASSEMBLING


def test_given_thresholds_are_told_as_they_are(world: World) -> None:
    counting = CountingParameters(background=40, xray=900, row_dark="mean", row_dark_level=30)
    conductor, record = Conductor(1, fit, world), scan_record(counting=counting)
    world.announce(conductor, record)
    told = dict(world.told[record.uid])[JobMessageKind.THRESHOLDS]["thresholds"]
    assert Thresholds.model_validate(told) == world.thresholds[record.uid]
    assert world.thresholds[record.uid] == Thresholds(background=40, xray=900, row_dark_level=30, calibrated=False)


def test_what_ends_a_scan_while_the_dataset_is_written_comes_too_late(
    world: World, assembling: tuple[Conductor, ScanRecord]
) -> None:
    conductor, record = assembling
    conductor.aborted(record.uid, ScanFailed("by the user"))
    conductor.failed(record.uid, ScanFailed("a producer died"))
    say(conductor, record, JobMessageKind.FAULT, message="no dark", remedy="take one")
    assert world.state(record) is ScanState.ASSEMBLING
    conductor.assembled(record.uid, summary_of(record))
    assert world.state(record) is ScanState.COMMITTED


def test_a_dataset_that_cannot_be_written_fails_its_scan(
    world: World, assembling: tuple[Conductor, ScanRecord]
) -> None:
    conductor, record = assembling
    conductor.assembly_failed(record.uid, ScanFailed("the disk is full"))
    assert world.state(record) is ScanState.FAILED
    assert world.kinds(record)[-1] is JobMessageKind.DISCARD
    assert conductor.unfinished == []


def announce_three(world: World, conductor: Conductor) -> list[ScanRecord]:
    records = [scan_record(uid=UUID(int=number)) for number in (1, 2, 3)]
    for record in records:
        world.announce(conductor, record)
    return records


def test_one_scan_streams_at_a_time_in_the_order_of_announcement(world: World) -> None:
    conductor = Conductor(1, fit, world)
    first, second, third = announce_three(world, conductor)
    for record in (first, third, second):
        say(conductor, record, JobMessageKind.READY)
    streaming = [ScanState.STREAMING, ScanState.ANNOUNCED, ScanState.ANNOUNCED]
    assert [world.state(record) for record in (first, second, third)] == streaming
    send_all(conductor, first)
    draining = [ScanState.DRAINING, ScanState.STREAMING, ScanState.ANNOUNCED]
    assert [world.state(record) for record in (first, second, third)] == draining
    conductor.failed(second.uid, ScanFailed("a producer died"))
    assert [world.state(record) for record in (second, third)] == [ScanState.FAILED, ScanState.STREAMING]


def test_a_scan_that_is_not_ready_keeps_nobody_waiting(world: World) -> None:
    conductor = Conductor(1, fit, world)
    first, second, _ = announce_three(world, conductor)
    say(conductor, second, JobMessageKind.READY)
    assert world.state(second) is ScanState.STREAMING
    say(conductor, first, JobMessageKind.READY)
    assert world.state(first) is ScanState.ANNOUNCED
    conductor.aborted(second.uid, ScanFailed("by the user"))
    assert world.state(first) is ScanState.STREAMING


def test_a_waiting_scan_that_somebody_else_ended_is_passed_over(world: World) -> None:
    conductor = Conductor(1, fit, world)
    first, second, third = announce_three(world, conductor)
    for record in (first, second, third):
        say(conductor, record, JobMessageKind.READY)
    world.set_state(second.uid, ScanState.ABORTED)
    send_all(conductor, first)
    assert world.kinds(second)[-1] is JobMessageKind.DISCARD
    assert world.state(third) is ScanState.STREAMING


def test_a_sample_that_cannot_be_fitted_fails_the_scan(world: World) -> None:
    conductor, record = Conductor(2, fit, world), scan_record(counting=CALIBRATED)
    world.announce(conductor, record)
    fields = {"uid": str(record.uid), "block": record.sample_blocks[0]}
    conductor.told(JobMessage(JobMessageKind.SAMPLE, 1, fields, b"bad"))
    assert world.state(record) is ScanState.FAILED
    assert world.kinds(record) == [JobMessageKind.PREPARE, JobMessageKind.DISCARD]


def test_news_of_a_scan_that_is_not_known_is_ignored(world: World) -> None:
    conductor = Conductor(1, fit, world)
    uid = UUID(int=9)
    conductor.told(JobMessage(JobMessageKind.READY, 0, {"uid": str(uid)}))
    conductor.ended(uid, end_of(0))
    conductor.failed(uid, ScanFailed("gone"))
    conductor.aborted(uid, ScanFailed("gone"))
    conductor.assembly_failed(uid, ScanFailed("gone"))
    conductor.assembled(uid, summary_of(scan_record()))
    assert world == World()
