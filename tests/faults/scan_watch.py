"""What becomes of one scan, as anybody sees it in etcd: when it moved on, and under which MPI jobs."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.deployment import Deployment

_FINAL = ("committed", "incomplete", "aborted", "failed")


@dataclass
class ScanWatch:
    """Looks for the scan with that ``output`` that is announced after ``since_revision``, and then at it.

    ``moves``  when something moved, in seconds of the monotonic clock, and what
    ``jobs``   the MPI jobs that were registered, and when each was seen first
    """

    deployment: Deployment
    output: Path
    since_revision: int
    uid: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    stored: dict[str, Any] = field(default_factory=dict)
    moves: list[tuple[float, str]] = field(default_factory=list)
    jobs: dict[str, float] = field(default_factory=dict)
    announced_at: float | None = None
    _progress: Any = None

    def look(self) -> None:
        """Nothing comes of it while etcd does not answer."""
        if not self.uid and not self._find():
            return
        stored = self.deployment.view.read(f"scans/{self.uid}/", f"progress/{self.uid}", "groups/", "conductor")
        if stored is None:
            return
        now = time.monotonic()
        self.stored = stored.values
        for key in stored.below("groups/"):
            self.jobs.setdefault(key.partition("/")[0], now)
        status = stored.values.get(f"scans/{self.uid}/state", self.status)
        if status.get("state") != self.state:
            self.moves.append((now, status["state"]))
        progress = stored.values.get(f"progress/{self.uid}")
        if progress != self._progress:
            self.moves.append((now, f"progress {progress.get('blocks') if progress else None}"))
        self.status, self._progress = status, progress

    def _find(self) -> bool:
        stored = self.deployment.view.read("scans/", since_revision=self.since_revision)
        for key, value in (stored.values if stored else {}).items():
            if key.endswith("/record") and value.get("output") == str(self.output):
                self.uid, self.record, self.announced_at = key.split("/")[1], value, time.monotonic()
        return bool(self.uid)

    @property
    def state(self) -> str:
        return str(self.status.get("state", ""))

    @property
    def is_final(self) -> bool:
        return self.state in _FINAL

    @property
    def share_counted(self) -> float:
        """Of its blocks, as its progress says."""
        if not self._progress:
            return 0.0
        first, last, per_block = (self.record[name] for name in ("first_frame", "last_frame", "block_frames"))
        return float(self._progress["blocks"] / (last // per_block - first // per_block + 1))

    @property
    def journals(self) -> Path | None:
        """The folder, once it is known where it is."""
        return Path(self.record["journals"]) if self.record.get("journals") else None

    def when(self, state: str) -> float | None:
        return next((moment for moment, what in self.moves if what == state), None)

    def problems(self) -> list[str]:
        """What the scan says of itself that hinders it: in its state, or in the shares of its jobs."""
        shares = [value for key, value in self.stored.items() if f"/{self.uid}/shares/" in f"/{key}"]
        found = [self.status.get("reason", ""), *(share.get("problem", "") for share in shares)]
        return [problem for problem in found if problem]

    def silence_after(self, begin: float, end: float) -> float | None:
        """The longest time without a move that began between ``begin`` and ``end``, or lasted at ``begin``.

        None where the scan did not move any more after ``begin``: it had ended before.
        """
        later = [moment for moment, _ in self.moves if moment > begin]
        if not later:
            return None
        starts = [begin, *later[:-1]]
        return max(stop - start for start, stop in zip(starts, later, strict=True) if start < end)
