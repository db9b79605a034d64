"""Pushes a simulated or recorded scan as the camera's own processes would: several threads for each sector."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from mpistream.acquisition.camera_messages import CameraHeader
from mpistream.acquisition.source import SectorSource, describe_source, open_source
from mpistream.model.errors import SourceError
from mpistream.model.geometry import HEADER_BYTES, RECORD_BYTES, RECORD_HEADER, SECTORS
from mpistream.transport.sockets import CameraOutlet, Sockets

_BLOCK_FRAMES = 8
#: Messages that wait in each thread's socket.
_MOST_WAITING = 100


@dataclass(frozen=True)
class CameraSending:
    """What is sent, and how. ``endpoints``: of the producers of sectors 0 to 3, ``tcp://HOST:PORT``.

    scan_number  instead of the source's own
    threads      for each sector; frame n comes from thread n modulo that
    announced    whether threads say how many frames they will send: the later version of the format
    rate         frames per second; 0: as fast as they are taken
    """

    source: str
    endpoints: tuple[str, ...]
    scan_number: int | None = None
    threads: int = 4
    announced: bool = True
    rate: float = 0.0
    timeout_seconds: float = 30.0


def send_scan(sending: CameraSending, on_progress: Callable[[int], object] = lambda frames: None) -> int:
    """Sends every record of the source; returns how many. ``on_progress`` hears how many frames are done.

    Raises SourceError where the source cannot be read, or nobody takes what is sent.
    """
    description = describe_source(sending.source)
    first, last = description.first_frame, description.last_frame
    blocks = range(first // _BLOCK_FRAMES, last // _BLOCK_FRAMES + 1)
    messages, started = 0, time.monotonic()
    with ExitStack() as closing:
        sockets = Sockets()
        closing.callback(sockets.close)
        sectors = []
        for sector in range(SECTORS):
            source = open_source(sending.source, sector)
            closing.callback(source.close)
            outlets = [sockets.camera_outlet(sending.endpoints[sector], _MOST_WAITING) for _ in range(sending.threads)]
            for outlet in outlets:
                closing.callback(outlet.close, sending.timeout_seconds)
            sectors.append(_SectorSending(sending, source, outlets, blocks))
        for each in sectors:
            each.wait_for_a_taker()
        for done, block in enumerate(blocks):
            if sending.rate > 0:
                time.sleep(max(0.0, started + done * _BLOCK_FRAMES / sending.rate - time.monotonic()))
            messages += sum(sector.send(block) for sector in sectors)
            on_progress(min((block + 1) * _BLOCK_FRAMES, last + 1) - first)
    return messages


class _SectorSending:
    """The threads of one sector."""

    def __init__(
        self, sending: CameraSending, source: SectorSource, outlets: list[CameraOutlet], blocks: range
    ) -> None:
        self._sending = sending
        self._source = source
        self._outlets = outlets
        self._buffer = memoryview(bytearray(_BLOCK_FRAMES * RECORD_BYTES))
        self._frames_of_thread = self._count(blocks) if sending.announced else None

    def _count(self, blocks: range) -> list[int]:
        """How many frames each thread sends. Raises SourceError for a source that only reading tells of."""
        counts = [0] * len(self._outlets)
        for block in blocks:
            present = self._source.frames_present(block, _BLOCK_FRAMES)
            if present is None:
                raise SourceError("a live source cannot be sent in the camera's place", "leave live out of it")
            for bit in range(_BLOCK_FRAMES):
                counts[(block * _BLOCK_FRAMES + bit) % len(counts)] += present >> bit & 1
        return counts

    def wait_for_a_taker(self) -> None:
        """Raises SourceError where nobody listens in time: a small scan would fit into the queues unseen."""
        if not all(outlet.is_taken(self._sending.timeout_seconds) for outlet in self._outlets):
            raise self._nobody_takes_it()

    def send(self, block: int) -> int:
        present = self._source.read_block(block, _BLOCK_FRAMES, self._buffer)
        for place in range(present.bit_count()):
            record = self._buffer[place * RECORD_BYTES : (place + 1) * RECORD_BYTES]
            self._send_record(record)
        return present.bit_count()

    def _send_record(self, record: memoryview) -> None:
        found = np.frombuffer(record[:HEADER_BYTES], RECORD_HEADER)[0]
        number, frame, columns, rows, x, y = (int(value) for value in found)
        thread_id = frame % len(self._outlets)
        if self._sending.scan_number is not None:
            number = self._sending.scan_number
        announced = self._frames_of_thread[thread_id] if self._frames_of_thread is not None else None
        header = CameraHeader(number, frame, columns, rows, x, y, thread_id, self._source.sector, announced)
        if not self._outlets[thread_id].send(
            header.pack(), bytes(record[HEADER_BYTES:]), self._sending.timeout_seconds
        ):
            raise self._nobody_takes_it()

    def _nobody_takes_it(self) -> SourceError:
        sector = self._source.sector
        return SourceError(
            f"nobody takes what is sent to {self._sending.endpoints[sector]}",
            f"start its producer there: mpistream produce --sector {sector} --camera tcp://HOST:PORT",
        )
