"""What a batch job does in the modes that leave references: dark, calibrate."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from mpistream.launch.cluster.batch_run import BatchRun, ProgramEnd
from mpistream.launch.cluster.programs import Scans, needed_session, request_scan
from mpistream.launch.cluster.record import say
from mpistream.launch.cluster.scan_work import announce_scan, follow_scan
from mpistream.launch.references import FOLDER, reference_path, store_reference
from mpistream.model.errors import StorageError
from mpistream.model.scan import CountingParameters
from mpistream.model.session import ReferenceKind
from mpistream.pipeline.source_frames import record_of_source, source_blocks
from mpistream.reduction.dark_reference import dark_reference
from mpistream.reduction.frame_assembly import AssembledBlock
from mpistream.storage.small_files import save_files
from mpistream.storage.thresholds_file import read_thresholds

_OUTLIER_SIGMAS = 5.0
_TURN_SECONDS = 1.0


def dark(run: BatchRun, source: str, name: str) -> ProgramEnd:
    """A dark scan is recorded as it comes; what is made of it are the mean of every pixel and a mask of bad ones."""
    recording = _folder(run) / f"{name}_dark_{run.allocation.number}.recording.h5"
    request = request_scan(run, Scans(source, recording, recording=True), source, recording)
    uid = announce_scan(run, request)
    end = follow_scan(run, uid)
    announced = run.persist(lambda: run.registry.record(uid))
    block_frames = run.config.stream.block_frames
    record, notes = record_of_source(f"raw:{recording}", block_frames, CountingParameters())
    run.is_working = True
    found = dark_reference(_looking_after(run, source_blocks(record)), record.encoding.layout, _OUTLIER_SIGMAS)
    for note in (*notes, *found.notes):
        say(f"note: {note}")
    images = {ReferenceKind.DARK: found.mean, ReferenceKind.MASK: found.mask}
    paths = {kind: reference_path(run.sessions, kind, name, run.order.session) for kind in images}
    save_files({paths[kind]: partial(np.save, arr=image) for kind, image in images.items()}, overwrite=False)
    about: dict[str, str | int | float] = {
        "source": announced.source if announced else source,
        "frames": found.frames,
        "scan": end.status.state.value,
    }
    for kind, path in paths.items():
        store_reference(run.sessions, kind, name, path, run.order.session, about)
    recording.unlink(missing_ok=True)
    where = paths[ReferenceKind.DARK]
    return ProgramEnd(f"--dark ref:{name}, --pixel-mask ref:{name}: of {found.frames} frames, in {where}")


def calibrate(run: BatchRun, scans: Scans, name: str) -> ProgramEnd:
    """A scan is counted; what is kept of it, beside its dataset, are the thresholds that were found for it."""
    dataset = _folder(run) / f"{name}_thresholds_{run.allocation.number}.scan.h5"
    end = follow_scan(run, announce_scan(run, request_scan(run, scans, scans.source, dataset)))
    saved = read_thresholds(Path(end.summary.dataset))
    path = reference_path(run.sessions, ReferenceKind.THRESHOLDS, name, run.order.session)
    save_files({path: lambda file: file.write(saved.to_json().encode())}, overwrite=False)
    found = saved.thresholds
    about: dict[str, str | int | float] = {
        "source": saved.source,
        "background": found.background,
        "xray": found.xray,
        "frames": found.sample_frames,
    }
    store_reference(run.sessions, ReferenceKind.THRESHOLDS, name, path, run.order.session, about)
    limits = f"background {found.background:.4f}, x-ray {found.xray:.4f} ADU"
    return ProgramEnd(f"--thresholds ref:{name}: {limits}, in {path}")


def _folder(run: BatchRun) -> Path:
    """Where the session's references lie, and what they are made of."""
    folder = Path(needed_session(run).folder) / FOLDER
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {error.strerror}", "check the session's folder") from error
    return folder


def _looking_after(run: BatchRun, blocks: Iterator[AssembledBlock]) -> Iterator[AssembledBlock]:
    """The blocks; the job is looked after meanwhile."""
    looked = time.monotonic()
    for block in blocks:
        if time.monotonic() - looked > _TURN_SECONDS:
            run.turn()
            looked = time.monotonic()
        yield block
