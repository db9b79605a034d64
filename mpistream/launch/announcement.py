"""What a user asks for becomes a scan that all processes know of."""

import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from mpistream.acquisition.source import absolute_specification, describe_source
from mpistream.control.registry import Registry
from mpistream.launch.scan_follower import check_senders
from mpistream.model.config import Config
from mpistream.model.errors import ScanFailed
from mpistream.model.scan import CountingParameters, ScanRecord
from mpistream.pipeline.producer import check_window
from mpistream.reduction.reference_images import load_reference_image
from mpistream.storage.placement import check_target


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
    check_target(request.output.absolute(), request.overwrite)
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


def announce(registry: Registry, draft: ScanRecord) -> ScanRecord:
    """Writes the scan's record. Raises ScanFailed where a process that it needs is not running."""
    table = registry.latest_routing()
    if table is None or not any(group.job == table.job for group in registry.groups()):
        raise ScanFailed("no rank group is registered", "start the MPI job: mpiexec -n 4 mpistream consume")
    check_senders(registry, draft.direct)
    record = draft.model_copy(update={"routing_version": table.version, "announced_unix_seconds": time.time()})
    registry.announce(record)
    return record
