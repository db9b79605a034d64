"""What one sector of one scan still owes to the ranks: a ledger without clock, socket or file.

A block is owed until a rank has journaled it. Two things say so: an acknowledgement of a rank that the latest routing
table holds, and the shares of the MPI jobs. What a job acknowledged and turns out not to have journaled, once it is
dead and its share sealed, is owed again.
"""

from collections.abc import Callable, Container, Iterable, Mapping

import numpy as np
import numpy.typing as npt

from mpistream.model.block_set import BlockSet
from mpistream.model.job_share import JobShare
from mpistream.model.routing_table import RoutingTable
from mpistream.model.scan import ScanRecord

_OWED, _UNDER_WAY, _RELEASED = b"\0", b"\1", b"\2"

#: The rank that a block goes to under a table, as an index into its ranks; None while it has none for that block.
DestinationOf = Callable[[RoutingTable, int], int | None]


def destination_of(record: ScanRecord) -> DestinationOf:
    """Where the blocks of a scan go: those that only the conducting job can use to its ranks."""
    uid = record.uid.bytes
    for_conductor = record.blocks_for_conductor

    def destination(table: RoutingTable, block: int) -> int | None:
        is_for_conductor = block in for_conductor
        if not table.ranks or (is_for_conductor and table.conducting not in table.jobs):
            return None
        return table.rank_of(uid, block, is_for_conductor)

    return destination


class Delivery:
    """Every block of the consecutive numbers ``blocks`` is owed, under way or released; at first all are owed."""

    def __init__(self, blocks: range, destination: DestinationOf) -> None:
        self.blocks = blocks
        self.table: RoutingTable | None = None
        self._destination_of = destination
        self._states = bytearray(len(blocks))
        self._first_owed = 0  # an index: nothing is owed before it
        self._under_way: dict[int, int] = {}  # block -> destination under the latest table
        self._released = BlockSet(blocks)
        self._released_count = 0
        self._acked_by: npt.NDArray[np.uint64] = np.zeros(len(blocks), np.uint64)  # rank incarnation, 0: none
        self._sealed: frozenset[int] = frozenset()  # incarnations of ranks whose journals are sealed
        self._believed: frozenset[int] = frozenset()  # incarnations whose acknowledgements count

    def adopt(self, table: RoutingTable) -> bool:
        """From now on ``table`` says where blocks go and whose acknowledgements count; what is under way is owed
        again. False, and nothing changed, where it is not newer than the latest.
        """
        if self.table is not None and table.version <= self.table.version:
            return False
        self.table = table
        self._believed = table.incarnations - self._sealed
        self.resend_all()
        return True

    def next_block(self) -> int | None:
        """The lowest block that is owed and not under way; None where there is none, or nobody to send it to."""
        index = self._states.find(_OWED, self._first_owed)
        self._first_owed = len(self._states) if index < 0 else index
        if index < 0 or self.destination(self.blocks[index]) is None:
            return None
        return self.blocks[index]

    def destination(self, block: int) -> int | None:
        """The rank that gets ``block``, as an index into the ranks of the latest table."""
        return None if self.table is None else self._destination_of(self.table, block)

    def sent(self, block: int) -> None:
        """``block``, which was owed, is on its way under the latest table."""
        destination = self.destination(block)
        if destination is None or self._state(block) != _OWED:
            raise ValueError(f"block {block} was not to be sent")
        self._set(block, _UNDER_WAY)
        self._under_way[block] = destination

    def acknowledge(self, blocks: Iterable[int], rank_incarnation: int) -> list[int]:
        """Returns those of ``blocks`` that are released by this; none where the rank is fenced."""
        if rank_incarnation not in self._believed:
            return []
        released = []
        for block in blocks:
            if block in self.blocks:
                self._acked_by[block - self.blocks.start] = rank_incarnation
                if self._state(block) != _RELEASED:
                    released.append(block)
                    self._set(block, _RELEASED)
        self._count_released(released)
        return released

    def reconcile(self, shares: Mapping[str, JobShare]) -> tuple[list[int], list[int]]:
        """Takes in what the jobs have, all of it every time. Returns the blocks released, and those owed again."""
        good = [share for share in shares.values() if share.blocks.blocks == self.blocks]
        self._sealed = frozenset(journal.incarnation for share in good if share.sealed for journal in share.journals)
        if self.table is not None:
            self._believed = self.table.incarnations - self._sealed
        journaled = BlockSet(self.blocks)
        for share in good:
            journaled.update(share.blocks)
        owed_again = self._not_to_be_believed(self._released - journaled)
        for block in owed_again:
            self._set(block, _OWED)
        self._released.discard(owed_again)
        self._released_count -= len(owed_again)
        released = list(journaled - self._released)
        for block in released:
            self._set(block, _RELEASED)
        self._count_released(released)
        return released, owed_again

    def _not_to_be_believed(self, released: BlockSet) -> list[int]:
        """Those of ``released`` that no rank acknowledged whose journals may still hold them."""
        blocks = np.fromiter(released, np.int64)
        by = self._acked_by[blocks - self.blocks.start]
        gone = (by == 0) | np.isin(by, np.array(sorted(self._sealed), np.uint64))
        return blocks[gone].tolist()

    def want(self, rank_incarnation: int, but_for: Container[int] = ()) -> list[int]:
        """The blocks under way to this rank, ``but_for`` some: they are owed again."""
        ranks = self.table.ranks if self.table is not None else ()
        wanted = {index for index, rank in enumerate(ranks) if rank.incarnation == rank_incarnation}
        return self._send_again(
            block for block, destination in self._under_way.items() if destination in wanted and block not in but_for
        )

    def resend_all(self) -> list[int]:
        """Every block under way: they are owed again."""
        return self._send_again(self._under_way)

    def _send_again(self, blocks: Iterable[int]) -> list[int]:
        again = sorted(blocks)
        for block in again:
            self._set(block, _OWED)
        return again

    def _state(self, block: int) -> bytes:
        index = block - self.blocks.start
        return bytes(self._states[index : index + 1])

    def _set(self, block: int, state: bytes) -> None:
        index = block - self.blocks.start
        self._states[index] = state[0]
        self._under_way.pop(block, None)
        if state == _OWED:
            self._first_owed = min(self._first_owed, index)

    def _count_released(self, blocks: list[int]) -> None:
        self._released.add(blocks)
        self._released_count += len(blocks)

    def is_released(self, block: int) -> bool:
        return self._state(block) == _RELEASED

    def is_lowest(self, block: int) -> bool:
        """Whether every block before ``block``, which is owed, is released."""
        return block == self.next_block() and block < min(self._under_way, default=self.blocks.stop)

    @property
    def released(self) -> int:
        return self._released_count

    @property
    def under_way(self) -> int:
        return len(self._under_way)

    @property
    def owed(self) -> int:
        """Blocks that are still to be sent, or to be sent again."""
        return len(self.blocks) - self._released_count - len(self._under_way)

    @property
    def is_complete(self) -> bool:
        """Nothing is owed and nothing under way. Acknowledged blocks may still come to be owed again."""
        return self._released_count == len(self.blocks)
