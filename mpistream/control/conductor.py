"""What the leader of an MPI job decides: a scan's way from announced to committed. Pure: no clock, socket or etcd."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from mpistream.control.run_state import ScanState
from mpistream.model.errors import MpistreamError, ScanFailed
from mpistream.model.geometry import SECTORS
from mpistream.model.job_messages import JobMessage, JobMessageKind
from mpistream.model.scan import CountingParameters, ScanRecord, ScanSummary, SectorEnd, Thresholds

_log = logging.getLogger(__name__)

#: From block number -> packed statistics: the thresholds and the packed sample; None while blocks are wanting.
FitThresholds = Callable[[Mapping[int, bytes], ScanRecord], tuple[Thresholds, bytes] | None]


class Outputs(Protocol):
    """What a decision leads to."""

    def tell_ranks(self, kind: JobMessageKind, fields: dict[str, Any], binary: bytes = b"") -> None: ...
    def set_state(self, uid: UUID, state: ScanState, error: MpistreamError | None = None) -> bool: ...
    def write_thresholds(self, uid: UUID, thresholds: Thresholds) -> None: ...
    def write_summary(self, uid: UUID, summary: ScanSummary) -> None: ...


@dataclass
class _Scan:
    record: ScanRecord
    state: ScanState = ScanState.ANNOUNCED
    ready: set[int] = field(default_factory=set)
    drained: set[int] = field(default_factory=set)
    ends: dict[int, SectorEnd] = field(default_factory=dict)
    samples: dict[int, bytes] = field(default_factory=dict)
    thresholds: Thresholds | None = None


class Conductor:
    """Takes every scan of a job through its states as the news comes in, in whatever order it comes."""

    def __init__(self, ranks: int, fit: FitThresholds, outputs: Outputs) -> None:
        self._ranks = ranks
        self._fit = fit
        self._outputs = outputs
        self._scans: dict[UUID, _Scan] = {}

    @property
    def unfinished(self) -> list[UUID]:
        return list(self._scans)

    def announced(self, record: ScanRecord) -> None:
        self._scans[record.uid] = _Scan(record)
        self._outputs.tell_ranks(JobMessageKind.PREPARE, {"record": record.model_dump(mode="json")})
        if record.counting.thresholds_are_given:
            self._set_thresholds(self._scans[record.uid], given_thresholds(record.counting))

    def told(self, message: JobMessage) -> None:
        """A rank's news about a scan."""
        scan = self._scans.get(UUID(message.fields["uid"]))
        if scan is None:
            return
        match message.kind:
            case JobMessageKind.READY:
                scan.ready.add(message.rank)
                self._start_next()
            case JobMessageKind.SAMPLE:
                scan.samples[int(message.fields["block"])] = message.binary
                self._calibrate(scan)
            case JobMessageKind.DRAINED:
                scan.drained.add(message.rank)
                self._drain(scan)
            case JobMessageKind.FAULT:
                self.failed(scan.record.uid, ScanFailed(message.fields["message"], message.fields["remedy"]))

    def ended(self, uid: UUID, end: SectorEnd) -> None:
        """A producer has sent its last block."""
        if scan := self._scans.get(uid):
            scan.ends[end.sector] = end
            self._drain(scan)

    def failed(self, uid: UUID, error: MpistreamError) -> None:
        """Ends a scan without a dataset: something went wrong."""
        self._end_early(uid, ScanState.FAILED, error)

    def aborted(self, uid: UUID, reason: MpistreamError) -> None:
        """Ends a scan without a dataset: somebody asked for it."""
        self._end_early(uid, ScanState.ABORTED, reason)

    def assembly_failed(self, uid: UUID, error: MpistreamError) -> None:
        """The dataset could not be written."""
        if uid in self._scans:
            self._end(uid, ScanState.FAILED, error)

    def _end_early(self, uid: UUID, state: ScanState, error: MpistreamError) -> None:
        """Once a scan is being written it is finished: all of it has arrived, whoever has gone meanwhile."""
        if uid in self._scans and self._scans[uid].state is not ScanState.ASSEMBLING:
            self._end(uid, state, error)

    def _end(self, uid: UUID, state: ScanState, error: MpistreamError) -> None:
        del self._scans[uid]
        self._outputs.set_state(uid, state, error)
        self._outputs.tell_ranks(JobMessageKind.DISCARD, {"uid": str(uid)})
        self._start_next()

    def _start_next(self) -> None:
        """One scan streams at a time, in the order of announcement: two could fill each other's windows and wait."""
        scans = self._scans.values()
        if any(scan.state is ScanState.STREAMING for scan in scans):
            return
        ready = (scan for scan in scans if scan.state is ScanState.ANNOUNCED and len(scan.ready) == self._ranks)
        scan = next(ready, None)
        if scan is not None and self._advance(scan, ScanState.STREAMING):
            self._drain(scan)

    def assembled(self, uid: UUID, summary: ScanSummary) -> None:
        """The dataset has its final name."""
        if uid in self._scans:
            self._outputs.write_summary(uid, summary)
            self._advance(self._scans.pop(uid), ScanState.COMMITTED)

    def _advance(self, scan: _Scan, state: ScanState) -> bool:
        """False, and the scan is let go of, where somebody else has ended it."""
        scan.state = state
        if self._outputs.set_state(scan.record.uid, state):
            return True
        _log.warning("scan %s was ended by somebody else before it became %s", scan.record.uid, state)
        if self._scans.pop(scan.record.uid, None):
            self._outputs.tell_ranks(JobMessageKind.DISCARD, {"uid": str(scan.record.uid)})
            self._start_next()
        return False

    def _calibrate(self, scan: _Scan) -> None:
        if scan.thresholds is not None:
            return
        try:
            fitted = self._fit(scan.samples, scan.record)
        except MpistreamError as error:
            self.failed(scan.record.uid, error)
            return
        if fitted is not None:
            self._set_thresholds(scan, *fitted)

    def _set_thresholds(self, scan: _Scan, thresholds: Thresholds, sample: bytes = b"") -> None:
        scan.thresholds = thresholds
        scan.samples.clear()
        self._outputs.write_thresholds(scan.record.uid, thresholds)
        fields = {"uid": str(scan.record.uid), "thresholds": thresholds.model_dump(mode="json")}
        self._outputs.tell_ranks(JobMessageKind.THRESHOLDS, fields, sample)

    def _drain(self, scan: _Scan) -> None:
        if scan.state is ScanState.STREAMING and len(scan.ends) == SECTORS:
            if not self._advance(scan, ScanState.DRAINING):
                return
            self._start_next()
        all_counted = scan.state is ScanState.DRAINING and len(scan.drained) == self._ranks
        if all_counted and self._advance(scan, ScanState.ASSEMBLING):
            ends = [scan.ends[sector].model_dump(mode="json") for sector in sorted(scan.ends)]
            self._outputs.tell_ranks(JobMessageKind.ASSEMBLE, {"uid": str(scan.record.uid), "ends": ends})


def given_thresholds(counting: CountingParameters) -> Thresholds:
    """The thresholds that the scan's record itself holds."""
    assert counting.background is not None
    assert counting.xray is not None
    return Thresholds(
        background=counting.background,
        xray=counting.xray,
        row_dark_level=counting.row_dark_level,
        calibrated=False,
    )
