"""What etcd says of the scans that a producer may have to serve: no more than it needs, and only while they last."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from mpistream.control.coordination import Change
from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.model.job_share import JobShare
from mpistream.model.scan import ScanRecord, SectorEnd

_log = logging.getLogger(__name__)

_SERVED = (ScanState.STREAMING, ScanState.DRAINING)
_OVER = (ScanState.ASSEMBLING, *(state for state in ScanState if state.is_final))


@dataclass
class ScanFacts:
    """One scan. ``end`` is the end record of the producer's sector, ``shares`` are those of the jobs."""

    uid: UUID
    record: ScanRecord | None = None
    status: ScanStatus | None = None
    end: SectorEnd | None = None
    shares: dict[str, JobShare] = field(default_factory=dict)

    @property
    def is_to_be_served(self) -> bool:
        is_cut = self.end is not None and self.end.cut != ""
        return self.record is not None and self.status is not None and self.status.state in _SERVED and not is_cut

    @property
    def turn(self) -> tuple[bool, float, UUID]:
        """What scans are sorted by, alike by all producers: the order in which they began to stream.

        The next one begins once the one before is draining.
        """
        assert self.status is not None
        return self.status.state is ScanState.STREAMING, self.status.since_unix_seconds, self.uid


class ScanBook:
    """Follows the keys of all scans for the producer of one sector."""

    def __init__(self, sector: int) -> None:
        self._end_key = f"ends/{sector}"
        self._scans: dict[UUID, ScanFacts] = {}
        self.over: set[UUID] = set()

    def to_be_served(self) -> list[ScanFacts]:
        """In the order in which they are."""
        return sorted((scan for scan in self._scans.values() if scan.is_to_be_served), key=lambda scan: scan.turn)

    def get(self, uid: UUID) -> ScanFacts | None:
        """None for a scan that is over."""
        return self._scans.get(uid)

    def learn(self, uid: UUID, shares: Mapping[str, JobShare]) -> None:
        """Shares as they were read in between: those that are behind what changes have told are left out."""
        known = self._scans[uid].shares if uid in self._scans else {}
        for job, share in shares.items():
            if job not in known or _progress(share) > _progress(known[job]):
                known[job] = share

    def take(self, change: Change) -> UUID | None:
        """Takes in a change of a key below ``scans/``; returns the scan whose shares it changed."""
        key, value = change
        name, _, what = key.partition("/")
        try:
            return self._take(UUID(name), what, value)
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            _log.error("ignored scans/%s in etcd: %r", key, error)
            return None

    def _take(self, uid: UUID, what: str, value: Any) -> UUID | None:
        if what == "state":
            self._take_state(uid, None if value is None else ScanStatus.from_json(value))
            return None
        if uid in self.over or value is None:  # what goes, goes with its scan
            return None
        if what == "record":
            self._facts(uid).record = ScanRecord.model_validate(value)
        elif what == self._end_key:
            self._facts(uid).end = SectorEnd.model_validate(value)
        elif what.startswith("shares/"):
            self._facts(uid).shares[what.removeprefix("shares/")] = JobShare.from_json(value)
            return uid
        return None

    def _take_state(self, uid: UUID, status: ScanStatus | None) -> None:
        if status is None:
            self._scans.pop(uid, None)
            self.over.discard(uid)
        elif status.state in _OVER:
            self._scans.pop(uid, None)
            self.over.add(uid)
        elif uid not in self.over:
            self._facts(uid).status = status

    def _facts(self, uid: UUID) -> ScanFacts:
        return self._scans.setdefault(uid, ScanFacts(uid))


def _progress(share: JobShare) -> tuple[bool, int]:
    """A share only grows, until it is sealed."""
    return share.sealed, len(share.blocks)
