"""Scans that batch jobs expect of the camera: the next one that it begins is the first of them.

What stands in etcd of that; docs/control.md lists the keys.
"""

import logging
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mpistream.control.coordination import Coordination, Registration
from mpistream.control.process_identity import this_process
from mpistream.model.scan import CountingParameters, Durability
from mpistream.model.session import Mode
from mpistream.model.virtual_images import VirtualDetectors

_log = logging.getLogger(__name__)


class ExpectedScan(BaseModel):
    """What the record of the camera's scan will say beside what the camera does; ``uid`` becomes that of the scan.

    holder                who expects it, for as long as ``expecting/HOLDER`` stands
    until_unix_seconds    when the time limit of its batch job ends; None where that is not known, or there is none
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uid: UUID
    holder: str
    batch_job: str
    mode: Mode
    since_unix_seconds: float
    until_unix_seconds: float | None = None
    output: str
    overwrite: bool = False
    journals: str
    durability: Durability
    counting: CountingParameters
    detectors: VirtualDetectors = VirtualDetectors()
    recording: bool = False
    session: str = ""
    labels: dict[str, str | int | float] = Field(default_factory=dict)
    references: dict[str, str] = Field(default_factory=dict)

    @property
    def in_words(self) -> str:
        return f"batch job {self.batch_job} ({self.mode}) waits for the camera's next scan -> {self.output}"


class ExpectedScans:
    """Those of one deployment. An expectation is written once, and goes when a scan takes it, or who wrote it."""

    def __init__(self, coordination: Coordination) -> None:
        self._etcd = coordination

    def register(self, holder: str, lease_seconds: int) -> Registration:
        """What ``holder`` expects counts for as long as this is there."""
        return self._etcd.register(holder_key(holder), {"process": this_process()}, lease_seconds)

    def expect(self, scan: ExpectedScan) -> None:
        """Again for one that stands, or that a scan has taken, changes nothing."""
        taken = f"scans/{scan.uid}/record"
        self._etcd.create_all({expected_key(scan.uid): scan.model_dump(mode="json")}, without=[taken])

    def withdraw(self, scan: ExpectedScan) -> None:
        self._etcd.delete(expected_key(scan.uid))

    def waiting(self) -> list[ExpectedScan]:
        """In the order in which scans take them; without those whose holders are gone."""
        holders = self._etcd.get_prefix(holder_key(""))
        found = []
        for key, value in self._etcd.get_prefix("expected/").items():
            try:
                scan = ExpectedScan.model_validate(value)
            except ValidationError as error:
                _log.error("ignored expected/%s in etcd: %s", key, error)
                continue
            if scan.holder in holders:
                found.append(scan)
        return sorted(found, key=lambda scan: (scan.since_unix_seconds, scan.uid))


def expected_key(uid: UUID) -> str:
    return f"expected/{uid}"


def holder_key(holder: str) -> str:
    return f"expecting/{holder}"
