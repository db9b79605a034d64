"""Sockets without ZeroMQ: queues that can be held up, that lose what they hold, and whose ends die."""

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from mpistream.model.job_messages import JobMessage
from mpistream.model.protocol import Ack, Hello, Want, unpack_answer


class TurnEnds(BaseException):
    """Raised where a process would wait: it has done what there was to do."""


@dataclass(eq=False)
class Link:
    """What is on its way from one socket to another. ``of`` are the processes at its ends."""

    of: tuple[str, str]
    queue: deque[tuple[bytes, ...]] = field(default_factory=deque)
    is_held: bool = False


class Network:
    """``most``: how many messages may be received before the turn ends; None: all."""

    def __init__(self) -> None:
        self.most: int | None = None
        self.links: list[Link] = []
        self.inlets: dict[str, DataInlet | AnswerInlet] = {}
        self._ports = itertools.count()

    def bind(self, inlet: "DataInlet | AnswerInlet") -> str:
        endpoint = f"{inlet.process}:{next(self._ports)}"
        self.inlets[endpoint] = inlet
        return endpoint

    def link(self, sender: str, receiver: str) -> Link:
        link = Link((sender, receiver))
        self.links.append(link)
        return link

    def receive(self, link: Link) -> Iterator[tuple[bytes, ...]]:
        while link.queue and not link.is_held:
            if self.most is not None:
                if self.most == 0:
                    return
                self.most -= 1
            yield link.queue.popleft()

    def end(self, process: str) -> None:
        """Whatever was on its way to or from a process that died is gone."""
        self.inlets = {name: inlet for name, inlet in self.inlets.items() if inlet.process != process}
        for link in [link for link in self.links if process in link.of]:
            link.queue.clear()
            self.links.remove(link)

    def sockets(self, process: str) -> "MadeUpSockets":
        return MadeUpSockets(self, process)


class MadeUpSockets:
    """In place of transport.sockets.Sockets. The ranks of a job talk through ``hub``, which loses nothing."""

    def __init__(self, network: Network, process: str, hub: "MadeUpHub | None" = None) -> None:
        self.network, self.process, self.hub = network, process, hub
        self.waits = 0

    def wait_for(self, waitable: object) -> None:
        """Nobody waits."""

    def wait(self, timeout_seconds: float) -> bool:
        self.waits += 1
        if self.waits % 2 == 0:
            raise TurnEnds
        return True

    def data_inlet(self, host: str, port: int = 0, published: str = "") -> "DataInlet":
        return DataInlet(self.network, self.process)

    def data_outlet(self, endpoint: str) -> "DataOutlet":
        return DataOutlet(self.network, self.process, endpoint)

    def answer_inlet(self, host: str, port: int = 0, published: str = "") -> "AnswerInlet":
        return AnswerInlet(self.network, self.process)

    def answer_outlet(self, endpoint: str, hello: Hello) -> "AnswerOutlet":
        return AnswerOutlet(self.network, self.process, endpoint, hello)

    def job_hub(self, host: str) -> "MadeUpHub":
        assert self.hub is not None
        return self.hub

    def job_spoke(self, endpoint: str, rank: int) -> "Spoke":
        assert self.hub is not None
        spoke = Spoke(self.hub)
        self.hub.spokes.append(spoke)
        return spoke

    def forget(self, outlet: "DataOutlet | AnswerOutlet") -> None:
        outlet.close()

    def close(self) -> None:
        """The process ends."""


class DataInlet:
    def __init__(self, network: Network, process: str) -> None:
        self.network, self.process = network, process
        self.links: list[Link] = []
        self.endpoint = network.bind(self)

    def receive(self) -> Iterator[tuple[bytes, memoryview]]:
        for link in list(self.links):
            for header, payload in self.network.receive(link):
                yield header, memoryview(payload)


class DataOutlet:
    """What was sent before it is closed may still arrive, after what is sent by its successor."""

    def __init__(self, network: Network, process: str, endpoint: str) -> None:
        inlet = network.inlets.get(endpoint)
        self._link = network.link(process, endpoint.partition(":")[0]) if isinstance(inlet, DataInlet) else None
        if isinstance(inlet, DataInlet) and self._link is not None:
            inlet.links.append(self._link)

    def send(self, header: bytes, payload: memoryview | bytes) -> None:
        if self._link is not None:
            self._link.queue.append((header, bytes(payload)))

    def close(self) -> None:
        self._link = None


class AnswerInlet:
    def __init__(self, network: Network, process: str) -> None:
        self.network, self.process = network, process
        self.outlets: list[AnswerOutlet] = []
        self._waiting: deque[tuple[int, bytes]] = deque()
        self.endpoint = network.bind(self)

    def knows(self, producer_id: int) -> bool:
        return any(outlet.producer_id == producer_id for outlet in self.outlets)

    def receive(self) -> None:
        for _ in range(len(self._waiting)):
            self.send(*self._waiting.popleft())

    def send(self, producer_id: int, message: bytes, keep: bool = True) -> None:
        self.outlets = [outlet for outlet in self.outlets if outlet.link in self.network.links]
        for who in (producer_id, None):
            reached = [outlet for outlet in self.outlets if outlet.producer_id == who]
            for outlet in reached[-1:] if who is not None else reached:
                outlet.link.queue.append((message,))
            if reached:
                return
        if keep:
            self._waiting.append((producer_id, message))


class AnswerOutlet:
    def __init__(self, network: Network, process: str, endpoint: str, hello: Hello) -> None:
        self.network, self.producer_id = network, hello.producer_id
        inlet = network.inlets.get(endpoint)
        self.link = network.link(endpoint.partition(":")[0], process)
        if isinstance(inlet, AnswerInlet):
            inlet.outlets.append(self)
        else:
            network.links.remove(self.link)

    def receive_packed(self) -> Iterator[bytes]:
        for (message,) in self.network.receive(self.link):
            yield message

    def receive(self) -> Iterator[Ack | Want]:
        yield from map(unpack_answer, self.receive_packed())

    def close(self) -> None:
        if self.link in self.network.links:
            self.network.links.remove(self.link)


class MadeUpHub:
    """The star among the ranks of a job."""

    endpoint = "hub"

    def __init__(self) -> None:
        self.spokes: list[Spoke] = []
        self._inbox: deque[JobMessage] = deque()

    def put(self, message: JobMessage) -> None:
        self._inbox.append(JobMessage.unpack(message.pack()))

    def receive(self) -> Iterator[JobMessage]:
        while self._inbox:
            yield self._inbox.popleft()

    def tell_all(self, message: JobMessage) -> None:
        for spoke in self.spokes:
            spoke.inbox.append(JobMessage.unpack(message.pack()))


class Spoke:
    def __init__(self, hub: MadeUpHub) -> None:
        self._hub = hub
        self.inbox: deque[JobMessage] = deque()

    def tell(self, message: JobMessage) -> None:
        self._hub.put(message)

    def receive(self) -> Iterator[JobMessage]:
        while self.inbox:
            yield self.inbox.popleft()
