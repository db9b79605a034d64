"""What stands in etcd of the scans that the camera announces by sending them. docs/control.md lists the keys."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from mpistream.control.coordination import Change, Coordination, Watch
from mpistream.control.expected_scans import ExpectedScan, ExpectedScans, expected_key, holder_key
from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.model.scan import ScanRecord

_log = logging.getLogger(__name__)


@dataclass
class CameraGeneration:
    """One of the scans that had this number of the camera. ``ended``: sector -> when it had ended, in Unix seconds."""

    scan_number: int
    generation: int
    uid: UUID | None = None
    ended: dict[int, float] = field(default_factory=dict)


class CameraGenerations:
    """All of them, as far as etcd has told."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], CameraGeneration] = {}
        self._latest: dict[int, int] = {}

    def take(self, change: Change) -> CameraGeneration | None:
        """Takes in a change of a key below ``camera/``; returns the generation that it is about."""
        key, value = change
        try:
            return self._take(key.split("/"), value)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            _log.error("ignored camera/%s in etcd: %r", key, error)
            return None

    def _take(self, parts: list[str], value: Any) -> CameraGeneration | None:
        number, generation, what = int(parts[0]), int(parts[1]), parts[2]
        if value is None:
            self._known.pop((number, generation), None)
            return None
        known = self._known.setdefault((number, generation), CameraGeneration(number, generation))
        if what == "scan":
            known.uid = UUID(value["uid"])
            self._latest[number] = max(generation, self._latest.get(number, 0))
        elif what == "ended":
            known.ended[int(parts[3])] = float(value["unix_seconds"])
        return known

    def get(self, scan_number: int, generation: int) -> CameraGeneration | None:
        return self._known.get((scan_number, generation))

    def latest(self, scan_number: int) -> CameraGeneration | None:
        """The one that began last of those with this number."""
        return self._known.get((scan_number, self._latest.get(scan_number, 0)))


class CameraRegistry:
    """These keys of one deployment."""

    def __init__(self, coordination: Coordination) -> None:
        self._etcd = coordination
        self.expected = ExpectedScans(coordination)

    def announce(self, generation: int, record: ScanRecord, taken: ExpectedScan | None = None) -> bool:
        """Announces the ``generation``-th scan of its number, unless somebody has. False where its session has been
        stopped, or where ``taken``, which it takes from who expects it, is expected no longer: then nothing is written.
        """
        scan = f"scans/{record.uid}/"
        values = {
            f"camera/{record.scan_number}/{generation}/scan": {"uid": str(record.uid)},
            scan + "state": ScanStatus(ScanState.ANNOUNCED, time.time()).to_json(),
            scan + "record": record.model_dump(mode="json"),
        }
        written = self._etcd.create_all(
            values,
            without=[f"sessions/{record.session}/stop"] if record.session else [],
            beside=[holder_key(taken.holder)] if taken else [],
            instead_of=[expected_key(taken.uid)] if taken else [],
        )
        return written or self._etcd.get(f"camera/{record.scan_number}/{generation}/scan") is not None

    def write_ended(self, scan_number: int, generation: int, sector: int, how: str) -> None:
        """The first end of a sector holds."""
        value = {"how": how, "unix_seconds": time.time()}
        self._etcd.create(f"camera/{scan_number}/{generation}/ended/{sector}", value)

    def watch(self, on_change: Callable[[Change], None]) -> Watch:
        """Reports ``NUMBER/GENERATION/scan`` and ``NUMBER/GENERATION/ended/SECTOR``."""
        return self._etcd.watch("camera/", on_change)
