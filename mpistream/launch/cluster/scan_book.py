"""The scans of a deployment as a batch job sees them: which are under way, and what has become of them."""

from typing import Any
from uuid import UUID

from mpistream.control.coordination import Change, Watch
from mpistream.control.registry import Registry
from mpistream.control.run_state import ScanState
from mpistream.control.scan_facts import ScanFacts
from mpistream.launch.inspection import KnownScan
from mpistream.launch.scan_follower import in_words
from mpistream.model.errors import CoordinationError
from mpistream.model.scan import ScanSummary
from mpistream.transport.mailbox import Mailbox

_TOLD_STATES = (ScanState.STREAMING, ScanState.ASSEMBLING)


class ScanBook:
    """Kept up by a watch on etcd: what has come is taken in by ``news``. While etcd is away it stays as it was."""

    def __init__(self, registry: Registry) -> None:
        self.scans: dict[UUID, KnownScan] = {}
        self._news: Mailbox[Change] = Mailbox()
        self._told: dict[UUID, str] = {}
        self._registry = registry
        self._watch: Watch = registry.watch_scans(self._news.put)
        self._take_all()
        for scan in self.scans.values():
            if not scan.facts.is_unfinished:
                self._told[scan.facts.uid] = self._sentence(scan)

    def news(self) -> list[str]:
        """What has happened since, a sentence for each scan that has gone on."""
        sentences = []
        for uid in self._take_all():
            sentence = self._sentence(self.scans[uid])
            if sentence and sentence != self._told.get(uid):
                self._told[uid] = sentence
                sentences.append(sentence)
        return sentences

    def unfinished(self, session: str | None = None) -> list[KnownScan]:
        """In the order of their announcement; those of all sessions, or of one."""
        scans = self.scans.values() if session is None else self.of_session(session)
        return sorted((scan for scan in scans if scan.facts.is_unfinished), key=_announced)

    def announced(self) -> list[KnownScan]:
        """In the order of their announcement, whatever has become of them."""
        return sorted((scan for scan in self.scans.values() if scan.facts.record), key=_announced)

    def of_session(self, session: str) -> list[KnownScan]:
        """Likewise, of one session."""
        return [scan for scan in self.announced() if scan.facts.record and scan.facts.record.session == session]

    def begun(self) -> set[UUID]:
        """The scans that are under way, of all sessions: every MPI job has its part in them."""
        return {scan.facts.uid for scan in self.unfinished() if scan.facts.state is not ScanState.ANNOUNCED}

    def begun_now(self) -> set[UUID]:
        """Likewise, as etcd has it: what the watch has not told yet is taken in. As ``begun`` where etcd is away."""
        try:
            stored = self._registry.scan_keys()
        except CoordinationError:
            return self.begun()
        for key, value in stored.items():
            self._take(key, value)
        return self.begun()

    def is_writing(self) -> bool:
        states = [scan.facts.status for scan in self.unfinished()]
        return any(status and status.state is ScanState.ASSEMBLING and not status.reason for status in states)

    def _take_all(self) -> set[UUID]:
        """The scans of which something has come."""
        changed = set()
        for key, value in self._news.take():
            if value is not None and (uid := self._take(key, value)) is not None:
                changed.add(uid)
        return changed

    def _take(self, key: str, value: Any) -> UUID | None:
        uid_text, _, what = key.partition("/")
        try:
            uid = UUID(uid_text)
            scan = self.scans.setdefault(uid, KnownScan(ScanFacts(uid)))
            if what == "summary":
                scan.summary = ScanSummary.model_validate(value)
            elif what.partition("/")[0] in ("record", "state", "output"):
                scan.facts.take(what, value)
            else:
                return None
        except (ValueError, KeyError, TypeError):
            return None  # written by hand, or by another release
        return uid

    def _sentence(self, scan: KnownScan) -> str:
        """Of its latest state; empty where that is not worth a line."""
        status, record = scan.facts.status, scan.facts.record
        if status is None or record is None:
            return ""
        if not status.state.is_final:
            text = f"scan {record.uid} is {status.state}"
            if status.reason:
                return f"{text}: waiting: {in_words(status)}"
            return f"{text}: {record.source} -> {scan.facts.target}" if status.state in _TOLD_STATES else ""
        if scan.summary is None:
            why = in_words(status)
            return f"scan {record.uid} is {status.state}, without a dataset{': ' + why if why else ''}"
        counters = scan.summary.counters
        why = f": {in_words(status)}" if status.state is not ScanState.COMMITTED else ""
        return f"scan {record.uid} is {status.state}: {scan.summary.dataset}, {counters.frames} frames{why}"

    def close(self) -> None:
        self._watch.close()
        self._news.close()


def _announced(scan: KnownScan) -> float:
    return scan.facts.record.announced_unix_seconds if scan.facts.record else 0.0
