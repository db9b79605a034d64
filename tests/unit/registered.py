"""Made-up processes of a deployment, registered in a real etcd."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from uuid import uuid4

from mpistream.control.coordination import Coordination, Registration
from mpistream.control.registry import AggregatorEntry, GroupEntry, ProducerEntry, Registry
from mpistream.model.geometry import SECTORS
from mpistream.model.protocol import Encoding
from mpistream.model.routing_table import RankEndpoints
from mpistream.model.scan import Counters, CountingParameters, ScanRecord, ScanSummary, Thresholds

RANKS = tuple(
    RankEndpoints(rank, 0, "node", 100 + rank, 5 + rank, f"tcp://a:{rank}", f"tcp://b:{rank}", "job")
    for rank in range(2)
)
EVERYTHING = ("groups/0", *(f"producers/{sector}" for sector in range(SECTORS)), "aggregators/first")


class Deployment:
    """A registry, and who is registered in it."""

    def __init__(self, etcd: Coordination, lease_seconds: int = 2) -> None:
        self.registry = Registry(etcd, lease_seconds)
        self._registrations: dict[str, Registration] = {}

    def start(self, names: Iterable[str]) -> None:
        for name in names:
            kind, _, which = name.partition("/")
            if kind == "groups":
                entry = GroupEntry("job", int(which), 1, "node", RANKS)
                self._registrations[name] = self.registry.register_group(entry)
            elif kind == "producers":
                producer = ProducerEntry(int(which), int(which), "camera", 7 + int(which), 5)
                self._registrations[name] = self.registry.register_producer(producer)
            else:
                aggregator = AggregatorEntry(which, "edge", 20, "tcp://c:1", "tcp://c:2")
                self._registrations[name] = self.registry.register_aggregator(aggregator)

    def end(self, *names: str) -> None:
        for name in names:
            self._registrations.pop(name).close()

    def close(self) -> None:
        self.end(*self._registrations)


@contextmanager
def deployment(etcd: Coordination, names: Iterable[str] = EVERYTHING) -> Iterator[Deployment]:
    made_up = Deployment(etcd)
    try:
        made_up.start(names)
        yield made_up
    finally:
        made_up.close()


def scan_record(**changes: object) -> ScanRecord:
    """64 frames in 8 blocks."""
    values: dict[str, object] = {
        "uid": uuid4(),
        "scan_number": 3,
        "rows": 8,
        "columns": 8,
        "source": "made up",
        "encoding": Encoding.RECORDS_ROWS,
        "first_frame": 0,
        "last_frame": 63,
        "block_frames": 8,
        "direct": False,
        "counting": CountingParameters(background=60.0, xray=2000.0),
        "output": "/data/scan.h5",
        "overwrite": False,
        "announced_unix_seconds": 1.5e9,
    }
    return ScanRecord.model_validate(values | changes)


def summary(**changes: object) -> ScanSummary:
    values: dict[str, object] = {
        "dataset": "/data/scan.h5",
        "scan_shape": (8, 8),
        "counters": Counters(
            frames=64,
            electrons=640,
            frames_incomplete=0,
            sectors_missing=0,
            sectors_duplicate=0,
            sectors_rejected=0,
            frames_lost=0,
            raw_bytes=42_000_000,
        ),
        "thresholds": Thresholds(background=60.0, xray=2000.0, calibrated=False),
        "file_bytes": 100_000,
        "seconds": {"streaming": 1.0},
    }
    return ScanSummary.model_validate(values | changes)
