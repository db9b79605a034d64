"""What a producer hears from etcd, from signals, and in reply to its own questions."""

from typing import NamedTuple
from uuid import UUID

from mpistream.control.coordination import Change
from mpistream.control.registry import AggregatorEntry
from mpistream.model.job_share import JobShare
from mpistream.model.routing_table import RoutingTable
from mpistream.pipeline.producing.camera_scans import Opening


class Stop(NamedTuple):
    """This process is asked to end."""


class ScanChange(NamedTuple):
    change: Change


class NewTable(NamedTuple):
    table: RoutingTable


class Aggregators(NamedTuple):
    """Those that are registered now."""

    entries: list[AggregatorEntry]


class CameraChange(NamedTuple):
    """Of a scan that the camera announced by sending it."""

    change: Change


class CameraRefusal(NamedTuple):
    """Why a scan of the camera was not announced."""

    opening: Opening
    reason: str


class CaughtUp(NamedTuple):
    """What etcd said when it was asked for the ``question``-th time."""

    question: int
    table: RoutingTable | None
    shares: dict[UUID, dict[str, JobShare]]


News = Stop | ScanChange | NewTable | Aggregators | CameraChange | CameraRefusal | CaughtUp
