"""A producer's connections: to an aggregator, or to every rank of the latest routing table."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mpistream.control.registry import AggregatorEntry
from mpistream.model.protocol import Ack, Hello, Want
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.transport.sockets import AnswerOutlet, DataOutlet, Sockets

#: One start of an aggregator or of a rank: another start has another incarnation, maybe at the same endpoints.
_Peer = AggregatorEntry | RankEndpoints


class ScanOutlets:
    """Where the blocks of one scan go out. They end with it: nothing of it stays behind in a queue."""

    def __init__(self, sockets: Sockets, direct: bool) -> None:
        self.direct = direct
        self._sockets = sockets
        self._outlets: dict[_Peer, DataOutlet] = {}
        self._by_destination: list[DataOutlet] = []
        self._aggregator: DataOutlet | None = None

    def join(self, aggregator: AggregatorEntry | None, table: RoutingTable | None) -> None:
        """Connects to these and lets go of others."""
        peers: tuple[_Peer, ...] = (aggregator,) if aggregator and not self.direct else ()
        if self.direct and table is not None:
            peers = table.ranks
        for peer in self._outlets.keys() - set(peers):
            self._sockets.forget(self._outlets.pop(peer))
        for peer in peers:
            if peer not in self._outlets:
                self._outlets[peer] = self._sockets.data_outlet(peer.data_endpoint)
        outlets = [self._outlets[peer] for peer in peers]
        self._by_destination = outlets if self.direct else []
        self._aggregator = outlets[0] if outlets and not self.direct else None

    def outlet_of(self, destination: int) -> DataOutlet | None:
        """For a rank of the table given last; None while there is no way to it."""
        if self.direct:
            return self._by_destination[destination] if destination < len(self._by_destination) else None
        return self._aggregator

    def close(self) -> None:
        self.join(None, None)


@dataclass
class ProducerLinks:
    """What a producer knows of those it sends to, and the connections on which it hears their answers."""

    sockets: Sockets
    producer_id: int
    aggregator: AggregatorEntry | None = None
    table: RoutingTable | None = None
    _scans: list[ScanOutlets] = field(default_factory=list)
    _answers: dict[_Peer, AnswerOutlet] = field(default_factory=dict)

    def adopt(self, table: RoutingTable) -> bool:
        """False where it is not newer than the latest."""
        if self.table is not None and table.version <= self.table.version:
            return False
        self.table = table
        self._join()
        return True

    def choose_aggregator(self, registered: list[AggregatorEntry]) -> bool:
        """Keeps to the one in use as long as it is registered, or none other is; whether there is another one now."""
        if self.aggregator in registered or not registered:
            return False
        same_name = [entry for entry in registered if self.aggregator and entry.name == self.aggregator.name]
        self.aggregator = same_name[0] if same_name else registered[self.producer_id % len(registered)]
        self._join()
        return True

    def open(self, direct: bool) -> ScanOutlets:
        """The outlets of another scan."""
        outlets = ScanOutlets(self.sockets, direct)
        self._scans.append(outlets)
        self._join()
        return outlets

    def close(self, outlets: ScanOutlets) -> None:
        self._scans.remove(outlets)
        outlets.close()
        self._join()

    def _join(self) -> None:
        for scan in self._scans:
            scan.join(self.aggregator, self.table)
        wanted = set(self._wanted())
        for peer in self._answers.keys() - wanted:
            self.sockets.forget(self._answers.pop(peer))
        for peer in wanted - self._answers.keys():
            self._answers[peer] = self.sockets.answer_outlet(peer.answer_endpoint, Hello(self.producer_id))

    def _wanted(self) -> Iterable[_Peer]:
        if self.aggregator and any(not scan.direct for scan in self._scans):
            yield self.aggregator
        if self.table and any(scan.direct for scan in self._scans):
            yield from self.table.ranks

    def answers(self) -> Iterator[Ack | Want]:
        """What has come, without waiting."""
        for outlet in self._answers.values():
            yield from outlet.receive()
