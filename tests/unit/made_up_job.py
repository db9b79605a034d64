"""MPI jobs without MPI: real leaders against a real etcd, with ranks for which the test speaks."""

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

import numpy as np
import pytest

from mpistream.control.coordination import Coordination
from mpistream.control.registry import GroupEntry, Registry
from mpistream.control.run_state import ScanState
from mpistream.model.config import Config
from mpistream.model.errors import MpistreamError
from mpistream.model.geometry import SECTORS
from mpistream.model.job_messages import JobMessage, JobMessageKind
from mpistream.model.protocol import Encoding
from mpistream.model.scan import CountingParameters, Durability, ScanRecord, SectorEnd
from mpistream.pipeline.leading import job_scan
from mpistream.pipeline.leading.leader import Assembled, AssemblyFailed, JobLeader
from mpistream.storage.journal import JournalWriter, read_journal
from tests.unit.made_up_registry import LEASE_SECONDS, OtherProcess, RegistryOf, ranks_of, vanish
from tests.unit.picture import until
from tests.unit.registered import summary
from tests.unit.test_counted_block import counted_block

Outcome = Assembled | AssemblyFailed | None


class MadeUpJob:
    """A job that a process of its own is said to be. Its ranks prepare at once; the test says what they count."""

    def __init__(self, etcd: Coordination, name: str, config: Config, ranks: int = 2, groups: int = 1) -> None:
        self.name = name
        self.process = OtherProcess()
        self.ranks = ranks_of(name, ranks, groups, self.process.identity)
        self.groups = groups
        self.told: list[JobMessage] = []
        self.errors: list[BaseException] = []
        #: for each order to write the dataset, the blocks in the journals that are to be read for it
        self.read: list[list[int]] = []
        #: what the ranks do when they are told to prepare for a scan
        self.prepare: Callable[[MadeUpJob, ScanRecord], None] = MadeUpJob.all_get_ready
        #: what the main threads answer to an order to write the dataset; nothing: the test answers
        self.assemble: Callable[[dict[str, Any]], Outcome] = lambda order: Assembled(UUID(order["uid"]), summary())
        self.registry = RegistryOf(etcd, self.process.identity, config.etcd.lease_seconds)
        self.leader = JobLeader(self.registry, config, name, self.ranks, self._obey, self.errors.append)
        self._registrations: list[Any] = []
        self._journals: dict[tuple[UUID, int], JournalWriter | None] = {}
        self._frames: dict[tuple[UUID, int], int] = {}
        self._ended = False

    def start(self) -> None:
        self.register(*range(self.groups))
        self.leader.start()

    def register(self, *groups: int) -> None:
        for group in groups:
            ranks = tuple(rank for rank in self.ranks if rank.group == group)
            entry = GroupEntry(self.name, group, self.groups, "node", ranks)
            self._registrations.append(self.registry.register_group(entry))

    def identifies(self, thread: threading.Thread) -> bool:
        return thread is self.leader._thread

    @property
    def conducts(self) -> bool:
        return self.leader._deployment.role is not None

    def kinds(self, uid: UUID | None = None) -> list[JobMessageKind]:
        """What the ranks were told, but for routing tables; of one scan, or of all."""
        return [message.kind for message in self.told if uid is None or _uid_of(message) == uid]

    def orders(self, kind: JobMessageKind) -> list[dict[str, Any]]:
        return [message.fields for message in self.told if message.kind is kind]

    def _obey(self, message: JobMessage) -> None:
        self.told.append(message)
        match message.kind:
            case JobMessageKind.PREPARE:
                self.prepare(self, ScanRecord.model_validate(message.fields["record"]))
            case JobMessageKind.FLUSH:
                uid = UUID(message.fields["uid"])
                for rank in range(len(self.ranks)):
                    if (uid, rank) in self._journals:
                        self._say_counted(rank, uid, flushed=True)
            case JobMessageKind.ASSEMBLE:
                uid, journals = UUID(message.fields["uid"]), message.fields["journals"]
                blocks = [block for path, good in journals for block in read_journal(Path(path), good, scan_uid=uid)]
                self.read.append(sorted(block.block for block in blocks))
                if (outcome := self.assemble(message.fields)) is not None:
                    self.leader.news.put(outcome)

    def all_get_ready(self, record: ScanRecord) -> None:
        for rank in self.ranks:
            self.get_ready(record, rank.rank)

    def get_ready(self, record: ScanRecord, rank: int) -> None:
        incarnation, key = self.ranks[rank].incarnation, (record.uid, rank)
        if key not in self._journals:
            path = Path(record.journals) / f"rank-{rank}-{incarnation}.journal"
            keep = record.durability is not Durability.NONE
            self._journals[key] = (
                JournalWriter.create(path, record.uid, incarnation, record.durability) if keep else None
            )
        journal = self._journals[key]
        self.say(
            JobMessageKind.READY,
            rank,
            record.uid,
            incarnation=incarnation,
            journal=str(journal.path) if journal else "",
        )

    def say(self, kind: JobMessageKind, rank: int, uid: UUID, /, binary: bytes = b"", **fields: Any) -> None:
        self.leader.news.put(JobMessage(kind, rank, {"uid": str(uid), **fields}, binary))

    def journal(self, uid: UUID, rank: int, blocks: Iterable[int]) -> JournalWriter:
        """The rank journals blocks of two frames, and tells nobody."""
        journal, blocks = self._journals[uid, rank], list(blocks)
        assert journal is not None
        journal.append([counted_block(block, seed=block) for block in blocks])
        self._frames[uid, rank] = self._frames.get((uid, rank), 0) + 2 * len(blocks)
        return journal

    def count(self, uid: UUID, rank: int, *blocks: int) -> None:
        """The rank counts blocks of two frames, journals them, and tells its leader."""
        if self._journals[uid, rank] is not None:
            self.journal(uid, rank, blocks)
        self._say_counted(rank, uid, blocks)

    def _say_counted(self, rank: int, uid: UUID, blocks: Iterable[int] = (), flushed: bool = False) -> None:
        journal, frames = self._journals[uid, rank], self._frames.get((uid, rank), 0)
        self.say(
            JobMessageKind.COUNTED,
            rank,
            uid,
            np.array(list(blocks), "<u8").tobytes(),
            bytes=journal.bytes if journal else 0,
            totals={"frames": frames, "electrons": 10 * frames, "raw_bytes": 500 * frames, "frames_incomplete": 0},
            flushed=flushed,
            problem="",
        )

    def _stop_leader(self) -> None:
        self.leader._closed.set()
        self.leader._look()
        self.leader._thread.join(timeout=10)
        for watch in self.leader._watches:
            watch.close()

    def die(self) -> None:
        """As on SIGKILL: it withdraws nothing."""
        self.process.kill()
        self.stop_silently()

    def stop_silently(self) -> None:
        """Nothing is done and kept alive any more, though its process is there: as on SIGSTOP."""
        self._ended = True
        self._stop_leader()
        if self.leader._deployment.role is not None:
            vanish(self.leader._deployment.role)
        for registration in self._registrations:
            vanish(registration)

    def lose_leases(self) -> None:
        """Its leader goes on, though it is registered no longer."""
        for registration in self._registrations:
            registration.close()
        self._registrations.clear()

    def close(self) -> None:
        """As when it is told to end."""
        if not self._ended:
            self._ended = True
            self.lose_leases()
            if self.leader._thread.ident is not None:
                self.leader.close()
        for journal in self._journals.values():
            if journal is not None:
                journal.close()
        self.process.kill()


def _uid_of(message: JobMessage) -> UUID | None:
    text = message.fields.get("uid") or message.fields.get("record", {}).get("uid")
    return UUID(text) if text else None


class MadeUpDeployment:
    """Some jobs, and scans of 4 blocks (0 to 3) that are announced to them. A context manager."""

    def __init__(
        self, etcd: Coordination, folder: Path, monkeypatch: pytest.MonkeyPatch, connect: Callable[[], Coordination]
    ) -> None:
        self.registry = Registry(etcd, LEASE_SECONDS)
        self.folder = folder
        self.jobs: list[MadeUpJob] = []
        self.values: dict[str, Any] = {
            "etcd.lease_seconds": LEASE_SECONDS,
            "stream.absent_seconds": 60.0,
            "stream.patience_seconds": 60.0,
        }
        self._connect = connect
        self._connections: list[Coordination] = []
        monkeypatch.setattr(job_scan, "this_process", self._identity)

    def _identity(self) -> str:
        thread = threading.current_thread()
        return next(job.process.identity for job in self.jobs if job.identifies(thread))

    def make_job(self, name: str, ranks: int = 2, groups: int = 1) -> MadeUpJob:
        """One that has not started yet."""
        self._connections.append(self._connect())
        job = MadeUpJob(self._connections[-1], name, Config.load(None, self.values), ranks, groups)
        self.jobs.append(job)
        return job

    def start_job(self, name: str, **changes: Any) -> MadeUpJob:
        """Returns when its leader has come round: the first one conducts."""
        job = self.make_job(name)
        for attribute, value in changes.items():
            setattr(job, attribute, value)
        job.start()
        until(lambda: name in self.registry.statuses("jobs") or job.errors)
        assert job.errors == []
        return job

    def announce(self, **changes: Any) -> UUID:
        uid = uuid4()
        values: dict[str, Any] = {
            "uid": uid,
            "scan_number": 3,
            "rows": 2,
            "columns": 4,
            "source": "made up",
            "encoding": Encoding.RECORDS_ROWS,
            "first_frame": 0,
            "last_frame": 7,
            "block_frames": 2,
            "direct": False,
            "counting": CountingParameters(background=60.0, xray=2000.0),
            "output": str(self.folder / "scan.h5"),
            "overwrite": False,
            "journals": str(self.folder / "journals" / str(uid)),
            "announced_unix_seconds": time.time(),
        }
        self.registry.announce(ScanRecord.model_validate(values | changes))
        return uid

    def state(self, uid: UUID) -> ScanState:
        return self.registry.status(uid).state

    def becomes(self, uid: UUID, state: ScanState, seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while (found := self.registry.status(uid)).state is not state:
            assert not any(job.errors for job in self.jobs), [job.errors for job in self.jobs]
            assert not found.state.is_final, f"{found}, instead of {state}"
            assert time.monotonic() < deadline, f"it is still {found}, and not {state}"
            time.sleep(0.02)

    def announce_and_stream(self, **changes: Any) -> UUID:
        uid = self.announce(**changes)
        self.becomes(uid, ScanState.STREAMING)
        return uid

    def end_sectors(self, uid: UUID, *sectors: int) -> None:
        """The producers of these sectors, or all, have sent everything."""
        for sector in sectors or range(SECTORS):
            assert self.registry.write_end(uid, end_of(sector))

    def blocks(self, uid: UUID) -> dict[str, list[int]]:
        """What each job has, as it stands in etcd."""
        return {job: list(share.blocks) for job, share in self.registry.shares(uid).items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for job in self.jobs:
            job.close()
        for connection in self._connections:
            connection.close()


def end_of(sector: int) -> SectorEnd:
    return SectorEnd(
        sector=sector,
        producer_id=sector,
        blocks=4,
        records=8,
        digest=5,
        sectors_duplicate=0,
        sectors_rejected=0,
        seconds_reading=0.5,
        seconds_sending=0.25,
    )


def failing(error: MpistreamError, times: int) -> Callable[[dict[str, Any]], Outcome]:
    """The dataset cannot be written so many times; then it is."""
    left = [error] * times

    def assemble(order: dict[str, Any]) -> Outcome:
        uid = UUID(order["uid"])
        return AssemblyFailed(uid, left.pop()) if left else Assembled(uid, summary())

    return assemble
