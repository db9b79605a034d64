"""The processes of a deployment in one thread: real code for what decides, stand-ins for what waits, reads or writes.

Each has ``turn``, in which it does what there is to do; it can be ended or stopped at any named place within it.
"""

import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from mpistream.control.registry import AggregatorEntry, GroupEntry, ProducerEntry, Registry
from mpistream.model.errors import CoordinationError, EtcdUnreachable, ScanFailed, StorageError
from mpistream.model.routing_table import RoutingTable
from mpistream.model.scan import Counters, ScanRecord, ScanSummary, Thresholds
from mpistream.pipeline.leading.leader import Assembled, AssemblyFailed, DeclaredDead, JobLeader
from mpistream.pipeline.producing.news import Aggregators, NewTable, ScanChange, Stop
from mpistream.pipeline.producing.producer import Producer
from mpistream.pipeline.ranks.orders import CountedScan, StopOrder
from mpistream.pipeline.ranks.receiver import RankReceiver
from mpistream.storage.journal import JournalWriter, read_journal
from mpistream.transport.aggregator import Aggregator
from tests.unit.made_up_etcd import Client
from tests.unit.made_up_network import MadeUpHub, MadeUpSockets, TurnEnds

if TYPE_CHECKING:
    from tests.unit.delivery_model import World

ROUND_SECONDS = 0.5
LEASE_SECONDS = 2
#: Where a process can be ended or stopped, beside the named fault points.
ETCD_CALL, ETCD_ANSWER = "before a call to etcd", "after etcd has done it"
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

    def seconds_until(self, block: int, block_frames: int) -> float:
        return 0.0

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
    """The ``countdown``-th time from now that its process comes to ``place``: ``rounds`` of standstill, or its end.

    ``wakes``: a process that stood still until then, and goes on meanwhile.
    """

    place: str
    countdown: int
    rounds: int | None
    wakes: "Process | None" = None


class Process:
    """``is_far``: on another machine, so that nobody can know that it has died."""

    def __init__(self, world: "World", name: str, is_far: bool) -> None:
        self.world, self.name, self.is_far = world, name, is_far
        self.is_dead = self.is_frozen = self.was_stopped = False
        self.trap: Trap | None = None
        self.threads: dict[str, Callable[[], None]] = {}
        self.stalled: set[str] = set()  # threads that make no progress
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
        for name in shuffled(self.threads, shuffle):
            if name not in self.stalled:
                self.act(self.threads[name])

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
        if self.is_dead:
            return
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
            self.registry, self.world.config, self.name, ranks, self.receivers[0].talk.outbox.put, end_of_turn
        )
        self.receivers[0].talk.report_to(self.leader.news.put)
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
