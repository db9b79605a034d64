"""What a user asks for becomes a scan that all processes know of."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mpistream.acquisition.source import files_of_source
from mpistream.control.registry import Registry
from mpistream.launch.absence import check_present
from mpistream.launch.inspection import read_scans
from mpistream.launch.reuse import with_saved_thresholds
from mpistream.model.config import Config
from mpistream.model.errors import StorageError
from mpistream.model.scan import CountingParameters, Durability, ScanRecord
from mpistream.pipeline.producing.sector_stream import check_window
from mpistream.pipeline.source_frames import record_of_source
from mpistream.reduction.reference_images import References
from mpistream.storage.small_files import check_targets


@dataclass(frozen=True)
class ScanRequest:
    """What a user asks for. ``thresholds``: a dataset, or a file of `mpistream calibrate`, to take thresholds from.

    ``session`` and ``labels`` as in the scan's record.
    """

    source: str
    output: Path
    counting: CountingParameters
    overwrite: bool = False
    direct: bool = False
    thresholds: Path | None = None
    session: str = ""
    labels: Mapping[str, str | int | float] = field(default_factory=dict)


def draft_scan(request: ScanRequest, config: Config) -> tuple[ScanRecord, tuple[str, ...]]:
    """The record of a scan that will be streamed, and notes for the user.

    Finds everything that can be wrong before a process is started. Raises MpistreamError with the remedy.
    """
    draft, notes = draft_count(request, config)
    check_window(config, draft)
    streamed = {"journals": _journals(draft, config), "durability": Durability(config.journal.durability)}
    return draft.model_copy(update=streamed), notes


def draft_count(request: ScanRequest, config: Config) -> tuple[ScanRecord, tuple[str, ...]]:
    """The same for one that is counted by processes that read the source themselves: without journals."""
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
    draft = draft.model_copy(
        update={
            "durability": Durability.NONE,
            "detectors": config.detectors.virtual,
            "session": request.session,
            "labels": dict(request.labels),
        }
    )
    if counting.background is not None and counting.background < 0:
        notes += (
            f"with a background below 0 ({counting.background:g} ADU) pixels that it leaves out can count as "
            "electrons, and counting takes 50 times as long",
        )
    return draft, (*notes, *threshold_notes)


def _journals(draft: ScanRecord, config: Config) -> str:
    """The folder for the scan's journals, which its ranks make. Raises StorageError."""
    output = Path(draft.output)
    folder = Path(config.journal.directory) if config.journal.directory else output.parent
    if not folder.is_dir():
        raise StorageError(f"the folder for journals {folder} does not exist", f"make it: mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(
            f"the folder for journals {folder} is not writable", "change its permissions, or [journal] directory"
        )
    return str(folder / f"{output.name}.journal.{draft.uid.hex}")


def announce(registry: Registry, draft: ScanRecord) -> ScanRecord:
    """Writes the scan's record. Raises ScanFailed where a process that it needs is not running, and StorageError where
    another scan that has not ended is to have the output's name.
    """
    check_present(registry, draft.direct)
    for uid, other in read_scans(registry).items():
        is_same = other.facts.is_unfinished and other.facts.target == draft.output
        if is_same and uid != draft.uid and not draft.overwrite:
            raise StorageError(
                f"{draft.output} is the output of scan {uid}, which has not ended",
                "give another output; or end that scan: mpistream scan abort",
            )
    record = draft.model_copy(update={"announced_unix_seconds": time.time()})
    registry.announce(record)
    return record
