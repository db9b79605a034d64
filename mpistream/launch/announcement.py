"""What a user asks for becomes a scan that all processes know of."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from mpistream.acquisition.source import files_of_source
from mpistream.control.registry import Registry
from mpistream.launch.absence import check_present
from mpistream.launch.inspection import read_scans
from mpistream.launch.reuse import with_saved_thresholds
from mpistream.model.config import Config
from mpistream.model.errors import ConfigError, StorageError
from mpistream.model.scan import UNCOUNTED, CountingParameters, Durability, ScanRecord
from mpistream.model.session import referred_name
from mpistream.pipeline.producing.sector_stream import check_window
from mpistream.pipeline.source_frames import record_of_source
from mpistream.reduction.reference_images import References
from mpistream.storage.recording_pixels import check_room
from mpistream.storage.small_files import check_targets


@dataclass(frozen=True)
class ScanRequest:
    """What a user asks for. ``thresholds``: a dataset, or a file of `mpistream calibrate`, to take thresholds from.

    ``session``, ``labels`` and ``references`` as in the scan's record. ``uid``: that of the scan, where something is
    already named after it. ``recording``: keep the records, uncounted; then nothing may be said about counting.
    """

    source: str
    output: Path
    counting: CountingParameters
    overwrite: bool = False
    direct: bool = False
    thresholds: Path | None = None
    session: str = ""
    labels: Mapping[str, str | int | float] = field(default_factory=dict)
    references: Mapping[str, str] = field(default_factory=dict)
    uid: UUID | None = None
    recording: bool = False


def draft_scan(request: ScanRequest, config: Config) -> tuple[ScanRecord, tuple[str, ...]]:
    """The record of a scan that will be streamed, and notes for the user.

    Finds everything that can be wrong before a process is started. Raises MpistreamError with the remedy.
    """
    draft, notes = draft_count(request, config)
    check_window(config, draft)
    streamed = {
        "journals": journal_folder(Path(draft.output), draft.uid, config, request.recording),
        "durability": Durability(config.journal.durability),
        "recording": request.recording,
    }
    draft = draft.model_copy(update=streamed)
    if draft.recording:
        check_room(draft)
    return draft, notes


def draft_count(request: ScanRequest, config: Config) -> tuple[ScanRecord, tuple[str, ...]]:
    """The same for one that is counted by processes that read the source themselves: without journals."""
    counting, counting_notes = checked_counting(request, files_of_source(request.source))
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
            "uid": request.uid or draft.uid,
            "durability": Durability.NONE,
            "detectors": config.detectors.virtual,
            "session": request.session,
            "labels": dict(request.labels),
            "references": dict(request.references),
        }
    )
    return draft, (*notes, *counting_notes)


def checked_counting(
    request: ScanRequest, source_files: Sequence[Path] = ()
) -> tuple[CountingParameters, tuple[str, ...]]:
    """What the scan is counted with, and notes for the user.

    Raises MpistreamError for what is wrong with it, and where the output is there, or would replace an input.
    """
    counting = _uncounted(request) if request.recording else request.counting
    used = (counting.dark, counting.gain, counting.pixel_mask, request.thresholds)
    inputs = [Path(path) for path in used if path is not None]
    check_no_names(*inputs)
    check_targets([request.output.absolute()], request.overwrite, [*inputs, *source_files])
    notes: tuple[str, ...] = ()
    if request.thresholds is not None:
        counting, notes = with_saved_thresholds(counting, request.thresholds)
    References.load(counting)  # for what is wrong with them
    if counting.background is not None and counting.background < 0:
        warning = (
            f"with a background below 0 ({counting.background:g} ADU) pixels that it leaves out can count as "
            "electrons, and counting takes 50 times as long"
        )
        notes = (warning, *notes)
    return counting, notes


def check_no_names(*paths: str | Path | None) -> None:
    """Raises ConfigError for a reference whose name has not been resolved: of a kind that has no names, or where no
    deployment runs that knows any.
    """
    for path in paths:
        if path is not None and referred_name(str(path)) is not None:
            raise ConfigError(
                f"{path} is no file",
                "names stand for dark references, pixel masks and thresholds, where a deployment runs that knows them: "
                "in mpistream scan start, testbed scan, calibrate --name; otherwise give the path",
            )


def _uncounted(request: ScanRequest) -> CountingParameters:
    """Raises ConfigError where something is asked for that only counting can do."""
    default = CountingParameters()
    asked = [
        name for name in CountingParameters.model_fields if getattr(request.counting, name) != getattr(default, name)
    ]
    asked += ["thresholds"] if request.thresholds is not None else []
    if asked:
        raise ConfigError(
            f"a raw recording is not counted, so it has no {', '.join(name.replace('_', ' ') for name in asked)}",
            f"leave that out, and count the recording with it: --source raw:{request.output}",
        )
    return UNCOUNTED


def journal_folder(output: Path, uid: UUID, config: Config, recording: bool) -> str:
    """The folder for the journals of scan ``uid``, which its ranks make. Raises StorageError.

    That of a recording lies beside its output: its file is filled there, and gets another name at the end.
    """
    folder = Path(config.journal.directory) if config.journal.directory and not recording else output.parent
    if not folder.is_dir():
        raise StorageError(f"the folder for journals {folder} does not exist", f"make it: mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(
            f"the folder for journals {folder} is not writable", "change its permissions, or [journal] directory"
        )
    return str(folder / f"{output.name}.journal.{uid.hex}")


def announce(registry: Registry, draft: ScanRecord) -> ScanRecord:
    """Writes the scan's record. Raises ScanFailed where a process that it needs is not running, and StorageError where
    another scan that has not ended is to have the output's name.
    """
    check_present(registry, draft.direct)
    check_nobody_writes(registry, draft.output, draft.uid, draft.overwrite)
    record = draft.model_copy(update={"announced_unix_seconds": time.time()})
    registry.announce(record)
    return record


def check_nobody_writes(registry: Registry, output: str, own: UUID, overwrite: bool) -> None:
    """Raises StorageError where a scan that has not ended, other than ``own``, is to have the output's name."""
    for uid, other in read_scans(registry).items():
        if other.facts.is_unfinished and other.facts.target == output and uid != own and not overwrite:
            raise StorageError(
                f"{output} is the output of scan {uid}, which has not ended",
                "give another output; or end that scan: mpistream scan abort",
            )
