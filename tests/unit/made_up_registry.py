"""The registry as tests need it: what is registered is a list, and etcd may be away."""

from dataclasses import dataclass, field
from uuid import UUID

from mpistream.control.registry import AggregatorEntry, GroupEntry, ProducerEntry
from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.model.errors import EtcdUnreachable, MpistreamError
from mpistream.model.geometry import SECTORS
from mpistream.model.routing_table import RankEndpoints, RoutingTable
from mpistream.model.scan import ScanRecord

RANK = RankEndpoints(0, 0, "node", 100, 5, "tcp://a:1", "tcp://b:1")
TABLE = RoutingTable(1, "job", (RANK,))


@dataclass
class MadeUpRegistry:
    """One rank's job, a producer for each sector and an aggregator. Nobody's lease is longer than 5 s."""

    is_away: bool = False
    lease_seconds: int = 5
    jobs: list[str] = field(default_factory=lambda: ["job"])
    sectors: list[int] = field(default_factory=lambda: list(range(SECTORS)))
    names: list[str] = field(default_factory=lambda: ["aggregator"])
    announced: list[ScanRecord] = field(default_factory=list)
    states: list[tuple[UUID, ScanState]] = field(default_factory=list)
    faults: list[tuple[UUID, str, str]] = field(default_factory=list)

    def _ask(self) -> None:
        if self.is_away:
            raise EtcdUnreachable("no etcd reachable")

    def routing(self, version: int) -> RoutingTable:
        self._ask()
        return TABLE

    def latest_routing(self) -> RoutingTable:
        return self.routing(1)

    def groups(self) -> list[GroupEntry]:
        self._ask()
        return [GroupEntry(job, 0, "node", (RANK,)) for job in self.jobs]

    def producers(self) -> list[ProducerEntry]:
        self._ask()
        return [ProducerEntry(sector, sector, "camera", 7, 5) for sector in self.sectors]

    def aggregators(self) -> list[AggregatorEntry]:
        self._ask()
        return [AggregatorEntry(name, "edge", 8, "tcp://c:1", "tcp://c:2") for name in self.names]

    def announce(self, record: ScanRecord) -> None:
        self.announced.append(record)

    def status(self, uid: UUID) -> ScanStatus:
        self._ask()
        return ScanStatus(ScanState.ANNOUNCED, 1.5e9)

    def set_state(self, uid: UUID, state: ScanState, error: MpistreamError | None = None) -> bool:
        self.states.append((uid, state))
        return True

    def write_thresholds(self, uid: UUID, thresholds: object) -> None:
        """Nobody asks for them."""

    def write_fault(self, uid: UUID, who: str, error: MpistreamError) -> None:
        self.faults.append((uid, who, error.message))
