"""A producer and an aggregator as processes, killed and stopped at the worst places; the rank is made up."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from mpistream.acquisition.source import open_source
from mpistream.control.coordination import Coordination
from mpistream.control.registry import Registry
from mpistream.control.run_state import ScanState
from mpistream.model.block_set import BlockSet
from mpistream.model.config import Config, EtcdConfig, StreamConfig
from mpistream.model.errors import EtcdUnreachable
from mpistream.model.job_share import JobShare, JournalExtent
from mpistream.model.protocol import Ack, BlockHeader, Want, blocks_digest
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.model.scan import SectorEnd
from mpistream.transport.sockets import Sockets
from tests.etcd_server import EtcdServer
from tests.unit.made_up_blocks import scan_record

HOST = "127.0.0.1"
SECTOR = 2
RECORD = scan_record(
    uid=UUID(int=7 << 64),
    source="sim:8x8?electrons=0&loss=0.1",
    rows=8,
    columns=8,
    first_frame=0,
    last_frame=63,
    block_frames=2,
)
BLOCKS = list(RECORD.block_range)
CODE = {
    "producer": f"from mpistream.pipeline.producing.producer import run_producer as run; run(config, {SECTOR})",
    "aggregator": "from mpistream.pipeline.aggregator import run_aggregator as run; run(config)",
}


class Rank:
    """Journals what comes, so to speak, and acknowledges it; asks for what it lacks."""

    def __init__(self, incarnation: int) -> None:
        self._sockets = Sockets()
        self._data, self._answers = self._sockets.data_inlet(HOST), self._sockets.answer_inlet(HOST)
        self.entry = RankEndpoints(
            0, 0, HOST, 1, incarnation, self._data.endpoint, self._answers.endpoint, f"job-{incarnation}"
        )
        self.is_deaf = False
        self.came: list[BlockHeader] = []
        self.journaled: set[int] = set()
        self._asked = time.monotonic()

    def turn(self) -> None:
        self._sockets.wait(0.02)
        self._answers.receive()
        for packed, _ in self._data.receive():
            header = BlockHeader.unpack(packed)
            self.came.append(header)
            self._asked = time.monotonic()
            if not self.is_deaf:
                self.journaled.add(header.block)
                ids = (header.producer_id, header.scan_uid, header.producer_incarnation, self.entry.incarnation)
                self._answers.send(header.producer_id, Ack(*ids, (header.block,)).pack())
        if time.monotonic() - self._asked > 1.0:
            self._asked = time.monotonic()
            self._answers.send(SECTOR, Want(SECTOR, RECORD.uid.bytes, self.entry.incarnation).pack(), keep=False)

    def blocks(self) -> list[int]:
        return [header.block for header in self.came]

    def close(self) -> None:
        self._sockets.close()


class Stage:
    """Processes of a deployment, its etcd, and ranks in this process."""

    def __init__(self, etcd: Coordination, folder: Path, direct: bool) -> None:
        deployment = etcd.prefix.strip("/")
        window_bytes = 8 * 4 * 2 * 165904
        config = Config(
            deployment=deployment,
            etcd=EtcdConfig(endpoints=etcd.endpoints, lease_seconds=2),
            stream=StreamConfig(window_bytes=window_bytes, block_frames=2, patience_seconds=20),
        )
        self.record = RECORD.model_copy(update={"direct": direct})
        self.registry = Registry(etcd, 2)
        self.folder = folder
        (folder / "config.toml").write_text(config.to_toml())
        (folder / "points").mkdir()
        self.ranks: list[Rank] = []
        self._role = self.registry.take_conductor("job", HOST, os.getpid(), lambda: None)
        self._running: list[subprocess.Popen[bytes]] = []
        if not direct:
            self.start("aggregator")
            self.until(self.registry.aggregators)

    def start(self, what: str) -> "subprocess.Popen[bytes]":
        load = "from pathlib import Path; from mpistream.model.config import Config; "
        load += f"config = Config.load(Path({str(self.folder / 'config.toml')!r}))"
        environment = os.environ | {"MPISTREAM_FAULT_POINTS": str(self.folder / "points")}
        log = (self.folder / f"{what}-{len(self._running)}.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-c", f"{load}; {CODE[what]}"],
            stdout=log,
            stderr=log,
            env=environment,
        )
        self._running.append(process)
        return process

    def arm(self, point: str, name: str = "KILL") -> None:
        (self.folder / "points" / point).write_text(name)

    def rank(self, incarnation: int = 5) -> Rank:
        self.ranks.append(Rank(incarnation))
        return self.ranks[-1]

    def table(self, *ranks: Rank) -> RoutingTable:
        assert self._role is not None
        table = self.registry.publish_routing(self._role, tuple(rank.entry for rank in ranks))
        assert table is not None
        return table

    def stream(self) -> None:
        self.registry.announce(self.record)
        self.registry.set_state(self.record.uid, ScanState.STREAMING)

    def share(self, rank: Rank, blocks: set[int], sealed: bool = False) -> None:
        journals = (JournalExtent(0, rank.entry.incarnation, ""),)
        share = JobShare(rank.entry.job, BlockSet.of(RECORD.block_range, blocks), sealed=sealed, journals=journals)
        before = self.registry.shares(self.record.uid).get(rank.entry.job)
        assert self.registry.write_share(self.record.uid, share, before)

    def end(self) -> SectorEnd | None:
        """None while there is none, or no etcd to ask."""
        try:
            return self.registry.ends(self.record.uid).get(SECTOR)
        except EtcdUnreachable:
            return None

    def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"it did not happen in time; {self.logs()}"
            for rank in self.ranks:
                rank.turn()
            time.sleep(0.01)

    def check_end(self) -> None:
        self.until(self.end)
        end = self.end()
        assert end is not None
        present: dict[int, int] = {}
        for rank in self.ranks:
            present |= {header.block: header.frames_present for header in rank.came}
        assert end.digest == blocks_digest(SECTOR, present.keys(), present.values())
        assert (end.blocks, end.records) == (len(BLOCKS), sum(map(int.bit_count, present.values())))

    def logs(self) -> str:
        return "\n".join(log.read_text() for log in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.terminate()
        for process in self._running:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for rank in self.ranks:
            rank.close()
        if self._role is not None:
            self._role.close()


@pytest.fixture
def stage(request: pytest.FixtureRequest, etcd: Coordination, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(etcd, tmp_path, direct=getattr(request, "param", False))
    yield made
    made.close()


BOTH_WAYS = pytest.mark.parametrize("stage", [False, True], indirect=True, ids=["aggregator", "direct"])


@BOTH_WAYS
def test_a_scan_in_peace(stage: Stage) -> None:
    producer = stage.start("producer")
    rank = stage.rank()
    table = stage.table(rank)
    stage.stream()
    stage.until(lambda: rank.journaled == set(BLOCKS))
    assert rank.blocks() == BLOCKS
    stage.check_end()
    stage.until(lambda: [entry.table for entry in stage.registry.producers()] == [table.version])
    stage.until(lambda: stage.registry.statuses("producers").get("2", {}).get("sector") == SECTOR)
    producer.terminate()
    assert producer.wait(timeout=10) == 0
    assert stage.registry.producers() == []


@BOTH_WAYS
@pytest.mark.parametrize("point", ["producer.before-send", "producer.before-end", "producer.after-end"])
def test_a_producer_that_is_killed_goes_on_when_it_is_started_again(stage: Stage, point: str) -> None:
    rank = stage.rank()
    rank.is_deaf = point == "producer.after-end"
    stage.table(rank)
    if point == "producer.before-send":
        stage.share(rank, {0, 1, 2, 3, 10, 11, 12, 13, 14, 15})
        rank.journaled = {0, 1, 2, 3, 10, 11, 12, 13, 14, 15}
    elif rank.is_deaf:
        stage.share(rank, set(BLOCKS[4:]))  # the window holds the rest
        rank.journaled = set(BLOCKS[4:])
    stage.arm(point)
    first = stage.start("producer")
    stage.stream()
    stage.until(lambda: first.poll() is not None)
    assert first.returncode == -signal.SIGKILL
    rank.is_deaf = False
    second = stage.start("producer")
    stage.until(lambda: rank.journaled == set(BLOCKS))
    stage.until(stage.end)
    end = stage.end()
    assert end is not None
    assert (end.blocks, end.records) == (len(BLOCKS), _records())
    assert end.digest == _digest()
    assert second.poll() is None


def _present() -> list[int]:
    source = open_source(RECORD.source, SECTOR)
    return [source.frames_present(block, RECORD.block_frames) or 0 for block in BLOCKS]


def _records() -> int:
    return sum(map(int.bit_count, _present()))


def _digest() -> int:
    return blocks_digest(SECTOR, BLOCKS, _present())


def test_an_aggregator_that_is_killed_is_replaced_by_another_at_other_ports(stage: Stage) -> None:
    (old,) = stage.registry.aggregators()
    rank = stage.rank()
    stage.table(rank)
    stage.start("producer")
    stage.arm("aggregator.before-forward")
    stage.stream()
    stage.until(lambda: stage._running[0].poll() is not None)
    stage.start("aggregator")
    stage.until(lambda: rank.journaled == set(BLOCKS))
    (new,) = stage.registry.aggregators()
    assert old.data_endpoint != new.data_endpoint
    assert old.incarnation != new.incarnation
    stage.check_end()


def test_a_producer_that_was_stopped_believes_no_rank_that_was_given_up_meanwhile(stage: Stage) -> None:
    zombie = stage.rank(5)
    zombie.is_deaf = True
    stage.table(zombie)
    producer = stage.start("producer")
    stage.stream()
    stage.until(lambda: len(zombie.came) == 8)  # a window
    producer.send_signal(signal.SIGSTOP)
    heir = stage.rank(6)
    stage.table(heir)
    stage.share(zombie, {0, 1}, sealed=True)
    zombie.is_deaf = False
    for header in zombie.came:
        ids = (header.producer_id, header.scan_uid, header.producer_incarnation, 5)
        zombie._answers.send(header.producer_id, Ack(*ids, (header.block,)).pack())
    time.sleep(1.5)
    producer.send_signal(signal.SIGCONT)
    stage.until(lambda: heir.journaled >= set(BLOCKS[2:]))  # the table may be heard of before the share
    stage.check_end()
    assert "this process was stopped for a while" in stage.logs()


def test_etcd_may_be_away_while_blocks_are_sent(stage: Stage, server: EtcdServer) -> None:
    rank = stage.rank()
    rank.is_deaf = True
    stage.table(rank)
    stage.start("producer")
    stage.stream()
    stage.until(lambda: len(rank.came) == 8)
    server.kill()
    try:
        rank.is_deaf = False
        stage.until(lambda: rank.journaled == set(BLOCKS))
    finally:
        server.start()
    stage.check_end()
