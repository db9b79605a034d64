"""Real sockets on the loopback interface."""

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mpistream.model.errors import ProtocolError
from mpistream.model.job_messages import JobMessage, JobMessageKind, LostMessageError
from mpistream.model.protocol import Ack, Hello, Want
from mpistream.transport import sockets as sockets_module
from mpistream.transport.mailbox import Mailbox
from mpistream.transport.sockets import AnswerInlet, AnswerOutlet, DataInlet, JobHub, JobSpoke, SocketError, Sockets

HOST = "127.0.0.1"
UID = bytes(range(16))


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    """Both ends of everything: as good as two processes, since every socket uses the kernel's TCP."""
    both = Sockets()
    yield both
    both.close()


def until(condition: Callable[[], object], sockets: Sockets, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        sockets.wait(0.02)


def ack(producer_id: int, block: int) -> bytes:
    return Ack(producer_id, UID, 1, 1, (block,)).pack()


def collect(outlet: AnswerOutlet, blocks: list[int]) -> list[int]:
    blocks += [block for answer in outlet.receive() if isinstance(answer, Ack) for block in answer.blocks]
    return blocks


def received(inlet: DataInlet, messages: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    messages += [(header, bytes(payload)) for header, payload in inlet.receive()]
    return messages


def test_blocks_arrive_whole_and_in_order(sockets: Sockets) -> None:
    inlet = sockets.data_inlet(HOST)
    outlet = sockets.data_outlet(inlet.endpoint)
    sent = [(b"header %d" % number, os.urandom(number * 1000)) for number in range(100)]
    for header, payload in sent:
        outlet.send(header, memoryview(payload))
    came: list[tuple[bytes, bytes]] = []
    until(lambda: len(received(inlet, came)) >= len(sent), sockets)
    assert came == sent


def test_what_is_no_block_is_handed_on_as_nothing(sockets: Sockets) -> None:
    """The receiver refuses it: an empty header is no header."""
    inlet = sockets.data_inlet(HOST)
    outlet = sockets.data_outlet(inlet.endpoint)
    outlet.socket.send_multipart([b"one"])
    outlet.socket.send_multipart([b"one", b"two", b"three"])
    outlet.send(b"header", b"payload")
    came: list[tuple[bytes, bytes]] = []
    until(lambda: len(received(inlet, came)) >= 3, sockets)
    assert came == [(b"", b""), (b"", b""), (b"header", b"payload")]


def test_blocks_wait_for_an_inlet_that_comes_later(sockets: Sockets) -> None:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    outlet = sockets.data_outlet(f"tcp://{HOST}:{port}")
    outlet.send(b"header", b"payload")
    inlet = sockets.data_inlet(HOST, port)
    came: list[tuple[bytes, bytes]] = []
    until(lambda: received(inlet, came), sockets)
    assert came == [(b"header", b"payload")]


def test_a_taken_port_is_named_with_a_remedy(sockets: Sockets) -> None:
    port = int(sockets.data_inlet(HOST).endpoint.rpartition(":")[2])
    for bind in (sockets.data_inlet, sockets.answer_inlet):
        with pytest.raises(SocketError, match=f"port {port} on {HOST} is taken") as caught:
            bind(HOST, port)
        assert "choose another port" in caught.value.remedy


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", ""])
@pytest.mark.parametrize("port", [0, 45678])
def test_a_host_that_is_not_here_is_named_with_a_remedy(sockets: Sockets, host: str, port: int) -> None:
    with pytest.raises(SocketError, match="cannot bind") as caught:
        sockets.data_inlet(host, port)
    assert "[network] host" in caught.value.remedy


def test_waiting_ends_with_a_message_a_mailbox_or_the_time(sockets: Sockets) -> None:
    inlet = sockets.data_inlet(HOST)
    outlet = sockets.data_outlet(inlet.endpoint)
    mailbox: Mailbox[str] = Mailbox()
    sockets.wait_for(mailbox)
    started = time.monotonic()
    assert not sockets.wait(0.2)
    assert time.monotonic() - started >= 0.19
    threading.Timer(0.1, mailbox.put, ["news"]).start()
    assert sockets.wait(10)
    assert mailbox.take() == ["news"]
    outlet.send(b"header", b"")
    assert sockets.wait(10)
    assert time.monotonic() - started < 5
    mailbox.close()


def test_an_acknowledgement_waits_for_a_greeting(sockets: Sockets) -> None:
    inlet = sockets.answer_inlet(HOST)
    inlet.send(1, ack(1, 7))
    inlet.send(2, ack(2, 8))
    outlet = sockets.answer_outlet(inlet.endpoint, Hello(1))
    heard: list[int] = []
    until(lambda: inlet.receive() or collect(outlet, heard), sockets)
    assert heard == [7]
    other = sockets.answer_outlet(inlet.endpoint, Hello(2))
    heard_by_other: list[int] = []
    until(lambda: inlet.receive() or collect(other, heard_by_other), sockets)
    assert heard_by_other == [8]
    assert collect(outlet, heard) == [7]


def connected(sockets: Sockets, inlet: AnswerInlet, hello: Hello) -> AnswerOutlet:
    """An outlet whose greeting has been taken in."""
    outlet = sockets.answer_outlet(inlet.endpoint, hello)
    producer_id = 1000 if hello.producer_id is None else hello.producer_id
    heard: list[int] = []
    inlet.send(producer_id, ack(producer_id, 0))
    until(lambda: inlet.receive() or collect(outlet, heard), sockets)
    return outlet


def test_an_acknowledgement_goes_to_its_producer_alone_and_otherwise_to_the_aggregator(sockets: Sockets) -> None:
    inlet = sockets.answer_inlet(HOST)
    producer = connected(sockets, inlet, Hello(3))
    aggregator = connected(sockets, inlet, Hello(None))
    inlet.send(3, ack(3, 7))
    inlet.send(4, ack(4, 8))
    heard_by_producer: list[int] = []
    heard_by_aggregator: list[int] = []
    until(lambda: collect(producer, heard_by_producer) and collect(aggregator, heard_by_aggregator), sockets)
    sockets.wait(0.1)
    assert (collect(producer, heard_by_producer), collect(aggregator, heard_by_aggregator)) == ([7], [8])


def test_what_a_peer_that_is_gone_cannot_hear_waits_for_the_next(sockets: Sockets) -> None:
    inlet = sockets.answer_inlet(HOST)
    sockets.forget(connected(sockets, inlet, Hello(3)))
    time.sleep(0.2)  # for the connection to be closed on this side too
    inlet.send(3, ack(3, 7))
    successor = sockets.answer_outlet(inlet.endpoint, Hello(3))
    heard: list[int] = []
    until(lambda: inlet.receive() or collect(successor, heard), sockets)
    assert heard == [7]


def test_a_greeting_that_is_none_is_refused_and_harms_nobody(sockets: Sockets) -> None:
    inlet = sockets.answer_inlet(HOST)
    stranger = connected(sockets, inlet, Hello(9))
    for garbage in ([b"GET / HTTP/1.1"], [b"a", b"b"], [b""]):
        stranger.socket.send_multipart(garbage)
    producer = connected(sockets, inlet, Hello(3))
    inlet.send(3, ack(3, 7))
    heard: list[int] = []
    until(lambda: inlet.receive() or collect(producer, heard), sockets)
    assert heard == [7]


def test_acknowledgements_arrive_after_the_connection_was_cut(sockets: Sockets) -> None:
    """ZeroMQ connects again by itself; whoever answers must know who it is that came back."""
    inlet = sockets.answer_inlet(HOST)
    with Relay(inlet.endpoint) as relay:
        outlet = sockets.answer_outlet(relay.endpoint, Hello(3))
        heard: list[int] = []
        inlet.send(3, ack(3, 1))
        until(lambda: inlet.receive() or collect(outlet, heard), sockets)
        relay.cut()
        time.sleep(0.3)
        inlet.send(3, ack(3, 2))
        until(lambda: inlet.receive() or 2 in collect(outlet, heard), sockets, seconds=5)


def test_a_request_is_not_kept_for_those_who_are_not_there(sockets: Sockets) -> None:
    inlet = sockets.answer_inlet(HOST)
    want = Want(3, UID, 5)
    inlet.send(3, want.pack(), keep=False)
    assert inlet.waiting == 0
    outlet, heard = connected(sockets, inlet, Hello(3)), []
    inlet.send(3, want.pack(), keep=False)
    until(lambda: heard.extend(outlet.receive()) or heard, sockets)
    assert heard == [want]


def test_who_is_gone_is_forgotten_until_it_greets_again(sockets: Sockets) -> None:
    inlet = sockets.answer_inlet(HOST)
    for outlet in [connected(sockets, inlet, Hello(3)), connected(sockets, inlet, Hello(None))]:
        sockets.forget(outlet)
    time.sleep(0.2)  # for the connections to be closed on this side too
    inlet.send(3, ack(3, 7))
    assert not inlet.knows(3)
    assert not inlet.knows_an_aggregator
    assert inlet.waiting == 1
    for block in range(2 * sockets_module._MOST_WAITING):
        inlet.send(4, ack(4, block))
    assert inlet.waiting == 1 + sockets_module._MOST_WAITING


def test_who_was_forgotten_by_mistake_is_heard_of_again(sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is broken just when there is something to say."""
    monkeypatch.setattr(sockets_module, "_GREETING_SECONDS", 0.1)
    inlet = sockets.answer_inlet(HOST)
    with Relay(inlet.endpoint) as relay:
        outlet = sockets.answer_outlet(relay.endpoint, Hello(3))
        heard: list[int] = []
        until(lambda: inlet.receive() or collect(outlet, heard) or inlet.knows(3), sockets)
        relay.cut()
        until(lambda: inlet.send(3, ack(3, 1)) or not inlet.knows(3), sockets)
        until(lambda: inlet.receive() or collect(outlet, heard), sockets)
        assert 1 in heard


def test_a_connection_that_swallows_everything_is_given_up(sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither end is told. What was sent meanwhile is gone, what is sent later arrives."""
    monkeypatch.setattr(sockets_module, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(sockets_module, "HEARTBEAT_TIMEOUT_SECONDS", 0.3)
    inlet = sockets.data_inlet(HOST)
    with Relay(inlet.endpoint) as relay:
        outlet = sockets.data_outlet(relay.endpoint)
        came: list[tuple[bytes, bytes]] = []
        outlet.send(b"first", b"")
        until(lambda: received(inlet, came), sockets)
        relay.swallow()
        outlet.send(b"lost", b"")

        def send_again() -> bool:
            outlet.send(b"again", b"")
            return (b"again", b"") in received(inlet, came)

        until(send_again, sockets)
        assert (b"lost", b"") not in came


def test_the_ranks_of_a_job_talk_to_their_leader(sockets: Sockets) -> None:
    hub = sockets.job_hub(HOST)
    spokes = [sockets.job_spoke(hub.endpoint, rank) for rank in range(3)]
    for rank, spoke in enumerate(spokes):
        spoke.tell(JobMessage(JobMessageKind.SAMPLE, rank, {"block": rank}, bytes([rank])))
    said: list[JobMessage] = []
    until(lambda: said.extend(hub.receive()) or len(said) == 3, sockets)
    assert sorted((message.rank, message.fields["block"], message.binary) for message in said) == [
        (rank, rank, bytes([rank])) for rank in range(3)
    ]
    hub.tell_all(JobMessage(JobMessageKind.STOP, 0))
    for spoke in spokes:
        told: list[JobMessage] = []
        until(lambda told=told, spoke=spoke: told.extend(spoke.receive()) or told, sockets)
        assert told == [JobMessage(JobMessageKind.STOP, 0)]


def test_a_rank_hears_its_leader_after_the_connection_was_cut(sockets: Sockets) -> None:
    """Without having to speak first: the leader knows it by its name."""
    hub = sockets.job_hub(HOST)
    with Relay(hub.endpoint) as relay:
        spoke = sockets.job_spoke(relay.endpoint, 5)
        spoke.tell(JobMessage(JobMessageKind.HEARTBEAT, 5, {"progress": {}}))
        said: list[JobMessage] = []
        until(lambda: said.extend(hub.receive()) or said, sockets)
        relay.cut()
        time.sleep(1.0)
        hub.tell_all(JobMessage(JobMessageKind.STOP, 0))
        told: list[JobMessage] = []
        until(lambda: told.extend(spoke.receive()) or told, sockets, seconds=5)
        assert told == [JobMessage(JobMessageKind.STOP, 0)]
        spoke.tell(JobMessage(JobMessageKind.STOP, 5))
        until(lambda: said.extend(hub.receive()) or len(said) == 2, sockets)


# what is lost among the ranks of a job

HEARTBEAT, COUNTED, STOP = JobMessageKind.HEARTBEAT, JobMessageKind.COUNTED, JobMessageKind.STOP


def joined(sockets: Sockets, hub: JobHub, endpoint: str, rank: int = 5) -> JobSpoke:
    """A spoke that has spoken and been spoken to."""
    spoke = sockets.job_spoke(endpoint, rank)
    spoke.tell(JobMessage(HEARTBEAT, rank))
    until(lambda: list(hub.receive()), sockets)
    hub.tell_all(JobMessage(HEARTBEAT, 0))
    until(lambda: list(spoke.receive()), sockets)
    return spoke


@pytest.mark.parametrize("lost", [COUNTED, HEARTBEAT, STOP])
def test_the_leader_learns_that_a_message_of_a_rank_was_lost(sockets: Sockets, lost: JobMessageKind) -> None:
    """By the next sign of life, though ZeroMQ has connected again as if nothing had happened."""
    hub = sockets.job_hub(HOST)
    with Relay(hub.endpoint) as relay:
        spoke = joined(sockets, hub, relay.endpoint)
        relay.swallow()
        spoke.tell(JobMessage(lost, 5, {"uid": "1"}, b"12345678"))
        time.sleep(0.2)
        relay.cut()
        spoke.tell(JobMessage(HEARTBEAT, 5))
        with pytest.raises(LostMessageError, match=r"rank-5 .* 3 came after 1") as caught:
            until(lambda: list(hub.receive()), sockets)
        assert caught.value.remedy


@pytest.mark.parametrize("lost", [JobMessageKind.THRESHOLDS, JobMessageKind.ASSEMBLE, HEARTBEAT, STOP])
@pytest.mark.parametrize("connected", [True, False])
def test_a_rank_learns_that_a_message_of_the_leader_was_lost(
    sockets: Sockets, lost: JobMessageKind, connected: bool
) -> None:
    """On its way, or because the leader could not send it anywhere; other ranks have it."""
    hub = sockets.job_hub(HOST)
    other = joined(sockets, hub, hub.endpoint, 4)
    with Relay(hub.endpoint) as relay:
        spoke = joined(sockets, hub, relay.endpoint)
        if connected:
            relay.swallow()
        else:
            relay.refuse()
        time.sleep(0.2)
        hub.tell_all(JobMessage(lost, 0, {"uid": "1"}))
        time.sleep(0.2)
        relay.cut()
        told: list[JobMessage] = []

        def hears_a_heartbeat() -> list[JobMessage]:
            hub.tell_all(JobMessage(HEARTBEAT, 0))
            return list(spoke.receive())

        with pytest.raises(LostMessageError, match=r"rank-0 .* came after 1"):
            until(hears_a_heartbeat, sockets)
        until(lambda: told.extend(other.receive()) or lost in [message.kind for message in told], sockets)


def test_a_rank_whose_first_message_was_lost_is_never_there(sockets: Sockets) -> None:
    hub = sockets.job_hub(HOST)
    with Relay(hub.endpoint) as relay:
        spoke = sockets.job_spoke(relay.endpoint, 5)
        time.sleep(0.3)  # for ZeroMQ's own greetings
        relay.swallow()
        spoke.tell(JobMessage(STOP, 5))
        time.sleep(0.2)
        relay.cut()
        spoke.tell(JobMessage(HEARTBEAT, 5))
        heard: list[JobMessage] = []
        with pytest.raises(AssertionError):
            until(lambda: heard.extend(hub.receive()) or heard, sockets, seconds=1)


def test_two_ranks_of_one_name_are_told_apart(sockets: Sockets) -> None:
    """One of an earlier job, say, that was only stopped: what it says begins anew."""
    hub = sockets.job_hub(HOST)
    joined(sockets, hub, hub.endpoint)
    stranger = sockets.job_spoke(hub.endpoint, 5)
    stranger.tell(JobMessage(COUNTED, 5))
    with pytest.raises(LostMessageError, match="1 came after 1"):
        until(lambda: list(hub.receive()), sockets)


def test_a_stranger_at_the_hub_does_no_harm(sockets: Sockets) -> None:
    """Ports change hands: a producer that connects anew to an aggregator that is gone, say."""
    hub = sockets.job_hub(HOST)
    stranger = sockets.answer_outlet(hub.endpoint, Hello(3))
    stranger_rank = sockets.job_spoke(hub.endpoint, 7)
    stranger_rank._leader.pack([])
    stranger_rank.tell(JobMessage(HEARTBEAT, 7))
    spoke = sockets.job_spoke(hub.endpoint, 5)
    time.sleep(0.3)
    spoke.tell(JobMessage(COUNTED, 5))
    heard: list[JobMessage] = []
    until(lambda: heard.extend(hub.receive()) or heard, sockets)
    assert [message.rank for message in heard] == [5]
    sockets.forget(stranger)


@pytest.mark.parametrize("parts", [[b""], [b"{}", b""], [b"\2" + bytes(7)], [b"\2" + bytes(7), b"{}", b""]])
def test_a_message_that_nobody_understands_is_an_error_on_both_sides(sockets: Sockets, parts: list[bytes]) -> None:
    """Nobody knows what it was about."""
    hub = sockets.job_hub(HOST)
    spoke = joined(sockets, hub, hub.endpoint)
    spoke._socket.send_multipart(parts)
    with pytest.raises(ProtocolError):
        until(lambda: list(hub.receive()), sockets)
    hub._socket.send_multipart([b"rank-5", *parts])
    with pytest.raises(ProtocolError):
        until(lambda: list(spoke.receive()), sockets)


class Relay:
    """Passes bytes between whoever connects and ``endpoint``, and can cut all connections as a network does."""

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server((HOST, 0))
        self.endpoint = f"tcp://{HOST}:{self._listener.getsockname()[1]}"
        self._ends: dict[socket.socket, socket.socket] = {}
        self._swallowing: set[socket.socket] = set()
        self._refusing = False
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Relay":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._thread.join(timeout=5)
        self.cut()
        self._listener.close()

    def cut(self) -> None:
        """And whoever connects then is let through."""
        with self._lock:
            self._refusing = False
            for end in self._ends:
                end.close()
            self._ends.clear()

    def refuse(self) -> None:
        """There are no connections, and no new ones."""
        self.cut()
        self._refusing = True

    def swallow(self) -> None:
        """What comes on the connections that there are goes nowhere from now on."""
        with self._lock:
            self._swallowing |= self._ends.keys()

    def _run(self) -> None:
        while not self._closed:
            with self._lock:
                listening = [] if self._refusing else [self._listener]
                ready, _, _ = select.select([*listening, *self._ends], [], [], 0)
                for end in ready:
                    self._serve(end)
            time.sleep(0.005)

    def _serve(self, end: socket.socket) -> None:
        if end is self._listener:
            near, far = end.accept()[0], socket.create_connection(self._target)
            self._ends |= {near: far, far: near}
            return
        data = b""
        with contextlib.suppress(OSError):
            data = end.recv(1 << 16)
        if data and end in self._swallowing:
            return
        if data:
            self._ends[end].sendall(data)
        elif end in self._ends:
            other = self._ends.pop(end)
            self._ends.pop(other, None)
            end.close()
            other.close()
