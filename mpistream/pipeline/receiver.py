"""A rank's receiving thread: receive -> assemble -> count, and the talk among the ranks of the job.

It knows only ZeroMQ. The rank's main thread makes every MPI and HDF5 call, so the next scan is received while the
last one is written, and no MPI call is outstanding while nothing happens.
"""

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from mpistream.model.config import Config
from mpistream.model.errors import MpistreamError, ProtocolError
from mpistream.model.job_messages import JobMessage, JobMessageKind
from mpistream.model.protocol import Ack, BlockHeader
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.model.scan import ScanRecord, SectorEnd, Thresholds
from mpistream.pipeline.watchdog import StalledError, Watchdog
from mpistream.reduction.calibration import SampleStatistics
from mpistream.reduction.frame_assembly import AssembledBlock
from mpistream.reduction.scan_reduction import ScanReduction
from mpistream.transport.mailbox import Mailbox
from mpistream.transport.sockets import Sockets

_log = logging.getLogger(__name__)

#: Heartbeats carry the progress that a user watches; without a scan they only show that everybody is alive.
_HEARTBEAT_SECONDS = 0.25
_IDLE_HEARTBEAT_SECONDS = 1.0
#: A process that refuses block after block says so once in a while, not every time.
_LOG_REFUSED_EVERY = 1000


@dataclass(frozen=True)
class CountedScan:
    """To the main thread: every rank has counted its blocks of this scan; write the dataset."""

    reduction: ScanReduction
    ends: tuple[SectorEnd, ...]

    @property
    def record(self) -> ScanRecord:
        return self.reduction.record


@dataclass(frozen=True)
class StopOrder:
    """To the main thread: end."""


Order = CountedScan | StopOrder


class RankReceiver:
    """The sockets of a rank and the loop that serves them, in a thread of its own after ``start``."""

    def __init__(
        self,
        config: Config,
        rank: int,
        size: int,
        incarnation: int,
        orders: Mailbox[Order],
        watchdog: Watchdog,
        abort: Callable[[BaseException], None],
    ) -> None:
        self._rank = rank
        self._incarnation = incarnation
        self._orders = orders
        self._watchdog = watchdog
        self._detectors = config.detectors.virtual
        self._on_job_message: Callable[[JobMessage], None] = lambda message: None
        self._abort = abort
        self._sockets = Sockets()
        self._inlet = self._sockets.data_inlet(config.network.host)
        self._answers = self._sockets.answer_inlet(config.network.host)
        self._hub = self._sockets.job_hub(config.network.host) if rank == 0 else None
        self._present: set[int] = set()
        self._size = size
        self._everybody_is_here = threading.Event()
        #: what other threads want told: the leader's to all ranks, on another rank to the leader
        self.outbox: Mailbox[JobMessage] = Mailbox()
        self._sockets.wait_for(self.outbox)
        self._table: RoutingTable | None = None
        self._scans: dict[UUID, ScanReduction] = {}
        self._acks: dict[tuple[int, bytes, int], list[int]] = defaultdict(list)
        self._blocks_refused = 0
        self._last_heartbeat = 0.0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)

    def endpoints(self, group: int, host: str) -> RankEndpoints:
        """Where this rank is reached."""
        return RankEndpoints(
            self._rank, group, host, os.getpid(), self._incarnation, self._inlet.endpoint, self._answers.endpoint
        )

    @property
    def hub_endpoint(self) -> str:
        return self._hub.endpoint if self._hub else ""

    def start(self, table: RoutingTable, hub_endpoint: str) -> None:
        """From now on blocks that ``table`` routes to this rank are received."""
        self._table = table
        self._spoke = self._sockets.job_spoke(hub_endpoint, self._rank)
        self._thread.start()

    def report_to(self, on_job_message: Callable[[JobMessage], None]) -> None:
        """Rank 0: from now on the ranks' news go to the leader; until then there are only heartbeats."""
        self._on_job_message = on_job_message

    def wait_for_everybody(self, patience_seconds: float) -> None:
        """Rank 0: until every rank has spoken, so that every order reaches all. Raises StalledError."""
        if not self._everybody_is_here.wait(patience_seconds):
            raise StalledError(
                f"only {len(self._present)} of {self._size} ranks can reach rank 0 at {self.hub_endpoint}",
                "[network] host must be an address that the other nodes reach",
            )

    def request_stop(self) -> None:
        """Asks the leader to end the whole job; from any thread or signal handler."""
        self.outbox.put(JobMessage(JobMessageKind.STOP, self._rank))

    def stop(self) -> None:
        self._stopping = True
        self.outbox.put(JobMessage(JobMessageKind.HEARTBEAT, self._rank, {"progress": {}}))  # ends the wait
        self._thread.join(timeout=5)
        self._sockets.close()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._sockets.wait(self._heartbeat_seconds)
                self._receive_blocks()
                self._send_acknowledgements()
                self._talk()
                self._beat()
        except BaseException as error:
            self._abort(error)

    @property
    def _heartbeat_seconds(self) -> float:
        return _HEARTBEAT_SECONDS if self._scans else _IDLE_HEARTBEAT_SECONDS

    def _receive_blocks(self) -> None:
        for packed, payload in self._inlet.receive():
            try:
                header = BlockHeader.unpack(packed)
                scan = self._scan_of(header)
                block = scan.assemble(header, payload)
            except ProtocolError as error:
                self._refuse(error)
                continue
            if block is not None:
                self._count(scan, block)

    def _count(self, scan: ScanReduction, block: AssembledBlock) -> None:
        statistics = scan.sample_block(block)
        if statistics is not None:
            self._tell(JobMessageKind.SAMPLE, scan.record.uid, {"block": block.block}, statistics)
        self._acknowledge(scan.count(block))
        self._report_drained(scan)

    def _scan_of(self, header: BlockHeader) -> ScanReduction:
        """The scan that a block belongs to. Raises ProtocolError for a block that is none of ours."""
        scan = self._scans.get(UUID(bytes=header.scan_uid))
        if scan is None:
            raise ProtocolError(f"a block of scan {UUID(bytes=header.scan_uid)}, which is not being received")
        assert self._table is not None
        if header.routing_version != self._table.version:
            raise ProtocolError(f"a block routed by table {header.routing_version}, not {self._table.version}")
        if self._table.rank_of(header.scan_uid, header.block) != self._rank:
            raise ProtocolError(f"block {header.block} belongs to another rank")
        return scan

    def _refuse(self, error: ProtocolError) -> None:
        if self._blocks_refused % _LOG_REFUSED_EVERY == 0:
            _log.warning("refused a block (%d before): %s", self._blocks_refused, error)
        self._blocks_refused += 1

    def _acknowledge(self, blocks: list[AssembledBlock]) -> None:
        for block in blocks:
            for header in block.headers:
                key = (header.producer_id, header.scan_uid, header.producer_incarnation)
                self._acks[key].append(block.block)

    def _send_acknowledgements(self) -> None:
        self._answers.receive()
        for (producer_id, scan_uid, producer_incarnation), blocks in self._acks.items():
            ack = Ack(producer_id, scan_uid, producer_incarnation, self._incarnation, tuple(blocks))
            self._answers.send(producer_id, ack.pack())
        self._acks.clear()

    def _report_drained(self, scan: ScanReduction) -> None:
        if scan.is_drained:
            self._tell(JobMessageKind.DRAINED, scan.record.uid)

    def _tell(self, kind: JobMessageKind, uid: UUID, fields: dict[str, Any] | None = None, binary: bytes = b"") -> None:
        self._spoke.tell(JobMessage(kind, self._rank, {"uid": str(uid), **(fields or {})}, binary))

    def _talk(self) -> None:
        """News from the ranks for the leader, orders from the leader for the ranks."""
        for message in self.outbox.take():
            if self._hub:
                self._hub.tell_all(message)
            else:
                self._spoke.tell(message)
        if self._hub:
            for message in self._hub.receive():
                self._watchdog.heard_from(message.rank)
                self._present.add(message.rank)
                self._on_job_message(message)
            if len(self._present) == self._size:
                self._everybody_is_here.set()
        for message in self._spoke.receive():
            self._watchdog.heard_from(message.rank)
            self._obey(message)

    def _obey(self, message: JobMessage) -> None:
        """An order of the job's leader."""
        match message.kind:
            case JobMessageKind.PREPARE:
                self._prepare(ScanRecord.model_validate(message.fields["record"]))
            case JobMessageKind.THRESHOLDS:
                if scan := self._scans.get(UUID(message.fields["uid"])):
                    self._set_thresholds(scan, message)
            case JobMessageKind.ASSEMBLE:
                ends = tuple(SectorEnd.model_validate(end) for end in message.fields["ends"])
                self._orders.put(CountedScan(self._scans.pop(UUID(message.fields["uid"])), ends))
            case JobMessageKind.DISCARD:
                self._scans.pop(UUID(message.fields["uid"]), None)
            case JobMessageKind.STOP:
                self._orders.put(StopOrder())

    def _prepare(self, record: ScanRecord) -> None:
        assert self._table is not None
        expected = len(self._table.blocks_of(self._rank, record.uid.bytes, record.block_range))
        try:
            self._scans[record.uid] = scan = ScanReduction.prepare(record, expected, self._detectors)
        except MpistreamError as error:
            self._report_fault(record.uid, error)
            return
        self._tell(JobMessageKind.READY, record.uid)
        self._report_drained(scan)

    def _set_thresholds(self, scan: ScanReduction, message: JobMessage) -> None:
        """Counts what was held, too."""
        thresholds = Thresholds.model_validate(message.fields["thresholds"])
        try:
            # rank 0 alone writes what the dataset says about the sample
            sample = SampleStatistics.from_bytes(message.binary) if message.binary and self._hub else None
            held = scan.set_thresholds(thresholds, sample)
        except MpistreamError as error:
            self._report_fault(scan.record.uid, error)
            return
        for block in held:
            self._acknowledge(scan.count(block))
            self._send_acknowledgements()
            self._beat()
        self._report_drained(scan)

    def _report_fault(self, uid: UUID, error: MpistreamError) -> None:
        self._tell(JobMessageKind.FAULT, uid, {"message": error.message, "remedy": error.remedy})

    def _beat(self) -> None:
        """Every rank shows the leader that it is alive, the leader every rank; who is silent ends the job."""
        self._watchdog.check()
        now = time.monotonic()
        if now - self._last_heartbeat < self._heartbeat_seconds:
            return
        self._last_heartbeat = now
        progress = {str(uid): scan.progress() for uid, scan in self._scans.items()}
        self._spoke.tell(JobMessage(JobMessageKind.HEARTBEAT, self._rank, {"progress": progress}))
        if self._hub:
            self._hub.tell_all(JobMessage(JobMessageKind.HEARTBEAT, self._rank))
