"""The camera's own processes, from the description of their wire format alone: nothing of mpistream is used.

A message is a msgpack array and the uint16 pixels of one sector of one frame.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import msgpack
import numpy as np
import numpy.typing as npt
import zmq

from tests.system.sector_writer import SECTORS, MadeUpScan, sector_pixels

TAKEN_SECONDS = 20


class RasterScan(MadeUpScan):
    """As the camera takes them: position after position, in order."""

    @cached_property
    def position(self) -> npt.NDArray[np.int64]:
        return np.repeat(np.arange(self.rows * self.columns), self.frames_per_position)

    @cache  # noqa: B019
    def frame(self, number: int) -> npt.NDArray[np.uint16]:
        return super().frame(number)


@dataclass(frozen=True)
class Message:
    sector: int
    thread: int
    header: bytes
    pixels: bytes


@dataclass(frozen=True)
class CameraSession:
    """How a scan is sent: ``threads`` for each sector, messages up to ``reorder`` places from where they belong.

    ``later``: the version in which threads say how many frames they will send.
    """

    scan: MadeUpScan
    later: bool = True
    threads: int = 3
    reorder: int = 20
    version: int = 5

    def header(self, sector: int, number: int, **changes: int) -> bytes:
        """Of frame ``number`` of the scan; ``changes`` are to the fields as they should be."""
        row, column = divmod(int(self.scan.position[number]), self.scan.columns)
        fields = {
            "scan_number": self.scan.scan_number,
            "frame_number": self.scan.first_frame + number,
            "columns": self.scan.columns,
            "rows": self.scan.rows,
            "x": column,
            "y": row,
            "thread_id": number % self.threads,
            "module": sector,
            **changes,
        }
        array = list(fields.values())
        if self.later:
            sent = [other for other in self._present(sector) if other % self.threads == number % self.threads]
            array.insert(2, len(sent))
        return msgpack.packb(array)

    def message(self, sector: int, number: int, pixels_of: int | None = None, **changes: int) -> Message:
        frame = self.scan.frame(number if pixels_of is None else pixels_of)
        pixels = sector_pixels(frame, sector, self.version).astype("<u2").tobytes()
        return Message(sector, number % self.threads, self.header(sector, number, **changes), pixels)

    def _present(self, sector: int) -> list[int]:
        return [number for number in range(self.scan.n_frames) if not self.scan.missing[number] >> sector & 1]

    def messages(self, sectors: Sequence[int] = range(SECTORS)) -> list[Message]:
        """All of them, in the order in which they are sent. What occurs twice has other pixels the second time."""
        random = np.random.default_rng(self.scan.seed)
        placed: list[tuple[float, Message]] = []
        for sector in sectors:
            for number in self._present(sector):
                place = number + random.uniform(0, self.reorder)
                placed.append((place, self.message(sector, number)))
                if self.scan.twice[number, sector]:
                    other = (number + 1) % self.scan.n_frames
                    placed.append((place + random.uniform(0, 5), self.message(sector, number, other)))
        return [message for _, message in sorted(placed, key=lambda item: item[0])]


class Pusher:
    """The connections of all threads of all sectors."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self._endpoints = endpoints
        self._context = zmq.Context()
        self._sockets: dict[tuple[int, int], zmq.Socket] = {}

    def push(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self.push_parts(message.sector, message.thread, [message.header, message.pixels])

    def push_parts(self, sector: int, thread: int, parts: list[bytes]) -> None:
        if (sector, thread) not in self._sockets:
            socket = self._context.socket(zmq.PUSH)
            socket.setsockopt(zmq.SNDTIMEO, TAKEN_SECONDS * 1000)
            socket.setsockopt(zmq.LINGER, TAKEN_SECONDS * 1000)
            socket.connect(self._endpoints[sector])
            self._sockets[sector, thread] = socket
        self._sockets[sector, thread].send_multipart(parts)

    def close(self) -> None:
        for socket in self._sockets.values():
            socket.close()
        self._context.term()
