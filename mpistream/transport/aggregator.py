"""The aggregator: passes blocks on to the rank they belong to, and answers back.

It keeps no state that matters: it reads headers, never payloads, and holds only what the producers' windows allow. What
is lost with it is sent again: producers notice the next one, ranks ask for what they lack.
"""

import logging
from collections import defaultdict
from dataclasses import dataclass, field

from mpistream.model.errors import ProtocolError
from mpistream.model.fault_points import reach
from mpistream.model.protocol import BlockHeader, Hello, is_want, producer_of_answer
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.transport.sockets import AnswerInlet, AnswerOutlet, DataInlet, DataOutlet, Sockets

_log = logging.getLogger(__name__)


@dataclass
class Aggregator:
    """One thread's forwarding between producers and ranks.

    Blocks that are stamped with a routing table which is not known yet wait for it; the producers' windows bound them.

    refused  messages that are none of this protocol's, or for a rank that their table does not have
    dropped  blocks that are stamped with a table out of use: their producer sends them again under the latest
    """

    sockets: Sockets
    data_inlet: DataInlet
    answer_inlet: AnswerInlet
    blocks_forwarded: int = 0
    refused: int = 0
    dropped: int = 0
    _waiting: dict[int, list[tuple[bytes, memoryview]]] = field(default_factory=lambda: defaultdict(list))
    _producers: set[int] = field(default_factory=set)
    _tables: dict[int, RoutingTable] = field(default_factory=dict)
    _outlets: dict[RankEndpoints, DataOutlet] = field(default_factory=dict)
    _answers: dict[RankEndpoints, AnswerOutlet] = field(default_factory=dict)

    def adopt(self, table: RoutingTable) -> None:
        """Connects to the ranks of a new table and lets go of those in none of the two latest.

        The one before stays: not every producer has heard of the new one.
        """
        self._tables[table.version] = table
        for version in sorted(self._tables)[:-2]:
            del self._tables[version]
        current = {rank for known in self._tables.values() for rank in known.ranks}
        for rank in self._outlets.keys() - current:
            self.sockets.forget(self._outlets.pop(rank))
            self.sockets.forget(self._answers.pop(rank))
        for rank in current - self._outlets.keys():
            self._connect(rank)
        for version in [version for version in self._waiting if version <= max(self._tables)]:
            for waiting in self._waiting.pop(version):
                self._take(*waiting)

    def _connect(self, rank: RankEndpoints) -> None:
        self._outlets[rank] = self.sockets.data_outlet(rank.data_endpoint)
        self._answers[rank] = self.sockets.answer_outlet(rank.answer_endpoint, Hello(None))

    @property
    def waiting(self) -> int:
        """Blocks whose table is not known yet."""
        return sum(map(len, self._waiting.values()))

    def status(self) -> dict[str, int]:
        """For people who watch."""
        return {
            "blocks_forwarded": self.blocks_forwarded,
            "refused": self.refused,
            "dropped": self.dropped,
            "waiting": self.waiting,
        }

    def forward(self) -> None:
        """Passes on what has arrived, in both directions, without waiting. To be called at least once a second."""
        for packed, payload in self.data_inlet.receive():
            self._take(packed, payload)
        self.answer_inlet.receive()
        for outlet in self._answers.values():
            for message in outlet.receive_packed():
                self._answer(message)

    def _answer(self, message: bytes) -> None:
        try:
            producer_id = producer_of_answer(message)
        except ProtocolError as error:
            self._refuse(error)
            return
        # ranks tell every aggregator; another one passes on the answers to its own producers
        if producer_id in self._producers or self.answer_inlet.knows(producer_id):
            self.answer_inlet.send(producer_id, message, keep=not is_want(message))

    def _take(self, packed: bytes, payload: memoryview) -> None:
        try:
            self._pass_on(BlockHeader.unpack(packed), packed, payload)
        except ProtocolError as error:
            self._refuse(error)

    def _pass_on(self, header: BlockHeader, packed: bytes, payload: memoryview) -> None:
        version = header.routing_version
        self._producers.add(header.producer_id)
        table = self._tables.get(version)
        if table is None:
            if self._tables and version < max(self._tables):
                self.dropped += 1
            else:
                self._waiting[version].append((packed, payload))
            return
        if header.destination >= len(table.ranks):
            raise ProtocolError(
                f"a block for rank {header.destination} of table {version}, which has {len(table.ranks)} ranks"
            )
        reach("aggregator.before-forward")
        self._outlets[table.ranks[header.destination]].send(packed, payload)
        self.blocks_forwarded += 1

    def _refuse(self, error: ProtocolError) -> None:
        """Says so for the first and then for every thousandth message."""
        if self.refused % 1000 == 0:
            _log.error("refused a message (%d before): %s", self.refused, error)
        self.refused += 1
