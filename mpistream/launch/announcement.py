"""What a user asks for becomes a scan that all processes know of."""

import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from mpistream.acquisition.source import absolute_specification, describe_source
from mpistream.control.registry import Registry
from mpistream.model.config import Config
from mpistream.model.errors import ScanFailed, StorageError
from mpistream.model.geometry import SECTORS
from mpistream.model.scan import CountingParameters, ScanRecord
from mpistream.pipeline.producer import check_window
from mpistream.reduction.reference_images import load_reference_image


@dataclass(frozen=True)
class ScanRequest:
    """What a user asks for."""

    source: str
    output: Path
    counting: CountingParameters
    overwrite: bool = False
    direct: bool = False


def draft_scan(request: ScanRequest, config: Config) -> tuple[ScanRecord, tuple[str, ...]]:
    """The scan's record, but for the routing table, and notes for the user.

    Finds everything that can be wrong before a process is started. Raises MpistreamError with the remedy.
    """
    check_output(request.output, request.overwrite)
    if request.counting.dark:
        load_reference_image(request.counting.dark, "dark")
    if request.counting.gain:
        load_reference_image(request.counting.gain, "gain")
    description = describe_source(request.source)
    draft = ScanRecord(
        uid=uuid.uuid4(),
        scan_number=description.scan_number,
        rows=description.scan_shape.rows,
        columns=description.scan_shape.columns,
        source=absolute_specification(request.source),
        encoding=description.encoding,
        first_frame=description.first_frame,
        last_frame=description.last_frame,
        block_frames=config.stream.block_frames,
        routing_version=0,
        direct=request.direct,
        counting=request.counting,
        output=str(request.output.absolute()),
        overwrite=request.overwrite,
        announced_unix_seconds=time.time(),
    )
    check_window(config, draft)
    return draft, description.notes


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


def announce(registry: Registry, draft: ScanRecord) -> ScanRecord:
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
    if not draft.direct and not registry.aggregators():
        raise ScanFailed("no aggregator is registered", "start one (mpistream aggregate), or stream with --direct")
    record = draft.model_copy(update={"routing_version": table.version, "announced_unix_seconds": time.time()})
    registry.announce(record)
    return record
