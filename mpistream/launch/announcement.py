"""What a user asks for becomes a scan that all processes know of."""

import time
from dataclasses import dataclass
from pathlib import Path

from mpistream.acquisition.source import files_of_source
from mpistream.control.registry import Registry
from mpistream.launch.reuse import with_saved_thresholds
from mpistream.launch.scan_follower import check_senders
from mpistream.model.config import Config
from mpistream.model.errors import ScanFailed
from mpistream.model.scan import CountingParameters, ScanRecord
from mpistream.pipeline.producer import check_window
from mpistream.pipeline.source_frames import record_of_source
from mpistream.reduction.reference_images import References
from mpistream.storage.small_files import check_targets


@dataclass(frozen=True)
class ScanRequest:
    """What a user asks for. ``thresholds``: a dataset, or a file of `mpistream calibrate`, to take thresholds from."""

    source: str
    output: Path
    counting: CountingParameters
    overwrite: bool = False
    direct: bool = False
    thresholds: Path | None = None


def draft_scan(request: ScanRequest, config: Config) -> tuple[ScanRecord, tuple[str, ...]]:
    """The scan's record, but for the routing table, and notes for the user.

    Finds everything that can be wrong before a process is started. Raises MpistreamError with the remedy.
    """
    counting = request.counting
    named = (counting.dark, counting.gain, counting.pixel_mask, request.thresholds)
    inputs = [Path(path) for path in named if path is not None] + files_of_source(request.source)
    check_targets([request.output.absolute()], request.overwrite, inputs)
    threshold_notes: tuple[str, ...] = ()
    if request.thresholds is not None:
        counting, threshold_notes = with_saved_thresholds(counting, request.thresholds)
    References.load(counting)  # for what is wrong with them
    draft, notes = record_of_source(
        request.source,
        config.stream.block_frames,
        counting,
        output=str(request.output.absolute()),
        overwrite=request.overwrite,
        direct=request.direct,
    )
    check_window(config, draft)
    if counting.background is not None and counting.background < 0:
        notes += (
            f"with a background below 0 ({counting.background:g} ADU) pixels that it leaves out can count as "
            "electrons, and counting takes 50 times as long",
        )
    return draft, (*notes, *threshold_notes)


def announce(registry: Registry, draft: ScanRecord) -> ScanRecord:
    """Writes the scan's record. Raises ScanFailed where a process that it needs is not running."""
    table = registry.latest_routing()
    if table is None or not any(group.job == table.job for group in registry.groups()):
        raise ScanFailed("no rank group is registered", "start the MPI job: mpiexec -n 4 mpistream consume")
    check_senders(registry, draft.direct)
    record = draft.model_copy(update={"routing_version": table.version, "announced_unix_seconds": time.time()})
    registry.announce(record)
    return record
