"""The aggregator: passes blocks on to the rank they belong to, and acknowledgements back.

It keeps no state that matters: it reads headers, never payloads, and holds only what the producers' windows allow.
"""

import logging
from collections import defaultdict
from dataclasses import dataclass, field

from mpistream.model.errors import ProtocolError
from mpistream.model.protocol import Ack, BlockHeader, Hello
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.transport.sockets import AnswerInlet, AnswerOutlet, DataInlet, DataOutlet, Sockets

_log = logging.getLogger(__name__)


@dataclass
class Aggregator:
    """One thread's forwarding between producers and ranks.

    Blocks that are stamped with a routing table which is not known yet wait for it; the producers' windows bound them.
    """

    sockets: Sockets
    data_inlet: DataInlet
    answer_inlet: AnswerInlet
    blocks_forwarded: int = 0
    refused: int = 0
    _waiting: dict[int, list[tuple[bytes, memoryview]]] = field(default_factory=lambda: defaultdict(list))
    _producers: set[int] = field(default_factory=set)
    _tables: dict[int, RoutingTable] = field(default_factory=dict)
    _outlets: dict[RankEndpoints, DataOutlet] = field(default_factory=dict)
    _answers: dict[RankEndpoints, AnswerOutlet] = field(default_factory=dict)

    def adopt(self, table: RoutingTable) -> None:
        """Connects to the ranks of a new table and lets go of those in none of the two latest.

        The one before stays: a scan that was announced under it may still be under way.
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
        for waiting in self._waiting.pop(table.version, []):
            self._take(*waiting)

    def _connect(self, rank: RankEndpoints) -> None:
        self._outlets[rank] = self.sockets.data_outlet(rank.data_endpoint)
        self._answers[rank] = self.sockets.answer_outlet(rank.answer_endpoint, Hello(None))

    def forward(self) -> None:
        """Passes on what has arrived, in both directions, without waiting."""
        for packed, payload in self.data_inlet.receive():
            self._take(packed, payload)
        self.answer_inlet.receive()
        for answer in self._answers.values():
            for message in answer.receive_packed():
                try:
                    producer_id = Ack.unpack(message).producer_id
                except ProtocolError as error:
                    self._refuse(error)
                    continue
                # ranks tell every aggregator; another one passes on the answers to its own producers
                if producer_id in self._producers or self.answer_inlet.knows(producer_id):
                    self.answer_inlet.send(producer_id, message)

    def _take(self, packed: bytes, payload: memoryview) -> None:
        try:
            self._pass_on(BlockHeader.unpack(packed), packed, payload)
        except ProtocolError as error:
            self._refuse(error)

    def _pass_on(self, header: BlockHeader, packed: bytes, payload: memoryview) -> None:
        version = header.routing_version
        table = self._tables.get(version)
        if table is None:
            if self._tables and version < max(self._tables):
                raise ProtocolError(f"a block routed by table {version}, which is out of use")
            self._waiting[version].append((packed, payload))
            return
        rank = table.ranks[table.rank_of(header.scan_uid, header.block)]
        self._outlets[rank].send(packed, payload)
        self._producers.add(header.producer_id)
        self.blocks_forwarded += 1

    def _refuse(self, error: ProtocolError) -> None:
        """Says so for the first and then for every thousandth message."""
        if self.refused % 1000 == 0:
            _log.error("refused a message (%d before): %s", self.refused, error)
        self.refused += 1
