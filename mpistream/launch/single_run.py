"""One scan with processes that live only for it."""

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mpistream.control.registry import Registry
from mpistream.launch.absence import wait_until_present
from mpistream.launch.inspection import find_scan
from mpistream.launch.scan_follower import ScanEnd
from mpistream.launch.supervisor import leave
from mpistream.launch.testbed import Testbed
from mpistream.launch.testbed_folder import TestbedFolder, TestbedState
from mpistream.model.config import Config
from mpistream.model.errors import CoordinationError, MpistreamError
from mpistream.model.scan import ScanRecord
from mpistream.storage.placement import remove_partials

_PRESENT_SECONDS = 60.0

#: Announces the scan and follows it; the last argument is to be called several times a second.
Follow = Callable[[Registry, ScanRecord, Callable[[], object]], ScanEnd]


def run_once(
    draft: ScanRecord, groups: int, ranks_per_group: int, config: Config, follow: Follow, say: Callable[[str], None]
) -> ScanEnd:
    """Starts everything, streams and counts one scan, ends everything.

    Where something goes wrong the logs are kept, and, if the scan has not ended, what is needed to go on with it:
    `mpistream testbed up --folder`.
    """
    folder = TestbedFolder(Path(tempfile.mkdtemp(prefix="mpistream-testbed-")))
    target = Path(draft.output)
    testbed = Testbed(folder, groups, ranks_per_group, with_aggregator=not draft.direct, base=config, say=say)
    try:
        with folder.held(), testbed:
            folder.write_state(TestbedState(os.getpid()))
            wait_until_present(testbed.registry, draft.direct, _PRESENT_SECONDS, testbed.supervise)
            try:
                end = follow(testbed.registry, draft, testbed.supervise)
            finally:
                target = _target(testbed.registry, draft)
    except MpistreamError as error:
        leave(folder, testbed)
        raise type(error)(error.message, _remedy(error, folder, draft, target, bool(testbed.unfinished))) from error
    except KeyboardInterrupt:
        _remove(folder, draft, target)
        raise
    except BaseException:
        leave(folder, testbed)
        if testbed.unfinished:
            say(f"nothing is lost; the scan goes on with: mpistream testbed up --folder {folder.path}")
        raise
    _remove(folder, draft, target)
    return end


def _target(registry: Registry, draft: ScanRecord) -> Path:
    """Where the dataset was to go in the end: the scan may have been redirected."""
    with suppress(CoordinationError):
        return Path(find_scan(registry, str(draft.uid)).facts.target)
    return Path(draft.output)


def _remedy(error: MpistreamError, folder: TestbedFolder, draft: ScanRecord, target: Path, unfinished: bool) -> str:
    if unfinished:
        return (
            f"{error.remedy}\n  nothing is lost; the scan goes on with: mpistream testbed up --folder {folder.path}"
        ).strip()
    folder.forget_scans()
    _remove_partials(draft, target)
    logs = "" if str(folder.path) in error.remedy else f"\n  logs: {folder.logs}"
    return f"{error.remedy}{logs}".strip()


def _remove(folder: TestbedFolder, draft: ScanRecord, target: Path) -> None:
    """Also what processes that were killed may have left of the scan."""
    shutil.rmtree(folder.path, ignore_errors=True)
    _remove_partials(draft, target)
    shutil.rmtree(draft.journals, ignore_errors=True)


def _remove_partials(draft: ScanRecord, target: Path) -> None:
    for path in {Path(draft.output), target}:
        remove_partials(path, draft.uid.hex)
