"""What the conducting job does with the scans of a deployment. What to do is decided in control/decisions.py."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from mpistream.control.coordination import Registration
from mpistream.control.decisions import (
    Assemble,
    Become,
    Cut,
    PinThresholds,
    Step,
    TidyUp,
    final_reason,
    final_state,
    next_step,
)
from mpistream.control.registry import Registry
from mpistream.control.run_state import UNDER_WAY, ScanState, ScanStatus, keeps_journals
from mpistream.model.errors import CoordinationError, EtcdUnreachable, MpistreamError
from mpistream.model.fault_points import reach
from mpistream.model.job_messages import JobMessageKind
from mpistream.model.scan import SectorEnd, Thresholds
from mpistream.pipeline.leading.deployment import Deployment
from mpistream.pipeline.leading.job_scan import JobScan
from mpistream.reduction.calibration import fit_sample
from mpistream.storage.journal import SAMPLE_FILE

_log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 0.25

TellRanks = Callable[[JobMessageKind, dict[str, Any], bytes], None]


class Conducting:
    """Takes every scan through its states, while this job has the role.

    Every method may raise EtcdUnreachable; whatever was not done is done in a later turn.
    """

    def __init__(self, registry: Registry, deployment: Deployment, incarnation: int, tell_ranks: TellRanks) -> None:
        self._registry = registry
        self._deployment = deployment
        self._incarnation = incarnation
        self._tell = tell_ranks
        self._progress_written = 0.0

    def turn(self, scans: Mapping[UUID, JobScan], now: float) -> None:
        role = self._deployment.role
        if role is None or self._deployment.table is None or not self._deployment.is_up_to_date:
            return
        for scan in sorted(scans.values(), key=_announced):
            try:
                self._advance(role, scan, scans, now)
            except EtcdUnreachable:
                raise
            except (ValueError, KeyError, TypeError, CoordinationError) as error:
                # a value written by hand, or by another release: no reason to end a job
                _log.error("scan %s: %r", scan.uid, error)
        self._write_progress(scans, now)

    def _advance(self, role: Registration, scan: JobScan, scans: Mapping[UUID, JobScan], now: float) -> None:
        """Takes one scan as far as it goes for the moment."""
        if scan.summary is not None:
            self._commit(role, scan)
        elif scan.error is not None:
            self._note_failure(role, scan)
        table, gone = self._deployment.table, self._deployment.gone_sectors
        assert table is not None
        others_stream = any(other.facts.state is ScanState.STREAMING for other in scans.values() if other is not scan)
        while not scan.assembling:
            step = next_step(scan.facts, table, not others_stream, gone, scan.job)
            if step is None or not self._take_step(role, scan, step, now):
                return

    def _take_step(self, role: Registration, scan: JobScan, step: Step, now: float) -> bool:
        """True where the next step may follow at once."""
        match step:
            case Become(state, error):
                return self._become(role, scan, state, error)
            case PinThresholds(with_less):
                return self._pin_thresholds(role, scan, with_less)
            case Cut(sector, reason):
                self._cut(scan, sector, reason)
                return True
            case Assemble():
                self._assemble(scan, now)
                return False
            case TidyUp():
                self._tidy_up(scan)
                return False

    def _become(self, role: Registration, scan: JobScan, state: ScanState, error: MpistreamError | None = None) -> bool:
        """False where somebody else was faster, or another job conducts."""
        assembles = state is ScanState.ASSEMBLING and scan.facts.state is not state
        if assembles:
            reach("leader.before-assembling")
        if not self._registry.set_state(scan.uid, state, error, role):
            self._deployment.was_overtaken()
            return False
        reasons = (error.message, error.remedy) if error else ("", "")
        keeps = scan.facts.state is not None and keeps_journals(scan.facts.state, state)
        scan.facts.status = ScanStatus(state, time.time(), *reasons, keeps_journals=keeps)
        _log.info("scan %s: %s%s", scan.uid, state, f" ({error.message})" if error else "")
        if assembles:
            reach("leader.after-assembling")
        return True

    def _pin_thresholds(self, role: Registration, scan: JobScan, with_less: bool) -> bool:
        record = scan.facts.record
        assert record is not None
        if record.counting.thresholds_are_given:
            thresholds = Thresholds.given(record.counting)
        else:
            try:
                fitted = fit_sample(scan.samples, record, with_less)
            except MpistreamError as error:
                return self._become(role, scan, ScanState.FAILED, error)
            if fitted is None:
                return False
            thresholds, scan.sample = fitted
            self._keep_sample(scan)
        reach("leader.before-thresholds")
        scan.facts.thresholds = self._registry.write_thresholds(scan.uid, thresholds)
        reach("leader.after-thresholds")
        scan.samples.clear()
        self._deployment.look_again()  # the ranks wait for them
        return True

    def _keep_sample(self, scan: JobScan) -> None:
        """For the dataset, should another job write it. Without it only the histogram is wanting there."""
        assert scan.facts.record is not None
        folder = Path(scan.facts.record.journals)
        try:
            if folder.is_dir():
                (folder / SAMPLE_FILE).write_bytes(scan.sample)
        except OSError as error:
            _log.warning("the sample of scan %s cannot be kept: %s", scan.uid, error)

    def _cut(self, scan: JobScan, sector: int, reason: str) -> None:
        end = SectorEnd.cut_short(sector, reason)
        if self._registry.write_end(scan.uid, end):
            _log.warning("scan %s: %s", scan.uid, reason)
            scan.facts.ends[sector] = end
        else:
            scan.facts.ends.update(self._registry.ends(scan.uid))

    # datasets

    def _assemble(self, scan: JobScan, now: float) -> None:
        facts = scan.facts
        if now < scan.retry_at or not scan.written or not scan.written.ready or not scan.thresholds_told:
            return
        order = {
            "uid": str(scan.uid),
            "ends": [facts.ends[sector].model_dump(mode="json") for sector in sorted(facts.ends)],
            "journals": scan.journals_to_read(),
            "output": facts.target,
            "attempt": f"{self._incarnation}-{scan.attempts}",
        }
        scan.assembling, scan.attempts = True, scan.attempts + 1
        self._tell(JobMessageKind.ASSEMBLE, order, b"")

    def _commit(self, role: Registration, scan: JobScan) -> None:
        """The commit record, then the state. Whoever takes over before that finds the dataset by the scan's uid."""
        assert scan.summary is not None
        self._registry.write_summary(scan.uid, scan.summary)
        reach("leader.before-commit")
        self._become(role, scan, final_state(scan.facts, scan.summary), final_reason(scan.facts, scan.summary))
        reach("leader.after-commit")
        scan.summary = None

    def _note_failure(self, role: Registration, scan: JobScan) -> None:
        assert scan.error is not None
        if scan.can_be_tried_again:
            self._become(role, scan, ScanState.ASSEMBLING, scan.error)
        else:
            self._become(role, scan, ScanState.FAILED, scan.error)
        scan.error = None

    def _tidy_up(self, scan: JobScan) -> None:
        facts = scan.facts
        assert facts.record is not None
        if facts.record.journals and not facts.keeps_journals:
            shutil.rmtree(facts.record.journals, ignore_errors=True)
        self._registry.delete_shares(scan.uid)
        facts.shares.clear()

    def _write_progress(self, scans: Mapping[UUID, JobScan], now: float) -> None:
        if now - self._progress_written < _PROGRESS_SECONDS:
            return
        self._progress_written = now
        for scan in scans.values():
            if scan.facts.state in (*UNDER_WAY, ScanState.ASSEMBLING):
                shares = scan.facts.shares.values()
                names = ("frames", "electrons", "raw_bytes", "frames_incomplete")
                total = {name: sum(share.totals.get(name, 0) for share in shares) for name in names}
                self._registry.write_progress(scan.uid, {"blocks": len(scan.facts.blocks_journaled), **total})


def _announced(scan: JobScan) -> float:
    return scan.facts.record.announced_unix_seconds if scan.facts.record else 0.0
