"""A rank's receiving thread: receive -> assemble -> count -> journal, as the job's leader orders.

It knows only ZeroMQ. The rank's main thread makes every MPI and HDF5 call, so the next scan is received while the
last one is written, and no MPI call is outstanding while nothing happens.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from mpistream.control.process_identity import this_process
from mpistream.model.config import Config
from mpistream.model.errors import MpistreamError, ProtocolError
from mpistream.model.fault_points import reach
from mpistream.model.geometry import SECTORS
from mpistream.model.job_messages import JobMessage, JobMessageKind
from mpistream.model.protocol import BlockHeader, Want
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.model.scan import ScanRecord, SectorEnd, Thresholds
from mpistream.pipeline.ranks.job_talk import JobTalk
from mpistream.pipeline.ranks.orders import CountedScan, Order, StopOrder
from mpistream.pipeline.ranks.rank_scan import RankScan
from mpistream.pipeline.ranks.rank_table import own_cores
from mpistream.pipeline.ranks.silence import Silence
from mpistream.pipeline.ranks.watchdog import Watchdog
from mpistream.reduction.calibration import SampleStatistics
from mpistream.reduction.frame_assembly import AssembledBlock
from mpistream.transport.interface import outside_address, own_address
from mpistream.transport.mailbox import Mailbox
from mpistream.transport.sockets import Sockets

_log = logging.getLogger(__name__)

#: Longest wait while there is no scan: signs of life are due.
_IDLE_SECONDS = 1.0
#: How long blocks are counted before acknowledgements, orders and signs of life get their turn.
_COUNT_SECONDS = 0.2
#: Least time between two reports of a rank to the leader about a scan; also how soon it tries again what it owes.
_REPORT_SECONDS = 0.05
#: A process that refuses block after block says so once in a while, not every time.
_LOG_REFUSED_EVERY = 1000


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
        self._abort = abort
        self._sockets = Sockets()
        outside = outside_address(config.network)
        self._inlet = self._sockets.data_inlet(outside.bound, published=outside.published)
        self._answers = self._sockets.answer_inlet(outside.bound, published=outside.published)
        self.talk = JobTalk(self._sockets, own_address(config.network), rank, size, watchdog)
        self._scans: dict[UUID, RankScan] = {}
        #: to be counted, in this order
        self._assembled: deque[tuple[RankScan, AssembledBlock]] = deque()
        self._silence = Silence(time.monotonic())
        self._reported = 0.0
        self._blocks_refused = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)

    def endpoints(self, group: int, host: str) -> RankEndpoints:
        """Where this rank is reached."""
        return RankEndpoints(
            self._rank,
            group,
            host,
            os.getpid(),
            self._incarnation,
            self._inlet.endpoint,
            self._answers.endpoint,
            process=this_process(),
            cores=own_cores(),
        )

    def start(self, hub_endpoint: str) -> None:
        """From now on this rank receives and talks."""
        self.talk.join(hub_endpoint)
        self._thread.start()

    def request_stop(self) -> None:
        """Asks the leader to end the whole job; from any thread or signal handler."""
        self.talk.outbox.put(JobMessage(JobMessageKind.STOP, self._rank))

    def stop(self) -> None:
        self._stopping = True
        self.talk.outbox.put(JobMessage(JobMessageKind.HEARTBEAT, self._rank))  # ends the wait
        self._thread.join(timeout=5)
        self._sockets.close()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._sockets.wait(self._longest_wait)
                self._receive_blocks()
                self._count_blocks()
                self._journal_and_acknowledge()
                self._ask_for_what_is_lost()
                self._report()
                for order in self.talk.turn():
                    self._obey(order)
                self.talk.beat()
        except BaseException as error:
            self._abort(error)

    @property
    def _longest_wait(self) -> float:
        if self._assembled or any(scan.is_behind(time.monotonic()) for scan in self._scans.values()):
            return 0.0
        return _REPORT_SECONDS if self._scans else _IDLE_SECONDS

    def _receive_blocks(self) -> None:
        came, before = 0, self._blocks_repeated
        busy: set[UUID] = set()
        for packed, payload in self._inlet.receive():
            came += 1
            try:
                header = BlockHeader.unpack(packed)
                scan = self._scan_of(header)
                busy.add(scan.record.uid)
                block = scan.receive(header, payload)
            except ProtocolError as error:
                self._refuse(error)
                continue
            if block is not None:
                self._assembled.append((scan, block))
        if came > self._blocks_repeated - before:
            self._silence.heard(time.monotonic())
        elif came:
            self._silence.heard_again(time.monotonic())
        busy.update(scan.record.uid for scan, _ in self._assembled)
        for uid in self._scans.keys() - busy:
            self._scans[uid].nothing_came()

    @property
    def _blocks_repeated(self) -> int:
        return sum(scan.reduction.assembly.blocks_repeated for scan in self._scans.values())

    def _count_blocks(self) -> None:
        """What there is no time for now is counted in the next turns."""
        until = time.monotonic() + _COUNT_SECONDS
        while self._assembled:
            scan, block = self._assembled.popleft()
            statistics = scan.count(block)
            if statistics is not None:
                self.talk.tell(JobMessageKind.SAMPLE, scan.record.uid, {"block": block.block}, statistics)
            if time.monotonic() >= until:
                break
        if self._assembled:
            self._silence.busy(time.monotonic())

    def _scan_of(self, header: BlockHeader) -> RankScan:
        """The scan that a block belongs to. Raises ProtocolError for a block that is none of ours."""
        scan = self._scans.get(UUID(bytes=header.scan_uid))
        if scan is None:
            raise ProtocolError(f"a block of scan {UUID(bytes=header.scan_uid)}, which is not being received")
        return scan

    def _refuse(self, error: ProtocolError) -> None:
        if self._blocks_refused % _LOG_REFUSED_EVERY == 0:
            _log.warning("refused a block (%d before): %s", self._blocks_refused, error)
        self._blocks_refused += 1

    def _journal_and_acknowledge(self) -> None:
        self._answers.receive()
        now = time.monotonic()
        for scan in self._scans.values():
            scan.journal_counted(now)
            if scan.is_behind(now):
                self._silence.busy(time.monotonic())
            acks = scan.take_acknowledgements()
            for ack in acks:
                self._answers.send(ack.producer_id, ack.pack())
            if acks:
                reach("rank.after-ack")

    def _ask_for_what_is_lost(self) -> None:
        """Once nothing comes any more: whatever was sent to this rank and never acknowledged is to be sent again."""
        if not self._scans or not self._silence.should_ask(time.monotonic()):
            return
        for scan in self._scans.values():
            for producer_id in range(SECTORS):
                want = Want(producer_id, scan.record.uid.bytes, self._incarnation)
                self._answers.send(producer_id, want.pack(), keep=False)

    def _report(self) -> None:
        """What has been journaled, to the leader."""
        now = time.monotonic()
        if now - self._reported < _REPORT_SECONDS:
            return
        self._reported = now
        for uid, scan in self._scans.items():
            if (news := scan.report()) is not None:
                self.talk.tell(JobMessageKind.COUNTED, uid, *news)

    def _obey(self, message: JobMessage) -> None:
        """An order of the job's leader."""
        match message.kind:
            case JobMessageKind.TABLE:
                self._adopt(RoutingTable.from_json(message.fields["table"]))
            case JobMessageKind.PREPARE:
                self._prepare(ScanRecord.model_validate(message.fields["record"]))
            case JobMessageKind.STOP:
                self._orders.put(StopOrder())
            case _:
                if (scan := self._scans.get(UUID(message.fields["uid"]))) is not None:
                    self._obey_about(scan, message)

    def _obey_about(self, scan: RankScan, message: JobMessage) -> None:
        match message.kind:
            case JobMessageKind.THRESHOLDS:
                self._set_thresholds(scan, message)
            case JobMessageKind.CUT:
                cut = scan.reduction.assembly.cut(message.fields["sectors"])
                self._assembled.extend((scan, block) for block in cut)
            case JobMessageKind.FLUSH:
                scan.flush()
            case JobMessageKind.ASSEMBLE:
                self._orders.put(_counted_scan(scan, message.fields))
            case JobMessageKind.DISCARD:
                del self._scans[scan.record.uid]
                self._assembled = deque(entry for entry in self._assembled if entry[0] is not scan)
                scan.close(keep=message.fields["keep"])

    def _adopt(self, table: RoutingTable) -> None:
        """Blocks that another rank will get now need not be waited for here."""
        for scan in self._scans.values():
            uid, sample = scan.record.uid.bytes, scan.record.blocks_for_conductor

            def still_mine(block: int, uid: bytes = uid, sample: range = sample) -> bool:
                rank = table.ranks[table.rank_of(uid, block, block in sample)]
                return rank.incarnation == self._incarnation

            scan.reduction.assembly.forget_partial(still_mine)

    def _prepare(self, record: ScanRecord) -> None:
        if record.uid not in self._scans:
            try:
                self._scans[record.uid] = RankScan.prepare(record, self._rank, self._incarnation)
            except MpistreamError as error:
                self._report_fault(record.uid, error, fatal=False)
                return
        journal = self._scans[record.uid].journal
        path = str(journal.path) if journal else ""
        self.talk.tell(JobMessageKind.READY, record.uid, {"incarnation": self._incarnation, "journal": path})

    def _set_thresholds(self, scan: RankScan, message: JobMessage) -> None:
        """What was held came before all that is to be counted now."""
        if scan.reduction.has_thresholds:
            return
        thresholds = Thresholds.model_validate(message.fields["thresholds"])
        try:
            # rank 0 alone writes what the dataset says about the sample
            sample = SampleStatistics.from_bytes(message.binary) if message.binary and self._rank == 0 else None
            held = scan.set_thresholds(thresholds, sample)
        except MpistreamError as error:
            self._report_fault(scan.record.uid, error, fatal=True)
            return
        self._assembled.extendleft((scan, block) for block in reversed(held))

    def _report_fault(self, uid: UUID, error: MpistreamError, fatal: bool) -> None:
        fields = {"message": error.message, "remedy": error.remedy, "fatal": fatal}
        self.talk.tell(JobMessageKind.FAULT, uid, fields)


def _counted_scan(scan: RankScan, order: dict[str, Any]) -> CountedScan:
    return CountedScan(
        scan.reduction,
        tuple(SectorEnd.model_validate(end) for end in order["ends"]),
        *scan.take_blocks(),
        tuple((Path(path), int(good)) for path, good in order["journals"]),
        Path(order["output"]),
        order["attempt"],
    )
