"""What an operator asks of a scan that is under way: to end it, or to write its dataset elsewhere."""

import time
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from mpistream.acquisition.source import files_of_source
from mpistream.control.registry import Registry
from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.launch.absence import NOBODY_SECONDS, absent_groups
from mpistream.launch.inspection import KnownScan
from mpistream.model.errors import ScanFailed, SourceError
from mpistream.model.scan import ScanSummary
from mpistream.storage.small_files import check_targets

_TURN_SECONDS = 0.1


def abort_scan(
    registry: Registry, scan: KnownScan, keep: bool, patience_seconds: float
) -> tuple[ScanStatus, ScanSummary | None]:
    """Ends a scan, and waits for that: its last state, and the summary of its dataset if there is one.

    ``keep``: what has arrived becomes a dataset. Raises ScanFailed where the scan has ended already, and where it has
    not within ``patience_seconds``: the request stands all the same.
    """
    uid = scan.facts.uid
    _check_unfinished(scan)
    reason = ScanFailed("ended by the operator")
    registry.request_abort(uid, reason.message, keep=keep)
    begun = time.monotonic()
    while not (status := registry.status(uid)).state.is_final:
        waited = time.monotonic() - begun
        abort_unserved(registry, uid, status, reason, waited, keep)
        if waited > patience_seconds:
            raise ScanFailed(
                f"the scan is still {status.state} after {waited:.0f} s"
                + (f": {status.reason}" if status.reason else ""),
                "the request stands; see mpistream status",
            )
        time.sleep(_TURN_SECONDS)
    return status, registry.summary(uid)


def abort_unserved(
    registry: Registry, uid: UUID, status: ScanStatus, reason: ScanFailed, waited_seconds: float, keep: bool = False
) -> None:
    """Ends a scan that is to be aborted since ``waited_seconds``, where no MPI job is there to do it.

    Raises ScanFailed where one is needed, to write what has arrived (``keep``).
    """
    if waited_seconds <= NOBODY_SECONDS or not (absences := absent_groups(registry)):
        return
    if keep and status.state is not ScanState.ANNOUNCED:
        raise ScanFailed(
            f"the scan is {status.state}; it ends as soon as an MPI job is there to write what has arrived",
            f"{absences[0].remedy}; or give up what has arrived: mpistream scan abort {uid} --discard",
        )
    registry.set_state(uid, ScanState.ABORTED, reason)


def redirect_scan(registry: Registry, scan: KnownScan, output: Path) -> None:
    """Lets the dataset be written to ``output``. Raises StorageError, ScanFailed."""
    _check_unfinished(scan)
    record = scan.facts.record
    assert record is not None
    inputs = [Path(scan.facts.target)]
    # a scan whose dataset waits for room needs them no more: they may have been moved away to make some
    with suppress(SourceError):
        inputs += files_of_source(record.source)
    check_targets([output.absolute()], record.overwrite, inputs)
    registry.redirect(record.uid, str(output.absolute()))


def _check_unfinished(scan: KnownScan) -> None:
    status = scan.facts.status
    assert status is not None
    if status.state.is_final:
        raise ScanFailed(f"scan {scan.facts.uid} has ended already: it is {status.state}", "see mpistream scan list")
