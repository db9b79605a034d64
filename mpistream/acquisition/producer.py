"""The producer's side of the stream: blocks of one sector in ascending order, within a window bounded in bytes."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mpistream.acquisition.source import SectorSource
from mpistream.model.errors import ScanFailed
from mpistream.model.protocol import Ack, BlockHeader, blocks_digest
from mpistream.model.scan import ScanRecord, SectorEnd
from mpistream.transport.sockets import AnswerOutlet, DataOutlet, Sockets

#: How often a waiting producer looks whether its scan is still wanted.
_TURN_SECONDS = 0.25


class SendWindow:
    """The blocks that are sent and not yet acknowledged, and the buffers that they lie in.

    A buffer is handed out again once its block is acknowledged: then nobody reads it any more.
    """

    def __init__(self, blocks: int, block_bytes: int) -> None:
        self._limit = blocks
        self._block_bytes = block_bytes
        self._free: list[memoryview] = []
        self._unacknowledged: dict[int, memoryview] = {}

    def __len__(self) -> int:
        return len(self._unacknowledged)

    @property
    def has_room(self) -> bool:
        return len(self._unacknowledged) < self._limit

    def take(self, block: int) -> memoryview:
        """A writable buffer of ``block_bytes`` for ``block``; only while the window has room."""
        buffer = self._free.pop() if self._free else memoryview(bytearray(self._block_bytes))
        self._unacknowledged[block] = buffer
        return buffer

    def acknowledge(self, block: int) -> None:
        """Again for a block that was acknowledged before does nothing."""
        buffer = self._unacknowledged.pop(block, None)
        if buffer is not None:
            self._free.append(buffer)


@dataclass
class SectorSender:
    """Sends one sector of one scan. ``outlet_of(block)`` is where a block goes: an aggregator, or the rank itself.

    ``still_wanted`` tells whether the scan goes on; without any acknowledgement for ``patience_seconds`` it is given
    up with ScanFailed.
    """

    record: ScanRecord
    source: SectorSource
    producer_id: int
    incarnation: int
    window: SendWindow
    sockets: Sockets
    outlet_of: Callable[[int], DataOutlet]
    answers: list[AnswerOutlet]
    still_wanted: Callable[[], bool]
    patience_seconds: float
    seconds_reading: float = 0.0
    _sent: dict[int, int] = field(default_factory=dict)  # block -> bit map of frames present
    _last_news: float = field(default_factory=time.monotonic)

    def send_all(self) -> SectorEnd | None:
        """Sends every block of the scan; None when the scan was ended meanwhile."""
        started = time.monotonic()
        for block in self.record.block_range:
            if not self._wait(lambda: self.window.has_room):
                return None
            self._send(block)
        return SectorEnd(
            sector=self.source.sector,
            producer_id=self.producer_id,
            blocks=len(self._sent),
            records=sum(present.bit_count() for present in self._sent.values()),
            digest=blocks_digest(self.source.sector, self._sent.keys(), self._sent.values()),
            sectors_duplicate=self.source.sectors_duplicate,
            sectors_rejected=self.source.sectors_rejected,
            seconds_reading=self.seconds_reading,
            seconds_sending=time.monotonic() - started,
        )

    def wait_until_acknowledged(self) -> None:
        """Keeps the blocks until the ranks have taken them over, or the scan has ended."""
        self._wait(lambda: len(self.window) == 0)

    def _send(self, block: int) -> None:
        buffer = self.window.take(block)
        started = time.monotonic()
        present = self.source.read_block(block, self.record.block_frames, buffer)
        self.seconds_reading += time.monotonic() - started
        payload_bytes = present.bit_count() * (len(buffer) // self.record.block_frames)
        header = BlockHeader(
            self.record.encoding,
            self.source.sector,
            self.record.block_frames,
            self.record.routing_version,
            self.producer_id,
            self.record.uid.bytes,
            self.incarnation,
            block,
            present,
            payload_bytes,
        )
        self.outlet_of(block).send(header.pack(), buffer[:payload_bytes])
        self._sent[block] = present
        self._last_news = time.monotonic()  # the ranks' silence begins when they have something to answer

    def _wait(self, done: Callable[[], bool]) -> bool:
        """True once ``done``, False when the scan is no longer wanted."""
        while self.still_wanted():
            self._take_answers()
            if done():
                return True
            if time.monotonic() - self._last_news > self.patience_seconds:
                raise ScanFailed(
                    f"no rank acknowledged a block of sector {self.source.sector} for {self.patience_seconds:g} s",
                    "look into the consumers' log; [stream] patience_seconds sets this limit",
                )
            self.sockets.wait(_TURN_SECONDS)
        return False

    def _take_answers(self) -> None:
        for outlet in self.answers:
            for ack in outlet.receive():
                if self._is_mine(ack):
                    self._last_news = time.monotonic()
                    for block in ack.blocks:
                        self.window.acknowledge(block)

    def _is_mine(self, ack: Ack) -> bool:
        return ack.scan_uid == self.record.uid.bytes and ack.producer_incarnation == self.incarnation
