"""A deployment in one thread: the real code of leaders, ranks, producers and aggregators on a made-up etcd, a made-up
network and a made-up clock, so that whatever can fail fails at any point and every run can be repeated.

Real: JobLeader with all that it decides and writes, RankReceiver, RankScan, journals, Producer, Delivery, Aggregator.
Made up: etcd, sockets, threads, clock, sources (every block is empty), thresholds, and the writing of datasets.
"""

import itertools
import random
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from mpistream.acquisition import producer as sector_sender
from mpistream.control import registry
from mpistream.control.run_state import TRANSITIONS, ScanState
from mpistream.model import fault_points
from mpistream.model.config import Config
from mpistream.model.errors import EtcdUnreachable, StorageError
from mpistream.model.geometry import SECTORS
from mpistream.model.job_share import JobShare
from mpistream.model.scan import CountingParameters, Durability, ScanRecord, Thresholds
from mpistream.pipeline.leading import conducting, leader
from mpistream.pipeline.producing import producer, sector_stream
from mpistream.pipeline.ranks import job_talk, rank_scan, receiver
from mpistream.reduction import scan_reduction
from mpistream.storage.journal import JournalWriter
from tests.unit.made_up_etcd import MadeUpEtcd
from tests.unit.made_up_network import MadeUpSockets, Network
from tests.unit.made_up_processes import (
    ETCD_ANSWER,
    LEASE_SECONDS,
    ROUND_SECONDS,
    THRESHOLDS,
    Camera,
    Dataset,
    Job,
    Killed,
    MadeUpMailbox,
    MadeUpSource,
    Process,
    Relay,
    shuffled,
)

ABSENT_SECONDS = 6.0
#: A deployment that is left in peace ends its scans within so many rounds.
MOST_ROUNDS = int((ABSENT_SECONDS + 4 * LEASE_SECONDS + 150) / ROUND_SECONDS)
CALIBRATED, GIVEN = CountingParameters(sample_frames=1), CountingParameters(background=10.0, xray=100.0)


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
        self.to_be_assembled: dict[UUID, set[int]] = {}
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
        for module in (leader, receiver, job_talk, conducting, registry, producer, sector_sender):
            patch.setattr(module, "time", clock)
        known = {
            "_log": Log(self.problems),
            "reach": self.reach,
            "is_known_dead": self.is_known_dead,
            "this_process": self._this_process,
        }
        for module in [module for name, module in sys.modules.items() if name.startswith("mpistream.")]:
            for name in known.keys() & vars(module).keys():
                patch.setattr(module, name, known[name])
        patch.setattr(fault_points, "is_active", lambda: True)
        threading = SimpleNamespace(Thread=self._thread, Event=Flag)
        for module in (leader, receiver, job_talk):
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
        if trap.wakes is not None:
            trap.wakes.thaw(ABSENT_SECONDS)
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

    def announce(
        self,
        uid: UUID,
        blocks: int,
        counting: CountingParameters,
        direct: bool,
        durability: Durability = Durability.WRITE,
    ) -> None:
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
            durability=durability,
            announced_unix_seconds=self.seconds,
        )
        self.records[uid] = record
        self.operator.registry.announce(record)

    def state(self, uid: UUID) -> ScanState:
        return ScanState(self.etcd.get(f"scans/{uid}/state")["state"])

    def shares(self, uid: UUID) -> dict[str, JobShare]:
        return {job: JobShare.from_json(value) for job, value in self.etcd.below(f"scans/{uid}/shares/").items()}

    @property
    def latest_table(self) -> Any:
        tables = self.etcd.below("routing/")
        return tables[max(tables, key=int)]

    def cuts(self, uid: UUID) -> set[int]:
        """Sectors that were ended in their producers' place."""
        return {int(sector) for sector, end in self.etcd.below(f"scans/{uid}/ends/").items() if end["cut"]}

    # what holds

    def _check_write(self, key: str, before: Any, after: Any) -> None:
        kind, _, rest = key.partition("/")
        if kind == "routing" and before is not None:
            self.problems.append(f"routing table {rest} was written twice")
        elif kind == "scans" and rest.endswith("/state") and before is not None and after is not None:
            self._check_state(UUID(rest.removesuffix("/state")), ScanState(before["state"]), ScanState(after["state"]))

    def _check_state(self, uid: UUID, old: ScanState, new: ScanState) -> None:
        if old is not new and new not in TRANSITIONS[old]:
            self.problems.append(f"a scan went from {old} to {new}")
        if new is ScanState.ASSEMBLING and new is not old:
            shares = self.shares(uid)
            lost = {job: share for job, share in shares.items() if self.processes[job].is_dead}
            journaled = {block for share in shares.values() for block in share.blocks}
            self.to_be_assembled[uid] = journaled | self.journals.readable(lost)
        has_journals = self.records[uid].durability is not Durability.NONE
        if new is ScanState.ASSEMBLING and has_journals and len(self.cuts(uid)) < SECTORS:
            wanting = set(self.records[uid].block_range) - self.journals.readable(self.shares(uid))
            if wanting:
                self.problems.append(f"a scan is assembling though blocks {wanting} cannot be read")

    # how it ends

    def repair(self) -> None:
        """Whatever is broken, stopped, full or slow is so no longer."""
        self.etcd.come_back()
        self.journals_fail = self.disk_is_full = False
        for process in self.processes.values():
            process.client.is_cut_off = process.client.lags = False
            process.trap = None
            process.stalled.clear()
        for link in self.network.links:
            link.is_held = False
        self.wake_all()

    def wake_all(self) -> None:
        for process in self.processes.values():
            if process.is_frozen and not process.is_dead:
                process.thaw(ABSENT_SECONDS)

    def restart(self, gone: Collection[int] = ()) -> None:
        """Whatever has died is started again, but for the producers of the sectors ``gone``; of jobs one suffices."""
        for sector in set(range(SECTORS)) - set(gone) - {camera.sector for camera in self.cameras}:
            self.start_camera(sector)
        if not self.relays:
            self.start_relay()
        if not self.jobs:
            self.start_job(2)

    def settle(self, gone: Collection[int] = (), aborted: Collection[UUID] = ()) -> None:
        """Left in peace, every scan ends, and as it should."""
        self.repair()
        for _ in range(MOST_ROUNDS):
            self.restart(gone)
            self.round()
            self.check()
            if all(self.state(uid).is_final for uid in self.records):
                break
        else:
            states = {uid.int: self.etcd.get(f"scans/{uid}/state") for uid in self.records}
            raise AssertionError(f"it goes on for ever: {states}")
        for _ in range(20):
            self.round()
        self.check()
        for uid in self.records:
            self.check_end(uid, uid in aborted)

    def check_end(self, uid: UUID, is_aborted: bool = False) -> None:
        state, record, dataset = self.state(uid), self.records[uid], self.datasets.get(uid)
        assert state is not ScanState.FAILED, self.etcd.get(f"scans/{uid}/state")
        assert is_aborted or state is not ScanState.ABORTED
        assert (state is ScanState.INCOMPLETE) == bool(self.cuts(uid) and state is not ScanState.ABORTED)
        assert dataset is not None or state is ScanState.ABORTED
        if dataset is not None and state is ScanState.COMMITTED:
            assert dataset.blocks == dict.fromkeys(record.block_range, (1 << SECTORS) - 1)
        if dataset is not None:
            lost = self.to_be_assembled[uid] - dataset.blocks.keys()
            assert not lost, f"blocks {lost} were journaled and are not in the dataset"
        assert not self.shares(uid), "shares are left"
        left = [path for path in map(str, Path(record.journals).glob("*")) if self.journals.ends.get(path)]
        assert not left, "journals with blocks are left"

    def close(self) -> None:
        for process in self.processes.values():
            process.die()

    def check(self) -> None:
        """What holds at any time."""
        assert not self.problems, self.problems
        for camera in self.cameras:
            for uid, block in camera.released():
                journaled = self.records[uid].durability is Durability.NONE or block in self.journals.blocks(uid)
                assert journaled, f"{camera.name}: block {block} is released, and not journaled"


@contextmanager
def deployment(*shapes: tuple[int, int, bool], are_far: bool = False) -> Iterator[World]:
    """A world with a producer for each sector, an aggregator, and jobs of so many ranks, in so many groups, on the
    machine of all others or on one of its own.
    """
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        world = World(Path(folder), patch)
        try:
            for sector in range(SECTORS):
                world.start_camera(sector, are_far)
            world.start_relay()
            for shape in shapes:
                world.start_job(*shape)
            yield world
        finally:
            world.close()


class Log:
    """In place of a logger: nothing is written by hand here, so whatever a process calls an error is one."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems

    def error(self, text: str, *arguments: object) -> None:
        self._problems.append(text % arguments)

    exception = error

    def info(self, text: str, *arguments: object) -> None:
        """As it should be."""

    debug = warning = info


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
