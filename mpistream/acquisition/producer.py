"""The producer's side of the stream: sends the blocks of one sector of one scan until ranks have journaled them all."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mpistream.acquisition.block_supply import BlockSupply, HeldBlock
from mpistream.acquisition.delivery import Delivery, destination_of
from mpistream.acquisition.sector_source import SectorSource
from mpistream.model.fault_points import reach
from mpistream.model.job_share import JobShare
from mpistream.model.protocol import Ack, BlockHeader, Want, blocks_digest
from mpistream.model.routing_table import RoutingTable
from mpistream.model.scan import ScanRecord, SectorEnd
from mpistream.transport.sockets import DataOutlet

_log = logging.getLogger(__name__)

#: A block that was sent so shortly before a rank asked may not have reached it yet. Ranks ask again if need be.
_ON_ITS_WAY_SECONDS = 0.5


@dataclass
class SectorSender:
    """Sends one sector of one scan, block by block, in ascending order. It never waits.

    ``outlet_of(destination)`` is where a block for that rank of the latest table goes: to an aggregator, or to the rank
    itself; None while there is no way. ``is_resumed``: an earlier start of this process may have sent some of the scan.
    """

    record: ScanRecord
    source: SectorSource
    supply: BlockSupply
    producer_id: int
    incarnation: int
    outlet_of: Callable[[int], DataOutlet | None]
    patience_seconds: float
    is_resumed: bool = False
    blocks_sent: int = 0  # messages: a block that was sent twice counts twice
    seconds_reading: float = 0.0
    delivery: Delivery = field(init=False)
    _started: float = field(default_factory=time.monotonic)
    _last_news: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.delivery = Delivery(self.record.block_range, destination_of(self.record))

    def adopt(self, table: RoutingTable) -> None:
        """From now on blocks go where ``table`` says; what is not acknowledged is sent again."""
        if self.delivery.adopt(table):
            self.news_came()

    def reconcile(self, shares: Mapping[str, JobShare]) -> None:
        """Takes in what the jobs have journaled; all shares of the scan, every time."""
        released, owed_again = self.delivery.reconcile(shares)
        for block in released:
            self.supply.released(block, came_with_own=False)
        if owed_again:
            _log.warning(
                "scan %s: %d blocks of sector %d are owed again: the job that had acknowledged them lost them",
                self.record.uid,
                len(owed_again),
                self.source.sector,
            )
        self.news_came()

    def take(self, answer: Ack | Want) -> None:
        """An answer that concerns this scan."""
        if isinstance(answer, Want):
            on_its_way = self.supply.window.sent_since(time.monotonic() - _ON_ITS_WAY_SECONDS)
            self.delivery.want(answer.rank_incarnation, but_for=on_its_way)
            return
        came_with_own = answer.producer_incarnation == self.incarnation
        for block in self.delivery.acknowledge(answer.blocks, answer.rank_incarnation):
            self.supply.released(block, came_with_own)
            self.news_came()

    def resend_all(self) -> None:
        """The way to the ranks has changed: what was under way may be lost."""
        self.delivery.resend_all()
        self.news_came()

    def capture(self) -> bool:
        """Takes a block from a live source before it is written over; False where there is none to take."""
        started = time.monotonic()
        captured = self.supply.capture(self.delivery.is_released)
        if captured:
            self.seconds_reading += time.monotonic() - started
        return captured

    def send_next(self) -> bool:
        """Sends the lowest block that is owed; False where none can be sent for now. Raises SourceError."""
        block = self.delivery.next_block()
        if block is None:
            return False
        destination = self.delivery.destination(block)
        outlet = None if destination is None else self.outlet_of(destination)
        if destination is None or outlet is None:
            return False
        started = time.monotonic()
        held = self.supply.take(block, self.delivery.is_lowest(block))
        self.seconds_reading += time.monotonic() - started
        if held is None:
            return False
        header = self._header(block, destination, held)
        reach("producer.before-send")
        outlet.send(header.pack(), held.payload)
        held.sends, held.sent = held.sends + 1, time.monotonic()
        self.blocks_sent += 1
        self.delivery.sent(block)
        self.news_came()  # the ranks' silence begins when they have something to answer
        return True

    def _header(self, block: int, destination: int, held: HeldBlock) -> BlockHeader:
        table = self.delivery.table
        assert table is not None
        return BlockHeader(
            self.record.encoding,
            self.source.sector,
            self.record.block_frames,
            table.version,
            destination,
            self.producer_id,
            self.record.uid.bytes,
            self.incarnation,
            block,
            held.frames_present,
            len(held.payload),
        )

    @property
    def has_sent_all(self) -> bool:
        """Every block is under way or released: the end record can be written."""
        return self.delivery.owed == 0

    @property
    def is_complete(self) -> bool:
        return self.delivery.is_complete

    def end(self) -> SectorEnd:
        """What was sent in all, by this start of the process or by earlier ones."""
        blocks = self.record.block_range
        sent = [self.supply.frames_sent(block) for block in blocks]
        known = [present for present in sent if present is not None]
        is_known = len(known) == len(blocks) and not (self.source.is_live and self.is_resumed)
        return SectorEnd(
            sector=self.source.sector,
            is_live=self.source.is_live,
            producer_id=self.producer_id,
            blocks=len(blocks),
            records=sum(present.bit_count() for present in known),
            digest=blocks_digest(self.source.sector, blocks, known) if is_known else None,
            sectors_duplicate=self.source.sectors_duplicate,
            sectors_rejected=self.source.sectors_rejected,
            seconds_reading=self.seconds_reading,
            seconds_sending=time.monotonic() - self._started,
        )

    def news_came(self) -> None:
        self._last_news = time.monotonic()

    def silence(self) -> str:
        """What there is to say each time that nothing has been heard for ``patience_seconds`` although something is
        waited for; empty otherwise. The blocks are kept all the same.
        """
        seconds = time.monotonic() - self._last_news
        if self._waits_for_ranks() and seconds <= self.patience_seconds:
            return ""
        self.news_came()
        return f"{self._who_is_silent()} for {seconds:.0f} s" if self._waits_for_ranks() else ""

    def _waits_for_ranks(self) -> bool:
        """Otherwise it waits for its source, or for nothing."""
        waits_for_source = self.source.is_live or math.isfinite(self.supply.seconds_until_capture())
        return self.delivery.under_way > 0 or (self.delivery.owed > 0 and not waits_for_source)

    def _who_is_silent(self) -> str:
        sector, table = self.source.sector, self.delivery.table
        if table is None or not table.ranks:
            return f"there was no rank to send sector {sector} to"
        if all(self.outlet_of(destination) is None for destination in range(len(table.ranks))):
            return f"there was no aggregator to send sector {sector} to"
        return f"no rank acknowledged a block of sector {sector}"

    def status(self) -> dict[str, int | str]:
        """For people who watch."""
        table = self.delivery.table
        return {
            "scan": str(self.record.uid),
            "sent": self.blocks_sent,
            "released": self.delivery.released,
            "owed": self.delivery.owed,
            "window_bytes": self.supply.window.limit_bytes,
            "unreleased_bytes": self.supply.window.payload_bytes,
            "spilled_bytes": self.supply.spilled_bytes,
            "dropped": self.supply.blocks_dropped,
            "frames_lost": self.source.frames_lost,
            "table": table.version if table else 0,
        }
