"""Announces a scan to a running deployment and follows it to its end."""

import logging
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mpistream.acquisition.source import SourceDescription, absolute_specification, describe_source
from mpistream.control.coordination import Change
from mpistream.control.registry import Registry
from mpistream.control.run_state import ScanState, ScanStatus
from mpistream.model.config import Config
from mpistream.model.errors import CoordinationError, MpistreamError, ScanFailed, StorageError
from mpistream.model.geometry import SECTORS
from mpistream.model.scan import CountingParameters, ScanRecord, ScanSummary
from mpistream.pipeline.producer import check_window
from mpistream.reduction.reference_images import load_reference_image
from mpistream.transport.mailbox import Mailbox

_log = logging.getLogger(__name__)

_TURN_SECONDS = 0.25
_LIVENESS_SECONDS = 0.5
_ABORT_SECONDS = 2.0


@dataclass(frozen=True)
class ScanRequest:
    """What a user asks for."""

    source: str
    output: Path
    counting: CountingParameters
    overwrite: bool = False
    direct: bool = False


def check_request(request: ScanRequest) -> SourceDescription:
    """Everything that can be found wrong before a process is started. Raises MpistreamError with the remedy."""
    check_output(request.output, request.overwrite)
    if request.counting.dark:
        load_reference_image(request.counting.dark, "dark")
    if request.counting.gain:
        load_reference_image(request.counting.gain, "gain")
    return describe_source(request.source)


def check_output(path: Path, overwrite: bool) -> None:
    """Raises StorageError unless a dataset can be written to ``path``."""
    if path.is_dir():
        raise StorageError(f"{path} is a folder", "name a file, for instance scan.h5")
    if path.exists() and not overwrite:
        raise StorageError(f"{path} exists", "choose another name, or replace it with --overwrite")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise StorageError(f"there is no folder {folder}", "make it, or write elsewhere")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"the folder {folder} is not writable", "change its permissions, or write elsewhere")


def announce(registry: Registry, config: Config, request: ScanRequest, description: SourceDescription) -> ScanRecord:
    """Writes the scan's record. Raises ScanFailed where a process that it needs is not running."""
    table = registry.latest_routing()
    if table is None or not any(group.job == table.job for group in registry.groups()):
        raise ScanFailed("no rank group is registered", "start the MPI job: mpiexec -n 4 mpistream consume")
    absent = set(range(SECTORS)) - {producer.sector for producer in registry.producers()}
    if absent:
        raise ScanFailed(
            f"no producer is registered for sector {', '.join(map(str, sorted(absent)))}",
            "start one for each sector: mpistream produce --sector N",
        )
    if not request.direct and not registry.aggregators():
        raise ScanFailed("no aggregator is registered", "start one (mpistream aggregate), or stream with --direct")
    record = ScanRecord(
        uid=uuid.uuid4(),
        scan_number=description.scan_number,
        rows=description.scan_shape.rows,
        columns=description.scan_shape.columns,
        source=absolute_specification(request.source),
        encoding=description.encoding,
        first_frame=description.first_frame,
        last_frame=description.last_frame,
        block_frames=config.stream.block_frames,
        routing_version=table.version,
        direct=request.direct,
        counting=request.counting,
        output=str(request.output.absolute()),
        overwrite=request.overwrite,
        announced_unix_seconds=time.time(),
    )
    check_window(config, record)
    registry.announce(record)
    return record


class ScanFollower:
    """Follows one announced scan. ``check_alive`` raises ScanFailed when a process that the scan needs is gone."""

    def __init__(self, registry: Registry, record: ScanRecord, patience_seconds: float) -> None:
        self._registry = registry
        self._record = record
        self._patience_seconds = patience_seconds
        self._news: Mailbox[Change] = Mailbox()

    def follow(
        self, check_alive: Callable[[], None], on_progress: Callable[[ScanState, dict[str, int]], None]
    ) -> ScanSummary:
        """Returns when the dataset has its final name. Raises ScanFailed when the scan ends otherwise, and when
        nothing moves for ``patience_seconds``; an interrupt aborts the scan first.
        """
        watch = self._registry.watch_scan(self._record.uid, self._news.put)
        try:
            return self._follow(check_alive, on_progress)
        except KeyboardInterrupt:
            self._end(ScanFailed("interrupted by the user"))
            raise
        except ScanFailed as error:
            self._end(error)
            raise
        finally:
            watch.close()
            self._news.close()

    def _follow(
        self, check_alive: Callable[[], None], on_progress: Callable[[ScanState, dict[str, int]], None]
    ) -> ScanSummary:
        state = ScanState.ANNOUNCED
        progress: dict[str, int] = {}
        moved = checked = time.monotonic()
        while True:
            for key, value in self._news.wait(_TURN_SECONDS):
                if key == "state" and value is not None:
                    status = ScanStatus.from_json(value)
                    state, moved = status.state, time.monotonic()
                    if state.is_final:
                        return self._ended(status)
            now = time.monotonic()
            try:
                latest = self._registry.progress(self._record.uid)
                if latest != progress:
                    progress, moved = latest, now
                if now - checked > _LIVENESS_SECONDS:
                    check_alive()
                    checked = now
            except CoordinationError as error:
                # The stream goes on without etcd; only its end cannot be seen yet.
                _log.warning("waiting: %s", error.message)
            on_progress(state, progress)
            if state is not ScanState.ASSEMBLING and now - moved > self._patience_seconds:
                raise ScanFailed(
                    f"the scan made no progress for {self._patience_seconds:g} s",
                    "look into the logs; [stream] patience_seconds sets this limit",
                )

    def _ended(self, status: ScanStatus) -> ScanSummary:
        summary = self._registry.summary(self._record.uid)
        if summary is None:
            raise ScanFailed(status.reason or f"the scan ended {status.state}", status.remedy)
        return summary

    def _end(self, error: MpistreamError) -> None:
        """Ends the scan for all: asks the job to, and does it in its place where the job is gone."""
        try:
            self._registry.request_abort(self._record.uid, error.message)
            deadline = time.monotonic() + _ABORT_SECONDS
            while time.monotonic() < deadline:
                state = self._registry.status(self._record.uid).state
                if state.is_final or state is ScanState.ASSEMBLING:
                    return  # a dataset that is being written is finished
                time.sleep(0.05)
            self._registry.set_state(self._record.uid, ScanState.ABORTED, error)
        except CoordinationError as unreachable:
            _log.error("the scan could not be aborted: %s", unreachable)


def check_registered(registry: Registry, record: ScanRecord) -> None:
    """Raises ScanFailed when a process that the scan needs has lost its registration."""
    job = registry.routing(record.routing_version).job
    if not any(group.job == job for group in registry.groups()):
        raise ScanFailed("the MPI job that counts this scan has ended", "look into the consumers' log; start it again")
    absent = set(range(SECTORS)) - {producer.sector for producer in registry.producers()}
    if absent:
        raise ScanFailed(f"the producer of sector {min(absent)} has ended", "look into its log; start it again")
    if not record.direct and not registry.aggregators():
        raise ScanFailed("the aggregator has ended", "look into its log; start it again")
