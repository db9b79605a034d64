"""A deployment in one thread: the real code of leaders, ranks, producers and aggregators on a made-up etcd, a made-up
network and a made-up clock, so that whatever can fail fails at any point and every run can be repeated.

Real: JobLeader with all that it decides and writes, RankReceiver, RankScan, journals, Producer, Delivery, Aggregator.
Made up: etcd, sockets, threads, clock, sources (every block is empty), thresholds, and the writing of datasets.
"""

import itertools
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from mpistream.acquisition import producer as sector_sender
from mpistream.control import registry as registry_module
from mpistream.control.registry import AggregatorEntry, GroupEntry, ProducerEntry, Registry
from mpistream.control.run_state import TRANSITIONS, ScanState
from mpistream.model import fault_points
from mpistream.model.config import Config
from mpistream.model.errors import CoordinationError, EtcdUnreachable, ScanFailed, StorageError
from mpistream.model.geometry import SECTORS
from mpistream.model.job_share import JobShare
from mpistream.model.routing_table import RoutingTable
from mpistream.model.scan import Counters, CountingParameters, ScanRecord, ScanSummary, Thresholds
from mpistream.pipeline import conducting, leader, producer, rank_scan, receiver, sector_stream
from mpistream.pipeline.leader import Assembled, AssemblyFailed, DeclaredDead, JobLeader
from mpistream.pipeline.producer import Producer
from mpistream.pipeline.producer_news import Aggregators, NewTable, ScanChange, Stop
from mpistream.pipeline.receiver import CountedScan, RankReceiver, StopOrder
from mpistream.reduction import scan_reduction
from mpistream.storage.journal import JournalWriter, read_journal
from mpistream.transport.aggregator import Aggregator
from tests.unit.made_up_etcd import Client, MadeUpEtcd
from tests.unit.made_up_network import MadeUpHub, MadeUpSockets, Network, TurnEnds

ROUND_SECONDS = 0.5
LEASE_SECONDS = 2
ABSENT_SECONDS = 6.0
#: Where a process can be ended or stopped, beside the named fault points.
ETCD_CALL, ETCD_ANSWER = "before a call to etcd", "after etcd has done it"
CALIBRATED, GIVEN = CountingParameters(sample_frames=1), CountingParameters(background=10.0, xray=100.0)
THRESHOLDS = Thresholds(background=10.0, xray=100.0, calibrated=True, sample_frames=1)


class Killed(BaseException):
    """The process ends here."""


class MadeUpMailbox(deque[Any]):
    """In place of Mailbox; ``wait_into`` lets a loop go round once."""

    waits = 0
    put = deque.append

    def take(self) -> list[Any]:
        return [self.popleft() for _ in range(len(self))]

    def wait_into(self, take: Callable[[Any], None], timeout_seconds: float) -> None:
        self.waits += 1
        if self.waits % 2 == 0:
            raise TurnEnds
        while self:
            take(self.popleft())


class MadeUpSource:
    """One sector whose blocks are all empty: what they hold is not what this is about."""

    sectors_duplicate = sectors_rejected = frames_lost = 0
    is_live = False

    def __init__(self, sector: int) -> None:
        self.sector = sector

    def read_block(self, block: int, block_frames: int, buffer: memoryview) -> int:
        return 0

    def frames_present(self, block: int, block_frames: int) -> int:
        return 0

    def close(self) -> None:
        """Nothing is open."""


class MadeUpCourier:
    """In place of Courier; ``run`` is its thread."""

    def __init__(self) -> None:
        self.actions: deque[Callable[[], object]] = deque()

    def do(self, action: Callable[[], object]) -> None:
        self.actions.append(action)

    def say(self, status: Callable[[], object]) -> None:
        """Nobody watches."""

    def run(self) -> None:
        try:
            while self.actions:
                self.actions[0]()
                self.actions.popleft()
        except EtcdUnreachable:
            return


@dataclass
class Trap:
    """The ``countdown``-th time from now that its process comes to ``place``: ``rounds`` of standstill, or its end."""

    place: str
    countdown: int
    rounds: int | None


class Process:
    """``is_far``: on another machine, so that nobody can know that it has died."""

    def __init__(self, world: "World", name: str, is_far: bool) -> None:
        self.world, self.name, self.is_far = world, name, is_far
        self.is_dead = self.is_frozen = self.was_stopped = False
        self.trap: Trap | None = None
        self.threads: dict[str, Callable[[], None]] = {}
        self.writers: list[JournalWriter] = []
        self.client = Client(world.etcd, lambda: world.reach(ETCD_CALL), lambda: world.reach(ETCD_ANSWER))
        self.registry = Registry(self.client, LEASE_SECONDS)  # type: ignore[arg-type]
        world.processes[name] = self

    @property
    def runs(self) -> bool:
        return not self.is_dead and not self.is_frozen

    def act(self, action: Callable[[], object]) -> None:
        """Does a part of its work, unless it cannot."""
        if not self.runs:
            return
        with self.world.running(self):
            try:
                action()
            except (Killed, DeclaredDead):
                self.die()

    def hear(self, most: int | None = None) -> None:
        """What the threads of its leases and watches do."""
        if not self.runs:
            return
        try:
            self.client.renew()
        except CoordinationError:
            self.die()
            return
        if not self.client.lags:
            self.client.deliver(most)

    def turn(self, shuffle: random.Random | None = None) -> None:
        self.hear()
        for part in shuffled(self.threads.values(), shuffle):
            self.act(part)

    def freeze(self, rounds: int, shuffle: random.Random | None = None) -> None:
        """It stands still while the others go on."""
        self.is_frozen = True
        for _ in range(rounds):
            self.world.round(shuffle)
        self.thaw(rounds * ROUND_SECONDS)

    def thaw(self, seconds: float) -> None:
        self.is_frozen = False
        self.was_stopped |= seconds > LEASE_SECONDS / 2

    def die(self) -> None:
        self.is_dead, self.trap = True, None
        self.client.end()
        self.world.network.end(self.name)
        for writer in self.writers:
            writer.close()


def shuffled(items: Any, shuffle: random.Random | None) -> list[Any]:
    chosen = list(items)
    if shuffle is not None:
        shuffle.shuffle(chosen)
    return chosen


class Job(Process):
    """An MPI job: its ranks' receiving threads, its leader, and its main threads as one."""

    def __init__(self, world: "World", name: str, is_far: bool, size: int, groups: int) -> None:
        super().__init__(world, name, is_far)
        self.size, self.groups = size, groups
        self.orders = [MadeUpMailbox() for _ in range(size)]
        self.hub = MadeUpHub()
        self._assembly: Iterator[None] | None = None
        self.act(self._start)

    def _start(self) -> None:
        self.receivers = [self._receiver(rank) for rank in range(self.size)]
        ranks = tuple(
            replace(receiver.endpoints(rank % self.groups, "node"), job=self.name, pid=0)
            for rank, receiver in enumerate(self.receivers)
        )
        for group in range(self.groups):
            of_group = tuple(rank for rank in ranks if rank.group == group)
            self.registry.register_group(GroupEntry(self.name, group, self.groups, "node", of_group))
        for each in self.receivers:
            each.start("hub")
        self.leader = JobLeader(
            self.registry, self.world.config, self.name, ranks, self.receivers[0].outbox.put, end_of_turn
        )
        self.receivers[0].report_to(self.leader.news.put)
        self.leader.start()
        self.threads["main"] = self._main

    def _receiver(self, rank: int) -> RankReceiver:
        watchdog = SimpleNamespace(check=lambda: None, heard_from=lambda rank: None)
        incarnation, orders = self.world.new_incarnation(), self.orders[rank]
        return RankReceiver(self.world.config, rank, self.size, incarnation, orders, watchdog, end_of_turn)  # type: ignore[arg-type]

    def _main(self) -> None:
        if self._assembly is None and all(self.orders):
            orders = [orders.popleft() for orders in self.orders]
            if isinstance(orders[0], StopOrder):
                self._leave()
                return
            self._assembly = self._assemble(orders)
        if self._assembly is not None and next(self._assembly, self) is self:
            self._assembly = None

    def _leave(self) -> None:
        self.leader.close()
        for registration in list(self.client.registrations):
            registration.close()
        self.die()

    def _assemble(self, orders: Sequence[CountedScan]) -> Iterator[None]:
        """gather -> write, with pauses in which the others go on."""
        record, world = orders[0].record, self.world
        try:
            world.reach("rank.before-gather")
            blocks = gather(orders)
            yield
            world.reach("rank.before-write")
            world.reach("rank.after-events")
            yield
            world.reach("rank.before-rename")
            if world.disk_is_full:
                raise StorageError("the disk is full", "free space")
            world.datasets.setdefault(record.uid, Dataset(blocks, not any(end.cut for end in orders[0].ends)))
            world.reach("rank.between-names")
            world.reach("rank.after-rename")
            yield
        except (StorageError, ScanFailed) as error:
            self.leader.news.put(AssemblyFailed(record.uid, error))
        else:
            self.leader.news.put(Assembled(record.uid, summary(record, world.datasets[record.uid].complete)))


@dataclass(frozen=True)
class Dataset:
    """``blocks``: the bit map of the sectors that each was counted with."""

    blocks: dict[int, int]
    complete: bool


def gather(orders: Sequence[CountedScan]) -> dict[int, int]:
    """Block -> bit map of the sectors in the version that wins. Raises ScanFailed where one is not as it should be."""
    record, found = orders[0].record, dict[int, int]()
    journaled = (read_journal(path, good, scan_uid=record.uid) for path, good in orders[0].journals)
    for block in itertools.chain(*(order.blocks for order in orders), *journaled):
        found[block.block] = max(found.get(block.block, 0), block.sectors, key=int.bit_count)
    uncut = sum(1 << end.sector for end in orders[0].ends if not end.cut)
    wanting = [block for block in record.block_range if found.get(block, 0) & uncut != uncut]
    if wanting and uncut:
        raise ScanFailed(f"blocks {wanting} are not what their producers sent")
    return found


def summary(record: ScanRecord, complete: bool) -> ScanSummary:
    counters = Counters.model_validate(
        dict.fromkeys((name for name, info in Counters.model_fields.items() if info.is_required()), 0)
    )
    return ScanSummary(
        dataset=record.output,
        complete=complete,
        scan_shape=(1, 1),
        counters=counters,
        thresholds=THRESHOLDS,
        file_bytes=0,
        seconds={},
    )


def end_of_turn(error: BaseException) -> None:
    """In place of ``abort``, which ends the job."""
    if not isinstance(error, TurnEnds):
        raise error


class Camera(Process):
    """A producer."""

    def __init__(self, world: "World", name: str, is_far: bool, sector: int) -> None:
        super().__init__(world, name, is_far)
        self.sector = sector
        self.courier = MadeUpCourier()
        self.producer: Producer | None = None
        self.threads = {"courier": self.courier.run, "loop": self.loop}
        self.act(self.start)

    def start(self) -> None:
        """Waits, as one that is started again and again, until it can register."""
        entry = ProducerEntry(self.sector, self.sector, "camera", 0, self.world.new_incarnation())
        try:
            registration = self.registry.register_producer(entry)
            news: Any = MadeUpMailbox()
            self._watch(news)
        except CoordinationError:
            return
        detector: Any = SimpleNamespace(was_stopped=self.was_it_stopped)
        sockets: Any = MadeUpSockets(self.world.network, self.name)
        self.producer = Producer(
            self.world.config, entry, self.registry, registration, self.courier, detector, sockets, news
        )
        news.put(Stop())  # so that serve() prepares, and returns
        self.producer.serve()

    def _watch(self, news: "MadeUpMailbox") -> None:
        registry = self.registry

        def look() -> None:
            self.courier.do(lambda: news.put(Aggregators(registry.aggregators())))

        registry.watch_routing(lambda table: news.put(NewTable(table)))
        registry.watch_aggregators(look)
        registry.watch_scans(lambda change: news.put(ScanChange(change)))

    def was_it_stopped(self) -> bool:
        stopped, self.was_stopped = self.was_stopped, False
        return stopped

    def loop(self) -> None:
        if self.producer is None:
            self.start()
        else:
            self.producer.turn()

    def released(self) -> Iterator[tuple[UUID, int]]:
        """What it believes to be journaled."""
        for uid, stream in (self.producer._streams if self.producer else {}).items():
            delivery = stream.sender.delivery
            yield from ((uid, block) for block in delivery.blocks if delivery.is_released(block))


class Relay(Process):
    """An aggregator."""

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name, is_far=False)
        self.sockets: Any = MadeUpSockets(world.network, name)
        inlet, answers = self.sockets.data_inlet(""), self.sockets.answer_inlet("")
        self.aggregator = Aggregator(self.sockets, inlet, answers)
        self.tables: deque[RoutingTable] = deque()
        self.entry = AggregatorEntry("first", "edge", 0, inlet.endpoint, answers.endpoint, world.new_incarnation())
        self.is_registered = False
        self.threads = {"loop": self.loop}

    def loop(self) -> None:
        if not self.is_registered:
            try:
                if not self.client.watches:
                    self.registry.watch_routing(self.tables.append)
                self.registry.register_aggregator(self.entry)
                self.is_registered = True
            except CoordinationError:
                return
        while self.tables:
            self.aggregator.adopt(self.tables.popleft())
        self.aggregator.forward()


@dataclass
class JournaledFiles:
    """Beside the journals: how far each is when which block is in it."""

    ends: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # path -> (bytes, block)
    of: dict[str, UUID] = field(default_factory=dict)

    def blocks(self, uid: UUID) -> set[int]:
        """All that any rank has ever journaled, behind a seal too."""
        return {block for path, ends in self.ends.items() if self.of[path] == uid for _, block in ends}

    def readable(self, shares: dict[str, JobShare]) -> set[int]:
        """What an assembly can come to read: up to the seal where there is one, otherwise all of it."""
        return {
            block
            for share in shares.values()
            for extent in share.journals
            for end, block in self.ends.get(extent.path, [])
            if not share.sealed or end <= extent.bytes
        }


class World:
    """``problems``: what must never happen and did."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.seconds = 1000.0
        self.etcd = MadeUpEtcd(lambda: self.seconds, LEASE_SECONDS, self.is_known_dead)
        self.etcd.on_write = self._check_write
        self.network = Network()
        self.processes: dict[str, Process] = {}
        self.records: dict[UUID, ScanRecord] = {}
        self.datasets: dict[UUID, Dataset] = {}
        self.journals = JournaledFiles()
        self.journals_fail = self.disk_is_full = False
        self.problems: list[str] = []
        self.config = Config.model_validate(
            {
                "etcd": {"lease_seconds": LEASE_SECONDS},
                "stream": {
                    "block_frames": 1,
                    "window_bytes": 4 * 4 * 165904,
                    "patience_seconds": 1e9,
                    "absent_seconds": ABSENT_SECONDS,
                },
            }
        )
        self._numbers = itertools.count(1)
        self._running: Process | None = None
        self._patch(patch)
        self.operator = Process(self, "operator", is_far=True)

    def _patch(self, patch: pytest.MonkeyPatch) -> None:
        clock = SimpleNamespace(
            monotonic=lambda: self.seconds, time=lambda: self.seconds, time_ns=lambda: int(self.seconds * 1e9)
        )
        for module in (leader, receiver, conducting, registry_module, producer, sector_sender):
            patch.setattr(module, "time", clock)
        known = {"reach": self.reach, "is_known_dead": self.is_known_dead, "this_process": self._this_process}
        for module in [module for name, module in sys.modules.items() if name.startswith("mpistream.")]:
            for name in known.keys() & vars(module).keys():
                patch.setattr(module, name, known[name])
        patch.setattr(fault_points, "is_active", lambda: True)
        threading = SimpleNamespace(Thread=self._thread, Event=Flag)
        for module in (leader, receiver):
            patch.setattr(module, "threading", threading)
            patch.setattr(module, "Mailbox", MadeUpMailbox)
        patch.setattr(receiver, "Sockets", self._job_sockets)
        patch.setattr(rank_scan, "JournalWriter", self._journal_writer())
        patch.setattr(scan_reduction, "sample_block", lambda *arguments: SimpleNamespace(to_bytes=lambda: b"sample"))
        patch.setattr(conducting, "fit_sample", fit_sample)
        patch.setattr(sector_stream, "open_source", lambda specification, sector, since: MadeUpSource(sector))

    def _this_process(self) -> str:
        return self._running.name if self._running else "nobody"

    def _thread(self, target: Callable[[], None], name: str, daemon: bool) -> SimpleNamespace:
        process = self._running
        assert process is not None
        process.threads[f"{name} {len(process.threads)}"] = target
        return SimpleNamespace(start=lambda: None, join=lambda timeout: None, is_alive=lambda: False)

    def _job_sockets(self) -> MadeUpSockets:
        assert isinstance(self._running, Job)
        return MadeUpSockets(self.network, self._running.name, self._running.hub)

    def _journal_writer(self) -> type[JournalWriter]:
        world = self

        class Writer(JournalWriter):
            @classmethod
            def create(cls, path: Path, scan_uid: UUID, *arguments: Any) -> "Writer":
                made = super().create(path, scan_uid, *arguments)
                world.journals.of[str(path)] = scan_uid
                assert world._running is not None
                world._running.writers.append(made)
                return made  # type: ignore[return-value]

            def append(self, blocks: Sequence[Any]) -> None:
                if world.journals_fail:
                    raise StorageError("the journal cannot be written", "free space")
                super().append(blocks)
                ends = [(self.bytes, block.block) for block in blocks]
                world.journals.ends.setdefault(str(self.path), []).extend(ends)

        return Writer

    # processes

    def new_incarnation(self) -> int:
        return next(self._numbers)

    @property
    def jobs(self) -> list[Job]:
        return [process for process in self.processes.values() if isinstance(process, Job) and not process.is_dead]

    @property
    def cameras(self) -> list[Camera]:
        return [process for process in self.processes.values() if isinstance(process, Camera) and not process.is_dead]

    @property
    def relays(self) -> list[Relay]:
        return [process for process in self.processes.values() if isinstance(process, Relay) and not process.is_dead]

    def start_job(self, size: int, groups: int = 1, is_far: bool = False) -> None:
        Job(self, f"job-{self.new_incarnation()}", is_far, size, min(groups, size))

    def start_camera(self, sector: int, is_far: bool = False) -> None:
        Camera(self, f"camera-{sector}-{self.new_incarnation()}", is_far, sector)

    def start_relay(self) -> None:
        Relay(self, f"relay-{self.new_incarnation()}")

    def is_known_dead(self, name: str) -> bool:
        process = self.processes.get(name)
        return process is not None and process.is_dead and not process.is_far

    @contextmanager
    def running(self, process: Process) -> Iterator[None]:
        before, self._running = self._running, process
        try:
            yield
        finally:
            self._running = before

    def reach(self, place: str) -> None:
        """A process comes to a point at which it can be ended or stopped."""
        process = self._running
        if process is None or process.trap is None or process.trap.place != place:
            return
        trap = process.trap
        trap.countdown -= 1
        if trap.countdown > 0:
            return
        process.trap = None
        if trap.rounds is None:
            raise Killed
        process.freeze(trap.rounds)
        if place == ETCD_ANSWER:
            raise EtcdUnreachable("the answer never came")

    # time

    def round(self, shuffle: random.Random | None = None, seconds: float = ROUND_SECONDS) -> None:
        """Everybody who can does what there is to do."""
        self.seconds += seconds
        for process in shuffled(self.processes.values(), shuffle):
            process.turn(shuffle)
        self.etcd.expire()

    # scans

    def announce(self, uid: UUID, blocks: int, counting: CountingParameters, direct: bool) -> None:
        record = ScanRecord(
            uid=uid,
            scan_number=1,
            rows=1,
            columns=blocks,
            source="made up",
            encoding=5,
            first_frame=0,
            last_frame=blocks - 1,
            block_frames=1,
            direct=direct,
            counting=counting,
            output=f"{uid}.h5",
            overwrite=False,
            journals=str(self.folder / str(uid)),
            announced_unix_seconds=self.seconds,
        )
        self.records[uid] = record
        self.operator.registry.announce(record)

    def state(self, uid: UUID) -> ScanState:
        return ScanState(self.etcd.get(f"scans/{uid}/state")["state"])

    def shares(self, uid: UUID) -> dict[str, JobShare]:
        return {job: JobShare.from_json(value) for job, value in self.etcd.below(f"scans/{uid}/shares/").items()}

    def cuts(self, uid: UUID) -> set[int]:
        """Sectors that were ended in their producers' place."""
        return {int(sector) for sector, end in self.etcd.below(f"scans/{uid}/ends/").items() if end["cut"]}

    def _check_write(self, key: str, before: Any, after: Any) -> None:
        kind, _, rest = key.partition("/")
        if kind == "routing" and before is not None:
            self.problems.append(f"routing table {rest} was written twice")
        elif kind == "scans" and rest.endswith("/state") and before is not None and after is not None:
            self._check_state(UUID(rest.removesuffix("/state")), ScanState(before["state"]), ScanState(after["state"]))

    def _check_state(self, uid: UUID, old: ScanState, new: ScanState) -> None:
        if old is not new and new not in TRANSITIONS[old]:
            self.problems.append(f"a scan went from {old} to {new}")
        if new is ScanState.ASSEMBLING and len(self.cuts(uid)) < SECTORS:
            wanting = set(self.records[uid].block_range) - self.journals.readable(self.shares(uid))
            if wanting:
                self.problems.append(f"a scan is assembling though blocks {wanting} cannot be read")

    def check(self) -> None:
        """What holds at any time."""
        assert not self.problems, self.problems
        for camera in self.cameras:
            for uid, block in camera.released():
                assert block in self.journals.blocks(uid), f"{camera.name}: block {block} is released, not journaled"


class Flag:
    """In place of threading.Event: nobody waits."""

    def __init__(self) -> None:
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True

    def wait(self, timeout: float | None = None) -> bool:
        return self._is_set


def fit_sample(samples: dict[int, bytes], record: ScanRecord, with_less: bool) -> tuple[Thresholds, bytes] | None:
    return (THRESHOLDS, b"") if with_less or samples.keys() >= set(record.sample_blocks) else None
