"""The sockets: blocks one way, answers to them the other, and the ranks of a job among themselves.

The only module that knows zmq. A socket belongs to the thread that uses it.

    producer  DataOutlet -> DataInlet  aggregator  DataOutlet -> DataInlet  rank
    producer  AnswerOutlet <- AnswerInlet  aggregator  AnswerOutlet <- AnswerInlet  rank

No socket has a high-water mark in messages: what is under way is bounded in bytes by the producers' windows. Only
those have one to which the camera pushes: it keeps to no window.

ZeroMQ connects again by itself and keeps what it has not begun to send, but what lay in the buffers of a connection
that broke is gone, without a sign. Blocks that are lost so are sent again when a rank says that it lacks some (Want),
and acknowledgements are made up for by the shares of the jobs. Among the ranks of a job nothing is sent again: a
message that is lost there is an error (Numbered). Heartbeats break a connection whose other end is gone without having
closed it.
"""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Protocol
from uuid import uuid4

import zmq

from mpistream.model.errors import MpistreamError, ProtocolError
from mpistream.model.job_messages import JobMessage, LostMessageError, Numbered
from mpistream.model.protocol import Ack, Hello, Want, unpack_answer

_log = logging.getLogger(__name__)

#: How many messages one call takes before others get their turn.
_BATCH = 64

#: Of a connection that carries blocks or answers. A peer that was stopped for longer is connected to again.
HEARTBEAT_SECONDS = 5.0
HEARTBEAT_TIMEOUT_SECONDS = 30.0

#: Whoever waits for answers says so again after that: who hears it may have lost sight of it.
_GREETING_SECONDS = 1.0
#: Answers kept for a producer that nobody can reach, in messages.
_MOST_WAITING = 4096


class SocketError(MpistreamError):
    """A socket cannot be bound."""


class Waitable(Protocol):
    def fileno(self) -> int: ...


class Sockets:
    """The sockets of one thread, and the one wait on all of them."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        # an aggregator holds two to every rank of two jobs
        self._context.set(zmq.MAX_SOCKETS, self._context.get(zmq.SOCKET_LIMIT))
        self._poller = zmq.Poller()

    def wait_for(self, waitable: Waitable) -> None:
        """Lets ``wait`` also end when ``waitable`` (a Mailbox) has something."""
        self._poller.register(waitable.fileno(), zmq.POLLIN)

    def wait(self, timeout_seconds: float) -> bool:
        """True as soon as something can be read; False after ``timeout_seconds``."""
        return bool(self._poller.poll(int(timeout_seconds * 1000)))

    def data_inlet(self, host: str, port: int = 0, published: str = "") -> "DataInlet":
        """``published`` stands in the endpoint in the place of ``host``, which is bound."""
        socket = self._socket(zmq.PULL, heartbeat=True)
        return DataInlet(socket, self._bind(socket, host, port, published))

    def data_outlet(self, endpoint: str) -> "DataOutlet":
        socket = self._socket(zmq.PUSH, read=False, heartbeat=True)
        socket.connect(endpoint)
        return DataOutlet(socket)

    def camera_inlet(self, host: str, port: int, most_waiting: int) -> "DataInlet":
        """Where the camera's own processes push: pairs of a header and the pixels of a sector.

        ``most_waiting`` messages of each peer wait here; further ones wait where they come from.
        """
        socket = self._socket(zmq.PULL)
        socket.setsockopt(zmq.RCVHWM, most_waiting)
        return DataInlet(socket, self._bind(socket, host, port))

    def camera_outlet(self, endpoint: str, most_waiting: int) -> "CameraOutlet":
        """As the camera pushes to such an inlet; ``most_waiting`` messages wait until they can be sent."""
        socket = self._socket(zmq.PUSH, read=False)
        socket.setsockopt(zmq.SNDHWM, most_waiting)
        return CameraOutlet(socket, endpoint)

    def answer_inlet(self, host: str, port: int = 0, published: str = "") -> "AnswerInlet":
        socket = self._socket(zmq.ROUTER, heartbeat=True)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        return AnswerInlet(socket, self._bind(socket, host, port, published))

    def answer_outlet(self, endpoint: str, hello: Hello) -> "AnswerOutlet":
        socket = self._socket(zmq.DEALER, heartbeat=True)
        # A name of its own, so that it is known again when ZeroMQ has had to reconnect.
        socket.setsockopt(zmq.ROUTING_ID, uuid4().hex.encode())
        socket.connect(endpoint)
        return AnswerOutlet(socket, hello)

    def job_hub(self, host: str) -> "JobHub":
        socket = self._socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        return JobHub(socket, self._bind(socket, host, 0))

    def job_spoke(self, endpoint: str, rank: int) -> "JobSpoke":
        socket = self._socket(zmq.DEALER)
        socket.setsockopt(zmq.ROUTING_ID, f"rank-{rank}".encode())
        socket.connect(endpoint)
        return JobSpoke(socket)

    def _socket(self, kind: int, read: bool = True, heartbeat: bool = False) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        if heartbeat:
            socket.setsockopt(zmq.HEARTBEAT_IVL, int(HEARTBEAT_SECONDS * 1000))
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(HEARTBEAT_TIMEOUT_SECONDS * 1000))
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 0)
        if read:
            self._poller.register(socket, zmq.POLLIN)
        return socket

    @staticmethod
    def _bind(socket: "zmq.Socket[bytes]", host: str, port: int, published: str = "") -> str:
        try:
            if port:
                socket.bind(f"tcp://{host}:{port}")
            else:
                port = socket.bind_to_random_port(f"tcp://{host}")
        except zmq.ZMQError as error:
            where = f"port {port} on {host}" if port else f"a port on {host}"
            if error.errno == zmq.EADDRINUSE:
                raise SocketError(
                    f"{where} is taken by another process",
                    "end that process, or choose another port (0 takes a free one)",
                ) from error
            raise SocketError(
                f"cannot bind {where}: {error.strerror}",
                "set [network] host to an address of this machine",
            ) from error
        return f"tcp://{published or host}:{port}"

    def forget(self, outlet: "DataOutlet | AnswerOutlet") -> None:
        """Closes one connection that is needed no more."""
        if outlet.socket in dict(self._poller.sockets):
            self._poller.unregister(outlet.socket)
        outlet.socket.close(linger=0)

    def close(self) -> None:
        self._context.destroy(linger=0)


class DataInlet:
    """Where blocks come in: (header, payload), the payload as the buffer into which ZeroMQ received it."""

    def __init__(self, socket: "zmq.Socket[bytes]", endpoint: str) -> None:
        self._socket = socket
        self.endpoint = endpoint

    def receive(self, most: int = _BATCH) -> Iterator[tuple[bytes, memoryview]]:
        """The blocks that have arrived, at most a batch of them, without waiting."""
        for _ in range(most):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            if len(parts) == 2:
                yield parts[0].bytes, parts[1].buffer
            else:
                yield b"", memoryview(b"")


class DataOutlet:
    """Where blocks go out. Nothing is copied: the payload must stay as it is until it is acknowledged."""

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        self.socket = socket

    def send(self, header: bytes, payload: memoryview | bytes) -> None:
        self.socket.send_multipart([header, payload], copy=False)


class CameraOutlet:
    """Where somebody in the camera's place pushes."""

    def __init__(self, socket: "zmq.Socket[bytes]", endpoint: str) -> None:
        self._socket = socket
        self._monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        socket.connect(endpoint)

    def is_taken(self, timeout_seconds: float) -> bool:
        """Whether somebody listens there by then; from then on what is sent waits for who comes back."""
        return bool(self._monitor.poll(int(timeout_seconds * 1000)))

    def send(self, header: bytes, pixels: bytes, timeout_seconds: float) -> bool:
        """False where nobody has taken it in time."""
        self._socket.setsockopt(zmq.SNDTIMEO, int(timeout_seconds * 1000))
        try:
            self._socket.send_multipart([header, pixels])
        except zmq.Again:
            return False
        return True

    def close(self, timeout_seconds: float) -> None:
        """What waits still has so long to go out."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=int(timeout_seconds * 1000))


class AnswerInlet:
    """Where those who wait for answers introduce themselves, and get them.

    An answer for a producer goes to that producer where it is connected, otherwise to the aggregators. Who cannot be
    reached is forgotten until it introduces itself again.
    """

    def __init__(self, socket: "zmq.Socket[bytes]", endpoint: str) -> None:
        self._socket = socket
        self.endpoint = endpoint
        self._producers: dict[int, bytes] = {}  # the latest connection of each
        self._aggregators: dict[bytes, None] = {}
        self._waiting: dict[int, deque[bytes]] = defaultdict(lambda: deque(maxlen=_MOST_WAITING))

    def receive(self) -> None:
        """Takes greetings in, and sends those newcomers what waited for them."""
        while True:
            try:
                identity, message = self._socket.recv_multipart(zmq.NOBLOCK)
                producer_id = Hello.unpack(message).producer_id
            except zmq.Again:
                break
            except (ProtocolError, ValueError) as error:
                _log.warning("refused a greeting: %s", error)
            else:
                if producer_id is None:
                    self._aggregators[identity] = None
                else:
                    self._producers[producer_id] = identity
        for producer_id in [one for one in self._waiting if self.knows(one) or self.knows_an_aggregator]:
            for message in self._waiting.pop(producer_id):
                self.send(producer_id, message)

    def knows(self, producer_id: int) -> bool:
        """Whether this producer has introduced itself here."""
        return producer_id in self._producers

    @property
    def knows_an_aggregator(self) -> bool:
        return bool(self._aggregators)

    @property
    def waiting(self) -> int:
        """Answers that nobody could be given yet."""
        return sum(map(len, self._waiting.values()))

    def send(self, producer_id: int, message: bytes, keep: bool = True) -> None:
        """Sends a packed answer on its way to ``producer_id``.

        While nobody is there who could take it on, it waits; without ``keep`` it is dropped.
        """
        direct = self._producers.get(producer_id)
        if direct is not None:
            if self._deliver(direct, message):
                return
            del self._producers[producer_id]
        gone = [identity for identity in self._aggregators if not self._deliver(identity, message)]
        for identity in gone:
            del self._aggregators[identity]
        if not self._aggregators and keep:
            self._waiting[producer_id].append(message)

    def _deliver(self, identity: bytes, message: bytes) -> bool:
        """False where the peer is not connected."""
        try:
            self._socket.send_multipart([identity, message], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        return True


class AnswerOutlet:
    """Where answers are heard."""

    def __init__(self, socket: "zmq.Socket[bytes]", hello: Hello) -> None:
        self.socket = socket
        self._hello = hello.pack()
        self._greet()

    def _greet(self) -> None:
        self.socket.send(self._hello)
        self._greeted = time.monotonic()

    def receive_packed(self) -> Iterator[bytes]:
        """What has come, without waiting. To be called at least once a second: that keeps the connection known."""
        if time.monotonic() - self._greeted > _GREETING_SECONDS:
            self._greet()
        while True:
            try:
                yield self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return

    def receive(self) -> Iterator[Ack | Want]:
        """What is no answer is left out."""
        for message in self.receive_packed():
            try:
                yield unpack_answer(message)
            except ProtocolError as error:
                _log.error("refused an answer: %s", error)


class JobHub:
    """The leader's end of the star that joins the ranks of a job."""

    def __init__(self, socket: "zmq.Socket[bytes]", endpoint: str) -> None:
        self._socket = socket
        self.endpoint = endpoint
        self._ranks: dict[bytes, Numbered] = {}

    def receive(self) -> Iterator[JobMessage]:
        """What the ranks have said, without waiting. Raises LostMessageError, ProtocolError."""
        while True:
            try:
                identity, *parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if identity in self._ranks:
                yield self._ranks[identity].unpack(parts)
            elif (first := self._first_of(identity, parts)) is not None:
                yield first

    def _first_of(self, identity: bytes, parts: list[bytes]) -> JobMessage | None:
        """The first message of a rank. None for a stranger's: someone else's peer that connects anew may find this job
        at a port that has changed hands.
        """
        numbered = Numbered(identity.decode(errors="replace"))
        try:
            message = numbered.unpack(parts)
        except (LostMessageError, ProtocolError) as error:
            _log.warning("left out what no rank of this job has said: %s", error)
            return None
        self._ranks[identity] = numbered
        return message

    def tell_all(self, message: JobMessage) -> None:
        """Sends to every rank that has spoken. What one that is not connected cannot get, it will miss."""
        packed = message.pack()
        for identity, numbered in self._ranks.items():
            self._socket.send_multipart([identity, *numbered.pack(packed)])


class JobSpoke:
    """A rank's end of the star."""

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        self._socket = socket
        self._leader = Numbered("rank-0")

    def receive(self) -> Iterator[JobMessage]:
        """What has come, without waiting. Raises LostMessageError, ProtocolError."""
        while True:
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            yield self._leader.unpack(parts)

    def tell(self, message: JobMessage) -> None:
        self._socket.send_multipart(self._leader.pack(message.pack()))
