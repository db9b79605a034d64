"""What a batch job expects of the camera: its next scans, each with an output, labels and parameters of counting."""

import logging
import time
from uuid import UUID, uuid4

from mpistream.control.coordination import Registration
from mpistream.control.expected_scans import ExpectedScan
from mpistream.control.registry import Registry
from mpistream.launch.announcement import ScanRequest, check_nobody_writes, checked_counting, journal_folder
from mpistream.model.config import Config
from mpistream.model.errors import CoordinationError, StorageError
from mpistream.model.scan import Durability
from mpistream.model.session import Mode

_log = logging.getLogger(__name__)


class Expecting:
    """What a batch job expects stands in etcd until the camera has begun that scan, and no longer than this is open."""

    def __init__(self, registry: Registry, batch_job: str, mode: Mode) -> None:
        self._registry = registry
        self._batch_job = batch_job
        self._mode = mode
        self._holder = uuid4().hex
        self._registration: Registration | None = None
        self._scans: dict[UUID, ExpectedScan] = {}

    def draft(
        self, request: ScanRequest, config: Config, until_unix_seconds: float | None
    ) -> tuple[ExpectedScan, tuple[str, ...]]:
        """What a scan of the camera will be, and notes for the user.

        Finds everything that can be wrong before the camera begins. Raises MpistreamError with the remedy.
        """
        counting, notes = checked_counting(request)
        uid, output = request.uid or uuid4(), request.output.absolute()
        scan = ExpectedScan(
            uid=uid,
            holder=self._holder,
            batch_job=self._batch_job,
            mode=self._mode,
            since_unix_seconds=self._since_unix_seconds(),
            until_unix_seconds=until_unix_seconds,
            output=str(output),
            overwrite=request.overwrite,
            journals=journal_folder(output, uid, config, request.recording),
            durability=Durability(config.journal.durability),
            counting=counting,
            detectors=config.detectors.virtual,
            recording=request.recording,
            session=request.session,
            labels=dict(request.labels),
            references=dict(request.references),
        )
        return scan, notes

    def _since_unix_seconds(self) -> float:
        """Those of one job are taken in the order in which it expects them, whatever becomes of the clock."""
        latest = max((scan.since_unix_seconds for scan in self._scans.values()), default=0.0)
        return max(time.time(), latest + 1e-3)

    def expect(self, scan: ExpectedScan) -> None:
        """From now on the camera's next scan may be this one. Raises StorageError where another scan that has not
        ended, or that is expected, is to have the output's name; EtcdUnreachable: to be tried again.
        """
        check_nobody_writes(self._registry, scan.output, scan.uid, scan.overwrite)
        for other in self._registry.expected.waiting():
            if other.output == scan.output and other.uid != scan.uid and not scan.overwrite:
                raise StorageError(
                    f"{scan.output} is the output of a scan that batch job {other.batch_job} expects of the camera",
                    f"give another output; or end that job: mpistream job cancel {other.batch_job}",
                )
        if self._registration is None:
            self._registration = self._registry.expected.register(self._holder, self._registry.lease_seconds)
        self._scans[scan.uid] = scan
        self._registry.expected.expect(scan)

    def keep(self, uid: UUID) -> None:
        """Expects the scan again, should somebody have removed what stood in etcd of it. Raises EtcdUnreachable."""
        if uid in self._scans:
            self._registry.expected.expect(self._scans[uid])

    def close(self) -> None:
        """No scan takes any of them any more; where etcd does not answer, as soon as the lease runs out."""
        for scan in self._scans.values():
            try:
                self._registry.expected.withdraw(scan)
            except CoordinationError as error:
                _log.warning("could not withdraw what was expected of the camera: %s", error.message)
                break
        self._scans.clear()
        if self._registration is not None:
            self._registration.close()
            self._registration = None
