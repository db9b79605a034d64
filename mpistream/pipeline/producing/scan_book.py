"""What etcd says of the scans that a producer may have to serve: no more than it needs, and only while they last."""

import logging
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from mpistream.control.coordination import Change
from mpistream.control.run_state import UNDER_WAY, ScanState, ScanStatus
from mpistream.control.scan_facts import ScanFacts
from mpistream.model.job_share import JobShare
from mpistream.model.scan import ScanRecord

_log = logging.getLogger(__name__)

_OVER = (ScanState.ASSEMBLING, *(state for state in ScanState if state.is_final))
_FOLLOWED = ("record", "ends", "shares")


class ScanBook:
    """Follows the keys of all scans for the producer of one sector."""

    def __init__(self, sector: int) -> None:
        self._sector = sector
        self._scans: dict[UUID, ScanFacts] = {}
        self.over: set[UUID] = set()

    def to_be_served(self) -> list[ScanFacts]:
        """In the order in which they are."""
        return sorted(filter(self._is_to_be_served, self._scans.values()), key=_turn)

    def next_to_stream(self) -> ScanRecord | None:
        """The scan that comes next, as far as is known: of those that are announced the first."""
        announced = [
            scan.record
            for scan in self._scans.values()
            if scan.record is not None and scan.state is ScanState.ANNOUNCED
        ]
        return min(announced, key=lambda record: (record.announced_unix_seconds, record.uid), default=None)

    def _is_to_be_served(self, scan: ScanFacts) -> bool:
        end = scan.ends.get(self._sector)
        return scan.record is not None and scan.state in UNDER_WAY and (end is None or not end.cut)

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
        except (ValueError, KeyError, TypeError) as error:
            _log.error("ignored scans/%s in etcd: %r", key, error)
            return None

    def _take(self, uid: UUID, what: str, value: Any) -> UUID | None:
        if what == "state":
            self._take_state(uid, value)
            return None
        kind = what.partition("/")[0]
        if uid in self.over or value is None or kind not in _FOLLOWED:  # what goes, goes with its scan
            return None
        self._facts(uid).take(what, value)
        return uid if kind == "shares" else None

    def _take_state(self, uid: UUID, value: Any) -> None:
        if value is None:
            self._scans.pop(uid, None)
            self.over.discard(uid)
        elif ScanStatus.from_json(value).state in _OVER:
            self._scans.pop(uid, None)
            self.over.add(uid)
        elif uid not in self.over:
            self._facts(uid).take("state", value)

    def _facts(self, uid: UUID) -> ScanFacts:
        return self._scans.setdefault(uid, ScanFacts(uid))


def _turn(scan: ScanFacts) -> tuple[bool, float, UUID]:
    """What scans are sorted by, alike by all producers: the order in which they began to stream.

    The next one begins once the one before is draining.
    """
    assert scan.status is not None
    return scan.state is ScanState.STREAMING, scan.status.since_unix_seconds, scan.uid


def _progress(share: JobShare) -> tuple[bool, int]:
    """A share only grows, until it is sealed."""
    return share.sealed, len(share.blocks)
