"""What a producer hears from etcd, from signals, and in reply to its own questions."""

from typing import NamedTuple
from uuid import UUID

from mpistream.control.coordination import Change
from mpistream.control.registry import AggregatorEntry
from mpistream.model.job_share import JobShare
from mpistream.model.routing_table import RoutingTable


class Stop(NamedTuple):
    """This process is asked to end."""


class ScanChange(NamedTuple):
    change: Change


class NewTable(NamedTuple):
    table: RoutingTable


class Aggregators(NamedTuple):
    """Those that are registered now."""

    entries: list[AggregatorEntry]


class CaughtUp(NamedTuple):
    """What etcd said when it was asked for the ``question``-th time."""

    question: int
    table: RoutingTable | None
    shares: dict[UUID, dict[str, JobShare]]


News = Stop | ScanChange | NewTable | Aggregators | CaughtUp
