"""The aggregator: passes blocks on to the rank they belong to, and acknowledgements back.

It keeps no state that matters: it reads headers, never payloads, and holds only what the producers' windows allow.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from mpistream.model.errors import ProtocolError
from mpistream.model.protocol import Ack, BlockHeader, Hello
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.transport.sockets import AnswerInlet, AnswerOutlet, DataInlet, DataOutlet, Sockets

_log = logging.getLogger(__name__)


@dataclass
class Aggregator:
    """One thread's forwarding between producers and ranks.

    ``find_table(version)`` looks up a routing table that has not been seen yet; it raises for an unknown version.
    """

    sockets: Sockets
    data_inlet: DataInlet
    answer_inlet: AnswerInlet
    find_table: Callable[[int], RoutingTable]
    blocks_forwarded: int = 0
    blocks_refused: int = 0
    _tables: dict[int, RoutingTable] = field(default_factory=dict)
    _outlets: dict[str, DataOutlet] = field(default_factory=dict)
    _answers: dict[str, AnswerOutlet] = field(default_factory=dict)

    def adopt(self, table: RoutingTable) -> None:
        """Connects to the ranks of a new table and lets go of those in none of the two latest.

        The one before stays: a scan that was announced under it may still be under way.
        """
        self._tables[table.version] = table
        for version in sorted(self._tables)[:-2]:
            del self._tables[version]
        current = {rank.data_endpoint: rank for known in self._tables.values() for rank in known.ranks}
        for endpoint in self._outlets.keys() - current.keys():
            self.sockets.forget(self._outlets.pop(endpoint))
            self.sockets.forget(self._answers.pop(endpoint))
        for endpoint in current.keys() - self._outlets.keys():
            self._connect(current[endpoint])

    def _connect(self, rank: RankEndpoints) -> None:
        self._outlets[rank.data_endpoint] = self.sockets.data_outlet(rank.data_endpoint)
        self._answers[rank.data_endpoint] = self.sockets.answer_outlet(rank.answer_endpoint, Hello(None))

    def forward(self) -> None:
        """Passes on what has arrived, in both directions, without waiting."""
        for packed, payload in self.data_inlet.receive():
            try:
                header = BlockHeader.unpack(packed)
                table = self._table(header.routing_version)
            except ProtocolError as error:
                self.blocks_refused += 1
                _log.error("refused a block: %s", error)
                continue
            rank = table.ranks[table.rank_of(header.scan_uid, header.block)]
            self._outlets[rank.data_endpoint].send(packed, payload)
            self.blocks_forwarded += 1
        self.answer_inlet.receive()
        for answer in self._answers.values():
            for message in answer.receive_packed():
                self.answer_inlet.send(Ack.unpack(message).producer_id, message)

    def _table(self, version: int) -> RoutingTable:
        if version not in self._tables:
            if self._tables and version < max(self._tables):
                raise ProtocolError(f"routing table {version} is out of use")
            self.adopt(self.find_table(version))
        return self._tables[version]
